"""The floors of the house: imports point down and never in a circle, and only some floors may do some things."""

from __future__ import annotations

import ast
import inspect
import sys
from pathlib import Path

import pytest

import prefork

ROOT = Path(__file__).parents[2] / "src" / "prefork"

#: Each floor and what it may import from; a file that is no folder is named by itself. `__init__` names all, lazily.
VOCABULARY = {"errors", "text", "events", "checks", "addresses", "config", "program", "proxies"}
FLOORS = {
    "_version": set(),
    "implementation": {"_version"},
    "errors": set(),
    "text": set(),
    "events": {"text"},
    "checks": {"errors", "text"},
    "addresses": {"checks", "text"},
    "program": {"checks", "errors"},
    "proxies": {"checks"},
    "config": {"addresses", "checks", "errors", "program", "proxies", "text"},
    "core": VOCABULARY,
    # What a service imports as `prefork.metrics`.
    "metrics": {"core", *VOCABULARY},
    "system": {"core", *VOCABULARY},
    "net": {"system", "core", *VOCABULARY, "implementation"},
    "observe": {"system", "core", *VOCABULARY},
    "parent": {"system", "core", *VOCABULARY, "_version", "implementation"},
    "otel": {"net", "core", *VOCABULARY, "_version"},
    "worker": {"metrics", "net", "system", "core", *VOCABULARY, "implementation"},
    "hosting": {"metrics", "worker", "net", "system", "core", *VOCABULARY},
    "assembly": {"parent", "hosting", "worker", "net", "observe", "system", "core", *VOCABULARY},
    # A process of its own, which talks to the supervisor by messages only.
    "exporter": {"net", "observe", "system", "core", *VOCABULARY},
    "console": {"system", "core", *VOCABULARY},
    "cli": {"console", "assembly", "hosting", "system", "core", *VOCABULARY, "_version", "implementation"},
    "testing": set(),
    "__main__": {"cli"},
    "__init__": None,
}
#: What decisions may use of the standard library: nothing that does, waits or asks.
PURE = {
    "array",
    "bisect",
    "__future__",
    "collections",
    "dataclasses",
    "enum",
    "errno",
    "hashlib",
    "heapq",
    "ipaddress",
    "json",
    "math",
    "re",
    "stat",
    "struct",
    "typing",
}
#: A supervisor has no loop and no threads, and never sees the service.
NEVER_IN_PARENT = {"asyncio", "threading", "concurrent", "importlib", "ssl"}
PROCESS_CALLS = {"fork", "forkpty", "kill", "killpg", "wait", "wait3", "wait4", "waitpid", "waitid", "posix_spawn"}


def files() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def floor_of(module: str) -> str:
    return module.split(".")[0]


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def imports(path: Path) -> set[tuple[str, bool]]:
    """(module, whether it is ours) for each import, wherever in the file it stands, type checking included."""
    found: set[tuple[str, bool]] = set()
    package = list(path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {(alias.name.removeprefix("prefork."), alias.name.startswith("prefork")) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = package[: len(package) - node.level + 1]
                found |= {(".".join([*base, name]), True) for name in _targets(base, node)}
            elif node.module:
                found.add((node.module, node.module.startswith("prefork")))
    return found


def _targets(base: list[str], node: ast.ImportFrom) -> list[str]:
    if node.module:
        inner = ROOT.joinpath(*base, *node.module.split("."))
        if inner.is_dir():
            return [f"{node.module}.{a.name}" if (inner / f"{a.name}.py").exists() else node.module for a in node.names]
        return [node.module]
    folder = ROOT.joinpath(*base)
    return [
        a.name if (folder / f"{a.name}.py").exists() or (folder / a.name).is_dir() else "__init__" for a in node.names
    ]


def violations(path: Path) -> list[str]:
    here = floor_of(module_of(path))
    allowed = FLOORS[here]
    if allowed is None:
        return []
    wrong = []
    for name, ours in imports(path):
        there = floor_of(name)
        if ours and there != here and there not in allowed:
            wrong.append(f"{path.relative_to(ROOT)} imports {name}: {here} may not know {there}")
        if here == "core" and not ours and there not in PURE:
            wrong.append(f"{path.relative_to(ROOT)} imports {name}: decisions are pure")
        if here == "parent" and not ours and there in NEVER_IN_PARENT:
            wrong.append(f"{path.relative_to(ROOT)} imports {name}: a supervisor has none of it")
    return wrong


def test_imports_point_down() -> None:
    assert [wrong for path in files() for wrong in violations(path)] == []


def test_a_violation_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule that cannot fail is none."""
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "core").mkdir()
    (tmp_path / "net").mkdir()
    (tmp_path / "parent").mkdir()
    (tmp_path / "net" / "stream.py").write_text("")
    bad = tmp_path / "core" / "bad.py"
    bad.write_text("import socket\nfrom ..net.stream import Stream\n")
    assert len(violations(bad)) == 2
    worse = tmp_path / "parent" / "worse.py"
    worse.write_text("def late():\n    import asyncio\n    from ..net import stream\n")
    assert len(violations(worse)) == 2
    fine = tmp_path / "net" / "fine.py"
    fine.write_text("from . import stream\nimport asyncio\n")
    assert violations(fine) == []


def circles() -> list[str]:
    """Chains of imports that come back to where they began, imports under TYPE_CHECKING included."""
    graph = {module_of(path): {name for name, ours in imports(path) if ours} - {module_of(path)} for path in files()}
    graph.pop("__init__", None)  # names every floor, lazily
    found: list[str] = []
    done: set[str] = set()

    def visit(module: str, trail: list[str]) -> None:
        if module in trail:
            found.append(" -> ".join([*trail[trail.index(module) :], module]))
        elif module not in done:
            for other in sorted(graph.get(module, ())):
                visit(other, [*trail, module])
            done.add(module)

    for module in graph:
        visit(module, [])
    return found


def test_no_module_imports_itself_through_others_not_even_for_types() -> None:
    assert circles() == []


def test_a_circle_is_found_even_where_one_import_is_for_types_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "one.py").write_text("from .two import Two\n")
    (tmp_path / "net" / "two.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .one import One\n"
    )
    assert circles() == ["net.one -> net.two -> net.one"]


def test_only_two_files_make_and_end_processes() -> None:
    for path in files():
        if path.name in ("processes.py", "child.py") or path.parent.name == "testing":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
                assert node.attr not in PROCESS_CALLS, f"{path.relative_to(ROOT)}:{node.lineno} calls os.{node.attr}"
                assert not node.attr.startswith("exec"), f"{path.relative_to(ROOT)}:{node.lineno}"


def test_every_module_and_every_public_class_has_a_docstring() -> None:
    bare = []
    for path in files():
        tree = ast.parse(path.read_text())
        classes = [n for n in tree.body if isinstance(n, ast.ClassDef) and not n.name.startswith("_")]
        bare += [
            f"{path.relative_to(ROOT)}: {ast.unparse(n)[:40]}" for n in (tree, *classes) if not ast.get_docstring(n)
        ]
    assert bare == []


def test_every_public_name_of_the_package_has_a_docstring() -> None:
    assert [name for name in prefork.__all__ if not inspect.getdoc(getattr(prefork, name))] == []


def test_what_the_checkers_are_told_to_overlook_has_its_reason_beside_it() -> None:
    for folder in (
        ROOT,
        *(
            ROOT.parents[1] / name
            for name in ("tests", "examples", "bench", "soak", "cluster", "inject", "fuzz", "scripts")
        ),
    ):
        for path in folder.rglob("*.py"):
            if path == Path(__file__):
                continue
            for number, line in enumerate(path.read_text().splitlines(), 1):
                for mark in ("# type: ignore", "# noqa"):
                    if mark in line:
                        rest = line.split(mark, 1)[1]
                        assert "# " in rest or len(rest.split("]", 1)[-1]) > 5, f"{path}:{number} gives no reason"
