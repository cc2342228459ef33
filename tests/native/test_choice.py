"""Whatever is wrong with the extension, the command works in pure Python and says why."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from helpers.support import run_script

import prefork

VERSION = f"prefork {prefork.__version__}, streams "


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (None, "no extension was built"),
        ("VERSION = '0'", "the extension is of version 0"),
        ("", "the extension is of version unknown"),
        ("import _a_module_that_is_gone", "the extension is broken: No module named '_a_module_that_is_gone'"),
        ("raise SystemError('on purpose\\nsecond line')", "the extension is broken: on purpose"),
        ("raise AttributeError", "the extension is broken: AttributeError"),
    ],
)
def test_an_extension_that_does_not_fit_is_not_used(tmp_path: Path, source: str | None, reason: str) -> None:
    assert version_with(tmp_path, "_native.py", source) == f"{VERSION}pure Python ({reason})"


def test_a_damaged_extension_is_not_used(tmp_path: Path) -> None:
    assert version_with(tmp_path, "_native.abi3.so", "damaged").startswith(f"{VERSION}pure Python (the extension is")


def version_with(directory: Path, name: str, content: str | None) -> str:
    """Return what `prefork --version` says for a copy of the package whose extension is the file `name`."""
    ignored = shutil.ignore_patterns("_native*", "__pycache__")
    package = shutil.copytree(Path(prefork.__file__).parent, directory / "prefork", ignore=ignored)
    if content is not None:
        (package / name).write_text(content)
    code = "import sys; from prefork.cli.main import main; sys.exit(main(['--version']))"
    done = run_script(code, env={"PYTHONPATH": str(directory), "PREFORK_PURE": "", "PATH": os.environ["PATH"]})
    return done.stdout.strip()
