"""Building the C programs: the load generator and the floor. Nothing is run here but the compiler."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .errors import BenchError

HERE = Path(__file__).parent
FLAGS = ("-std=c11", "-O2", "-Wall", "-Wextra")
DEADLINE = 120.0


@dataclass(frozen=True, slots=True)
class Programs:
    """The paths of the compiled programs."""

    folder: Path
    tls: bool
    """Whether the generator speaks TLS."""

    @property
    def load(self) -> Path:
        return self.folder / "load"


def compiler() -> str:
    """The C compiler's path. Raises BenchError where there is none."""
    found = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if found is None:
        raise BenchError("there is no C compiler, and the load generator is in C: install gcc (Debian: gcc libc6-dev)")
    return found


def build(folder: Path) -> Programs:
    """Compile both into `folder`. Raises BenchError with the compiler's own words."""
    folder.mkdir(parents=True, exist_ok=True)
    cc = compiler()
    tls = _has_openssl(cc)
    sources = sorted(map(str, (HERE / "load").glob("*.c")))
    with_tls = (["-DWITH_TLS"], ["-lssl", "-lcrypto"]) if tls else ([], [])
    _run([cc, *FLAGS, *with_tls[0], "-o", str(folder / "load"), *sources, *with_tls[1], "-lm"])
    _run([cc, *FLAGS, "-o", str(folder / "epoll"), str(HERE / "contestants" / "epoll.c")])
    return Programs(folder, tls)


def _has_openssl(cc: str) -> bool:
    probe = "#include <openssl/ssl.h>\nint main(void) { return SSL_CTX_new(TLS_client_method()) == 0; }\n"
    command = [cc, "-x", "c", "-", "-o", "/dev/null", "-lssl", "-lcrypto"]
    return subprocess.run(command, input=probe, text=True, capture_output=True, timeout=DEADLINE).returncode == 0


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
    if done.returncode:
        raise BenchError(f"compiling failed: {' '.join(command)}\n{done.stderr.strip()}")
