"""`--reload` on real processes: an edit becomes a reload, and what watches for edits is never in the way."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.opened import open_folder, run_opened
from helpers.proc import children, gone
from helpers.support import need_root, run_script, slow, wait_until

from prefork.testing import Server, run_program, run_server

pytest.importorskip("watchfiles")

SERVICE = """
import words
async def handle(stream):
    async for line in stream:
        stream.write(words.WORD + b"\\n")
"""
#: A service that does not end its import before the file `go` exists.
WAIT_FOR_GO = "import pathlib, time\nwhile not pathlib.Path('go').exists(): time.sleep(0.01)\n"
WATCHING = "watching the Python files in"
UNWATCHED = "--reload: sources are not watched: "


def say(folder: Path, word: str) -> None:
    """Edit the module that the service imports, as an editor does: beside, and then over."""
    (folder / "words.tmp").write_text(f"WORD = b{word!r}\n")
    (folder / "words.tmp").rename(folder / "words.py")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "service.py").write_text(SERVICE)
    say(tmp_path, "one")
    return tmp_path


@contextlib.contextmanager
def watching(
    folder: Path, *options: str, target: str = "service:handle", env: dict[str, str] | None = None
) -> Iterator[Server]:
    with run_server(target, "--reload", *options, cwd=folder, env=env) as server:
        wait_for(server, WATCHING)
        yield server


def wait_for(server: Server, text: str, times: int = 1) -> None:
    try:
        wait_until(lambda: server.stderr().count(text) >= times, 20)
    except AssertionError:
        raise AssertionError(f"not {times} times {text!r} in\n{server.stderr()}") from None


def ask(server: Server) -> str:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock, sock.makefile("rb") as file:
        sock.sendall(b"word?\n")
        return file.readline().decode().strip()


def wait_for_word(server: Server, word: str) -> None:
    wait_until(lambda: {ask(server) for _ in range(8)} == {word}, 20, f"{word!r} from every worker")


def reloads(server: Server) -> list[str]:
    """Return what each reload so far was for."""
    return re.findall(r"reloading \((.*)\): generation", server.stderr())


def watcher(server: Server) -> int:
    """Return the process that watches: the child that is no worker."""
    (pid,) = {pid for pid in children(server.pid) if not gone(pid)} - set(server.worker_pids())
    return pid


def written(pid: int) -> int:
    """Return how many bytes a process has written (proc(5))."""
    return int(re.findall(r"^wchar: (\d+)$", Path(f"/proc/{pid}/io").read_text(), re.M)[0])


# --- edits ------------------------------------------------------------------------------------------------------------


def test_an_edit_is_served_and_no_connection_is_refused(folder: Path) -> None:
    with watching(folder, "-w", "2") as server:
        answers: list[str] = []
        stop = threading.Event()

        def keep_asking() -> None:
            while not stop.wait(0.002):
                answers.append(ask(server))

        client = threading.Thread(target=keep_asking)
        client.start()
        try:
            say(folder, "two")
            wait_for_word(server, "two")
            say(folder, "three")
            wait_for_word(server, "three")
        finally:
            stop.set()
            client.join()
        assert set(answers) <= {"one", "two", "three"}
        assert answers[-1] == "three"
        assert set(reloads(server)) == {"--reload: words.py changed"}
        assert server.stop() == 0


@pytest.mark.slow
@pytest.mark.parametrize("target", ["words:handle", "words.py:handle"], ids=["module", "file"])
def test_an_edit_that_a_pyc_file_hides_is_served(target: str, tmp_path: Path) -> None:
    """Two edits of one size within a second: Python takes the .pyc file of the first for current."""
    handle = "async def handle(stream):\n    stream.write(b'{}' + other.WORD + b'\\n')\n"
    # With the caches that the tests' own environment may switch off.
    caching = {"PYTHONDONTWRITEBYTECODE": ""}

    def edit(word: str) -> None:
        for name, text in (("words.py", "import other\n" + handle.format(word)), ("other.py", f"WORD = b'{word}'\n")):
            (tmp_path / name).write_text(text)
            os.utime(tmp_path / name, (1_700_000_000, 1_700_000_000))

    edit("one")
    run_script("import sys; sys.path.insert(0, ''); import words", cwd=tmp_path, env=caching)
    assert len(list((tmp_path / "__pycache__").iterdir())) == 2
    edit("two")
    assert run_script("import sys; sys.path.insert(0, ''); import other; print(other.WORD)", cwd=tmp_path).stdout == (
        "b'one'\n"
    )
    with watching(tmp_path, "-w", "1", target=target, env=caching) as server:
        assert ask(server) == "twotwo"
        edit("six")
        wait_for_word(server, "sixsix")


def test_a_broken_edit_leaves_the_old_code_serving_until_it_is_mended(folder: Path) -> None:
    with watching(folder, "-w", "2") as server:
        workers = set(server.worker_pids())
        (folder / "words.py").write_text("WORD = (\n")
        wait_for(server, "reload failed, the running workers stay")
        assert re.search(r"reload failed.* SyntaxError: .*words\.py, line 1", server.stderr())
        assert ask(server) == "one"
        assert set(server.worker_pids()) == workers
        say(folder, "two")
        wait_for_word(server, "two")


def test_an_edit_while_a_reload_is_under_way_is_not_lost(folder: Path) -> None:
    with watching(folder, "-w", "1") as server:
        (folder / "words.py").write_text("WORD = b'two'\nopen('started', 'w').close()\n" + WAIT_FOR_GO)
        wait_until((folder / "started").exists, what="a new worker that imports the edit")
        before = written(watcher(server))
        say(folder, "three")
        wait_until(lambda: written(watcher(server)) > before, what="the report of the second edit")
        (folder / "go").touch()
        wait_for(server, "reloaded: every worker is of generation 2")
        assert ask(server) == "three"
        assert reloads(server) == ["--reload: words.py changed"] * 2


@pytest.mark.slow
def test_an_edit_while_the_first_workers_start_is_not_lost(folder: Path) -> None:
    (folder / "service.py").write_text(SERVICE + WAIT_FOR_GO)
    with run_server("service:handle", "-w", "2", "--reload", cwd=folder, wait_ready=False) as server:
        wait_for(server, WATCHING)
        before = written(watcher(server))
        say(folder, "two")
        wait_until(lambda: written(watcher(server)) > before, what="the report of the edit")
        (folder / "go").touch()
        wait_for_word(server, "two")
        assert "not reloading" not in server.stderr()


@pytest.mark.slow
def test_a_file_that_is_removed_is_a_change(folder: Path) -> None:
    with watching(folder, "-w", "1") as server:
        (folder / "words.py").unlink()
        wait_for(server, "No module named 'words'")
        assert ask(server) == "one"
        say(folder, "two")
        wait_for_word(server, "two")


@pytest.mark.slow
def test_a_target_outside_of_the_current_directory_is_watched(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    with watching(elsewhere, "-w", "1", target=f"{folder}/service.py:handle") as server:
        say(folder, "two")
        wait_for_word(server, "two")


@pytest.mark.slow
def test_a_package_that_is_moved_here_is_a_change(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    made = tmp_path_factory.mktemp("made") / "package"
    made.mkdir()
    (made / "inner.py").write_text("")
    with watching(folder, "-w", "1") as server:
        shutil.move(made, folder / "package")
        wait_for(server, "reloading (--reload: package/inner.py changed)")


@pytest.mark.slow
def test_the_configuration_file_is_watched_too(folder: Path) -> None:
    (folder / "prefork.toml").write_text("workers = 1\n")
    with watching(folder) as server:
        (folder / "prefork.toml").write_text("workers = 3\n")
        wait_until(lambda: len(server.worker_pids()) == 3, 20, "3 workers")
        assert reloads(server) == ["--reload: prefork.toml changed"]
        (folder / "prefork.toml").write_text("workers = many\n")
        wait_for(server, "not reloading (--reload: prefork.toml changed): ")
        assert len(server.worker_pids()) == 3


PROGRAM = """
import asyncio, words

async def answer(reader, writer):
    writer.write(words.WORD + b"\\n")
    writer.close()

async def main():
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        await server.serve_forever()

asyncio.run(main())
"""


@pytest.mark.parametrize("form", ["file", slow("module")])
def test_a_program_is_reloaded_too(form: str, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    (folder / "program.py").write_text(PROGRAM)
    words = [f"{folder}/program.py"] if form == "file" else ["-m", "program"]
    place = tmp_path_factory.mktemp("elsewhere") if form == "file" else folder
    with run_program(*words, options=("-w", "2", "--reload"), cwd=place) as server:
        wait_for(server, WATCHING)
        assert ask(server) == "one"
        (folder / "words.py").write_text("WORD = (\n")
        wait_for(server, "reload failed, the running workers stay")
        assert "SyntaxError" in server.stderr()
        assert ask(server) == "one"
        say(folder, "two")
        wait_for_word(server, "two")
        assert server.stop() == 0


# --- no edits ---------------------------------------------------------------------------------------------------------


def test_what_is_no_source_makes_no_reload(folder: Path) -> None:
    with watching(folder, "-w", "1") as server:
        for name in (
            "__pycache__/words.cpython.pyc",
            ".venv/lib/a.py",
            "node_modules/b.py",
            ".#words.py",
            "server.log",
        ):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("x = 1\n")
        say(folder, "two")
        wait_for_word(server, "two")
        assert reloads(server) == ["--reload: words.py changed"]


@pytest.mark.slow
def test_a_service_that_writes_a_module_when_it_starts_is_not_reloaded_for_ever(folder: Path) -> None:
    with open(folder / "service.py", "a") as file:
        file.write("open('generated.py', 'w').write('VERSION = 1\\n')\n")
    with watching(folder, "-w", "2") as server:
        for word in ("two", "three", "four"):
            say(folder, word)
            wait_for_word(server, word)
        assert sum("generated.py" in reason for reason in reloads(server)) <= 1, server.stderr()


# --- the watcher ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_watcher_that_dies_is_replaced_and_finds_what_changed_meanwhile(folder: Path) -> None:
    with watching(folder, "-w", "2") as server:
        os.kill(watcher(server), signal.SIGKILL)
        wait_for(server, UNWATCHED)
        say(folder, "two")
        wait_for_word(server, "two")
        assert server.stderr().count(UNWATCHED) == 1
        assert server.stderr().count(WATCHING) == 2
        assert server.stop() == 0
        assert "traceback" not in server.stderr().lower()


@pytest.mark.slow
def test_signals_for_the_whole_group_do_not_end_the_watcher(folder: Path) -> None:
    with watching(folder, "-w", "1") as server:
        pid = watcher(server)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            os.kill(pid, number)
        say(folder, "two")
        wait_for_word(server, "two")
        assert watcher(server) == pid


@pytest.mark.slow
def test_the_watcher_ends_with_the_server(folder: Path) -> None:
    with watching(folder, "-w", "1") as server:
        pid = watcher(server)
        assert server.stop() == 0
        assert gone(pid)
        assert UNWATCHED not in server.stderr()


def test_the_watcher_ends_when_the_supervisor_is_killed(folder: Path) -> None:
    with watching(folder, "-w", "1") as server:
        pid = watcher(server)
        server.signal(signal.SIGKILL)
        wait_until(lambda: gone(pid), what="the end of the watcher")


@pytest.mark.slow
def test_an_upgrade_leaves_one_watcher_that_of_the_new_server(folder: Path) -> None:
    with watching(folder, "-w", "1") as server:
        old = watcher(server)
        server.signal(signal.SIGUSR2)
        assert server.wait() == 0
        assert gone(old)
        wait_for(server, WATCHING, times=2)
        say(folder, "two")
        wait_for_word(server, "two")
        assert reloads(server) == ["--reload: words.py changed"]


@pytest.mark.slow
def test_the_watcher_holds_no_socket_of_the_server(folder: Path) -> None:
    with watching(folder, "-w", "1") as server:
        opened = os.listdir(f"/proc/{watcher(server)}/fd")
        links = [os.readlink(f"/proc/{watcher(server)}/fd/{fd}") for fd in opened]
        assert not [link for link in links if link.startswith("socket:")]


def test_a_watcher_that_cannot_watch_is_reported_once_and_tried_again(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    broken = tmp_path_factory.mktemp("broken")
    (broken / "watchfiles.py").write_text("raise RuntimeError('no watches left\\x1b')\n")
    with run_server("service:handle", "-w", "1", "--reload", cwd=folder, env={"PYTHONPATH": str(broken)}) as server:
        wait_for(server, UNWATCHED + r"RuntimeError: no watches left\x1b; next try in 0.5 s")
        assert ask(server) == "one"
        say(folder, "two")
        (broken / "watchfiles.py").unlink()
        wait_for_word(server, "two")
        assert server.stderr().count(UNWATCHED) == 1


USER = """
import pathlib, socket
from helpers.proc import children
from helpers.support import wait_until
from prefork.testing import run_server

def ask(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock, sock.makefile("rb") as file:
        sock.sendall(b"word?\\n")
        return file.readline()

with run_server("service:handle", "-w", "1", "--reload", "--user", "nobody", "--insecure-paths") as server:
    wait_until(lambda: "watching the Python files in" in server.stderr(), 20)
    (watcher,) = set(children(server.pid)) - set(server.worker_pids())
    print(pathlib.Path(f"/proc/{watcher}/status").read_text())
    pathlib.Path("words.py").write_text("WORD = b'two'\\n")
    wait_until(lambda: ask(server) == b"two\\n", 20)
"""


@pytest.mark.slow
def test_the_watcher_is_the_user_of_the_workers() -> None:
    need_root()
    with open_folder() as place:
        (place / "service.py").write_text(SERVICE)
        say(place, "one")
        printed = run_opened(USER, place)
        assert re.search(r"^Uid:\t65534\t65534\t65534\t65534$", printed, re.M), printed
        assert re.search(r"^NoNewPrivs:\t1$", printed, re.M), printed


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_a_missing_watchfiles_is_named() -> None:
    done = run_script(
        """
        import importlib.util, sys
        find = importlib.util.find_spec
        importlib.util.find_spec = lambda name, package=None: None if name == "watchfiles" else find(name, package)
        from prefork.cli.main import main
        sys.exit(main(["check", "echo:handle", "--reload"]))
        """
    )
    assert done.returncode == 2
    assert done.stderr == "prefork: --reload: watchfiles is not installed (pip install 'prefork[reload]')\n"


def test_an_object_cannot_be_reloaded(tmp_path: Path) -> None:
    done = run_script(
        "import prefork\nasync def handle(stream): ...\nprefork.serve(handle, reload=True, bind='127.0.0.1:0')\n",
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("prefork: --reload: an object is not imported again: pass its name")


def test_reload_cannot_be_switched_on_by_a_reload(folder: Path) -> None:
    (folder / "prefork.toml").write_text("workers = 1\n")
    with run_server("service:handle", cwd=folder) as server:
        (folder / "prefork.toml").write_text("workers = 1\nreload = true\n")
        server.signal(signal.SIGHUP)
        wait_for(server, "--reload: cannot be changed by a reload (restart the server)")
