"""What an instance does with its share of a queue: make the rows, run them, answer each item.

Knows neither the queue nor its lock.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, NamedTuple, TypeVar

from serving.errors import attempt
from serving.observer import Observer
from serving.occupancy import Occupancy
from serving.scheduling import OwnCore
from serving.ticket import Ticket, past_deadline
from serving.waiting import Item, Share

Row = TypeVar("Row")
Answer = TypeVar("Answer")
Run = Callable[[Sequence[Row]], Sequence[Answer | Exception]]


class Took(NamedTuple):
    """How long a share took."""

    item_s: float  # seconds, for each of its items
    is_guess: bool = False  # with every core for one item: no pace for a queue
    has_failed: bool = False  # nothing came of it


class Instance(Generic[Row, Answer]):
    """One of those that run batches side by side. Used from its own thread."""

    def __init__(
        self,
        run: Run[Row, Answer],
        *,
        run_lone: Run[Row, Answer] | None,
        has_more: Callable[[], bool],
        core: OwnCore,
        occupancy: Occupancy,
        observer: Observer,
        clock: Callable[[], float],
    ) -> None:
        self._run = run
        self._run_lone = run_lone
        self._has_more = has_more  # says whether anything waits
        self._core = core
        self._occupancy = occupancy
        self._observer = observer
        self._clock = clock

    def answer(self, share: Share[Row, Answer]) -> Took | None:
        """Answer every item of a share, whatever comes of it; return how long it took, None where nothing is to run."""
        for _ in share.cancelled:
            self._observer.on_drop("cancelled")
        for ticket in share.expired:
            self._observer.on_drop("deadline")
            ticket.fail(past_deadline())
        return self._answer_live(share) if share.live else None

    def _answer_live(self, share: Share[Row, Answer]) -> Took:
        for item in share.live:
            self._observer.on_wait(share.taken - item.ticket.admitted - item.prepared_s)
        with self._occupancy, self._core:  # not while it is answered: the next item may come at once
            tickets, rows = self._rows(share.live)
            if not tickets:
                return self._took(share, has_failed=True)
            started = self._clock()
            is_lone = len(rows) == 1 and self._occupancy.is_quiet and not self._has_more()
            run = self._run_lone if self._run_lone and is_lone else self._run
            answers = attempt(partial(run, rows))
        if not isinstance(answers, Exception) and len(answers) != len(rows):
            answers = RuntimeError(f"{len(answers)} answers for {len(rows)} rows")
        if isinstance(answers, Exception):
            for ticket in tickets:
                ticket.future.set_exception(answers)
            return self._took(share, has_failed=True)
        took = self._took(share, is_guess=run is self._run_lone)
        self._observer.on_batch(len(rows), closing=share.closing, seconds=self._clock() - started)
        for ticket, answer in zip(tickets, answers, strict=True):
            if isinstance(answer, Exception):
                ticket.future.set_exception(answer)
            else:
                ticket.future.set_result(answer)
        return took

    def _took(self, share: Share[Row, Answer], *, is_guess: bool = False, has_failed: bool = False) -> Took:
        return Took((self._clock() - share.taken) / len(share.live), is_guess=is_guess, has_failed=has_failed)

    def _has_dropped(self, ticket: Ticket[Answer]) -> bool:
        """Answer an item whose deadline has passed; say whether it had."""
        is_late = ticket.is_late(self._clock())
        if is_late:
            self._observer.on_drop("deadline")
            ticket.future.set_exception(past_deadline())
        return is_late

    def _rows(self, items: Sequence[Item[Row, Answer]]) -> tuple[list[Ticket[Answer]], list[Row]]:
        """Make the rows; items that fail, or whose deadline has passed by then, are answered here."""
        tickets, rows = [], []
        for item in items:
            if self._has_dropped(item.ticket):  # those before it in the share take their time
                continue
            row = attempt(item.make_row)
            if isinstance(row, Exception):
                item.ticket.future.set_exception(row)
                continue
            if self._has_dropped(item.ticket):
                continue
            tickets.append(item.ticket)
            rows.append(row)
        return tickets, rows
