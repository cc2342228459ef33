"""What it costs to import prefork, and what comes along."""

from __future__ import annotations

import json
import sys

from helpers.support import run_script

import prefork


def modules_after(code: str) -> set[str]:
    script = f"import sys\nbefore = set(sys.modules)\n{code}\nfound = set(sys.modules) - before"
    return set(json.loads(run_script(f"{script}\nimport json\nprint(json.dumps(sorted(found)))").stdout))


def outsiders(modules: set[str]) -> set[str]:
    return {name.split(".")[0] for name in modules} - set(sys.stdlib_module_names) - {"prefork"}


def test_importing_prefork_brings_nothing_but_itself() -> None:
    assert not outsiders(modules_after("import prefork"))
    assert "asyncio" not in modules_after("import prefork")


def test_every_public_name_is_there_and_needs_the_standard_library_alone() -> None:
    names = [name for name in prefork.__all__ if name != "serve"]
    code = "import prefork\n" + "\n".join(f"prefork.{name}" for name in names)
    assert not outsiders(modules_after(code))
    for name in prefork.__all__:
        assert getattr(prefork, name) is not None
    assert sorted(prefork.__all__) == dir(prefork)


def test_the_command_imports_what_it_needs_and_no_more() -> None:
    helped = modules_after("import prefork.cli.main")
    for module in ("asyncio", "ssl", "prefork.net.server", "prefork.worker.main"):
        assert module not in helped, module
