"""Which server a command means, when several run, when one does not answer, and when one answers nonsense."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefork.cli import remote
from prefork.cli.main import main
from prefork.cli.servers import failure_of
from prefork.core.control_protocol import Request
from prefork.errors import ServiceError

STATUS = {"ok": True, "pid": 7, "state": "serving", "target": "echo:handle", "listeners": ["127.0.0.1:9000 (tcp)"]}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "prefork").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "prefork"


@contextlib.contextmanager
def answering(path: Path, answer: bytes | None) -> Iterator[None]:
    """Listen at a path for the block, and answer each request so; None never answers."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            with contextlib.suppress(OSError):
                while answer is not None:
                    client, _ = listener.accept()
                    with client:
                        if client.recv(4096):
                            client.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)


def test_each_server_is_listed_also_one_that_hangs_and_one_that_lies(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lie = json.dumps({**STATUS, "pid": "1e9\x1b[31m", "listeners": 5}).encode() + b"\n"
    steers = json.dumps({**STATUS, "target": "\x1b]0;x\x07\nprefork: ok"}).encode() + b"\n"
    answers = {"1": json.dumps(STATUS).encode() + b"\n", "2": None, "3": b"rubbish\n", "4": lie, "5": steers}
    with contextlib.ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(answering(folder / f"{name}.sock", answer))
        assert main(["list"]) == 0
        lines = capfd.readouterr().out.splitlines()
        assert lines == [
            f"--control {folder}/1.sock  pid 7  serving  echo:handle  127.0.0.1:9000 (tcp)",
            *(f"--control {folder}/{name}.sock  does not answer" for name in "234"),
            *(line for line in lines[4:] if line.isprintable()),
        ]
        assert main(["status", "--json"]) == 2
        told = json.loads(capfd.readouterr().out)
        assert (told["ok"], told["running"], len(told["servers"])) == (False, True, 5)
        assert told["servers"][1] == {
            "control": f"{folder}/2.sock", "pid": None, "state": "does not answer", "target": "", "listeners": []
        }  # fmt: skip


def test_a_server_that_does_not_answer_is_no_wrong_option_and_not_one_that_does_not_run(folder: Path) -> None:
    with answering(folder / "1.sock", None), pytest.raises(ServiceError, match="no answer within") as caught:
        remote.ask(Request("status"), "", as_json=True, timeout=0.05)
    assert caught.value.exit_code == 3
    assert failure_of(caught.value) == {"ok": False, "error": str(caught.value)}
