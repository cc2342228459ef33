"""The help of the command: options under the headings of their groups, at most 80 columns wide.

What the options mean is in `options.py`.
"""

from __future__ import annotations

from typing import Any

import click

#: The heading of options that are in no group.
_OTHER = "Options"
#: Width of the column of names, the same in all groups; a longer name has a line of its own.
_NAMES = 26


class GroupedOption(click.Option):
    """An option that stands under the heading `group` in the help."""

    def __init__(self, *args: Any, group: str = _OTHER, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group


class GroupedCommand(click.Command):
    """A command whose help has its options in groups, in the order of their definition."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for heading, rows in option_rows(self, ctx).items():
            with formatter.section(heading):
                formatter.write_dl([(names.ljust(_NAMES), text) for names, text in rows], col_max=_NAMES)


def option_rows(command: click.Command, context: click.Context) -> dict[str, list[tuple[str, str]]]:
    """Return, for each heading, the options of a command below it: names and help."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for parameter in command.get_params(context):
        row = parameter.get_help_record(context) if isinstance(parameter, click.Option) else None
        if row is not None:
            groups.setdefault(getattr(parameter, "group", _OTHER), []).append(row)
    # What concerns the command itself comes last.
    own = groups.pop(_OTHER, [])
    return {**groups, _OTHER: own} if own else groups
