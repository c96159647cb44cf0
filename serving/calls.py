"""How a gRPC call that failed ends: with the status of its error, and with when to try again.

Every expected error has its status in one table, see `errors`; anything else goes to the log with its traceback and
reaches the client as "internal error".
"""

from typing import Final, NoReturn

import grpc
import structlog
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from serving.errors import MessageTooLargeError, RateLimitedError, TryLaterError, status_name, without_frames

_RETRY_MS: Final = (20, 2000)  # the shortest and longest time after which a refused client is told to try again
_PUSH_BACK: Final = "grpc-retry-pushback-ms"  # to the client's library; -1: do not try again

Context = grpc.aio.ServicerContext[object, object]
log = structlog.get_logger(__name__)


async def abort(context: Context, error: Exception) -> NoReturn:
    """End a call with the status of an error; the unforeseen is logged, and told as "internal error"."""
    if isinstance(error, grpc.aio.AbortError):  # it is over already, see `arrivals`
        raise error
    code = grpc.StatusCode[status_name(error)]
    is_foreseen = code is not grpc.StatusCode.INTERNAL
    if not is_foreseen:
        log.error("unforeseen error", exc_info=error)
    without_frames(error)  # which the library keeps from now on
    trailers: tuple[tuple[str, str | bytes], ...] = ()
    if isinstance(error, TryLaterError):
        trailers = _push_back(code, error, time_left_s=context.time_remaining())
    elif isinstance(error, MessageTooLargeError):
        trailers = ((_PUSH_BACK, "-1"),)  # it would be too large again
    if trailers:
        trailers = (*context.trailing_metadata(), *trailers)
    await context.abort(code, str(error) if is_foreseen else "internal error", trailers)


def _push_back(
    code: grpc.StatusCode, error: TryLaterError, *, time_left_s: float | None
) -> tuple[tuple[str, str | bytes], ...]:
    """Return the trailers that tell a client, and its gRPC library, when to try again.

    The library is told not to where there is no time for it: it would wait, and say DEADLINE_EXCEEDED in the end.
    """
    shortest, longest = _RETRY_MS
    retry_ms = max(shortest, round(1000 * error.retry_after_s))
    if not isinstance(error, RateLimitedError):  # how long a queue takes is a guess
        retry_ms = min(longest, retry_ms)
    detail = AnyMessage()
    detail.Pack(RetryInfo(retry_delay=Duration(seconds=retry_ms // 1000, nanos=retry_ms % 1000 * 1_000_000)))
    status = Status(code=code.value[0], message=str(error), details=[detail])
    return (
        ("grpc-status-details-bin", status.SerializeToString()),
        (_PUSH_BACK, str(retry_ms if time_left_s is None or retry_ms < 1000 * time_left_s else -1)),
    )
