"""What waits for an instance: how long it may, and how much of it an idle one takes.

Counts and sorts; whoever owns it holds a lock around every call. Knows neither threads nor clocks.
"""

from collections import deque
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

from serving.admission import BatcherLimits
from serving.observer import Closing
from serving.ticket import Ticket

Row = TypeVar("Row")
Answer = TypeVar("Answer")
Entry = TypeVar("Entry")


class Item(NamedTuple, Generic[Row, Answer]):
    """What an instance may take."""

    ticket: Ticket[Answer]
    make_row: Callable[[], Row]
    since: float  # when that was so, by the batcher's clock
    prepared_s: float = 0.0  # of work on it before that


class Share(NamedTuple, Generic[Row, Answer]):
    """What one instance took: items to run, their futures marked running, and what it found too late for."""

    live: list[Item[Row, Answer]]
    expired: list[Ticket[Answer]]
    cancelled: list[Ticket[Answer]]
    closing: Closing
    taken: float  # when, by the batcher's clock

    def tickets(self) -> list[Ticket[Answer]]:
        """Return all that has left the queue."""
        return [*(item.ticket for item in self.live), *self.expired, *self.cancelled]


class Waiting(Generic[Row, Answer]):
    """Items in the order in which they came."""

    def __init__(self, limits: BatcherLimits) -> None:
        self._limits = limits
        self._items: deque[Item[Row, Answer]] = deque()

    def __len__(self) -> int:
        return len(self._items)

    def append(self, item: Item[Row, Answer]) -> None:
        """Add one at the end."""
        self._items.append(item)

    def drain(self) -> list[Ticket[Answer]]:
        """Take out everything."""
        tickets = [item.ticket for item in self._items]
        self._items.clear()
        return tickets

    def forget_gone(self) -> list[Ticket[Answer]]:
        """Take out what its caller has cancelled."""
        self._items, gone = without_gone(self._items, lambda item: item.ticket)
        return gone

    def window_s(self, now: float) -> float:
        """Return for how many seconds the oldest may still wait for a run to fill: 0 or less where it is to leave.

        No item waits for others longer than half of the time that its deadline leaves.
        """
        if not self._limits.max_wait_ms or len(self._items) >= self._limits.run_sizes[-1]:
            return 0.0
        ends = [self._items[0].since + self._limits.max_wait_ms / 1000]
        dated = ((item.since, item.ticket.deadline) for item in self._items if item.ticket.deadline is not None)
        return min(ends + [(since + deadline) / 2 for since, deadline in dated]) - now

    def take(self, *, idle: int, now: float) -> Share[Row, Answer]:
        """Take an instance's share of what waits while `idle` instances have nothing to do; there must be some.

        With it goes whatever before it is cancelled or expired.
        """
        size = self._share(idle)
        live: list[Item[Row, Answer]] = []
        expired, cancelled = [], []
        while self._items and len(live) < size:
            item = self._items.popleft()
            if item.ticket.is_late(now):
                expired.append(item.ticket)
            elif item.ticket.future.set_running_or_notify_cancel():
                live.append(item)
            else:
                cancelled.append(item.ticket)
        is_full = len(live) == self._limits.max_batch
        closing: Closing = "full" if is_full else "shared" if self._items else "drained"
        return Share(live, expired, cancelled, closing, now)

    def _share(self, idle: int) -> int:
        """Return an even share among all instances, as those at work will come for theirs; one run's fill at least.

        That is even among the idle ones. What fills no run is cut to a warmed size.
        """
        limits, waiting = self._limits, len(self._items)
        max_run = limits.run_sizes[-1]
        fill = min(-(-waiting // idle), max_run)
        share = min(max(-(-waiting // limits.instances), fill), limits.max_batch)
        return share if share >= max_run else max(size for size in limits.run_sizes if size <= share)


def without_gone(
    entries: deque[Entry], ticket_of: Callable[[Entry], Ticket[Answer]]
) -> tuple[deque[Entry], list[Ticket[Answer]]]:
    """Return the entries whose callers wait for them, and the tickets of the others."""
    stay: deque[Entry] = deque()
    gone: list[Ticket[Answer]] = []
    for entry in entries:  # once: a caller may go at any time
        ticket = ticket_of(entry)
        if ticket.future.cancelled():
            gone.append(ticket)
        else:
            stay.append(entry)
    return stay, gone
