"""What a program is, and when it counts as ready: texts to values, and news to decisions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.cli.program_arguments import split
from prefork.core.readiness import SETTLE, START_GRACE, Readiness
from prefork.errors import ConfigError
from prefork.program import Program, ProgramKind, ReadyKind, ReadyWhen, parse_program, parse_ready

WITH_VALUE = {"--bind", "-b", "--workers", "-w"}


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "own", "program"),
    [
        ("server.py --its --own", "", "server.py --its --own"),
        ("-w 2 server.py -w 3", "-w 2", "server.py -w 3"),
        ("--workers=2 server.py", "--workers=2", "server.py"),
        ("--insecure-paths uvicorn --port 1", "--insecure-paths", "uvicorn --port 1"),
        ("--bind :1 -m uvicorn app:app --bind :2", "--bind :1", "-m uvicorn app:app --bind :2"),
        ("-w 2 -- python -m x", "-w 2", "python -m x"),
        ("-- --strange", "", "--strange"),
        ("-w", "-w", ""),
        ("", "", ""),
    ],
)
def test_what_follows_the_program_is_the_programs(words: str, own: str, program: str) -> None:
    assert split(words.split(), WITH_VALUE) == (own.split(), tuple(program.split()))


@given(st.lists(st.text(max_size=8), max_size=8))
def test_no_word_is_lost_or_made_up(words: list[str]) -> None:
    own, program = split(words, WITH_VALUE)
    assert [*own, *program] in (words, [each for at, each in enumerate(words) if at != len(own)])


@pytest.mark.parametrize(
    ("words", "program"),
    [
        ("server.py -x", Program(ProgramKind.FILE, "server.py", ("-x",))),
        ("./serve", Program(ProgramKind.FILE, "./serve")),
        ("app.pyz", Program(ProgramKind.FILE, "app.pyz")),
        ("uvicorn app:app", Program(ProgramKind.SCRIPT, "uvicorn", ("app:app",))),
        ("-m a.b c", Program(ProgramKind.MODULE, "a.b", ("c",))),
        ("python -m a", Program(ProgramKind.MODULE, "a", (), "python")),
        ("python3 -ma b", Program(ProgramKind.MODULE, "a", ("b",), "python3")),
        ("python3.13 -u server.py", Program(ProgramKind.FILE, "server.py", (), "python3.13")),
        ("/usr/bin/python3 server", Program(ProgramKind.FILE, "server", (), "/usr/bin/python3")),
        ("pythonista x", Program(ProgramKind.SCRIPT, "pythonista", ("x",))),
    ],
)
def test_a_program_is_named_as_python_is_told_of_it(words: str, program: Program) -> None:
    assert parse_program(tuple(words.split())) == program


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "PROGRAM is missing: FILE"),
        ("python", "PROGRAM python: name what it is to run"),
        ("-m", "the name of a module is missing"),
        ("-m a-b", "PROGRAM -m a-b: must be the name of a module"),
        ("-m a..b", "must be the name of a module"),
        ("python -O server.py", "PROGRAM -O: options of Python itself cannot be given"),
        ("--x", "PROGRAM --x: "),
    ],
)
def test_what_is_no_program_is_refused_in_one_line(words: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_program(tuple(words.split()))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["listen", "notify", "fd:3", "delay:0", "delay:2.5"])
def test_each_kind_of_readiness_is_written_as_it_is_read(text: str) -> None:
    assert str(parse_ready("--ready", text)) == text


@pytest.mark.parametrize(
    "text", ["", "no", "listen:", "fd", "fd:", "fd:2", "fd:x", "fd:99999999999", "delay", "delay:-1", "delay:1e9"]
)
def test_no_other_kind_of_readiness_is_taken(text: str) -> None:
    with pytest.raises(ConfigError, match="^--ready "):
        parse_ready("--ready", text)


# --- readiness --------------------------------------------------------------------------------------------------------

LISTEN = ReadyWhen()


def test_a_successor_is_ready_when_it_listens_on_all_that_its_predecessor_did() -> None:
    readiness = Readiness(LISTEN, [frozenset({1}), frozenset({2})], 0)
    assert not readiness.is_ready(0)
    readiness.on_listening(1, 1)
    assert readiness.missing() == (frozenset({2}),)
    assert not readiness.is_ready(100)
    readiness.on_listening(3, 101)
    readiness.on_listening(2, 102)
    assert readiness.is_ready(102)


def test_one_socket_of_an_address_that_bind_names_is_enough() -> None:
    readiness = Readiness(LISTEN, [frozenset({1, 2})], 0)
    readiness.on_listening(2, 0)
    assert readiness.is_ready(0)


def test_the_first_worker_is_ready_a_moment_after_its_last_listen() -> None:
    readiness = Readiness(LISTEN, [], 0)
    assert readiness.next_due() is None
    assert not readiness.is_ready(50)
    readiness.on_listening(1, 50)
    readiness.on_listening(2, 50 + SETTLE / 2)
    assert not readiness.is_ready(50 + SETTLE)
    due = readiness.next_due()
    assert due is not None
    assert readiness.is_ready(due)
    assert readiness.next_due() is None


@pytest.mark.parametrize("kind", [ReadyKind.NOTIFY, ReadyKind.DESCRIPTOR])
def test_a_worker_that_is_to_say_so_is_not_ready_by_listening(kind: ReadyKind) -> None:
    readiness = Readiness(ReadyWhen(kind, 3), [frozenset({1})], 0)
    readiness.on_listening(1, 0)
    assert not readiness.is_ready(1000)
    readiness.on_told()
    assert readiness.is_ready(1000)


def test_after_a_delay_a_worker_is_ready_whatever_it_does() -> None:
    readiness = Readiness(ReadyWhen(ReadyKind.DELAY, 2), [frozenset({1})], 10)
    assert readiness.next_due() == 12
    assert not readiness.is_ready(11.9)
    assert readiness.is_ready(12)


def test_addresses_are_bound_for_a_worker_while_it_boots_and_a_moment_longer() -> None:
    readiness = Readiness(LISTEN, [frozenset({1})], 0)
    assert readiness.may_ask(any_port=True, now=1000)
    readiness.on_listening(1, 1000)
    assert readiness.is_ready(1000)
    assert readiness.may_ask(any_port=False, now=1000 + START_GRACE / 2)
    # A free port may be for one connection, as of FTP.
    assert not readiness.may_ask(any_port=True, now=1000)
    assert not readiness.may_ask(any_port=False, now=1000 + START_GRACE)


@given(st.lists(st.tuples(st.sampled_from(["listen", "told", "look"]), st.integers(1, 4), st.floats(0, 1))))
def test_what_was_ready_stays_ready(news: list[tuple[str, int, float]]) -> None:
    readiness, now, was_ready = Readiness(LISTEN, [frozenset({1, 2}), frozenset({3})], 0), 0.0, False
    for what, socket, passed in news:
        now += passed
        if what == "listen":
            readiness.on_listening(socket, now)
        elif what == "told":
            readiness.on_told()
        ready = readiness.is_ready(now)
        assert ready or not was_ready
        assert ready == (3 in readiness.listening and bool({1, 2} & readiness.listening))
        was_ready = ready
