"""What `import prefork` costs, and which public names there are."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path

from helpers.support import run_script

import prefork


def modules_after(code: str) -> set[str]:
    script = f"import sys\nbefore = set(sys.modules)\n{code}\nfound = set(sys.modules) - before"
    return set(json.loads(run_script(f"{script}\nimport json\nprint(json.dumps(sorted(found)))").stdout))


def outsiders(modules: set[str]) -> set[str]:
    return {name.split(".")[0] for name in modules} - set(sys.stdlib_module_names) - {"prefork"}


def test_import_prefork_loads_only_the_standard_library() -> None:
    assert not outsiders(modules_after("import prefork"))
    assert "asyncio" not in modules_after("import prefork")


def test_every_public_name_exists_and_needs_only_the_standard_library() -> None:
    names = [name for name in prefork.__all__ if name != "serve"]
    code = "import prefork\n" + "\n".join(f"prefork.{name}" for name in names)
    assert not outsiders(modules_after(code))
    for name in prefork.__all__:
        assert getattr(prefork, name) is not None
    assert sorted(prefork.__all__) == dir(prefork)


def test_type_checkers_see_the_names_that_a_program_sees() -> None:
    tree = ast.parse(Path(prefork.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    seen = {(alias.asname, node.module or alias.name) for node in block.body for alias in node.names}  # type: ignore[attr-defined]  # imports only
    assert seen == set(prefork._MODULE_OF.items())


def test_the_command_imports_no_server_before_it_serves() -> None:
    imported = modules_after("import prefork.cli.main")
    for module in ("asyncio", "ssl", "click", "prefork.net.server", "prefork.worker.main"):
        assert module not in imported, module
