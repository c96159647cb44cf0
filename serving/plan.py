"""How many threads do what: one plan, made at start for the cores that this process may really use.

onnxruntime sees neither affinity nor cgroup quotas, so the threads are always set. On a CPU, one-thread runs side by
side beat one wide run for small CNNs (batch of 8 on a two-thread session: a quarter slower than two single pictures
side by side, measured on two cores); on a GPU one instance and large batches do.

A batch is what an instance takes and answers together: the loop that talks is woken once for all of it. A run is what
the network gets together, which on a CPU brings it a few per cent at most, while memory grows with it. Lite0, two
cores, 16 callers, one instance a core; rates over the first line's, five alternating rounds or more; resident at twice
capacity:

| fp32   | rate        | resident |   | INT8   | rate        | resident |
| 2 by 2 | 1           | 278 MB   |   | 4 by 4 | 1           | 275 MB   |
| 8 by 1 | 1.01 - 1.03 | 260 MB   |   | 8 by 1 | 0.97        | 255 MB   |
| 8 by 2 | 1.04 - 1.06 | 280 MB   |   | 8 by 2 | 0.98 - 1.02 | 256 MB   |
| 8 by 4 | 1.04 - 1.06 | 324 MB   |   | 8 by 4 | 1.00 - 1.04 | 286 MB   |

On a host twice as fast, INT8: 8 by 4 makes 0.99 of 8 by 2, 8 by 1 0.95 to 0.97.

A picture beside which nothing runs and nothing waits is another matter: it takes the cores that would idle.
"""

from dataclasses import dataclass
from typing import Final

_MAX_BATCH_CPU: Final = 8
_MAX_RUN_CPU: Final = 2
_MAX_BATCH_CUDA: Final = 32  # not measured
_MAX_LONE_THREADS: Final = 4  # more than two were not measured


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Threads and batches of one model."""

    instances: int  # batches that run at once
    intra_op_threads: int  # inside one run
    lone_threads: int  # inside the run of a single picture that has the cores to itself
    decode_threads: int  # 0: every instance decodes what it runs, without handing it over
    max_batch: int  # pictures that an instance takes and answers together
    max_run: int  # of them, in one run of the network; the rest follow in further ones


def make_plan(
    *,
    cores: int,
    provider: str,
    instances: int = 0,
    intra_op_threads: int = 0,
    decode_threads: int = 0,
    max_batch: int = 0,
) -> Plan:
    """Return the plan for a provider ("cpu" or "cuda"); numbers other than 0 are taken as they are."""
    max_batch = max_batch or (_MAX_BATCH_CUDA if provider == "cuda" else _MAX_BATCH_CPU)
    lone_threads = intra_op_threads or (1 if provider == "cuda" else min(instances or cores, cores, _MAX_LONE_THREADS))
    intra_op_threads = intra_op_threads or 1
    return Plan(
        max_batch=max_batch,
        max_run=max_batch if provider == "cuda" else min(max_batch, _MAX_RUN_CPU),
        instances=instances or (1 if provider == "cuda" else cores),
        intra_op_threads=intra_op_threads,
        lone_threads=lone_threads,
        decode_threads=decode_threads or (cores if provider == "cuda" else 0),
    )
