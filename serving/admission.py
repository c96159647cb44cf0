"""Who may still join a queue: room in items, in bytes, and in time at the pace of what ran before.

Counts, and refuses; whoever owns it holds a lock around every call. Knows no clocks.
"""

import threading
from dataclasses import dataclass
from typing import Final

from serving.errors import DeadlineExceededError, QueueFullError

_PACE_WEIGHT: Final = 0.1  # of the newest batch in the moving mean of seconds an item
_MARGIN: Final = 1.1  # paces vary: at twice capacity 136 in time for 122, with 120 ms each (fp32, two cores)


@dataclass(frozen=True, kw_only=True)
class BatcherLimits:
    """How much runs at once, and how much may wait."""

    instances: int
    prepare_threads: int  # 0: every instance prepares what it runs
    run_sizes: tuple[int, ...]  # of one run, ascending, the first is 1
    max_batch: int  # items that an instance takes and answers together, in several runs where it must
    cores: tuple[int, ...] = ()  # one for each instance to stay on; empty: any
    max_wait_ms: float = 0.0
    max_queue_items: int = 256
    max_queue_bytes: int = 256 * 2**20
    max_queue_ms: float = 1000.0  # as far as the pace of what ran before tells


class ByteBudget:
    """How many bytes may wait in several queues together. Shared by threads."""

    def __init__(self, limit_bytes: int | None = None) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._lock = threading.Lock()

    def has_room(self, size_bytes: int) -> bool:
        """Say whether there is so much left."""
        return self.limit_bytes is None or self.used_bytes + size_bytes <= self.limit_bytes

    def take(self, size_bytes: int) -> bool:
        """Take so much, if there is so much left."""
        with self._lock:
            has_room = self.has_room(size_bytes)
            self.used_bytes += size_bytes * has_room
            return has_room

    def give_back(self, size_bytes: int) -> None:
        """Return what was taken."""
        with self._lock:
            self.used_bytes -= size_bytes


class Admission:
    """What waits, and how long it will. `budget` is that of all queues of this process."""

    def __init__(self, limits: BatcherLimits, budget: ByteBudget | None = None) -> None:
        self._limits = limits
        self._budget = budget or ByteBudget()
        self.items = 0
        self.size_bytes = 0
        self._under_way: list[tuple[int, float]] = []  # items of each batch, and when an instance took it
        self._pace_s = 0.0  # of an instance an item, moving mean
        self._is_guessed = False
        self._prepare_s = 0.0  # of a prepare thread an item, likewise; 0 without such threads

    def enter(self, item_count: int, size_bytes: int, *, now: float, deadline: float | None = None) -> None:
        """Count items in; raises what `check` raises."""
        self.check(item_count, size_bytes, now=now, deadline=deadline)
        if not self._budget.take(size_bytes):
            raise self._no_room()
        self.items += item_count
        self.size_bytes += size_bytes

    def check_unread(self, *, now: float, deadline: float | None = None) -> None:
        """Raise what `check` raises for one more item of the usual size: large ones would be in memory all at once."""
        self.check(1, self.size_bytes // self.items if self.items else 0, now=now, deadline=deadline)

    def check(self, item_count: int, size_bytes: int, *, now: float, deadline: float | None = None) -> None:
        """Raise QueueFullError for items too many, or DeadlineExceededError where they would be answered too late."""
        limits = self._limits
        wait_s = self._wait_s()
        if self.items + item_count > limits.max_queue_items:
            raise QueueFullError(
                f"{self.items} items wait, at most {limits.max_queue_items} may; try again later",
                retry_after_s=wait_s,
            )
        if self.size_bytes + size_bytes > limits.max_queue_bytes:
            raise QueueFullError(
                f"{self.size_bytes:,} bytes wait, at most {limits.max_queue_bytes:,} may; try again later",
                retry_after_s=wait_s,
            )
        if not self._budget.has_room(size_bytes):
            raise self._no_room()
        # An empty queue admits everything, so that a pace that is out of date is measured anew.
        if 1000 * wait_s > limits.max_queue_ms:
            raise QueueFullError(
                f"{self.items} items wait, for about {1000 * wait_s:.0f} ms, at most {limits.max_queue_ms:.0f} "
                "may it be; try again later",
                retry_after_s=wait_s - limits.max_queue_ms / 1000,
            )
        if self.items and deadline is not None and (answer_s := self._answer_s(item_count, now)) > deadline - now:
            raise DeadlineExceededError(
                f"{self.items} items wait, an answer would take about {1000 * answer_s:.0f} ms, the deadline leaves "
                f"{1000 * (deadline - now):.0f}; allow more time or send less"
            )

    def begin(self, item_count: int, *, now: float) -> None:
        """Hear that an instance took so many items as a batch."""
        self._under_way.append((item_count, now))

    def end(self, item_count: int, *, begun: float) -> None:
        """Hear that they are done."""
        self._under_way.remove((item_count, begun))

    def leave(self, size_bytes: int) -> None:
        """Count one item out."""
        self.items -= 1
        self.size_bytes -= size_bytes
        self._budget.give_back(size_bytes)

    def note_pace(self, seconds: float, *, is_guess: bool = False) -> None:
        """Hear how many seconds an instance took for an item of its newest batch; a guess counts until one is known."""
        if is_guess and not self._is_guessed and self._pace_s:
            return
        if self._is_guessed:
            self._pace_s = 0.0
        self._is_guessed = is_guess
        self._pace_s += _PACE_WEIGHT * (seconds - self._pace_s) if self._pace_s else seconds

    def note_failure(self, seconds: float) -> None:
        """Hear how many seconds an instance took for an item of a batch of which nothing came.

        Counts where that is longer than usual: what is found bad at once says nothing of what is good.
        """
        if seconds > self._pace_s:
            self.note_pace(seconds, is_guess=self._is_guessed or not self._pace_s)

    def note_preparation(self, seconds: float, *, has_failed: bool = False) -> None:
        """Hear how many seconds a prepare thread took for an item; one that has failed counts as in `note_failure`."""
        if has_failed and seconds <= self._prepare_s:
            return
        self._prepare_s += _PACE_WEIGHT * (seconds - self._prepare_s) if self._prepare_s else seconds

    def _no_room(self) -> QueueFullError:
        return QueueFullError(
            f"{self._budget.used_bytes:,} bytes wait for all models, at most {self._budget.limit_bytes:,} may; "
            "try again later",
            retry_after_s=self._wait_s(),
        )

    def _wait_s(self) -> float:
        """Return how long what waits will, at the pace of what ran before."""
        return max(self.items * self._pace_s / self._limits.instances, self._preparation_s(self.items))

    def _preparation_s(self, item_count: int) -> float:
        return item_count * self._prepare_s / max(1, self._limits.prepare_threads)

    def _answer_s(self, item_count: int, now: float) -> float:
        """Return after how many seconds the last of so many more items would be answered, while all instances work.

        The instances share what is in front of it and what is left of the batches under way; then comes its own batch,
        which is answered as a whole, and in which it may be the first. For `max_wait_ms` that is too little.
        """
        limits, pace_s, items = self._limits, self._pace_s, self.items + item_count
        batch = min(max(-(-items // limits.instances), min(items, limits.run_sizes[-1])), limits.max_batch)
        left_s = sum(max(0.0, count * pace_s - (now - begun)) for count, begun in self._under_way)
        wait_s = max((left_s + (items - 1) * pace_s) / limits.instances, self._preparation_s(items))
        return _MARGIN * (wait_s + batch * pace_s)
