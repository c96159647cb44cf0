"""What this process may use, from affinity and control groups (v1 and v2), the tightest from its own up to the root.

Inside a container its own group is usually mounted as the root; outside, /proc/self/cgroup names the way down.
"""

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TypeVar

_ROOT: Final = Path("/sys/fs/cgroup")
_OWN: Final = Path("/proc/self/cgroup")
_UNLIMITED_V1: Final = 2**60  # v1 writes a page-aligned 2**63 where there is no limit

Number = TypeVar("Number", int, float)


def usable_cores(*, processes: int = 1) -> int:
    """Return how many cores affinity, and its part of the CPU quota, leave to one of so many processes, at least 1."""
    affinity = len(os.sched_getaffinity(0))
    quota = cpu_quota(_ROOT, membership=_read(_OWN))
    return max(1, affinity if quota is None else min(affinity, math.ceil(quota / processes)))


def memory_limit_bytes() -> int | None:
    """Return how much memory this process may hold before it is killed; None where nothing is set."""
    return memory_limit(_ROOT, membership=_read(_OWN))


def usable_memory_bytes() -> int:
    """Return the memory limit, or what the machine has where that is less or there is none."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(memory_limit_bytes() or machine, machine)


def cpu_quota(root: Path, *, membership: str = "") -> float | None:
    """Return the CPU quota in cores; None where there is none. `membership` is the text of /proc/self/cgroup."""
    return _tightest(root, membership, controller="cpu", read_v1=_quota_v1, read_v2=_quota_v2)


def memory_limit(root: Path, *, membership: str = "") -> int | None:
    """Return the memory limit in bytes; None where there is none. `membership` is the text of /proc/self/cgroup."""
    return _tightest(root, membership, controller="memory", read_v1=_memory_v1, read_v2=_memory_v2)


def _tightest(
    root: Path,
    membership: str,
    *,
    controller: str,
    read_v1: Callable[[Path], Number | None],
    read_v2: Callable[[Path], Number | None],
) -> Number | None:
    paths: dict[str, str] = {}  # controller -> path; "" is v2
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        paths |= dict.fromkeys(controllers.split(","), path)
    found = [read_v2(folder) for folder in _upwards(root, paths.get("", "/"))]
    found += [read_v1(folder) for folder in _upwards(root / controller, paths.get(controller, "/"))]
    return min((value for value in found if value is not None), default=None)


def _upwards(root: Path, path: str) -> Iterator[Path]:
    """Yield the folder of a group and of every group above it; one that is not mounted here counts as the root."""
    folder = root / path.strip("/")
    while folder != root:
        yield folder
        folder = folder.parent
    yield root


def _quota_v2(folder: Path) -> float | None:
    words = _read(folder / "cpu.max").split()  # "max 100000" or "150000 100000"
    return int(words[0]) / int(words[1]) if len(words) == 2 and words[0] != "max" else None


def _quota_v1(folder: Path) -> float | None:
    quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
    return int(quota) / int(period) if quota and period and int(quota) > 0 else None


def _memory_v2(folder: Path) -> int | None:
    text = _read(folder / "memory.max")
    return int(text) if text and text != "max" else None


def _memory_v1(folder: Path) -> int | None:
    text = _read(folder / "memory.limit_in_bytes")
    return int(text) if text and int(text) < _UNLIMITED_V1 else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
