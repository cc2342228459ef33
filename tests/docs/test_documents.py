"""The documents agree with the code: their programs run, their defaults are the code's, their files and links exist."""

from __future__ import annotations

import enum
import inspect
import json
import re
import shutil
import sys
import textwrap
from pathlib import Path

import pytest
from helpers.support import need, need_root, run_script
from programs.catalogue import PROGRAMS as CATALOGUE

from prefork.cli import program_arguments
from prefork.cli.sources import Sources
from prefork.config import RUN_ONLY, SERVE_ONLY, Limits, Settings
from prefork.core import states
from prefork.core import time_limits as limits
from prefork.errors import ExitCode
from prefork.hosting.stage import Stage
from prefork.net import acceptor, channel
from prefork.system.tls_contexts import build_contexts
from prefork.testing import Server, run_server

ROOT = Path(__file__).parents[2]
PAGES = {path.name: path for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]}
TEXT = {name: path.read_text() for name, path in PAGES.items()}
#: Every page except README, whose programs have tests of their own.
PROGRAMS = [
    pytest.param(code, id=f"{name}-{position}")
    for name, text in sorted(TEXT.items())
    if name != "README.md"
    for position, code in enumerate(re.findall(r"```python\n(.*?)```", text, re.S))
]


def readme_program(containing: str) -> str:
    (found,) = [each for each in re.findall(r"```python\n(.*?)```", TEXT["README.md"], re.S) if containing in each]
    return found


def table(page: str, heading: str) -> dict[str, list[str]]:
    """Return the rows of the first table under `heading`: the cells after the first, by the first."""
    section = TEXT[page].split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")]
    return {row[0]: row[1:] for row in rows[2:]}


# --- programs ---------------------------------------------------------------------------------------------------------


def test_the_first_handler_runs_as_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "echo.py").write_text(readme_program("# echo.py"))
    with run_server("echo:handle", cwd=tmp_path) as server:
        done = run_script(
            "import socket, sys\n"
            "sock = socket.create_connection(('127.0.0.1', int(sys.argv[1])), 10)\n"
            "sock.sendall(b'hello\\n'); print(sock.makefile().readline())",
            str(server.port),
        )
        assert done.stdout == "hello\n\n"


HEAD = """
import asyncio

async def handle(stream):
    async for line in stream:
        stream.write(line)

"""
#: Starts the program given as text, talks to port 9000 of a network of its own, over TLS if asked to, and ends it.
DRIVER = """
import socket, ssl, subprocess, sys, time
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
server = subprocess.Popen([sys.executable, sys.argv[1]], stderr=subprocess.PIPE, text=True)
for host in ("127.0.0.1", "::1"):
    for attempt in range(1000):
        try:
            sock = socket.create_connection((host, 9000), 5)
            break
        except OSError:
            assert server.poll() is None, server.stderr.read()
            time.sleep(0.02)
    if sys.argv[2] == "tls":
        context = ssl.create_default_context(cafile=sys.argv[3])
        sock = context.wrap_socket(sock, server_hostname="localhost")
    sock.sendall(b"hello\\n")
    print(sock.makefile().readline(), end="")
    sock.close()
server.terminate()
server.wait(20)
"""


@pytest.mark.parametrize(
    ("text", "wrap", "tls"),
    [("prefork.serve(", False, True), ("async with prefork.TCPServer", True, False), ("fork_processes", False, False)],
)
def test_the_programs_of_the_readme_run_as_they_are_written(
    text: str, wrap: bool, tls: bool, tmp_path: Path, certs: dict[str, str]
) -> None:
    """They listen on port 9000, so each runs in a network namespace of its own."""
    need("unshare", "ip")
    need_root()
    code = readme_program(text)
    if wrap:
        code = f"import prefork\n\nasync def main():\n{textwrap.indent(code, '    ')}\nasyncio.run(main())\n"
    elif "import prefork" not in code:
        code = f"import prefork\n{code}"
    (tmp_path / "program.py").write_text(HEAD + code)
    for name in ("cert", "key"):
        (tmp_path / f"{name}.pem").write_text(Path(certs[name]).read_text())
    done = run_script(
        DRIVER, "program.py", "tls" if tls else "plain", certs["ca"], cwd=tmp_path, prefix=("unshare", "-n")
    )
    assert done.stdout == "hello\nhello\n", done.stderr


@pytest.mark.parametrize("code", PROGRAMS)
def test_the_programs_of_the_other_pages_run_as_they_are_written(code: str, tmp_path: Path) -> None:
    """Programs named `test_*.py` run under pytest, beside the examples; the others as scripts."""
    for example in (ROOT / "examples").glob("*.py"):
        shutil.copy(example, tmp_path)
    name = re.match(r"# (test_\w+\.py)\n", code)
    (tmp_path / (name[1] if name else "program.py")).write_text(code)
    if name:
        command = f"import pytest, sys; sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', {name[1]!r}]))"
        done = run_script(command, cwd=tmp_path, deadline=50)
        assert re.search(r"^\d+ passed", done.stdout, re.M), done.stdout
    else:
        done = run_script(tmp_path / "program.py", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


# --- options ----------------------------------------------------------------------------------------------------------

#: Options whose default in the table is words instead of a value.
WORDED = {"max-connections", "control", "config", "chdir"}


def documented_options() -> dict[str, str]:
    """Return each option of the table with the default that it states."""
    found = {}
    for cell, (default, _) in table("options.md", "Options of `serve` and `check`").items():
        names = re.findall(r"--([a-z-]+)", cell)
        defaults = default.split(", ") if len(names) > 1 and "," in default else [default] * len(names)
        found.update(zip(names, defaults, strict=True))
    return found


def default_of(option: str) -> str:
    """Return the code's default as the table writes it."""
    if option in ("tls-cert", "tls-key"):
        assert Settings().tls == ()
        return "none"
    field = option.replace("-", "_")
    value = getattr(Settings(), field) if field in Settings.__slots__ else getattr(Limits(), field)
    if option == "bind":
        (address,) = value
        return f"`{address}`"
    if value is False:
        return "off"
    if value in ("", b"", ()) or (value is None and option in ("umask", "ready-fd")):
        return "none"
    if value is None:
        return "`off`"
    if option in ("max-unsent", "read-limit"):
        return f"`{value >> 20}M`" if option == "max-unsent" else f"`{value >> 10}K`"
    return f"`{value:g}s`" if isinstance(value, float) else f"`{value}`"


def test_the_table_of_options_states_the_defaults_of_the_code() -> None:
    stated = documented_options()
    assert {option: text for option, text in stated.items() if option not in WORDED} == {
        option: default_of(option) for option in stated if option not in WORDED
    }
    assert Limits().max_connections is None
    assert Settings().control == ""


def test_the_table_of_options_has_all_options_of_the_command() -> None:
    helped = run_script("from prefork.cli.main import main\nmain()", "serve", "--help", env={"COLUMNS": "200"}).stdout
    offered = {name for name in re.findall(r"--([a-z][a-z-]+)", helped) if not name.startswith("no-")} - {"help"}
    assert offered == set(documented_options())


def run_options() -> dict[str, str]:
    """Return each option that only `run` has, with the default that the table states."""
    rows = table("options.md", "Options of `run`").items()
    return {re.findall(r"--([a-z-]+)", cell)[0]: default for cell, (default, _) in rows}


def test_the_options_of_run_are_those_of_the_command() -> None:
    helped = run_script("from prefork.cli.main import main\nmain()", "run", "--help", env={"COLUMNS": "200"}).stdout
    offered = set(re.findall(r"^ +(?:-\w, )?--([a-z][a-z-]+)", helped, re.M)) - {"help"}
    lacking = set(documented_options()) - offered
    assert lacking == {field.replace("_", "-") for field in SERVE_ONLY - {"tls"}}
    section = TEXT["options.md"].partition("## Options of `run`")[2].partition("\n\n|")[0]
    assert lacking <= set(re.findall(r"`--([a-z-]+)`", section))
    assert offered - set(documented_options()) == set(run_options()) == {name.replace("_", "-") for name in RUN_ONLY}
    assert run_options() == {"ready": f"`{Settings().ready}`", "exclusive": "none", "allow-bind": "none"}


def test_the_table_of_exit_codes_is_the_codes_own() -> None:
    assert [int(code) for code in table("options.md", "Exit codes")] == [int(code) for code in ExitCode]


@pytest.mark.parametrize("page", sorted(TEXT))
def test_commands_that_pages_show_use_options_that_exist(page: str) -> None:
    documented = set(documented_options()) | {"json", "now", "help", "version"}
    of_run = {*(f"--{name}" for name in documented | set(run_options())), "-b", "-w", "-c", "-h"}
    for line in re.findall(r"prefork run ([^\n`|]*)", TEXT[page]):
        own, _ = program_arguments.split(line.split(), of_run - {"--reload"})
        assert {word for word in own if word.startswith("-")} <= of_run, line
    for line in re.findall(r"prefork (?:serve|check|status|reload|upgrade|scale|stop) [^\n`]*", TEXT[page]):
        assert set(re.findall(r"(?<= )--([a-z-]+)", line)) <= documented, line


def test_a_file_of_settings_in_a_page_is_accepted(tmp_path: Path) -> None:
    settings = {}
    for page in ("options.md", "running.md"):
        (text,) = re.findall(r"```toml\n(.*?)```", TEXT[page], re.S)
        (tmp_path / "prefork.toml").write_text(text)
        settings[page] = Sources({"config": [str(tmp_path / "prefork.toml")]}, {}).settings()
    limits = settings["running.md"].limits
    assert (limits.first_byte_timeout, limits.idle_timeout, limits.max_age) == (10, 120, 3600)
    assert [str(address) for address in settings["options.md"].bind] == [":9000", "unix:/run/app/echo.sock,mode=660"]
    assert settings["options.md"].max_worker_rss == 512 * 2**20


def test_the_environment_takes_several_addresses_separated_by_spaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (value,) = re.findall(r'`PREFORK_BIND="(.*?)"`', TEXT["options.md"])
    settings = Sources({}, {"PREFORK_BIND": value}).settings()
    assert " ".join(map(str, settings.bind)) == value


def test_the_page_of_programs_lists_those_that_are_tested() -> None:
    rows = " ".join(table("programs.md", "Which servers are tested")).lower()
    missing = [each.name for each in CATALOGUE if each.name.partition("-")[0] not in rows]
    assert not missing


# --- limits and TLS ---------------------------------------------------------------------------------------------------


def test_the_table_of_limits_states_the_fields_and_defaults_of_the_code() -> None:
    stated = {name.strip("`"): default for name, (default, _) in table("streams.md", "Limits from Python").items()}
    words = {None: "off", b"": "empty"}
    limits = Limits()
    values = {name: getattr(limits, name) for name in Limits.__slots__}
    assert stated == {
        name: words.get(value, f"{value:g}" if isinstance(value, float) else str(value))
        for name, value in values.items()
    }


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`Limits\.(\w+)`", TEXT["streams.md"]))))
def test_limits_that_the_text_states_are_the_codes(name: str) -> None:
    value = getattr(Limits(), name)
    text = TEXT["streams.md"]
    near = text[max(0, text.index(f"`Limits.{name}`") - 160) : text.index(f"`Limits.{name}`") + 80]
    forms = {f"{value:g}" if value < 1000 else str(value)}
    if isinstance(value, int) and value % 1024 == 0:
        forms.add(f"{value // 1024} KiB")
    assert any(form in near for form in forms), (name, value, near)


def test_the_table_of_tls_defaults_is_the_contexts(certs: dict[str, str]) -> None:
    import prefork

    context = build_contexts([prefork.TLS(certs["cert"], certs["key"])]).main
    rows = table("running.md", "TLS defaults")
    ciphers = {each["name"]: each["protocol"] for each in context.get_ciphers()}
    stated = {
        name: version
        for version, row in (("TLSv1.2", "TLS 1.2 ciphers"), ("TLSv1.3", "TLS 1.3 ciphers"))
        for name in re.findall(r"`([A-Z0-9_-]+)`", rows[row][0])
    }
    assert stated == ciphers
    assert context.minimum_version.name == "TLSv1_2"
    assert f"{context.num_tickets} per connection" in rows["session tickets"][0]


def test_the_table_of_fixed_timeouts_is_the_codes() -> None:
    rows = {what: text for what, (text, *_) in table("running.md", "Timeouts that are fixed").items()}

    def seconds(what: str) -> float:
        (found,) = [text for row, text in rows.items() if row.startswith(what)]
        return float(re.search(r"[\d.]+(?= s\b)", found)[0])  # type: ignore[index]  # a row without one fails here

    assert seconds("tasks of handlers") == limits.ABORT_TIMEOUT
    end = rows["end of a worker after its drain"]
    assert f"`--stop-timeout` and {limits.worker_exit_timeout(0):g} s" in end
    assert f"kills it {limits.worker_stop_timeout(0, 0) - limits.worker_exit_timeout(0):g} s later" in end


# --- logs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["text", "json"])
def test_log_lines_have_the_documented_form(form: str, tmp_path: Path) -> None:
    (tmp_path / "echo.py").write_text(readme_program("# echo.py"))
    with run_server("echo:handle", "--workers", "1", "--log-format", form, cwd=tmp_path) as server:
        assert server.stop() == 0
        lines = server.stderr().splitlines()
    section = TEXT["running.md"].split("\n## Logs\n")[1]
    if form == "text":
        (shown,) = re.findall(r"```\n(.*?)```", section, re.S)
        for example in shown.splitlines():
            start, message = example.split("]: ")
            pattern = re.sub(r"\d+", r"\\d+", re.escape(start)).replace(r"\+\d", r"[+-]\d")
            assert any(re.match(pattern, line) and line.endswith(message) for line in lines), (pattern, lines)
    else:
        keys = {key for line in lines for key in json.loads(line)}
        assert keys <= set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", section, re.M))))


# --- prefork.testing --------------------------------------------------------------------------------------------------


def test_the_table_of_arguments_of_run_server_is_its_signature() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| .*? \|$", TEXT["testing.md"], re.M)
    stated = {name: default.strip("`") for name, default in rows}
    words = {None: {"this directory", "empty"}, (): {"empty"}}
    parameters = list(inspect.signature(run_server).parameters.values())[2:]
    assert list(stated) == [each.name for each in parameters]
    for each in parameters:
        assert stated[each.name].replace('"', "'") in words.get(each.default, {repr(each.default)}), each


def test_the_table_of_the_server_has_its_members() -> None:
    section = TEXT["testing.md"].split("| `server` has |")[1].split("\n\n")[0]
    stated = set(re.findall(r"`(\w+)", "".join(line.split(" | ")[0] for line in section.splitlines())))
    assert stated == {name for name in vars(Server) if not name.startswith("_")}


# --- files and links --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", sorted(TEXT))
def test_files_that_pages_name_exist(page: str) -> None:
    text = TEXT[page]
    for path in re.findall(r"`((?:tests|docs|src|examples|scripts|bench|soak|cluster|inject)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), f"{page} names {path}"
    for path in re.findall(r"`((?:core|net|system|parent|worker|hosting|cli|observe|assembly|testing)/\w+\.py)`", text):
        assert (ROOT / "src" / "prefork" / path).exists(), f"{page} names {path}"


def test_functions_that_the_architecture_names_are_in_the_files_beside_them() -> None:
    named = re.findall(r"`(\w+/\w+\.py)`((?: `\w+`,?)+)", TEXT["ARCHITECTURE.md"])
    assert len(named) > 10
    for path, names in named:
        source = (ROOT / "src" / "prefork" / path).read_text()
        missing = [
            name for name in re.findall(r"`(\w+)`", names) if not re.search(rf"\b(?:def|class) {name}\b", source)
        ]
        assert not missing, f"ARCHITECTURE.md says that {path} has {missing}"


def test_events_and_commands_that_the_architecture_names_exist() -> None:
    source = "".join((ROOT / "src" / "prefork" / path).read_text() for path in ("events.py", "core/facts.py"))
    names = set(re.findall(r"\b(?:event|command) ([A-Z]\w+)", TEXT["ARCHITECTURE.md"]))
    assert len(names) > 5
    assert {name for name in names if f"class {name}(" not in source and f"class {name}:" not in source} == set()


@pytest.mark.parametrize(
    ("heading", "states"),
    [
        ("worker state", states.WorkerState),
        ("phase of a stream", channel.ConnectionPhase),
        ("state of an acceptor", acceptor.AcceptorState),
        ("stage of a program's worker", Stage),
    ],
)
def test_tables_of_states_have_the_states_of_the_code(heading: str, states: type[enum.Enum]) -> None:
    rows = TEXT["ARCHITECTURE.md"].split(f"| {heading} |")[1].split("\n\n")[0].splitlines()[2:]
    assert [row.split(" | ")[0].strip("| ") for row in rows] == [state.name for state in states]


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", sorted(TEXT))
def test_links_lead_to_pages_and_headings_that_exist(page: str) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", TEXT[page]):
        path, _, anchor = link.partition("#")
        if path.startswith("http"):
            continue
        target = (PAGES[page].parent / path).resolve() if path else PAGES[page]
        assert target.exists(), f"{page} links to {link}"
        assert not anchor or anchor in anchors(target.read_text()), f"{page} links to {link}"


def test_the_map_lists_every_page() -> None:
    linked = {(ROOT / "docs" / path).resolve() for path in re.findall(r"\]\(([^)#]+)", TEXT["index.md"])}
    assert {path.resolve() for path in PAGES.values() if path.name != "index.md"} <= linked


def test_the_project_mentions_no_path_of_the_machine_it_was_made_on() -> None:
    for path in [*PAGES.values(), *(ROOT / "src").rglob("*.py"), ROOT / "Makefile"]:
        assert str(ROOT) not in path.read_text(), path
    assert sys.version_info >= (3, 11)
