"""Scripts in a mount namespace in which another user than root can run this Python."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from support import need, run_script

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
    check = "import os\nos.setresuid(65534, 65534, 65534)\nimport prefork.assembly"
    path = f"import sys\nsys.path[:0] = {sys.path!r}\n"
    if run_script(path + check, prefix=NAMESPACE).returncode != 0:
        pytest.skip("another user may not read this Python, nor this checkout")
    done = run_script(path + code, prefix=NAMESPACE, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout
