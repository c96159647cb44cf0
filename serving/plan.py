"""How many threads do what: one plan, made at start from the cores this process may really use.

onnxruntime sees neither affinity nor cgroup quotas, so the threads are always set. On a CPU, one-thread runs side by
side beat one wide run for small CNNs (batch of 8 on a two-thread session: a quarter slower than two single pictures
side by side, measured on two cores); on a GPU one instance and large batches do.
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_MAX_BATCH_CPU: Final = 4
_MAX_BATCH_CUDA: Final = 32  # not measured
_CGROUPS: Final = Path("/sys/fs/cgroup")
_OWN_CGROUP: Final = Path("/proc/self/cgroup")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Threads and batches of one model."""

    instances: int  # batches that run at once
    intra_op_threads: int  # inside one batch
    decode_threads: int  # 0: every instance decodes what it runs, without handing it over
    max_batch: int  # pictures that run together


def make_plan(
    *,
    cores: int,
    provider: str,
    instances: int = 0,
    intra_op_threads: int = 0,
    decode_threads: int = 0,
    max_batch: int = 0,
) -> Plan:
    """Return the plan for a provider ("cpu" or "cuda"); numbers other than 0 are taken as they are.

    On a CPU batches beyond 4 bring nothing and cost memory, which the arena keeps. Lite0, two cores, 16 callers, at
    most 16, 4 and 1 together: 173, 171 and 166 pictures/s, p99 162, 135 and 112 ms, 354, 244 and 176 MB resident.
    """
    return Plan(
        max_batch=max_batch or (_MAX_BATCH_CUDA if provider == "cuda" else _MAX_BATCH_CPU),
        instances=instances or (1 if provider == "cuda" else cores),
        intra_op_threads=intra_op_threads or 1,
        decode_threads=decode_threads or (cores if provider == "cuda" else 0),
    )


def usable_cores() -> int:
    """Return how many cores affinity and cgroup quota leave to this process, at least 1."""
    affinity = len(os.sched_getaffinity(0))
    quota = cgroup_quota(_CGROUPS, own=_own_cgroup())
    return max(1, affinity if quota is None else min(affinity, math.ceil(quota)))


def cgroup_quota(root: Path, *, own: str = "/") -> float | None:
    """Return the CPU quota in cores, the tightest from `own` up to the root; None where there is none.

    Reads cgroup v2 (`cpu.max`) and v1 (`cpu/cpu.cfs_quota_us`).
    """
    quotas = []
    folder = root / own.strip("/")
    for place in (folder, *folder.parents):
        quotas.append(_quota_v2(place))
        if place == root:
            break
    quotas.append(_quota_v1(root / "cpu"))
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_v2(folder: Path) -> float | None:
    words = _read(folder / "cpu.max").split()  # "max 100000" or "150000 100000"
    return int(words[0]) / int(words[1]) if len(words) == 2 and words[0] != "max" else None


def _quota_v1(folder: Path) -> float | None:
    quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
    return int(quota) / int(period) if quota and period and int(quota) > 0 else None


def _own_cgroup() -> str:
    lines = _read(_OWN_CGROUP).splitlines()
    return next((line[3:] for line in lines if line.startswith("0::")), "/")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
