"""CPUs that may be used: the affinity mask, and the quotas of every control group from ours to the root."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from prefork import cpu_count

HERE = len(os.sched_getaffinity(0))


def machine(root: Path, groups: str, files: dict[str, str]) -> Path:
    """A tree of /proc and /sys."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    for path, text in files.items():
        (root / "sys/fs/cgroup" / path).parent.mkdir(parents=True, exist_ok=True)
        (root / "sys/fs/cgroup" / path).write_text(text)
    return root


@pytest.fixture(autouse=True)
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


@pytest.mark.parametrize(
    ("groups", "files", "count"),
    [
        ("", {}, 8),
        ("0::/\n", {}, 8),
        ("0::/app\n", {"app/cpu.max": "max 100000\n"}, 8),
        ("0::/app\n", {"app/cpu.max": "200000 100000\n"}, 2),
        ("0::/app\n", {"app/cpu.max": "150000 100000\n"}, 2),
        ("0::/app\n", {"app/cpu.max": "1000 100000\n"}, 1),
        ("0::/app\n", {"app/cpu.max": "1600000 100000\n"}, 8),
        ("0::/a/b/c\n", {"a/cpu.max": "300000 100000\n", "a/b/c/cpu.max": "max 100000\n"}, 3),
        ("0::/a/b/c\n", {"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "100000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "400000 100000\n"}, 4),
        ("0::/../../x\n", {"cpu.max": "400000 100000\n"}, 4),
        (
            "4:cpu,cpuacct:/app\n",
            {"cpu,cpuacct/app/cpu.cfs_quota_us": "250000\n", "cpu,cpuacct/app/cpu.cfs_period_us": "100000\n"},
            3,
        ),
        ("4:cpu:/app\n", {"cpu/app/cpu.cfs_quota_us": "-1\n", "cpu/app/cpu.cfs_period_us": "100000\n"}, 8),
        ("4:memory:/app\n", {"memory/app/cpu.cfs_quota_us": "1\n", "memory/app/cpu.cfs_period_us": "1\n"}, 8),
        ("0::/app\n", {"app/cpu.max": "rubbish\n"}, 8),
        ("rubbish", {"cpu.max": "0 0\n"}, 8),
    ],
)
def test_cpu_quotas_limit_the_number_of_cpus(tmp_path: Path, groups: str, files: dict[str, str], count: int) -> None:
    assert cpu_count(machine(tmp_path, groups, files)) == count


def test_without_any_information_one_cpu_is_assumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cpu_count(tmp_path) == 1


def test_the_affinity_of_this_process_limits_the_number_of_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert 1 <= cpu_count() <= HERE
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert cpu_count() == 1
    finally:
        os.sched_setaffinity(0, before)
