"""How many threads do what: one plan, made at start for the cores that this process may really use.

onnxruntime sees neither affinity nor cgroup quotas, so the threads are always set. On a CPU, one-thread runs side by
side beat one wide run for small CNNs (batch of 8 on a two-thread session: a quarter slower than two single pictures
side by side, measured on two cores); on a GPU one instance and large batches do.

Batches bring the network itself nothing on a CPU, or 3 % (INT8), but a server hands over, counts and answers once a
batch. Lite0, two cores, 16 callers, one instance a core, medians of eight rounds or more; resident at twice capacity:

| INT8  | pictures/s | CPU ms each |   | fp32  | pictures/s | CPU ms each | resident     |
| 2 x 2 | 273        | 6.7         |   | 2 x 1 | 152        | 12.2        |              |
| 2 x 4 | 283        | 6.6         |   | 2 x 2 | 162        | 11.6        | 271 - 295 MB |
| 2 x 8 | 277        | 6.7         |   | 2 x 4 | 165        | 11.5        | 311 - 340 MB |

A picture beside which nothing runs and nothing waits is another matter: it takes the cores that would idle.
"""

from dataclasses import dataclass
from typing import Final

_MAX_BATCH_INT8: Final = 4
_MAX_BATCH_CPU: Final = 2  # floats are four times as large, and the arena keeps what it once held
_MAX_BATCH_CUDA: Final = 32  # not measured
_MAX_LONE_THREADS: Final = 4  # more than two were not measured


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Threads and batches of one model."""

    instances: int  # batches that run at once
    intra_op_threads: int  # inside one batch
    lone_threads: int  # inside the run of a single picture that has the cores to itself
    decode_threads: int  # 0: every instance decodes what it runs, without handing it over
    max_batch: int  # pictures that run together


def make_plan(
    *,
    cores: int,
    provider: str,
    precision: str = "fp32",
    instances: int = 0,
    intra_op_threads: int = 0,
    decode_threads: int = 0,
    max_batch: int = 0,
) -> Plan:
    """Return the plan for a provider ("cpu" or "cuda"); numbers other than 0 are taken as they are."""
    on_cpu = _MAX_BATCH_INT8 if precision == "int8" else _MAX_BATCH_CPU
    max_batch = max_batch or (_MAX_BATCH_CUDA if provider == "cuda" else on_cpu)
    lone_threads = intra_op_threads or (1 if provider == "cuda" else min(instances or cores, cores, _MAX_LONE_THREADS))
    intra_op_threads = intra_op_threads or 1
    return Plan(
        max_batch=max_batch,
        instances=instances or (1 if provider == "cuda" else cores),
        intra_op_threads=intra_op_threads,
        lone_threads=lone_threads,
        decode_threads=decode_threads or (cores if provider == "cuda" else 0),
    )
