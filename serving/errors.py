"""The expected errors of the service and its client.

CalotypeError (bundle)        shown to a person as one line; STATUS maps each type to its status
└── ServingError
    ├── SettingsError         settings that contradict one another; exit 2
    ├── StartupError          nothing can be served; exit 1
    ├── InvalidRequestError   a request that can never be answered
    │   └── BodyTooLargeError an HTTP body beyond the limit; the rest of it was not read
    ├── UnknownModelError     a model or version that is not here
    ├── NotReadyError         loading, draining or failed: another server may answer
    ├── QueueFullError        too much is waiting: try again a little later
    ├── DeadlineExceededError the caller has stopped waiting; the work was not done
    ├── CallerGoneError       the caller has closed the connection; nobody hears the answer
    └── ClientError           the client's side: a call that failed, with its address and the next step
"""

import asyncio
from typing import Final

from bundle.errors import CalotypeError


class ServingError(CalotypeError):
    """An expected error of the service or its client."""


class SettingsError(ServingError):
    """Settings that contradict one another."""


class StartupError(ServingError):
    """A server that must not start."""


class InvalidRequestError(ServingError):
    """A request that no server can answer."""


class BodyTooLargeError(InvalidRequestError):
    """An HTTP body beyond the limit; the rest of it was not read."""


class UnknownModelError(ServingError):
    """A model or a version that is not served here."""


class NotReadyError(ServingError):
    """A model that is loading, draining or failed."""


class QueueFullError(ServingError):
    """More work than the queue may hold; nothing of the request was admitted. The queue moves on in retry_after_s."""

    def __init__(self, message: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineExceededError(ServingError):
    """Work that was dropped because its deadline had passed."""


class CallerGoneError(ServingError):
    """A caller that closed the connection before its answer."""


class ClientError(ServingError):
    """A call that failed. `status` is the gRPC status name, such as "UNAVAILABLE"."""

    def __init__(self, message: str, *, status: str) -> None:
        super().__init__(message)
        self.status = status


STATUS: Final[dict[type[BaseException], str]] = {  # the names are gRPC's; other doors translate them
    InvalidRequestError: "INVALID_ARGUMENT",
    UnknownModelError: "NOT_FOUND",
    NotReadyError: "UNAVAILABLE",
    QueueFullError: "RESOURCE_EXHAUSTED",
    DeadlineExceededError: "DEADLINE_EXCEEDED",
    CallerGoneError: "CANCELLED",
    asyncio.CancelledError: "CANCELLED",
}


def status_name(error: BaseException) -> str:
    """Return the status of an error, such as "NOT_FOUND"; "INTERNAL" where it was not foreseen."""
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), "INTERNAL")
