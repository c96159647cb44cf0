"""Time several models side by side on one machine. Not a load test: one caller, one thread, the graph alone.

The clock is the thread's own CPU time: on an idle machine the same as latency, and on a busy one without what other
processes took. (Load 11 on two cores, Lite0: by the wall fp32 and int8 both took 82 ms.)
"""

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Final

Clock = Callable[[], float]  # seconds
ROUNDS: Final = 15
FEWEST_ROUNDS: Final = 5
LIMIT_S: Final = 6.0  # of all rounds together, once the fewest are done


def interleaved_medians_ms(runs: Sequence[Callable[[], object]], *, clock: Clock = time.thread_time) -> list[float]:
    """Return each run's median time in ms, > 0. They take turns, so that a fuller machine meets all."""
    for run in runs:
        run()  # first runs allocate
    samples: list[list[float]] = [[] for _ in runs]
    started = clock()
    for number in range(ROUNDS):
        if number >= FEWEST_ROUNDS and clock() - started > LIMIT_S:
            break
        for run, times in zip(runs, samples, strict=True):
            before = clock()
            run()
            times.append(1e3 * (clock() - before))
    return [max(median(times), 1e-6) for times in samples]
