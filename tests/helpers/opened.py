"""Scripts in a mount namespace in which another user than root can run this Python, and folders that it can reach."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.support import need, run_script

#: A mount namespace in which /root, where some machines keep their Python, lets others in; nothing outside changes.
OPENED = """
set -e
mount --make-rprivate /
ip link set lo up
if [ -d /root/.pyenv ]; then
    mount -t tmpfs none /mnt
    mkdir /mnt/pyenv
    mount --bind /root/.pyenv /mnt/pyenv
    mount -t tmpfs -o mode=755 none /root
    mkdir /root/.pyenv
    mount --bind /mnt/pyenv /root/.pyenv
fi
exec "$@"
"""
NAMESPACE = ("unshare", "-n", "-m", "sh", "-c", OPENED, "sh")


def run_opened(code: str, folder: Path) -> str:
    """Run `code` in that namespace, with tests/ importable; what it printed."""
    need("unshare", "ip", "mount")
    check = "import os\nos.setresuid(65534, 65534, 65534)\nimport prefork.assembly.serve"
    path = f"import sys\nsys.path[:0] = {sys.path!r}\n"
    if run_script(path + check, prefix=NAMESPACE).returncode != 0:
        pytest.skip("another user may not read this Python, nor this checkout")
    done = run_script(path + code, prefix=NAMESPACE, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextlib.contextmanager
def open_folder() -> Iterator[Path]:
    """Make a directory that any user can reach and only root can write to, and remove it after the block.

    It is not one of pytest's, because each process of pytest closes their parent to other users when it begins.
    """
    folder = Path(tempfile.mkdtemp(prefix="prefork-open-", dir="/tmp"))
    try:
        folder.chmod(0o755)
        yield folder
    finally:
        shutil.rmtree(folder)
