"""Boot systemd as process 1 of namespaces of its own, on a copy of this machine's files, and run a script in it.

Nothing that it does reaches the machine: files are an overlay in memory, and processes, network and control groups are
its own. Python and prefork are those of this environment, at /opt/app/venv.
"""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers.deployment import ROOT
from helpers.support import kill_session, need, need_root, wait_until

SYSTEMD = Path("/lib/systemd/systemd")
#: The number of the user `app`.
APP = 1999

#: Runs as process 1 of the namespaces: mounts what systemd needs, and becomes systemd. $1: a directory of the test,
#: which is /test there; $2: the Python's prefix, $3: its packages, $4: the source; $5: a terminal for the console; $6:
#: Python's version.
MOUNT = r"""
set -eu
mount --make-rprivate /
mount -t tmpfs tmpfs "$1/top"
mkdir "$1/top/upper" "$1/top/work" "$1/top/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/top/upper,workdir=$1/top/work" "$1/top/root"
cd "$1/top/root"
mkdir -p test opt/python opt/app/venv/bin "opt/app/venv/lib/python$6/site-packages" opt/app/src etc/app
mount --bind "$2" opt/python
mount --bind "$3" "opt/app/venv/lib/python$6/site-packages"
mount --bind "$4" opt/app/src
mount -t proc proc proc
mount -t sysfs sysfs sys -o ro
mount -t cgroup2 cgroup2 sys/fs/cgroup
for place in run tmp dev; do mount -t tmpfs tmpfs "$place"; done
mount --bind "$1" test
for device in null zero full random urandom tty; do
    touch "dev/$device"
    mount --bind "/dev/$device" "dev/$device"
done
touch dev/console
mount --bind "$5" dev/console
mkdir dev/shm dev/pts
mount -t tmpfs tmpfs dev/shm
mount -t devpts devpts dev/pts -o newinstance,ptmxmode=0666
ln -s pts/ptmx dev/ptmx
ip link set lo up
echo "app:x:%(app)s:%(app)s::/opt/app:/bin/sh" >> etc/passwd
echo "app:x:%(app)s:" >> etc/group
printf 'home = /opt/python/bin\n' > opt/app/venv/pyvenv.cfg
ln -s "/opt/python/bin/python$6" opt/app/venv/bin/python
cat > opt/app/venv/bin/prefork <<-END
	#!/opt/app/venv/bin/python
	from prefork.cli.main import main
	raise SystemExit(main())
END
chmod +x opt/app/venv/bin/prefork
# Of this machine's units only those that the test brings are wanted.
rm -rf etc/systemd/system lib/systemd/system/*.wants
mkdir -p etc/systemd/system
cp -r test/etc/. etc/
cp -r test/opt/. opt/
# Not chroot(8), because systemd makes namespaces of mounts for its units, from the root of this one.
mkdir -p before
pivot_root . before
umount -l /before
cd /
exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --unit=driver.target \
    --log-target=console --show-status=0
"""
TARGET = "[Unit]\nDescription=The test\nDefaultDependencies=no\nWants=driver.service\n"
#: Python of this machine is below /root perhaps, which the hardened unit hides: it is mounted elsewhere, and so it must
#: be told where its library is.
HERE = """
Environment=LD_LIBRARY_PATH=/opt/python/lib PYTHONPATH=/opt/app/src PYTHONDONTWRITEBYTECODE=1
"""
DRIVER = f"""
[Unit]
DefaultDependencies=no
[Service]
Type=oneshot
{HERE}
StandardOutput=file:/test/output
StandardError=file:/test/output
ExecStart=/opt/app/venv/bin/python /test/driver.py
ExecStopPost=touch /test/done
"""


def boot(folder: Path, files: dict[str, Path | str], driver: Path, deadline: float = 50.0) -> tuple[str, str]:
    """Boot systemd, run the Python file `driver` as root in it, and return what that prints, and what systemd says.

    `files` are copied or written to the paths that are their keys, below /etc or /opt. Skips where systemd cannot be
    booted; AssertionError after `deadline` seconds, with what systemd said.
    """
    need("unshare", "ip", "systemctl")
    need_root()
    if not SYSTEMD.exists():
        pytest.skip(f"no {SYSTEMD}")
    units = {"/etc/systemd/system/driver.target": TARGET, "/etc/systemd/system/driver.service": DRIVER}
    for path, content in {**units, **files}.items():
        place = folder / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            shutil.copy(content, place)
        else:
            place.write_text(content)
    (folder / "opt").mkdir(exist_ok=True)
    (folder / "top").mkdir()
    shutil.copy(driver, folder / "driver.py")
    group = _control_group()
    master, slave = os.openpty()
    command = ["sh", "-c", 'echo $$ > "$0/cgroup.procs"; exec "$@"', str(group)]
    command += ["unshare", "--mount", "--pid", "--fork", "--uts", "--ipc", "--cgroup", "--net", "--kill-child"]
    packages = site.getsitepackages()[0]
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    places = [str(folder), sys.base_prefix, packages, str(ROOT / "src"), os.ttyname(slave), version]
    process = subprocess.Popen(
        [*command, "sh", "-c", MOUNT % {"app": APP}, "boot", *places],
        stdin=subprocess.DEVNULL,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    try:
        os.set_blocking(master, False)
        said: list[bytes] = []

        def done() -> bool:
            try:
                said.append(os.read(master, 1 << 16))
            except BlockingIOError:
                time.sleep(0.02)
            return (folder / "done").exists() or process.poll() is not None

        try:
            wait_until(done, deadline)
        except AssertionError:
            said.append((folder / "output").read_bytes() if (folder / "output").exists() else b"no output")
            raise AssertionError(b"".join(said).decode(errors="replace")[-8000:]) from None
        assert (folder / "output").exists(), b"".join(said).decode(errors="replace")[-8000:]
        return (folder / "output").read_text(), b"".join(said).decode(errors="replace")
    finally:
        kill_session(process.pid)
        process.wait()
        os.close(master)
        os.close(slave)
        _remove(group)


def _control_group() -> Path:
    """Make a control group for the processes of the test; skips where there is no hierarchy of version 2."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    places = [Path(where) for _, where, kind, *_ in mounts if kind == "cgroup2"]
    if not places or not os.access(places[0], os.W_OK):
        pytest.skip("no control groups of version 2 that a test can make")
    group = places[0] / f"prefork-test-{os.getpid()}"
    group.mkdir()
    return group


def _remove(group: Path) -> None:
    def removed() -> bool:
        try:
            for path, _, _ in os.walk(group, topdown=False):
                os.rmdir(path)
        except OSError:
            return False
        return True

    wait_until(removed, 10, f"that no process is left in {group}")
