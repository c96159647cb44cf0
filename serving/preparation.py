"""Threads that make items ready before an instance takes them: what waits for them, and what they have in hand.

Knows neither instances nor who is admitted.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Generic, TypeVar

from serving.errors import attempt
from serving.observer import Observer
from serving.ticket import Ticket, past_deadline
from serving.waiting import without_gone

Payload = TypeVar("Payload")
Row = TypeVar("Row")
Answer = TypeVar("Answer")


class Preparation(Generic[Payload, Row, Answer]):
    """The items of one batcher. Its `lock` is held around every call but that of `work`."""

    def __init__(
        self,
        prepare: Callable[[Payload], Row],
        *,
        lock: threading.Lock,
        clock: Callable[[], float],
        observer: Observer,
    ) -> None:
        self._prepare = prepare
        self._has_items = threading.Condition(lock)
        self._clock = clock
        self._observer = observer
        self._items: deque[tuple[Ticket[Answer], Payload]] = deque()
        self._in_hand = 0
        self._is_closing = False

    @property
    def is_busy(self) -> bool:
        """Whether anything may still become ready."""
        return bool(self._items or self._in_hand)

    def extend(self, items: Iterable[tuple[Ticket[Answer], Payload]]) -> None:
        """Add some at the end."""
        before = len(self._items)
        self._items.extend(items)
        self._has_items.notify(len(self._items) - before)

    def forget_gone(self) -> list[Ticket[Answer]]:
        """Take out what its caller has cancelled."""
        self._items, gone = without_gone(self._items, lambda item: item[0])
        return gone

    def drain(self) -> list[Ticket[Answer]]:
        """Take out everything."""
        tickets = [ticket for ticket, _ in self._items]
        self._items.clear()
        return tickets

    def close(self) -> None:
        """Let `work` end when nothing is left."""
        self._is_closing = True
        self._has_items.notify_all()

    def work(self, on_end: Callable[[Ticket[Answer], Row | Exception | None, float], None]) -> None:
        """Prepare one item after the other, in a thread, until closed.

        `on_end` hears of each, with the lock: its row, or error, or None where its caller has gone; and the seconds it
        took. It belongs to the call: kept here it would be a cycle, in which a model's memory outlives it.
        """
        while (item := self._next()) is not None:
            ticket, payload = item
            started = self._clock()
            row = self._row(ticket, payload, now=started)
            seconds = self._clock() - started
            with self._has_items:
                self._in_hand -= 1
                on_end(ticket, row, seconds)
            if isinstance(row, Exception):
                ticket.fail(row)
            del item, ticket, payload, row  # or the picture would be in memory until another comes

    def _row(self, ticket: Ticket[Answer], payload: Payload, *, now: float) -> Row | Exception | None:
        if ticket.is_late(now):
            self._observer.on_drop("deadline")
            return past_deadline()
        if ticket.future.cancelled():
            self._observer.on_drop("cancelled")
            return None
        return attempt(partial(self._prepare, payload))

    def _next(self) -> tuple[Ticket[Answer], Payload] | None:
        with self._has_items:
            while not self._items:
                if self._is_closing:
                    return None
                self._has_items.wait()
            self._in_hand += 1
            return self._items.popleft()
