"""How many threads are started: what the process may run on, and what its control group's quota is worth."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from exposure.kernels.library import threads

HERE = len(os.sched_getaffinity(0))
HALF = "50000 100000\n"


def group(root: Path, lines: str, files: dict[str, str]) -> int:
    """The cores of a process in these control groups."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(lines)
    for name, content in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return threads(str(root))


def test_no_quota(tmp_path: Path) -> None:
    assert threads() <= HERE
    assert group(tmp_path, "0::/user.slice\n", {"user.slice/cpu.max": "max 100000\n", "cpu.max": "junk"}) == HERE


@pytest.mark.parametrize(
    ("lines", "files"),
    [
        ("0::/\n", {"cpu.max": HALF}),  # a container of version 2
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": HALF}),  # a service in a slice with a quota
        ("0::/a\n", {"a/cpu.max": "1000000 100000\n", "cpu.max": HALF}),
        # version 1: a group of one's own, and a container that sees the path of the host
        (
            "3:cpuset:/\n4:cpu,cpuacct:/a\n",
            {"cpu,cpuacct/a/cpu.cfs_quota_us": "50000", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"},
        ),
        ("4:cpu:/docker/1f\n", {"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}),
    ],
)
def test_a_quota_of_half_a_core_is_one_thread(tmp_path: Path, lines: str, files: dict[str, str]) -> None:
    assert group(tmp_path, lines, files) == 1


@pytest.mark.skipif(HERE < 2, reason="one core gives no choice")
@pytest.mark.parametrize(("quota", "cores"), [("110000 100000", 2), ("100000 100000", 1), ("9900000 100000", HERE)])
def test_a_quota_is_rounded_up_and_adds_no_cores(tmp_path: Path, quota: str, cores: int) -> None:
    assert group(tmp_path, "0::/\n", {"cpu.max": quota}) == cores


def test_version_1_without_a_quota(tmp_path: Path) -> None:
    files = {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000", "cpuset/cpu.max": HALF}
    assert group(tmp_path, "9:cpuset:/\n4:cpu:/\n", files) == HERE


def test_affinity() -> None:
    program = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
    program += "from exposure.kernels.library import threads; print(threads())"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "1\n"
