"""Group single items into batches, on threads: prepare each alone, run and answer them together.

While an instance is idle an item leaves at once, unless `max_wait_ms` asks to wait for company; batches form from what
has queued while all instances were busy. What waits is shared out among the instances, see `waiting`. Without prepare
threads an instance prepares its own share: no hand-over between the two.

Where there is a `run_lone`, a single item goes there while no other batch is under way and nothing waits, if that was
so with the batch before it too: it has every core to itself.

Every admitted item's future is answered exactly once: with its answer, the error of its preparation or of its batch,
DeadlineExceededError, NotReadyError where `close` came first, or a cancellation.

Knows nothing of pictures, models or the network.
"""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Final, Generic, TypeVar

from serving.admission import Admission, BatcherLimits
from serving.errors import NotReadyError, ServingError
from serving.instance import Instance, Run, Took
from serving.observer import Observer
from serving.occupancy import Occupancy
from serving.preparation import Preparation
from serving.scheduling import OwnCore, give_way
from serving.ticket import Awaited, Ticket
from serving.waiting import Item, Share, Waiting

_LEAVE_S: Final = 5.0  # for threads that have nothing to do

Payload = TypeVar("Payload")
Row = TypeVar("Row")
Answer = TypeVar("Answer")


class Batcher(Generic[Payload, Row, Answer]):
    """See the module. `prepare` and `run` are called from several threads at once; `run` may fail for single rows.

    `occupancy` is shared by all batchers that compute on the same cores.
    """

    def __init__(
        self,
        prepare: Callable[[Payload], Row],
        run: Run[Row, Answer],
        *,
        limits: BatcherLimits,
        clock: Callable[[], float] = time.monotonic,
        observer: Observer | None = None,
        run_lone: Run[Row, Answer] | None = None,
        occupancy: Occupancy | None = None,
    ) -> None:
        self._prepare = prepare
        occupancy = occupancy or Occupancy()
        admission = self._admission = Admission(limits, occupancy.encoded)
        self._limits = limits
        self._clock = clock
        self._observer = observer or Observer()
        self._instances = [
            Instance(
                run,
                run_lone=run_lone,
                has_more=lambda: admission.items > 0,  # not through self: in a cycle a model's memory outlives it
                core=OwnCore(core, occupancy),
                occupancy=occupancy,
                observer=self._observer,
                clock=clock,
            )
            for core in limits.cores or (None,) * limits.instances
        ]
        self._lock = threading.Lock()
        self._has_ready = threading.Condition(self._lock)
        self._preparation: Preparation[Payload, Row, Answer] = Preparation(
            prepare, lock=self._lock, clock=clock, observer=self._observer
        )
        self._ready: Waiting[Row, Answer] = Waiting(limits)
        self._idle = 0
        self._some_have_gone = threading.Event()
        self._is_closing = False
        self._threads: list[threading.Thread] = []

    @property
    def queued_items(self) -> int:
        """How many admitted items no instance has taken yet."""
        return self._admission.items

    def start(self) -> None:
        """Start the threads. Raises RuntimeError, and leaves none behind, where the system has no more of them."""
        preparing = partial(self._preparation.work, self._on_prepared)
        targets: list[tuple[str, Callable[[], None]]] = [("prepare", preparing)] * self._limits.prepare_threads
        targets += [("run", partial(self._run_loop, instance)) for instance in self._instances]
        self._threads = [threading.Thread(target=_work, args=(work,), name=name, daemon=True) for name, work in targets]
        begun = []
        try:
            for thread in self._threads:
                thread.start()
                begun.append(thread)
        except RuntimeError:
            self._threads = begun
            self.close(_LEAVE_S)
            raise

    def submit(
        self, payloads: Sequence[Payload], *, sizes_bytes: Sequence[int], deadline: float | None = None
    ) -> list[Future[Answer]]:
        """Admit all payloads or none; return a future for each, in order.

        `deadline` is a time of the clock, in seconds. Raises QueueFullError, DeadlineExceededError where an
        answer would take longer than that, and NotReadyError after `close`.
        """
        now = self._clock()
        tickets: list[Ticket[Answer]] = [
            Ticket(future=Awaited(self._some_have_gone.set), size_bytes=size_bytes, deadline=deadline, admitted=now)
            for size_bytes in sizes_bytes
        ]
        with self._lock:
            if self._is_closing:
                raise NotReadyError("the server is shutting down; send it to another one")
            self._or_without_gone(
                partial(self._admission.enter, len(tickets), sum(sizes_bytes), now=now, deadline=deadline)
            )
            if self._limits.prepare_threads:
                self._preparation.extend(zip(tickets, payloads, strict=True))
            else:
                for ticket, payload in zip(tickets, payloads, strict=True):
                    self._ready.append(Item(ticket, partial(self._prepare, payload), now))
                self._has_ready.notify(len(tickets))
            self._observer.on_queue(self._admission.items)
        return [ticket.future for ticket in tickets]

    def check_room(self, *, deadline: float | None = None) -> None:
        """Raise QueueFullError or DeadlineExceededError as `submit` would for one item of the usual size."""
        with self._lock:
            self._or_without_gone(partial(self._admission.check_unread, now=self._clock(), deadline=deadline))

    def _or_without_gone(self, admit: Callable[[], None]) -> None:
        """Admit, where it must be without those whose callers have gone."""
        try:
            admit()
        except ServingError:
            if not self._forget_gone():
                raise
            admit()

    def _forget_gone(self) -> int:
        if not self._some_have_gone.is_set():  # under overload every refusal comes here, and looks at all that waits
            return 0
        self._some_have_gone.clear()
        gone = self._preparation.forget_gone() + self._ready.forget_gone()
        for ticket in gone:
            ticket.future.set_running_or_notify_cancel()
            self._admission.leave(ticket.size_bytes)
            self._observer.on_drop("cancelled")
        self._observer.on_queue(self._admission.items)
        return len(gone)

    def close(self, timeout_s: float) -> bool:
        """Stop accepting, finish the queue for at most timeout_s seconds, fail the rest; say whether all was done."""
        with self._lock:
            self._is_closing = True
            self._preparation.close()
            self._has_ready.notify_all()
        until = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        with self._lock:
            left = self._preparation.drain() + self._ready.drain()
            for ticket in left:
                self._admission.leave(ticket.size_bytes)
            self._has_ready.notify_all()
        for ticket in left:
            ticket.fail(NotReadyError("the server stopped before this was run; send it to another one"))
        return not left and not any(thread.is_alive() for thread in self._threads)

    def _on_prepared(self, ticket: Ticket[Answer], row: Row | Exception | None, seconds: float) -> None:
        """Let an instance take an item that is ready, or count out one that never will be. The lock is held."""
        if row is not None and not isinstance(row, Exception):
            made = row
            self._admission.note_preparation(seconds)
            self._ready.append(Item(ticket, lambda: made, self._clock(), seconds))
            self._has_ready.notify()
        else:
            self._admission.note_preparation(seconds, has_failed=True)
            self._admission.leave(ticket.size_bytes)
            self._observer.on_queue(self._admission.items)
        if self._is_closing:
            self._has_ready.notify_all()

    def _run_loop(self, instance: Instance[Row, Answer]) -> None:
        while (share := self._next_share()) is not None:
            took = instance.answer(share)
            if took is not None:
                with self._lock:  # a queue moves at the pace of batches side by side
                    self._note(took)
                    self._admission.end(len(share.live), begun=share.taken)
            del share  # or its pictures would be in memory until another comes

    def _note(self, took: Took) -> None:
        if took.has_failed:  # what fails slowly would be let in without end
            self._admission.note_failure(took.item_s)
        else:
            self._admission.note_pace(took.item_s, is_guess=took.is_guess)

    def _next_share(self) -> Share[Row, Answer] | None:
        """Wait for work and take a share of it, or return None at the end."""
        with self._lock:
            self._idle += 1
            try:
                while not self._ready or (window_s := self._window_s()) > 0:
                    if not self._ready and self._is_closing and not self._preparation.is_busy:
                        return None
                    self._has_ready.wait(window_s if self._ready else None)
                share = self._ready.take(idle=self._idle, now=self._clock())
                if share.live:
                    self._admission.begin(len(share.live), now=share.taken)
                for ticket in share.tickets():
                    self._admission.leave(ticket.size_bytes)
                if self._ready:  # a thread that waited out its window may have used up others' wake-ups
                    self._has_ready.notify()
                self._observer.on_queue(self._admission.items)
            finally:
                self._idle -= 1
            return share

    def _window_s(self) -> float:
        return 0.0 if self._is_closing else self._ready.window_s(self._clock())


def _work(loop: Callable[[], None]) -> None:
    give_way()
    loop()
