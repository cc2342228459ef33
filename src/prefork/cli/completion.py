"""Completion in a shell: the script that a shell reads, and what can stand at a place of the command line.

click has the scripts and finds the parameter; what values a parameter may have is told here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import click
from click.shell_completion import CompletionItem, ShellComplete, get_completion_class

from ..config import Limits, Settings
from ..errors import PreforkError

SHELLS = ("bash", "zsh", "fish")
#: The variable by which a shell's script asks, as click names it for a program called prefork.
VARIABLE = "_PREFORK_COMPLETE"
#: What click's scripts complete by themselves, by the metavar of a parameter.
_KINDS = {"FILE": "file", "PATH": "file", "[FILE]": "file", "TARGET": "file", "DIR": "dir"}

Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def script(shell: str) -> str:
    """Return the text that turns completion on in one of SHELLS."""
    found = get_completion_class(shell)
    assert found is not None
    # Not the class's own `source`, which runs bash to ask for its version.
    return ShellComplete.source(found(_NO_COMMAND, {}, "prefork", VARIABLE))


def answer(commands: click.Command, instruction: str) -> str:
    """Return what a shell asks for by the value of VARIABLE, such as `bash_complete`; "" if nothing can be said."""
    shell, _, what = instruction.partition("_")
    found = get_completion_class(shell) if shell in SHELLS else None
    if found is None or what != "complete":
        return ""
    try:
        return found(commands, {}, "prefork", VARIABLE).complete() + "\n"
    except (PreforkError, click.ClickException, OSError, ValueError, KeyError):
        # A command line that is wrong so far. An error here would be printed into what is being typed.
        return ""


def completer(field: str, metavar: str) -> Completer | None:
    """Return what completes the value of a parameter: one of a few words, a file or directory, or a running server."""
    if choices := choices_of(field):
        return lambda context, parameter, incomplete: _beginning(choices, incomplete)
    kind = _KINDS.get(metavar)
    return None if kind is None else lambda context, parameter, incomplete: [CompletionItem(incomplete, type=kind)]


def complete_control(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the control sockets of the running servers that begin so; if none does, have files completed."""
    from ..system import control_client

    try:
        sockets = control_client.find_sockets()
    except (PreforkError, OSError):
        sockets = []
    return _beginning(sockets, incomplete) or [CompletionItem(incomplete, type="file")]


def choices_of(field: str) -> tuple[str, ...]:
    """Return the words that a setting may be; () if it may be others."""
    for each in (*fields(Settings), *fields(Limits)):
        if each.name == field and each.metadata:
            choices: tuple[str, ...] = each.metadata["check"].keywords.get("choices", ())
            return choices
    return {"ready": ("listen", "notify", "fd:", "delay:"), "shell": SHELLS}.get(field, ())


def _beginning(words: list[str] | tuple[str, ...], start: str) -> list[CompletionItem]:
    return [CompletionItem(word) for word in words if word.startswith(start)]


_NO_COMMAND = click.Command("prefork")
