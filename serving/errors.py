"""The expected errors of the service and its client.

CalotypeError (bundle)        shown to a person as one line; STATUS maps each type to its status
└── ServingError
    ├── SettingsError         settings that contradict one another; exit 2
    ├── UnreadableFileError   a file named on the command line that cannot be read; exit 2
    ├── StartupError          nothing can be served; exit 1
    │   └── TokensFileError   a tokens file, or a line of it, that cannot be used
    ├── InvalidRequestError   a request that can never be answered
    │   └── BodyTooLargeError an HTTP body beyond the limit; the rest of it is not kept
    ├── MessageTooLargeError  a message that says more than the limit, compressed or to an open service
    ├── UnknownModelError     a model or version that is not here
    ├── NotReadyError         loading, draining or failed: another server may answer
    ├── UnauthenticatedError  no token, or none that is known
    ├── TryLaterError         nothing was done; the same may be sent again after retry_after_s
    │   ├── QueueFullError    too much is waiting
    │   └── RateLimitedError  the caller's token has used up its share
    ├── DeadlineExceededError the caller has stopped waiting, or would have; the work was not done
    ├── CallerGoneError       the caller has closed the connection; nobody hears the answer
    └── ClientError           the client's side: a call that failed, with its address and the next step
"""

import asyncio
from collections.abc import Callable
from typing import Final, TypeVar

from bundle.errors import CalotypeError

ExceptionT = TypeVar("ExceptionT", bound=Exception)
Result = TypeVar("Result")


class ServingError(CalotypeError):
    """An expected error of the service or its client."""


class SettingsError(ServingError):
    """Settings that contradict one another."""


class UnreadableFileError(ServingError):
    """A file named on the command line that cannot be read."""


class StartupError(ServingError):
    """A server that must not start."""


class TokensFileError(StartupError):
    """A tokens file that cannot be read, or a line of it that is none."""


class InvalidRequestError(ServingError):
    """A request that no server can answer."""


class BodyTooLargeError(InvalidRequestError):
    """An HTTP body beyond the limit; the rest of it is not kept."""


class MessageTooLargeError(ServingError):
    """A compressed message that says more than the limit, or one to an open service; gRPC itself refuses others."""


class UnknownModelError(ServingError):
    """A model or a version that is not served here."""


class NotReadyError(ServingError):
    """A model that is loading, draining or failed."""


class UnauthenticatedError(ServingError):
    """A request without a token, or with one that is not known: the text is the same for both."""


class TryLaterError(ServingError):
    """A request of which nothing was done; the same may be sent again after retry_after_s seconds."""

    def __init__(self, message: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QueueFullError(TryLaterError):
    """More work than the queue may hold."""


class RateLimitedError(TryLaterError):
    """More requests than the caller's token allows."""


class DeadlineExceededError(ServingError):
    """Work that was dropped because its deadline had passed, or refused because it would have."""


class CallerGoneError(ServingError):
    """A caller that closed the connection before its answer."""


class ClientError(ServingError):
    """A call that failed. `status` is the gRPC status name, such as "UNAVAILABLE"."""

    def __init__(self, message: str, *, status: str) -> None:
        super().__init__(message)
        self.status = status


STATUS: Final[dict[type[BaseException], str]] = {  # the names are gRPC's; other doors translate them
    InvalidRequestError: "INVALID_ARGUMENT",
    MessageTooLargeError: "RESOURCE_EXHAUSTED",  # as gRPC says
    UnknownModelError: "NOT_FOUND",
    NotReadyError: "UNAVAILABLE",
    UnauthenticatedError: "UNAUTHENTICATED",
    TryLaterError: "RESOURCE_EXHAUSTED",
    DeadlineExceededError: "DEADLINE_EXCEEDED",
    CallerGoneError: "CANCELLED",
    asyncio.CancelledError: "CANCELLED",
}


def status_name(error: BaseException) -> str:
    """Return the status of an error, such as "NOT_FOUND"; "INTERNAL" where it was not foreseen."""
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), "INTERNAL")


def without_frames(error: ExceptionT) -> ExceptionT:
    """Return an error that lets go of the frames it came through, and of its causes with theirs.

    What keeps an error, a future or gRPC's context, is known to those frames in turn: with all pictures of a batch, or
    a message of 60 MB, they would be in memory until cycles are next looked for.
    """
    error.__traceback__ = error.__cause__ = error.__context__ = None
    return error


def attempt(step: Callable[[], Result]) -> Result | Exception:
    """Return what a step gives, or its error, for whoever waits for it."""
    try:
        return step()
    except CalotypeError as error:  # expected: nobody asks where it came from
        return without_frames(error)
    except Exception as error:  # noqa: BLE001 -- who waits for it is told, and the log with all its frames
        return error
