"""Every message that the troubleshooting page quotes is one that prefork can print, and none of a start is missing."""

from __future__ import annotations

import ast
import errno
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.support import run_script

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "prefork"
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
QUOTED: list[str] = re.findall(r"^\| `(.*?)` \|", PAGE, re.M)
#: A word in capitals stands for a value, except for those that the messages themselves have.
VALUE = re.compile(r"…|\b(?!PREFORK_|CAP_NET_BIND_SERVICE|PEM|TOML|IPv6)[A-Z]+\b")
#: What libc says, which no source of prefork has.
SYSTEM = [os.strerror(code).lower() for code in errno.errorcode] + ["name or service not known"]
#: Calls that make a message that ends a start or refuses a command.
RAISES = {"ConfigError", "ServiceError", "BindError", "reject", "_rejected"}
#: Checks of single values, whose messages state what is allowed.
CHECKS = {"addresses.py", "checks.py", "config.py", "proxies.py", "values.py"}


def literals(node: ast.AST) -> Iterator[str]:
    """Yield the constant parts of the strings below `node`, without those of calls in it."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    for each in ast.iter_child_nodes(node):
        if not isinstance(each, ast.Call):
            yield from literals(each)


def constants(path: Path) -> Iterator[str]:
    """Yield the constant parts of all strings of a file that are no docstrings."""
    tree = ast.parse(path.read_text())
    docstrings = {id(each.value) for each in ast.walk(tree) if isinstance(each, ast.Expr)}
    for each in ast.walk(tree):
        if isinstance(each, ast.Constant) and isinstance(each.value, str) and id(each) not in docstrings:
            yield each.value


TEXTS = [*(text for path in SOURCE.rglob("*.py") for text in constants(path)), *SYSTEM]


def fragments(message: str) -> list[str]:
    """Return the parts of a message between its values, cut also where a message is put together from several."""
    parts = re.split(r": | \(|\) |; |, | and |^bind ", VALUE.sub(": ", message))
    return [text for part in parts if len(text := part.strip(" :;,()?'\"")) > 3]


@pytest.mark.parametrize("message", QUOTED)
def test_a_quoted_message_is_one_that_prefork_can_print(message: str) -> None:
    missing = [each for each in fragments(message) if not any(each in text for text in TEXTS)]
    assert not missing, f"no message of prefork has {missing}"


def raised() -> Iterator[tuple[str, str]]:
    """Yield where a message of a start is made, and the longest constant part of it."""
    for path in SOURCE.rglob("*.py"):
        if path.name in CHECKS:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in RAISES:
                parts = [part for argument in node.args for text in literals(argument) for part in fragments(text)]
                if parts:
                    yield f"{path.relative_to(SOURCE)}:{node.lineno}", max(parts, key=len)


@pytest.mark.parametrize(("where", "part"), [pytest.param(*each, id=each[0]) for each in raised()])
def test_a_message_that_ends_a_start_is_on_the_page(where: str, part: str) -> None:
    assert part in PAGE, f"{where} says {part!r}, which docs/troubleshooting.md does not explain"


# --- real starts ------------------------------------------------------------------------------------------------------


def documented(message: str) -> bool:
    """Whether a row of the page matches the message."""
    patterns = [".*".join(map(re.escape, VALUE.split(quoted))) for quoted in QUOTED]
    return any(re.match(pattern, message) for pattern in patterns)


STARTS = {
    "no colon in TARGET": (["echo"], 2),
    "an option that is none": (["echo:handle", "--worker", "2"], 2),
    "no port": (["echo:handle", "--bind", "localhost"], 2),
    "a URL as an address": (["echo:handle", "--bind", "tcp://0.0.0.0:9000"], 2),
    "no key": (["echo:handle", "--tls-cert", "cert.pem"], 2),
    "no such certificate": (["echo:handle", "--tls-cert", "no.pem", "--tls-key", "no.pem"], 2),
    "no certificate in the file": (["echo:handle", "--tls-cert", "echo.py", "--tls-key", "echo.py"], 2),
    "no configuration file": (["echo:handle", "--config", "no.toml"], 2),
    "an option in the file that is none": (["echo:handle", "--config", "wrong.toml"], 2),
    "no such user": (["echo:handle", "--user", "nobody-of-that-name"], 2),
    "no such module": (["nowhere:handle"], 3),
    "no such attribute": (["echo:handel"], 3),
    "no such file": (["nowhere.py:handle"], 3),
    "a module that raises": (["broken:handle"], 3),
    "a handler that is not async": (["broken.py:handle", "--config", "right.toml"], 3),
    "a port in use": (["echo:handle", "--control", "off", "--bind"], 4),
}


def start(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return run_script("import sys\nfrom prefork.cli.main import main\nsys.exit(main())", *words, cwd=cwd)


@pytest.mark.parametrize(("arguments", "code"), [pytest.param(*each, id=name) for name, each in STARTS.items()])
def test_a_start_that_fails_prints_a_message_of_the_page(arguments: list[str], code: int, tmp_path: Path) -> None:
    (tmp_path / "echo.py").write_text("async def handle(stream): ...\n")
    (tmp_path / "broken.py").write_text("def handle(stream, more): ...\nraise ValueError('broken')\n")
    (tmp_path / "wrong.toml").write_text("[prefork]\nworkers = 2\n")
    (tmp_path / "right.toml").write_text("workers = 2\n")
    command = "serve" if arguments[-1] == "--bind" else "check"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        if command == "serve":
            arguments = [*arguments, f"127.0.0.1:{taken.getsockname()[1]}"]
        done = start(command, *arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    (line,) = done.stderr.splitlines()
    assert documented(line.removeprefix("prefork: ")), line
    assert sys.version_info >= (3, 11)


RUNS = {
    "no program": ([], 2),
    "python without a program": (["python"], 2),
    "an option of Python": (["python", "-O", "program.py"], 2),
    "another Python": (["python3.9", "program.py"], 2),
    "no module": (["-m"], 2),
    "a path as a module": (["-m", "./program.py"], 2),
    "another kind of ready": (["--ready", "soon", "program.py"], 2),
    "ready too late": (["--ready", "delay:9", "--boot-timeout", "2", "program.py"], 2),
    "an option of serve in the file": (["--config", "serve.toml", "program.py"], 2),
    "no such file": (["nowhere.py"], 3),
    "no such module": (["-m", "nowhere"], 3),
    "no such script": (["no-script-of-that-name"], 3),
    "a directory without a main program": (["python", "."], 3),
    "a script of the shell": (["sh"], 3),
    "a program that does not listen": (["program.py"], 3),
    "a program that does not listen in time": (["--boot-timeout", "0.5", "program.py", "3600"], 3),
    "a program that does not listen where it is to": (
        ["--boot-timeout", "0.5", "--bind", "127.0.0.1:0", "program.py", "3600"],
        3,
    ),
}


@pytest.mark.parametrize(("arguments", "code"), [pytest.param(*each, id=name) for name, each in RUNS.items()])
def test_a_program_that_does_not_start_ends_with_a_message_of_the_page(
    arguments: list[str], code: int, tmp_path: Path
) -> None:
    (tmp_path / "program.py").write_text("import sys, time\nfor seconds in sys.argv[1:]: time.sleep(float(seconds))\n")
    (tmp_path / "serve.toml").write_text("loop = 'uvloop'\n")
    done = start("run", *arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    line = done.stderr.splitlines()[-1]
    assert documented(line.removeprefix("prefork: ")), line
