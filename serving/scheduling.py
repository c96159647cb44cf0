"""Threads that compute give way to the one that talks, and stay on cores of their own where those are all there are.

Left to the system, two threads that compute share a core for milliseconds while the other idles: the one that talks
weighs more than both, and moves about. On cores of their own: 1.02 to 1.03 times as many pictures (fp32), 1.07 to 1.11
(INT8, two instances), of no more CPU each. But beside another program's thread that never rests, which outweighs ours,
a core of one's own is a tenth of a core: then they go where there is room, as ever (two cores, 16 callers).
"""

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from serving.occupancy import Occupancy

_NICENESS: Final = 10
_LOOK_EVERY_S: Final = 0.1  # of batches
_LEAST_SHARE: Final = 0.4  # of its core: less than the thread that talks leaves at twice capacity
_STAY_AWAY_S: Final = 30.0


def give_way() -> None:
    """Lower the priority of this thread below the main one's, and of those that it will start.

    Does nothing where threads have no priority, or this one gives way already. At twice capacity a refusal then takes
    11 ms for 53 (busy machine).
    """
    if hasattr(os, "SCHED_OTHER"):  # on Linux a thread has a niceness of its own
        wanted, thread = os.getpriority(os.PRIO_PROCESS, os.getpid()) + _NICENESS, threading.get_native_id()
        if os.getpriority(os.PRIO_PROCESS, thread) < wanted:  # only the privileged may raise it again
            with suppress(OSError):  # where that is forbidden, it is none the worse for answering
                os.setpriority(os.PRIO_PROCESS, thread, wanted)


def own_cores(count: int) -> tuple[int, ...]:
    """Return a core for each of `count` threads where this process may use just so many, else nothing."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    return tuple(sorted(cores)) if len(cores) == count else ()


def _move(core: int | None) -> None:
    """Let this thread run on one core, or wherever the main thread may by now."""
    with suppress(OSError):  # a core that was taken from this process since
        cores = os.sched_getaffinity(os.getpid()) if core is None else {core}
        os.sched_setaffinity(threading.get_native_id(), cores)


class OwnCore:
    """Keeps one thread on a core while it gets most of it. Entered by that thread around each batch; None: any core.

    `occupancy` has the batch already. One that has the machine to itself may run anywhere: on a fixed core one caller's
    call took 3 % longer. So may one whose core another model's batch has: two would share it while another core idles.
    """

    def __init__(
        self,
        core: int | None,
        occupancy: Occupancy,
        *,
        move: Callable[[int | None], None] = _move,
        wall: Callable[[], float] = time.perf_counter,
        cpu: Callable[[], float] = time.thread_time,
    ) -> None:
        self._core = core
        self._occupancy = occupancy
        self._move = move
        self._wall, self._cpu = wall, cpu
        self._is_there = False
        self._back_at = 0.0
        self._wall_s = self._cpu_s = 0.0  # of batches since the last look
        self._began = 0.0, 0.0

    def __enter__(self) -> None:
        """Begin a batch."""
        if self._core is None:
            return
        now = self._wall()
        self._stay(now >= self._back_at and self._occupancy.take(self._core))
        self._began = now, self._cpu()

    def __exit__(self, *_: object) -> None:
        """End it; leave the core where somebody else has most of it."""
        if self._core is None or not self._is_there:
            return
        self._occupancy.give_back(self._core)
        now, (wall_began, cpu_began) = self._wall(), self._began
        self._wall_s += now - wall_began
        self._cpu_s += self._cpu() - cpu_began
        if self._wall_s < _LOOK_EVERY_S:
            return
        if self._cpu_s < _LEAST_SHARE * self._wall_s:
            self._back_at = now + _STAY_AWAY_S
            self._stay(False)
        self._wall_s = self._cpu_s = 0.0

    def _stay(self, is_there: bool) -> None:
        """Go to the core, or leave it, unless that is so already."""
        if is_there != self._is_there:
            self._move(self._core if is_there else None)
            self._is_there, self._wall_s, self._cpu_s = is_there, 0.0, 0.0
