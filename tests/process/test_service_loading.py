"""How a service is found, and the message if it cannot be loaded or does not start."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.support import need_root, run_script

from prefork.testing import Server, run_server

ECHO = """
async def handle(stream):
    async for line in stream:
        stream.write(line)
"""


def serve(target: str, folder: Path, *options: str, command: str = "serve") -> subprocess.CompletedProcess[str]:
    """Run the command, which is expected to fail by itself."""
    return subprocess.run(
        [sys.executable, "-m", "prefork", command, target, "--workers", "2", "--bind", "127.0.0.1:0", *options],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )


def complaint(done: subprocess.CompletedProcess[str]) -> str:
    """Return the one line of standard error that is no log line."""
    said = [line for line in done.stderr.splitlines() if not re.match(r"\d{4}-\d\d-\d\dT", line)]
    assert len(said) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return said[0]


def echoed(server: Server) -> bytes:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
        sock.sendall(b"hello\n")
        return sock.makefile("rb").readline()


FILES = {
    "echo.py": ECHO,
    "raises.py": "x = 1\nraise ValueError('no such port: 99999')\n",
    "lines.py": "raise ValueError('first\\nsecond\\x1b[2J')\n",
    "forges.py": "raise ValueError('a\\x1b[2J\\x1b[Hb')\n",
    "needs.py": "import os\nimport no_such_library\n",
    "indirect.py": "import json\n\njson.loads('{')\n",
    "syntax.py": "def handle(stream)\n    pass\n",
    "exits.py": "import sys\nsys.exit(7)\n",
    "number.py": "handle = 42\n",
    "threes.py": "async def handle(a, b, c): ...\n",
    "lazy.py": "def __getattr__(name):\n    raise RuntimeError(f'not {name}')\n",
    "package/__init__.py": "",
    "package/inner.py": "class Thing:\n    handel = 1\n",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("services")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


CASES = {
    "nosuch:handle": "service nosuch:handle: no module named 'nosuch' (looked in {folder} and where Python looks)",
    "package.nosuch:handle": "service package.nosuch:handle: no module named 'package.nosuch' (looked in {folder} and "
    "where Python looks)",
    "echo:handel": "service echo:handel: module 'echo' has no attribute 'handel' (did you mean 'handle'?)",
    "echo:nothing_like_it": "service echo:nothing_like_it: module 'echo' has no attribute 'nothing_like_it'",
    "package.inner:Thing.handle": "service package.inner:Thing.handle: 'type' has no attribute 'handle' (did you mean "
    "'handel'?)",
    "raises:handle": "service raises:handle: ValueError: no such port: 99999 ({folder}/raises.py, line 2)",
    "lines:handle": "service lines:handle: ValueError: first ({folder}/lines.py, line 1)",
    "forges:handle": r"service forges:handle: ValueError: a\x1b[2J\x1b[Hb ({folder}/forges.py, line 1)",
    "needs:handle": "service needs:handle: ModuleNotFoundError: No module named 'no_such_library' "
    "({folder}/needs.py, line 2)",
    "indirect:handle": "service indirect:handle: JSONDecodeError: Expecting property name enclosed in double quotes: "
    "line 1 column 2 (char 1) ({folder}/indirect.py, line 3)",
    "syntax:handle": "service syntax:handle: SyntaxError: expected ':' ({folder}/syntax.py, line 1)",
    "exits:handle": "service exits:handle: SystemExit: 7 ({folder}/exits.py, line 2)",
    "lazy:handle": "service lazy:handle: RuntimeError: not handle ({folder}/lazy.py, line 2)",
    "nosuch.py:handle": "service nosuch.py:handle: {folder}/nosuch.py: no such file",
    "./package:handle": "service ./package:handle: {folder}/package: is not a file",
}


NONE = ["echo", ":handle", "echo:", "", "a..b:handle", ".echo:handle", "my module:handle"]


def test_what_is_wrong_is_said_in_one_line(folder: Path) -> None:
    """Load each target as a worker does."""
    script = """
        import json, sys
        from prefork.errors import ServiceError
        from prefork.worker.loader import load
        said = {}
        for target in json.loads(sys.argv[1]):
            try:
                load(target)
            except ServiceError as exc:
                said[target] = str(exc)
        print(json.dumps(said))
        """
    done = run_script(script, json.dumps([*CASES, *NONE]), cwd=folder)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    form = "expected module:attribute or path/to/file.py:attribute, as in echo:handle"
    assert said == {
        **{target: message.format(folder=folder) for target, message in CASES.items()},
        **{target: f"service {target}: {form}" for target in NONE},
    }


@pytest.mark.parametrize("command", ["serve", pytest.param("check", marks=pytest.mark.slow)])
@pytest.mark.parametrize("target", ["echo:handel", "raises:handle", "exits:handle"])
def test_a_service_that_cannot_be_loaded_is_one_line_and_exit_status_3(target: str, command: str, folder: Path) -> None:
    done = serve(target, folder, command=command)
    assert complaint(done) == "prefork: " + CASES[target].format(folder=folder)
    assert done.returncode == 3


@pytest.mark.parametrize("target", ["number:handle", "threes:handle"])
def test_an_object_that_cannot_be_served_says_what_could_be(target: str, folder: Path) -> None:
    done = serve(target, folder)
    assert done.returncode == 3
    assert complaint(done).startswith(f"prefork: service {target}: ")
    assert "expected async def handle(stream), async def handle(reader, writer), an asyncio.Protocol" in complaint(done)


def test_a_control_socket_that_cannot_be_bound_names_its_option(folder: Path) -> None:
    done = serve("echo:handle", folder, "--control", "nosuch/control")
    assert complaint(done) == "prefork: --control nosuch/control: the directory does not exist"
    assert done.returncode == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("import os; os._exit(9)", "exit status 9"),
        ("import os; os.abort()", r"signal 6 (SIGABRT)"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", r"signal 15 (SIGTERM)"),
    ],
)
def test_a_worker_that_dies_while_it_loads_the_service_is_named_with_its_cause(
    code: str, cause: str, tmp_path: Path
) -> None:
    (tmp_path / "dies.py").write_text(code)
    done = serve("dies:handle", tmp_path)
    assert re.match(r"prefork: worker [01] \(pid \d+\) died while starting: ", complaint(done))
    assert cause in complaint(done)
    assert done.returncode == 3


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("import os; os._exit(0)", "exit status 0"),
        ("import os; os._exit(4)", "exit status 4"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "signal 9 (SIGKILL)"),
    ],
)
def test_check_tells_that_the_import_ended_the_process(code: str, cause: str, tmp_path: Path) -> None:
    (tmp_path / "ends.py").write_text(code)
    done = serve("ends:handle", tmp_path, command="check")
    assert complaint(done) == f"prefork: service ends:handle: importing it ended the process: {cause}"
    assert (done.returncode, done.stdout) == (3, "")


def test_check_names_the_kind_of_the_service(tmp_path: Path) -> None:
    (tmp_path / "kinds.py").write_text("async def one(stream): ...\nasync def two(reader, writer): ...\n")
    kinds = [serve(f"kinds:{name}", tmp_path, command="check").stdout for name in ("one", "two")]
    assert kinds == ["ok: kinds:one is a stream handler\n", "ok: kinds:two is an asyncio streams handler\n"]


FACTORY = """
import asyncio, os

class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
    def data_received(self, data):
        self.transport.write(data)

class Service:
    async def start(self):
        note("start")
    def protocol(self):
        return Echo()
    async def stop(self):
        note("stop")

def note(what):
    loop = asyncio.get_running_loop()
    open("noted", "a").write(f"{what} {os.getpid()} {id(loop)}\\n")

async def make():
    note("make")
    return Service()

async def raises():
    raise ConnectionRefusedError("the database is away")
async def forgets(make=None):
    return make
async def again():
    return make
"""


def test_a_worker_factory_is_awaited_once_in_each_worker_in_its_loop(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(FACTORY)
    assert serve("app:make", tmp_path, command="check").stdout == "ok: app:make is a worker factory\n"
    assert not (tmp_path / "noted").exists(), "check does not call it"
    with run_server("app:make", "-w", "2", cwd=tmp_path) as server:
        workers = server.worker_pids()
        assert echoed(server) == b"hello\n"
        assert server.stop() == 0
    noted = [line.split() for line in (tmp_path / "noted").read_text().splitlines()]
    assert len(noted) == 6
    for worker in workers:
        own = [(what, loop) for what, pid, loop in noted if int(pid) == worker]
        assert [what for what, _ in own] == ["make", "start", "stop"]
        assert len({loop for _, loop in own}) == 1


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("raises", "the worker factory raised ConnectionRefusedError: the database is away ("),
        ("forgets", "the worker factory returned what cannot be served: the object of type NoneType is not callable; "),
        ("again", "the worker factory returned make, another worker factory"),
    ],
)
def test_a_worker_factory_that_fails_is_one_line_and_exit_status_3(name: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(FACTORY)
    done = serve(f"app:{name}", tmp_path)
    assert complaint(done).startswith(f"prefork: service app:{name}: {reason}")
    assert done.returncode == 3


@pytest.mark.parametrize("target", ["echo:handle", "package.inner:handle", "{folder}/package/inner.py:handle"])
def test_a_directory_that_cannot_be_read_is_named(target: str, tmp_path: Path) -> None:
    need_root()
    (tmp_path / "package").mkdir()
    for name in ("echo.py", "package/__init__.py", "package/inner.py"):
        (tmp_path / name).write_text(ECHO)
    closed = tmp_path if target.startswith("echo") else tmp_path / "package"
    for directory in (tmp_path, *list(tmp_path.parents)[:-2]):
        directory.chmod(0o755)
    closed.chmod(0o700)
    script = """
        import os, sys
        from prefork.errors import ServiceError
        from prefork.worker.loader import load
        os.setresuid(65534, 65534, 65534)
        try:
            load(sys.argv[1])
        except ServiceError as exc:
            print(exc)
        """
    target = target.format(folder=tmp_path)
    assert run_script(script, target, cwd=tmp_path).stdout == f"service {target}: {closed}: permission denied\n"


START = """
class Service:
    async def start(self):
        {body}
    async def handle(self, stream): ...
    async def stop(self): ...
service = Service()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise ConnectionRefusedError('the database is away')", "ConnectionRefusedError: the database is away"),
        ("import asyncio; raise asyncio.CancelledError", "CancelledError"),
        ("raise SystemExit(8)", "exit status 8"),
    ],
)
def test_a_service_that_does_not_start_is_one_line_and_exit_status_3(body: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(START.format(body=body))
    done = serve("app:service", tmp_path)
    assert reason in complaint(done)
    if "SystemExit" not in body:
        assert "prefork: service app:service: start() raised " in complaint(done)
    if "database" in body:
        assert f"({tmp_path}/app.py, line 4)" in complaint(done)
    assert done.returncode == 3


def test_a_start_that_takes_longer_than_the_boot_timeout_is_cancelled_and_told(tmp_path: Path) -> None:
    body = """import asyncio
        try:
            await asyncio.sleep(600)
        finally:
            open("cancelled", "w").close()"""
    (tmp_path / "app.py").write_text(START.format(body=body))
    done = serve("app:service", tmp_path, "-w", "1", "--boot-timeout", "1")
    assert "service app:service: start() did not return within 1 s (--boot-timeout)" in complaint(done)
    assert done.returncode == 3
    assert (tmp_path / "cancelled").exists()


@pytest.mark.parametrize("target", ["sub/app.py:handle", "{folder}/sub/app.py:handle", "sub/signal.py:handle"])
def test_a_file_is_served_with_its_neighbours_importable(target: str, tmp_path: Path) -> None:
    """A file called like a module of Python, such as signal.py, does not replace that module."""
    (tmp_path / "sub").mkdir()
    uses_signal = ECHO.replace("    async", "    import signal\n    signal.SIGTERM\n    async")
    (tmp_path / "sub" / "neighbour.py").write_text(uses_signal)
    for name in ("app", "signal"):
        text = (
            "import dataclasses, pickle\n"
            "from neighbour import handle\n"
            "@dataclasses.dataclass\n"
            "class Point:\n"
            "    x: int\n"
            "assert pickle.loads(pickle.dumps(Point(1))) == Point(1)\n"
        )
        (tmp_path / "sub" / f"{name}.py").write_text(text)
    with run_server(target.format(folder=tmp_path), "-w", "1", cwd=tmp_path) as server:
        assert echoed(server) == b"hello\n"
        assert server.stop() == 0


def test_the_current_directory_is_importable_for_the_installed_command_too(tmp_path: Path) -> None:
    (tmp_path / "echo.py").write_text(ECHO)
    command = Path(sys.executable).with_name("prefork")
    done = subprocess.run(
        [command, "check", "echo:handle"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "echo:handle is a stream handler" in done.stdout


def test_every_worker_imports_the_service_and_the_supervisor_never_does(tmp_path: Path) -> None:
    (tmp_path / "spy.py").write_text("import os\nopen('seen', 'a').write(f'{os.getpid()}\\n')\n" + ECHO)
    with run_server("spy:handle", "-w", "3", cwd=tmp_path) as server:
        seen = [int(line) for line in (tmp_path / "seen").read_text().split()]
        assert sorted(seen) == sorted(server.worker_pids())
        assert server.stop() == 0
    assert len((tmp_path / "seen").read_text().split()) == 3


def test_random_numbers_differ_between_workers(tmp_path: Path) -> None:
    (tmp_path / "dice.py").write_text(
        "import os, random, secrets, uuid\n"
        "draws = [str(random.getrandbits(64)), secrets.token_hex(8), str(uuid.uuid4())]\n"
        "open('draws', 'a').write(' '.join(draws) + '\\n')\n" + ECHO
    )
    with run_server("dice:handle", "-w", "4", cwd=tmp_path) as server:
        assert server.stop() == 0
    draws = (tmp_path / "draws").read_text().split()
    assert len(set(draws)) == 12


def test_the_program_that_called_serve_ends_once_and_each_worker_runs_its_own_exit_handlers(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        """
import atexit, os, sys, prefork

def say(word):
    os.write(1, f"{word} {os.getpid()}\\n".encode())

class Service:
    async def start(self):
        atexit.register(say, "handler-of-worker")
    async def handle(self, stream): ...
    async def stop(self):
        say("stop")

atexit.register(say, "handler-of-program")
try:
    prefork.serve(Service(), bind="127.0.0.1:0", workers=2, ready_fd=int(sys.argv[1]))
finally:
    say("finally")
"""
    )
    reader, writer = os.pipe()
    with subprocess.Popen(
        [sys.executable, "program.py", str(writer)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        pass_fds=(writer,),
        text=True,
    ) as process:
        os.close(writer)
        try:
            assert os.read(reader, 100) == b"READY\n"
            process.terminate()
            out, _ = process.communicate(timeout=30)
        finally:
            os.close(reader)
            process.kill()
    assert process.returncode == 0
    said = sorted(tuple(line.split()) for line in out.splitlines())
    words = [word for word, _ in said]
    assert words == ["finally", "handler-of-program", "handler-of-worker", "handler-of-worker", "stop", "stop"]
    of = {word: {pid for w, pid in said if w == word} for word in words}
    assert of["finally"] == of["handler-of-program"] == {str(process.pid)}
    assert len(of["handler-of-worker"]) == 2
    assert str(process.pid) not in of["handler-of-worker"]


# --- asyncio's own streams --------------------------------------------------------------------------------------------

STREAMS = """
import asyncio

async def handle(reader, writer):
    writer.write(f"{type(reader).__module__} {type(writer).__module__}\\n".encode())
    writer.write(await reader.readline())
    await writer.drain()
    writer.close()

def connected(reader, writer):
    global task
    task = asyncio.ensure_future(handle(reader, writer))

async def make():
    return handle

async def handle_stream(stream):
    pass

async def make_stream_handler():
    return handle_stream
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["handle", "connected", "make"])
@pytest.mark.parametrize("streams", ["prefork", "asyncio"])
def test_the_option_chooses_the_classes_that_serve_a_handler(name: str, streams: str, tmp_path: Path) -> None:
    (tmp_path / "service.py").write_text(STREAMS)
    with (
        run_server(f"service:{name}", "-w", "1", "--streams", streams, cwd=tmp_path) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock,
    ):
        sock.sendall(b"hello\n")
        modules, line = sock.makefile("rb").read().splitlines()
    assert line == b"hello"
    for module in modules.split():
        assert module.startswith(streams.encode())


@pytest.mark.slow
def test_asyncios_streams_do_not_serve_a_handler_of_prefork_streams(tmp_path: Path) -> None:
    (tmp_path / "service.py").write_text(STREAMS)
    for name, command in (("handle_stream", "serve"), ("handle_stream", "check"), ("make_stream_handler", "serve")):
        done = serve(f"service:{name}", tmp_path, "--streams", "asyncio", command=command)
        assert done.returncode == 3
        reason = "a stream handler takes prefork's stream, which --streams asyncio does not have"
        assert f"service service:{name}: {reason}" in complaint(done)
