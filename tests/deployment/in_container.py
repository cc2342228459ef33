"""Do what `docker build` and `docker run` do with a Dockerfile, in namespaces of mounts, processes and network.

The base image is a copy of this machine's files with Python at /opt/python, and `apt-get` does nothing; everything else
is done as it is written. Arguments: the Dockerfile, the directory that is its context, and Python's prefix. Runs as
root in a namespace of mounts of its own, and prints "well" at the end.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers import dockerfile

DOCKERFILE, CONTEXT, PREFIX = (Path(each) for each in sys.argv[1:])
TOP = Path(tempfile.mkdtemp(dir=CONTEXT))


def sh(command: str, *words: str | Path) -> None:
    """Run a shell command, with `words` as its arguments."""
    subprocess.run(["sh", "-ec", command, "sh", *words], check=True, stdout=subprocess.DEVNULL)


class Image:
    """The files of a stage, and what its instructions have set."""

    def __init__(self, name: str) -> None:
        self.root = TOP / name / "root"
        self.env = {
            "PATH": "/base:/opt/python/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LD_LIBRARY_PATH": "/opt/python/lib",
            "HOME": "/root",
        }
        self.workdir, self.user = "/", "0:0"
        sh(
            """
            mkdir -p "$1/upper" "$1/work" "$1/root"
            mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
            cd "$1/root"
            mkdir -p opt/python base
            mount --bind "$2" opt/python
            printf '#!/bin/sh\n' > base/apt-get
            chmod +x base/apt-get
            for place in proc dev; do mount --rbind "/$place" "$place"; done
            """,
            TOP / name,
            PREFIX,
        )

    def inside(self, *words: str) -> list[str]:
        """Return the command that runs `words` in the image, as its user, with no capability unless that is root."""
        user, group = self.user.split(":")
        rights = [] if user == "0" else ["--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]
        command = ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", *rights]
        command += ["env", "-i", "-C", self.workdir, *(f"{name}={value}" for name, value in self.env.items())]
        return [*command, *words]


def build(stage: dockerfile.Stage, images: dict[str, Image]) -> Image:
    image = Image(stage.name)
    for name, flags, text in stage.instructions:
        if name == "RUN":
            variables = [f"{key}={value}" for key, value in os.environ.items() if key.startswith("PIP_")]
            command = ["chroot", str(image.root), *image.inside(*variables, "sh", "-ec", text)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        elif name == "COPY":
            *sources, target = text.split()
            origin = images[flags["from"]].root if "from" in flags else CONTEXT
            sh(
                'mkdir -p "$2"; cp -a "$1" "$2"',
                *(origin / each.lstrip("/") for each in sources),
                in_image(image, target),
            )
        elif name == "ENV":
            image.env.update(dockerfile.variables(text, image.env))
        elif name == "WORKDIR":
            image.workdir = text
        elif name == "USER":
            image.user = text
    return image


def in_image(image: Image, target: str) -> Path:
    """Return where COPY puts what it copies: a directory is named with a slash, or is the source of the same name."""
    path = image.root / target.lstrip("/")
    return path if target.endswith("/") else path.parent


class Container:
    """What `docker run --read-only --tmpfs /tmp --cap-drop ALL` starts."""

    def __init__(self, image: Image, command: list[str]) -> None:
        self._image = image
        start = """
            cd "$1"; shift
            umount -l proc
            mount -t proc proc proc
            mount -o remount,ro .
            mount -t tmpfs tmpfs tmp
            ip link set lo up
            exec chroot . "$@"
        """
        namespaces = ["unshare", "--mount", "--pid", "--fork", "--net", "--kill-child"]
        shell = ["sh", "-ec", start, "sh", str(image.root)]
        self.process = subprocess.Popen([*namespaces, *shell, *image.inside(*command)])
        # unshare(1) has one child: process 1 there.
        while not (children := Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()):
            time.sleep(0.01)
        self.pid = int(children[0])

    def run(self, *words: str, timeout: float = 30) -> int:
        """Run a command as `docker exec` does, and return its status; 124 if it takes longer."""
        enter = ["nsenter", f"--target={self.pid}", "--mount", "--pid", "--net", "--root"]
        with contextlib.suppress(subprocess.TimeoutExpired):
            command = [*enter, *self._image.inside(*words)]
            return subprocess.run(command, timeout=timeout, stdout=subprocess.DEVNULL).returncode
        return 124


ASK = """
import socket
with socket.create_connection(("127.0.0.1", 9000), 10) as sock:
    sock.sendall(b"hello\\n")
    assert sock.recv(100) == b"hello\\n"
"""
SCRAPE = """
import urllib.request
assert urllib.request.urlopen("http://127.0.0.1:9100/readyz", timeout=10).status == 200
"""


def wait_until_healthy(container: Container, check: dockerfile.Instruction) -> None:
    end = time.monotonic() + float(check.flags["start-period"].rstrip("s"))
    while container.run(*check.words(), timeout=float(check.flags["timeout"].rstrip("s"))) != 0:
        assert time.monotonic() < end
        assert container.process.poll() is None
        time.sleep(0.1)


def use(image: Image, stage: dockerfile.Stage) -> None:
    container = Container(image, [*stage.last("ENTRYPOINT").words(), *stage.last("CMD").words()])
    check = stage.last("HEALTHCHECK")
    try:
        wait_until_healthy(container, check)
        status = dict(
            line.split(":\t", 1)
            for line in Path(f"/proc/{container.pid}/status").read_text().splitlines()
            if ":\t" in line
        )
        assert status["NSpid"].split()[-1] == "1"
        assert Path(f"/proc/{container.pid}/cmdline").read_text().startswith("prefork"), "no shell before it"
        assert set(status["Uid"].split()) == {image.user.split(":")[0]} != {"0"}
        assert (int(status["CapEff"], 16), int(status["CapBnd"], 16)) == (0, 0)
        assert container.run("touch", "/app/file") != 0, "the root is read-only"
        assert container.run("python", "-c", ASK) == 0
        assert container.run("python", "-c", SCRAPE) == 0
        assert (
            container.run("python", "-c", "import prefork._native, sys; sys.exit(prefork.__file__[:6] != '/venv/')")
            == 0
        )
        assert not (image.root / "requirements.txt").exists(), "of the first stage only /venv is left"
        # A supervisor that does not answer is not healthy.
        os.kill(container.pid, signal.SIGSTOP)
        assert container.run(*check.words(), timeout=float(check.flags["timeout"].rstrip("s"))) != 0
        os.kill(container.pid, signal.SIGCONT)
        os.kill(container.pid, getattr(signal, stage.last("STOPSIGNAL").text))
        assert container.process.wait(20) == 0
    finally:
        container.process.kill()
        container.process.wait()


def main() -> None:
    sh('mount --make-rprivate /; mount -t tmpfs tmpfs "$1"', TOP)
    images: dict[str, Image] = {}
    stages = dockerfile.read(DOCKERFILE)
    for stage in stages:
        images[stage.name] = build(stage, images)
    use(images[stages[-1].name], stages[-1])
    print("well")


main()
