"""The expected errors of the service and its client.

CalotypeError (bundle)        shown to a person as one line; `service.STATUS` maps each type to a gRPC status
└── ServingError
    ├── SettingsError         settings that contradict one another; exit 2
    ├── StartupError          nothing can be served; exit 1
    ├── InvalidRequestError   a request that can never be answered
    ├── UnknownModelError     a model or version that is not here
    ├── NotReadyError         loading, draining or failed: another server may answer
    ├── QueueFullError        too much is waiting: try again a little later
    ├── DeadlineExceededError the caller has stopped waiting; the work was not done
    └── ClientError           the client's side: a call that failed, with its address and the next step
"""

from bundle.errors import CalotypeError


class ServingError(CalotypeError):
    """An expected error of the service or its client."""


class SettingsError(ServingError):
    """Settings that contradict one another."""


class StartupError(ServingError):
    """A server that must not start."""


class InvalidRequestError(ServingError):
    """A request that no server can answer."""


class UnknownModelError(ServingError):
    """A model or a version that is not served here."""


class NotReadyError(ServingError):
    """A model that is loading, draining or failed."""


class QueueFullError(ServingError):
    """More work than the queue may hold; nothing of the request was admitted."""


class DeadlineExceededError(ServingError):
    """Work that was dropped because its deadline had passed."""


class ClientError(ServingError):
    """A call that failed. `status` is the gRPC status name, such as "UNAVAILABLE"."""

    def __init__(self, message: str, *, status: str) -> None:
        super().__init__(message)
        self.status = status
