"""Which files are sources, and how a supervisor reads a watcher that floods it or lies."""

from __future__ import annotations

import itertools
import os
import select
from pathlib import Path

import pytest

from prefork.core.messages import LIMIT, ChangedMessage, Decoder, ReadyMessage, UnableMessage, encode
from prefork.core.sources import describe_changes, is_source
from prefork.events import Event, SourcesUnwatched, WatchingSources
from prefork.parent.source_watch import READ_INTERVAL, SourceWatch
from prefork.system.child import Child, ExitStatus
from prefork.system.processes import System
from prefork.system.source_changes import Changes, Watched


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/srv/app/main.py", True),
        ("/srv/app/package/inner/main.py", True),
        ("/srv/app/main.pyc", False),
        ("/srv/app/__pycache__/main.py", False),
        ("/srv/app/.venv/lib/main.py", False),
        ("/srv/app/env/lib/python3.13/site-packages/main.py", False),
        ("/srv/app/node_modules/tool/main.py", False),
        ("/srv/app/.#main.py", False),
        ("/srv/app/flycheck_main.py", False),
        ("/srv/app/main.py/notes.txt", False),
        ("/srv/application/main.py", False),
        ("/etc/main.py", False),
    ],
)
def test_a_source_is_a_python_file_below_the_directory_that_no_tool_has_made(path: str, expected: bool) -> None:
    assert is_source(path, "/srv/app") is expected


def test_a_directory_is_judged_by_what_is_below_it_and_not_by_its_own_path() -> None:
    assert is_source("/home/me/.work/node_modules/app/main.py", "/home/me/.work/node_modules/app")
    assert is_source("/main.py", "/")


def test_the_first_changed_file_is_named_and_the_others_are_counted() -> None:
    assert describe_changes(["a.py"]) == "a.py changed"
    assert describe_changes(["a.py", "b.py"]) == "a.py and 1 more file changed"
    assert describe_changes(["a.py", "b.py", "c.py"]) == "a.py and 2 more files changed"


def test_a_report_survives_the_pipe_and_is_cut_to_its_bound() -> None:
    assert Decoder().feed(encode(ChangedMessage("ä.py changed"))) == [ChangedMessage("ä.py changed")]
    line = encode(ChangedMessage("x" * 2 * LIMIT))
    assert len(line) <= LIMIT
    assert Decoder().feed(b'{"changed": 5}\n{"changed": null}\n{"Changed": "a"}\n') == []


@pytest.fixture
def app(tmp_path: Path) -> Path:
    (tmp_path / "main.py").write_text("one")
    return tmp_path


def changes_in(app: Path) -> Changes:
    return Changes(Watched((str(app),), "", None))


def test_a_file_is_reported_once_for_each_content(app: Path) -> None:
    changes, main = changes_in(app), str(app / "main.py")
    assert changes.take([main]) == ["main.py"]
    assert changes.take([main]) == []
    (app / "main.py").write_text("two")
    assert changes.take([main]) == ["main.py"]
    (app / "main.py").write_text("one")
    assert changes.take([main]) == ["main.py"]


@pytest.mark.parametrize("gone", [True, False], ids=["gone", "empty"])
def test_a_file_that_is_gone_or_empty_for_a_moment_is_not_reported(app: Path, gone: bool) -> None:
    changes, main = changes_in(app), str(app / "main.py")
    assert changes.take([main]) == ["main.py"]
    (app / "main.py").unlink() if gone else (app / "main.py").write_text("")
    assert changes.take([main]) == []
    (app / "main.py").write_text("one")
    assert changes.take([main]) == []
    assert changes.take([]) == []


@pytest.mark.parametrize("gone", [True, False], ids=["gone", "empty"])
def test_a_file_that_stays_gone_or_empty_is_reported_a_moment_later(app: Path, gone: bool) -> None:
    changes, main = changes_in(app), str(app / "main.py")
    (app / "main.py").unlink() if gone else (app / "main.py").write_text("")
    assert changes.take([main]) == []
    assert changes.take([]) == ["main.py"]
    assert changes.take([main]) == []


def test_a_configuration_file_is_reported_when_it_no_longer_changes(app: Path) -> None:
    config = app / "prefork.toml"
    config.write_text("workers = 1\n")
    changes = Changes(Watched((str(app),), str(config), None))
    config.write_text("")
    assert changes.take([]) == []
    config.write_text("workers = 2\n")
    assert changes.take([]) == []
    assert changes.take([]) == ["prefork.toml"]
    assert changes.take([]) == []


def test_sources_that_changed_before_they_were_watched_are_found_also_if_they_were_renamed(app: Path) -> None:
    os.utime(app / "main.py", (1, 1))
    (app / "main.py").rename(app / "other.py")
    (app / ".venv").mkdir()
    (app / ".venv" / "main.py").write_text("")
    changed = os.stat(app / "other.py").st_ctime
    assert changes_in(app).sources_since(changed - 1) == [str(app / "other.py")]
    assert changes_in(app).sources_since(changed) == []


def test_a_fifo_and_a_directory_that_are_named_like_sources_do_not_hold_up_the_watcher(app: Path) -> None:
    os.mkfifo(app / "pipe.py")
    (app / "folder.py").mkdir()
    changes = changes_in(app)
    assert changes.take([str(app / "pipe.py"), str(app / "folder.py")]) == []


class Fork(System):
    """Forks nothing: each child is a pipe, into which a test writes what a watcher would."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.signals: list[int] = []
        self.forks = 0
        self.writer = -1
        self.refuses = False
        self.status: ExitStatus | None = None

    def fork(self) -> Child:
        self.forks += 1
        if self.refuses:
            raise BlockingIOError(11, "no processes left")
        self.status = None
        return _Child(self)


class _Child(Child):
    def __init__(self, system: Fork) -> None:
        super().__init__(99, None)
        self._system = system

    def signal(self, sig: int) -> bool:
        self._system.signals.append(sig)
        return True

    def reap(self) -> ExitStatus | None:
        return self._system.status

    def wait(self) -> ExitStatus:
        return ExitStatus(0)


class World:
    """A source watch, what it has emitted, and both ends of the pipe of its watcher."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.system = Fork()
        self.events: list[Event] = []
        self.writers: list[int] = []
        pipe = os.pipe

        def kept_open() -> tuple[int, int]:
            reader, writer = pipe()
            self.writers.append(os.dup(writer))
            return reader, writer

        monkeypatch.setattr(os, "pipe", kept_open)
        self.watch = SourceWatch(Watched(("/srv/app",), "", None), self.system, self.events.append)

    def write(self, data: bytes) -> None:
        os.write(self.writers[-1], data)

    def collect(self, after: float = READ_INTERVAL) -> None:
        self.system.now += after
        self.watch.collect(self.system.now)

    def readable(self) -> bool:
        return any(events == select.POLLIN for events in self.watch.interests(self.system.now).values())

    def close(self) -> None:
        self.watch.close()
        for writer in self.writers:
            os.close(writer)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]  # a generator fixture
    made = World(monkeypatch)
    yield made
    made.close()


def test_a_change_is_taken_once(world: World) -> None:
    world.collect()
    world.write(encode(ReadyMessage()) + encode(ChangedMessage("a.py changed")))
    world.collect()
    assert world.events == [WatchingSources("/srv/app")]
    assert world.watch.take_change() == "a.py changed"
    assert world.watch.take_change() == ""


def test_what_a_watcher_says_cannot_steer_a_terminal(world: World) -> None:
    world.collect()
    world.write(encode(ChangedMessage("\x1b[2J\n" + "x" * 1000)))
    world.collect()
    change = world.watch.take_change()
    assert change.isprintable()
    assert len(change) <= 256


def test_a_watcher_that_floods_its_pipe_is_read_once_in_an_interval(world: World) -> None:
    world.collect()
    world.write(b"\n" * 60_000)
    world.collect()
    assert not world.readable()
    assert world.watch.next_due(world.system.now) == pytest.approx(world.system.now + READ_INTERVAL)
    world.collect(READ_INTERVAL / 2)
    assert not world.readable()
    world.system.now += READ_INTERVAL
    assert world.readable()


def test_a_watcher_that_closes_its_pipe_is_killed(world: World) -> None:
    world.collect()
    os.close(world.writers.pop())
    world.collect()
    assert world.system.signals == [9]


def test_a_watcher_that_never_watches_is_reported_once_and_forked_ever_more_seldom(world: World) -> None:
    forked_at = []
    while world.system.now < 600:
        before = world.system.forks
        world.collect(0.5)
        if world.system.forks > before:
            forked_at.append(world.system.now)
            world.write(encode(UnableMessage("no watches left")))
            world.system.status = ExitStatus(3)
    assert [event for event in world.events if isinstance(event, SourcesUnwatched)] == [
        SourcesUnwatched("no watches left", 0.5)
    ]
    gaps = [later - earlier for earlier, later in itertools.pairwise(forked_at)]
    assert gaps == sorted(gaps)
    assert gaps[-1] == pytest.approx(30, abs=1)


def test_a_watcher_that_dies_again_and_again_after_it_has_watched_is_never_forked_at_once(world: World) -> None:
    for _ in range(100):
        world.collect(1.0)
        if world.watch.pid:
            world.write(encode(ReadyMessage()))
            world.system.status = ExitStatus(None, 11)
    assert world.system.forks <= 12
    assert world.events[:2] == [
        WatchingSources("/srv/app"),
        SourcesUnwatched("the watcher died: signal 11 (SIGSEGV)", 0.5),
    ]


def test_a_fork_that_fails_is_repeated_later(world: World) -> None:
    world.system.refuses = True
    world.collect()
    assert world.watch.pid == 0
    (event,) = world.events
    assert isinstance(event, SourcesUnwatched)
    world.system.refuses = False
    world.collect(1.0)
    assert world.watch.pid == 99


def test_without_the_option_nothing_is_forked() -> None:
    system = Fork()
    watch = SourceWatch(None, system, print)
    watch.collect(5.0)
    assert (watch.pid, system.forks, watch.next_due(5.0), watch.interests(5.0)) == (0, 0, None, {})
    assert watch.take_change() == ""
    watch.close()
