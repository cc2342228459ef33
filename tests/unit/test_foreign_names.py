"""Names of other servers' options and commands lead to names that prefork has."""

from __future__ import annotations

import re

import pytest

from prefork.cli import foreign_names
from prefork.cli.commands import COMMANDS
from prefork.cli.foreign_names import hint_for_command, hint_for_option
from prefork.cli.options import OPTIONS

OWN_COMMANDS = set(COMMANDS.commands)
PARAMETERS = [each for command in COMMANDS.commands.values() for each in command.params]
OWN_OPTIONS = {name for each in PARAMETERS for name in each.opts if name.startswith("-")}
TABLES = (foreign_names._OPTIONS, foreign_names._ADVICE, foreign_names._COMMANDS)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("--port", ", did you mean --bind :PORT?"),
        ("--certfile", ", did you mean --tls-cert FILE?"),
        ("--ssl-keyfile", ", did you mean --tls-key FILE?"),
        ("--timeout", ", did you mean --hang-timeout TIME?"),
        ("--graceful-timeout", ", did you mean --drain-timeout TIME?"),
        ("--daemon", ": the server stays in the foreground: let a service manager start it, such as systemd"),
        ("--wrokers", ", did you mean --workers?"),
        ("--qqqq", ""),
    ],
)
def test_an_option_leads_to_what_it_is_here(name: str, hint: str) -> None:
    assert hint_for_option(name, [each.name for each in OPTIONS]) == hint


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("restart", ", did you mean reload?"),
        ("START", ", did you mean serve?"),
        ("kill", ", did you mean stop --now?"),
        ("statsu", ", did you mean status?"),
        ("shutdwn", ", did you mean stop?"),
        ("qqqq", ""),
        ("echo:handle", ", did you mean serve echo:handle?"),
        ("./app/main.py", ", did you mean run ./app/main.py?"),
    ],
)
def test_a_command_leads_to_what_it_is_here(name: str, hint: str) -> None:
    assert hint_for_command(name, OWN_COMMANDS) == hint


def test_everything_that_is_proposed_exists_and_nothing_that_exists_is_foreign() -> None:
    proposed = " ".join([*foreign_names._OPTIONS, *foreign_names._ADVICE])
    assert set(re.findall(r"--[a-z-]+", proposed)) <= OWN_OPTIONS
    assert {text.split()[0] for text in foreign_names._COMMANDS} <= {*OWN_COMMANDS, "--version", "--help"}
    foreign = [name for table in TABLES for names in table.values() for name in names.split()]
    assert not set(foreign) & (OWN_OPTIONS | OWN_COMMANDS)
    assert len(foreign) == len(set(foreign))
