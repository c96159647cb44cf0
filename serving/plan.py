"""How many threads do what: one plan, made at start for the cores that this process may really use.

onnxruntime sees neither affinity nor cgroup quotas, so the threads are always set. On a CPU, one-thread runs side by
side beat one wide run for small CNNs (batch of 8 on a two-thread session: a quarter slower than two single pictures
side by side, measured on two cores); on a GPU one instance and large batches do.
"""

from dataclasses import dataclass
from typing import Final

_MAX_BATCH_CPU: Final = 1
_MAX_BATCH_CUDA: Final = 32  # not measured


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

    On a CPU batches bring a network of this kind nothing and cost memory, which the arena keeps. Lite0, two cores, 16
    callers, at most 16, 4 and 1 together: 173, 171 and 166 pictures/s, p99 162, 135 and 112 ms, 354, 244 and 176 MB
    resident, with decoding on threads of its own; without, 4 and 1: 176 and 189 pictures/s.
    """
    return Plan(
        max_batch=max_batch or (_MAX_BATCH_CUDA if provider == "cuda" else _MAX_BATCH_CPU),
        instances=instances or (1 if provider == "cuda" else cores),
        intra_op_threads=intra_op_threads or 1,
        decode_threads=decode_threads or (cores if provider == "cuda" else 0),
    )
