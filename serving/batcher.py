"""Group single items into batches, on threads: prepare each alone, run them together, answer each alone.

While an instance is idle an item leaves at once, unless `max_wait_ms` asks to wait for company; batches form from what
has queued while all instances were busy. What is ready is shared out among the idle instances, so that none gets a
batch while another gets nothing. Every admitted item's future is answered exactly once: with its answer, the error of
its preparation or of its batch, DeadlineExceededError, or a cancellation.

Knows nothing of pictures, models or the network.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from serving.errors import DeadlineExceededError, NotReadyError, QueueFullError

Payload = TypeVar("Payload")
Row = TypeVar("Row")
Answer = TypeVar("Answer")


@dataclass(frozen=True, eq=False)
class _Ticket(Generic[Answer]):
    """What an item keeps from admission to its answer."""

    future: Future[Answer]
    size_bytes: int
    deadline: float | None


@dataclass(frozen=True, kw_only=True)
class BatcherLimits:
    """How much runs at once, and how much may wait."""

    instances: int
    prepare_threads: int
    batch_sizes: tuple[int, ...]  # ascending, the first is 1
    max_wait_ms: float = 0.0
    max_queue_items: int = 256
    max_queue_bytes: int = 256 * 2**20


class Batcher(Generic[Payload, Row, Answer]):
    """See the module. `prepare` and `run` are called from several threads at once."""

    def __init__(
        self,
        prepare: Callable[[Payload], Row],
        run: Callable[[Sequence[Row]], Sequence[Answer]],
        *,
        limits: BatcherLimits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._prepare = prepare
        self._run = run
        self._limits = limits
        self._clock = clock
        self._lock = threading.Lock()
        self._has_incoming = threading.Condition(self._lock)
        self._has_ready = threading.Condition(self._lock)
        self._incoming: deque[tuple[_Ticket[Answer], Payload]] = deque()
        self._ready: deque[tuple[_Ticket[Answer], Row, float]] = deque()  # the float: when it became ready
        self._preparing = 0
        self._idle = 0
        self._queued_items = 0
        self._queued_bytes = 0
        self._is_closing = False
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start the threads."""
        targets = [self._prepare_loop] * self._limits.prepare_threads + [self._run_loop] * self._limits.instances
        self._threads = [threading.Thread(target=target, name=target.__name__, daemon=True) for target in targets]
        for thread in self._threads:
            thread.start()

    def submit(
        self, payloads: Sequence[Payload], *, sizes_bytes: Sequence[int], deadline: float | None = None
    ) -> list[Future[Answer]]:
        """Admit all payloads or none; return a future for each, in order.

        `deadline` is a time of the clock, in seconds. Raises QueueFullError, or NotReadyError after `close`.
        """
        tickets = [_Ticket[Answer](Future(), size_bytes, deadline) for size_bytes in sizes_bytes]
        with self._lock:
            self._check_room(len(tickets), sum(sizes_bytes))
            for ticket in tickets:
                ticket.future.add_done_callback(partial(self._done, ticket.size_bytes))
            self._incoming.extend(zip(tickets, payloads, strict=True))
            self._queued_items += len(tickets)
            self._queued_bytes += sum(sizes_bytes)
            self._has_incoming.notify(len(tickets))
        return [ticket.future for ticket in tickets]

    def close(self, timeout_s: float) -> bool:
        """Stop accepting, finish the queue for at most timeout_s seconds, fail the rest; say whether all was done."""
        with self._lock:
            self._is_closing = True
            self._has_incoming.notify_all()
            self._has_ready.notify_all()
        until = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        with self._lock:
            left = [ticket for ticket, _ in self._incoming] + [ticket for ticket, _, _ in self._ready]
            self._incoming.clear()
            self._ready.clear()
            self._has_ready.notify_all()
        for ticket in left:
            _fail(ticket, NotReadyError("the server stopped before this was run; send it to another one"))
        return not left and not any(thread.is_alive() for thread in self._threads)

    def _check_room(self, item_count: int, size_bytes: int) -> None:
        limits = self._limits
        if self._is_closing:
            raise NotReadyError("the server is shutting down; send it to another one")
        if self._queued_items + item_count > limits.max_queue_items:
            raise QueueFullError(
                f"{self._queued_items} items wait, at most {limits.max_queue_items} may; try again later"
            )
        if self._queued_bytes + size_bytes > limits.max_queue_bytes:
            raise QueueFullError(
                f"{self._queued_bytes:,} bytes wait, at most {limits.max_queue_bytes:,} may; try again later"
            )

    def _prepare_loop(self) -> None:
        while True:
            with self._lock:
                while not self._incoming:
                    if self._is_closing:
                        return
                    self._has_incoming.wait()
                ticket, payload = self._incoming.popleft()
                self._preparing += 1
            row = self._prepare_one(ticket, payload)
            with self._lock:
                self._preparing -= 1
                if row is not None:
                    self._ready.append((ticket, row, self._clock()))
                    self._has_ready.notify()
                if self._is_closing:
                    self._has_ready.notify_all()

    def _prepare_one(self, ticket: _Ticket[Answer], payload: Payload) -> Row | None:
        if not self._is_wanted(ticket):
            return None
        try:
            return self._prepare(payload)
        except BaseException as error:  # noqa: BLE001 -- whatever it is, this item's caller gets it
            _fail(ticket, error)
            return None

    def _run_loop(self) -> None:
        while (batch := self._next_batch()) is not None:
            wanted = [
                (ticket, row)
                for ticket, row in batch
                if self._is_wanted(ticket) and ticket.future.set_running_or_notify_cancel()
            ]
            if wanted:
                self._run_batch([ticket for ticket, _ in wanted], [row for _, row in wanted])

    def _run_batch(self, tickets: list[_Ticket[Answer]], rows: list[Row]) -> None:
        try:
            answers = self._run(rows)
            if len(answers) != len(rows):
                raise RuntimeError(f"the engine gave {len(answers)} answers to {len(rows)} items")
        except BaseException as error:  # noqa: BLE001 -- whatever it is, the batch's callers get it
            for ticket in tickets:
                ticket.future.set_exception(error)
            return
        for ticket, answer in zip(tickets, answers, strict=True):
            ticket.future.set_result(answer)

    def _next_batch(self) -> list[tuple[_Ticket[Answer], Row]] | None:
        with self._lock:
            self._idle += 1
            try:
                while True:
                    if self._ready:
                        wait_s = self._hold_s()
                        if wait_s <= 0:
                            taken = [self._ready.popleft() for _ in range(self._batch_size())]
                            return [(ticket, row) for ticket, row, _ in taken]
                        self._has_ready.wait(wait_s)
                    elif self._is_closing and not self._incoming and not self._preparing:
                        return None
                    else:
                        self._has_ready.wait()
            finally:
                self._idle -= 1

    def _batch_size(self) -> int:
        """The largest warmed size within a fair share of what is ready."""
        share = math.ceil(len(self._ready) / self._idle)
        return max((size for size in self._limits.batch_sizes if size <= share), default=1)

    def _hold_s(self) -> float:
        limits = self._limits
        if self._is_closing or not limits.max_wait_ms or len(self._ready) >= limits.batch_sizes[-1]:
            return 0.0
        return self._ready[0][2] + limits.max_wait_ms / 1000 - self._clock()

    def _is_wanted(self, ticket: _Ticket[Answer]) -> bool:
        if ticket.future.cancelled():
            return False
        if ticket.deadline is not None and self._clock() > ticket.deadline:
            _fail(ticket, DeadlineExceededError("the deadline passed while this waited; allow more time, or send less"))
            return False
        return True

    def _done(self, size_bytes: int, _: Future[Answer]) -> None:
        """Give room back: called once a future, however it ended, and never while the lock is held."""
        with self._lock:
            self._queued_items -= 1
            self._queued_bytes -= size_bytes


def _fail(ticket: _Ticket[Answer], error: BaseException) -> None:
    if ticket.future.set_running_or_notify_cancel():
        ticket.future.set_exception(error)
