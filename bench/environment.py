"""What a run was made with: machine, kernel, versions, and how quiet it was. Asked for, not judged."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import ssl
import subprocess
from pathlib import Path

from prefork.implementation import describe_core

from .cores import Cores
from .servers import ROOT

PACKAGES = ("uvloop", "blazio", "rloop", "talyn", "tornado", "gevent", "trio", "twisted", "hiredis")


def describe(cores: Cores, generator: str) -> dict[str, str]:
    """Return what may matter in a comparison, by name; `generator` is the compiler and TLS library of the generator."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "prefork": f"{_version('prefork')}, streams {describe_core()}, {_commit()}",
        "machine": f"{_processor()}, {os.cpu_count()} CPUs, {_memory_gib()} GiB",
        "cores": f"server on CPU {cores.server}, generator on CPU {cores.generator}",
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}, {ssl.OPENSSL_VERSION}",
        "peers": ", ".join(f"{name} {_version(name)}" for name in PACKAGES),
        "generator": generator,
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _commit() -> str:
    try:
        command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=10"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "commit unknown"
    return f"commit {done.stdout.strip()}" if done.returncode == 0 else "commit unknown"


def _processor() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    return found[1].strip() if found else platform.machine()


def _memory_gib() -> int:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
