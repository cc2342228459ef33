"""Write docs/api.md from the docstrings and signatures of prefork's public names.

    python scripts/api.py            write the page
    python scripts/api.py --check    exit with status 1 if the page is not current

The public names are those of `prefork.__all__` and `prefork.testing.__all__`. It reads the source by griffe, because
docstrings of fields exist only there. To change the content of the page, change a docstring.
"""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import griffe

import prefork
import prefork.testing

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "api.md"
WIDTH = 118
#: Classes that a user gets from an attribute and does not import.
RESULTS = ("net.tls.TLSInfo", "net.timeouts.Timeouts", "system.worker_info.WorkerInfo")
#: Classes that a user makes by calling them, besides dataclasses. prefork makes the others.
CONSTRUCTED = {"TCPServer"}
#: Methods of `Stream` that the poller and the server call. They are no part of the interface.
INTERNAL = {
    "begin_deadlines",
    "flush",
    "held_back",
    "limit_age",
    "limit_idle",
    "limit_write",
    "on_closed",
    "on_expired",
    "on_ready",
    "shed",
}
HEAD = """# The Python interface

Generated from the docstrings by `scripts/api.py`. Import every name from `prefork`, except those of `prefork.testing`.
"""


def main(arguments: list[str]) -> int:
    """Write the page, or compare it; return the exit status."""
    page = "\n".join([HEAD, *_page()])
    if arguments != ["--check"]:
        PAGE.write_text(page)
    elif not PAGE.exists() or PAGE.read_text() != page:
        sys.stderr.write("docs/api.md is not current: run scripts/api.py\n")
        return 1
    return 0


def _page() -> Iterator[str]:
    source = griffe.load("prefork", search_paths=[ROOT / "src"])
    values = {name: getattr(prefork, name) for name in prefork.__all__}
    functions = [value for value in values.values() if inspect.isfunction(value)]
    classes = [value for value in values.values() if inspect.isclass(value)]
    errors = [each for each in classes if issubclass(each, BaseException)]
    classes = [each for each in classes if each not in errors]
    yield from _section("Functions", source, [_path(each) for each in functions])
    yield from _section("Classes", source, [_path(each) for each in classes])
    yield from _section("Attributes of a stream", source, [f"prefork.{path}" for path in RESULTS])
    yield from _section("Exceptions", source, [_path(each) for each in errors])
    testing = [getattr(prefork.testing, name) for name in prefork.testing.__all__]
    yield from _section("prefork.testing", source, [_path(each) for each in testing])


def _path(value: object) -> str:
    return f"{value.__module__}.{value.__qualname__}"  # type: ignore[attr-defined]  # functions and classes have both


def _section(title: str, source: griffe.Object | griffe.Alias, paths: list[str]) -> Iterator[str]:
    yield f"## {title}\n"
    for path in sorted(paths, key=lambda each: each.rpartition(".")[2].lower()):
        found = source[path.removeprefix("prefork.")]
        yield f"### {found.name}\n"
        yield from _function(found) if found.is_function else _class(found)


def _function(found: griffe.Object | griffe.Alias) -> Iterator[str]:
    yield textwrap.indent(_signature(found, found.name), "    ") + "\n"
    yield _text(found) + "\n"


def _class(found: griffe.Object | griffe.Alias) -> Iterator[str]:
    bases = ", ".join(str(base).rpartition(".")[2] for base in found.bases)
    made = found.members.get("__init__")
    if made is not None and made.is_function and found.name in CONSTRUCTED:
        yield textwrap.indent(_signature(made, found.name), "    ") + "\n"
    elif bases:
        yield f"Base classes: `{bases}`\n"
    yield _text(found) + "\n"
    yield from map(_item, _members(found))


def _members(found: griffe.Object | griffe.Alias) -> Iterator[griffe.Object | griffe.Alias]:
    """Yield the documented public members, inherited ones too, in the order of the source."""
    hidden = INTERNAL if found.name == "Stream" else ()
    for name, member in sorted(found.all_members.items(), key=lambda item: item[0] in found.inherited_members):
        if name.startswith("_") or name in hidden or member.docstring is None:
            continue
        yield member


def _item(member: griffe.Object | griffe.Alias) -> str:
    if member.is_function:
        title = _signature(member, member.name)
    else:
        title = member.name if member.annotation is None else f"{member.name}: {member.annotation}"
        if "dataclass" in member.parent.labels and member.value is not None:
            title += f" = {member.value}"
    title = textwrap.fill(" ".join(title.split()), WIDTH - 4, break_long_words=False, break_on_hyphens=False)
    return textwrap.indent(f"* `{title}`\n\n{_text(member)}\n", "  ").removeprefix("  ")


def _signature(found: griffe.Object | griffe.Alias, name: str) -> str:
    """Return the call on one line, or with one parameter a line if it is longer than the page."""
    parameters = [each for each in found.parameters if each.name != "self"]
    texts: list[str] = []
    for each in parameters:
        if each.kind is griffe.ParameterKind.keyword_only and "*" not in texts:
            texts.append("*")
        star = {griffe.ParameterKind.var_positional: "*", griffe.ParameterKind.var_keyword: "**"}.get(each.kind, "")
        text = f"{star}{each.name}" + (f": {each.annotation}" if each.annotation is not None else "")
        # The parser drops the notation of numbers; permissions are read in octal.
        default = oct(int(str(each.default))) if each.name == "mode" and each.default else each.default
        texts.append(text if default is None or star else f"{text} = {default}")
    start = ("await " if "async" in found.labels else "") + name
    end = f" -> {found.returns}" if found.returns is not None and name == found.name else ""
    line = f"{start}({', '.join(texts)}){end}"
    return line if len(line) <= WIDTH - 4 else f"{start}(\n    " + ",\n    ".join(texts) + f",\n){end}"


def _text(found: griffe.Object | griffe.Alias) -> str:
    return "" if found.docstring is None else found.docstring.value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
