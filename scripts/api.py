"""Write docs/api.md from the docstrings and signatures of prefork's public names.

    python scripts/api.py            write the page
    python scripts/api.py --check    exit with status 1 if the page is not current

The public names are those of `__all__` of `prefork`, `prefork.metrics`, `prefork.otel` and `prefork.testing`. It reads
the source by griffe, because docstrings of fields exist only there. To change the content of the page, change a
docstring.
"""

from __future__ import annotations

import dataclasses
import importlib
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
#: Classes of values that a user gets, and imports for annotations only.
RESULTS = (
    "net.tls.TLSInfo",
    "net.timeouts.Timeouts",
    "system.worker_info.WorkerInfo",
    "core.proxy_header.ProxyHeader",
    "core.proxy_tlvs.ProxyTLS",
)
#: Classes that a user makes by calling them, with all arguments that they take.
CONSTRUCTED = {"TCPServer", "TLS"}
#: Methods that only a worker of prefork calls.
HIDDEN = {"accept_waiting", "connection_descriptors", "tell_draining"}
HEAD = """# The Python interface

Generated from the docstrings by `scripts/api.py`. Import every name from `prefork`, except those of
`prefork.metrics`, `prefork.otel` and `prefork.testing`.
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
    results = [_path(each) for each in classes if _path(each).removeprefix("prefork.") in RESULTS]
    classes = [each for each in classes if each not in errors and _path(each) not in results]
    yield from _section("Functions", source, [_path(each) for each in functions])
    yield from _section("Classes", source, [_path(each) for each in classes])
    yield from _section("Values that prefork returns", source, results)
    yield from _section("Exceptions", source, [_path(each) for each in errors])
    metrics = [getattr(prefork.metrics, name) for name in prefork.metrics.__all__]
    yield from _section("prefork.metrics", source, [_path(each) for each in metrics])
    otel = [getattr(prefork.otel, name) for name in prefork.otel.__all__]
    yield from _section("prefork.otel", source, [_path(each) for each in otel])
    testing = [getattr(prefork.testing, name) for name in prefork.testing.__all__]
    yield from _section("prefork.testing", source, [_path(each) for each in testing])


def _path(value: object) -> str:
    return f"{value.__module__}.{value.__qualname__}"  # type: ignore[attr-defined]  # functions and classes have both


def _section(title: str, source: griffe.Object | griffe.Alias, paths: list[str]) -> Iterator[str]:
    yield f"## {title}\n"
    for path in sorted(paths, key=lambda each: each.rpartition(".")[2].lower()):
        found = _target(source[path.removeprefix("prefork.")])
        yield f"### {found.name}\n"
        if isinstance(found, griffe.Function):
            yield textwrap.indent(_signature(found, found.name), "    ") + "\n"
        elif isinstance(found, griffe.Class):
            yield from _call_or_bases(found)
        yield _text(found) + "\n"
        if isinstance(found, griffe.Class):
            yield from map(_item, _members(found))


def _target(found: griffe.Object | griffe.Alias) -> griffe.Object:
    return found.final_target if isinstance(found, griffe.Alias) else found


def _call_or_bases(found: griffe.Class) -> Iterator[str]:
    made = found.members.get("__init__")
    if found.name in CONSTRUCTED and isinstance(made, griffe.Function):
        yield textwrap.indent(_signature(made, found.name), "    ") + "\n"
    elif found.path.startswith("prefork.errors."):
        yield f"Base classes: `{', '.join(str(base) for base in found.bases)}`\n"


def _members(found: griffe.Class) -> Iterator[griffe.Function | griffe.Attribute]:
    """Yield the documented public members in the order of the source; those of base classes before the class's own."""
    # What all errors inherit stands at PreforkError.
    bases = [] if found.path.startswith("prefork.errors.") else found.mro()
    names = dict.fromkeys(name for each in (*bases, found) for name in each.members)
    for name in names:
        if name.startswith("_") or name in HIDDEN:
            continue
        # A method that only extends the base's may leave the docstring to it.
        defined = [_target(each.members[name]) for each in (found, *bases) if name in each.members]
        target = next((each for each in defined if each.docstring), None)
        if isinstance(target, griffe.Function | griffe.Attribute):
            yield target


def _item(member: griffe.Function | griffe.Attribute) -> str:
    if isinstance(member, griffe.Function):
        title = _signature(member, member.name)
    else:
        title = member.name if member.annotation is None else f"{member.name}: {member.annotation}"
        title += _default(member)
    title = " ".join(title.split()).replace("( ", "(").replace(", )", ")")
    title = textwrap.fill(title, WIDTH - 4, break_long_words=False, break_on_hyphens=False)
    return textwrap.indent(f"* `{title}`\n\n{_text(member)}\n", "  ").removeprefix("  ")


def _default(member: griffe.Attribute) -> str:
    """Return the default of a dataclass's field, from the class itself: the source may compute it."""
    if member.parent is None or "dataclass" not in member.parent.labels:
        return ""
    owner = getattr(importlib.import_module(member.parent.module.path), member.parent.name)
    defaults = {each.name: each.default for each in dataclasses.fields(owner)}
    value = defaults.get(member.name, dataclasses.MISSING)  # a property has none
    return "" if value is dataclasses.MISSING else f" = {value!r}"


def _signature(found: griffe.Function, name: str) -> str:
    """Return the call on one line, or with one parameter a line if it is longer than the page."""
    parameters = [each for each in found.parameters if each.name != "self"]
    texts: list[str] = []
    for each in parameters:
        if each.kind is griffe.ParameterKind.keyword_only and not any(text.startswith("*") for text in texts):
            texts.append("*")
        star = {griffe.ParameterKind.var_positional: "*", griffe.ParameterKind.var_keyword: "**"}.get(each.kind, "")
        text = f"{star}{each.name}" + (f": {each.annotation}" if each.annotation is not None else "")
        # The parser drops the notation of numbers; permissions are read in octal.
        default = oct(int(str(each.default))) if each.name == "mode" and each.default else each.default
        texts.append(text if default is None or star else f"{text} = {default}")
    start = ("await " if "async" in found.labels else "") + name
    end = f" -> {found.returns}" if found.returns is not None and name == found.name else ""
    if any("contextmanager" in str(each.value) for each in found.decorators):
        start, end = f"with {name}", f" as {str(found.returns).removeprefix('Iterator[').removesuffix(']')}"
    line = f"{start}({', '.join(texts)}){end}"
    return line if len(line) <= WIDTH - 4 else f"{start}(\n    " + ",\n    ".join(texts) + f",\n){end}"


def _text(found: griffe.Object) -> str:
    return "" if found.docstring is None else found.docstring.value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
