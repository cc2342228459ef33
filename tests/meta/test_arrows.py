"""The floors of the house: imports point down, never in a circle, and what may be touched where."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "src" / "prefork"

#: Each floor and what it may import from; a file that is no folder is named by itself. `__init__` names all, lazily.
VOCABULARY = {"errors", "text", "events", "checks", "addresses", "config"}
FLOORS = {
    "_version": set(),
    "errors": set(),
    "text": set(),
    "events": {"text"},
    "checks": {"errors", "text"},
    "addresses": {"checks", "text"},
    "config": {"addresses", "checks", "errors", "text"},
    "core": VOCABULARY,
    "system": {"core", *VOCABULARY},
    "net": {"system", "core", *VOCABULARY},
    "observe": {"system", *VOCABULARY},
    "parent": {"system", "core", *VOCABULARY, "_version"},
    "worker": {"net", "system", "core", *VOCABULARY},
    "assembly": {"parent", "worker", "net", "observe", "system", "core", *VOCABULARY},
    "cli": {"assembly", "system", "core", *VOCABULARY, "_version"},
    "testing": set(),
    "__main__": {"cli"},
    "__init__": None,
}
#: What decisions may use of the standard library: nothing that does, waits or asks.
PURE = {
    "__future__",
    "collections",
    "dataclasses",
    "enum",
    "errno",
    "heapq",
    "ipaddress",
    "json",
    "math",
    "stat",
    "typing",
}
#: A supervisor has no loop and no threads, and never sees the service.
NEVER_IN_PARENT = {"asyncio", "threading", "concurrent", "importlib", "ssl"}
NAMED = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
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
        if here == "parent" and not ours and there in NEVER_IN_PARENT and path.name != "fork.py":
            wrong.append(f"{path.relative_to(ROOT)} imports {name}: a supervisor has none of it")
    return wrong


def test_imports_point_down() -> None:
    assert [wrong for path in files() for wrong in violations(path)] == []


def test_the_test_sees_a_violation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_no_circles() -> None:
    graph = {
        module_of(path): {name for name, ours in imports(path) if ours and name != module_of(path)} for path in files()
    }
    done: set[str] = set()

    def visit(module: str, trail: list[str]) -> None:
        assert module not in trail, " -> ".join([*trail, module])
        if module not in done:
            for other in graph.get(module, ()):
                if not _only_for_types(module, other):
                    visit(other, [*trail, module])
            done.add(module)

    graph.pop("__init__", None)
    for module in graph:
        visit(module, [])


def _only_for_types(module: str, other: str) -> bool:
    """Imported under TYPE_CHECKING: no arrow at run time."""
    path = ROOT / (module.replace(".", "/") + ".py")
    if not path.exists():
        return False
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return any(other.split(".")[-1] in ast.unparse(line) for line in node.body)
    return False


def test_processes_are_made_and_ended_in_one_place() -> None:
    for path in files():
        if path.name == "processes.py" or path.parent.name == "testing":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
                assert node.attr not in PROCESS_CALLS, f"{path.relative_to(ROOT)}:{node.lineno} calls os.{node.attr}"
                assert not node.attr.startswith("exec"), f"{path.relative_to(ROOT)}:{node.lineno}"


def test_every_file_says_what_it_is_for() -> None:
    for path in files():
        assert ast.get_docstring(ast.parse(path.read_text())), f"{path.relative_to(ROOT)} has no docstring"


def test_every_public_thing_is_documented() -> None:
    """Classes and functions without a leading underscore, on every floor."""
    bare: list[str] = []
    for path in files():
        named = [n for n in ast.parse(path.read_text()).body if isinstance(n, NAMED) and not n.name.startswith("_")]
        bare += [f"{path.relative_to(ROOT)}: {node.name}" for node in named if not ast.get_docstring(node)]
    assert bare == []


def test_what_the_checkers_are_told_to_overlook_has_its_reason_beside_it() -> None:
    for folder in (ROOT, ROOT.parents[1] / "tests", ROOT.parents[1] / "examples"):
        for path in folder.rglob("*.py"):
            if path == Path(__file__):
                continue
            for number, line in enumerate(path.read_text().splitlines(), 1):
                for mark in ("# type: ignore", "# noqa"):
                    if mark in line:
                        rest = line.split(mark, 1)[1]
                        assert "# " in rest or len(rest.split("]", 1)[-1]) > 5, f"{path}:{number} gives no reason"
