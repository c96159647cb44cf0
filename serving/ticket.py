"""What a queued item keeps from admission to its answer, and how it ends without one."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, NamedTuple, TypeVar

from serving.errors import DeadlineExceededError

Answer = TypeVar("Answer")


class Awaited(Future[Answer]):
    """A future that tells when its caller has gone."""

    def __init__(self, on_cancel: Callable[[], None]) -> None:
        super().__init__()
        self._on_cancel = on_cancel

    def cancel(self) -> bool:
        """See Future."""
        is_cancelled = super().cancel()
        if is_cancelled:
            self._on_cancel()
        return is_cancelled


class Ticket(NamedTuple, Generic[Answer]):
    """One admitted item. Its future is answered exactly once."""

    future: Future[Answer]
    size_bytes: int
    deadline: float | None  # seconds of the batcher's clock
    admitted: float  # likewise

    def is_late(self, now: float) -> bool:
        """Say whether the deadline has passed."""
        return self.deadline is not None and self.deadline <= now

    def fail(self, error: Exception) -> None:
        """End an item that nothing has begun to run, unless its caller has cancelled it."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


def past_deadline() -> DeadlineExceededError:
    """Return the error of an item whose answer would be, or is, too late."""
    return DeadlineExceededError("the deadline passed before this was answered; allow more time or send less")
