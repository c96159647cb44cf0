"""A small typed client, blocking and asyncio: bytes of pictures in, ranked labels out.

Calls have a deadline. UNAVAILABLE and RESOURCE_EXHAUSTED are tried again by the gRPC library, after the server's own
push-back where it names one; so is CANCELLED, which gRPC says of calls that reach a server in the moment it stops.
"""

import asyncio
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Final, Self

import grpc

from protos import classifier_pb2 as pb
from protos import classifier_pb2_grpc
from serving.answers import Classification, ModelInfo, read_classification, read_models
from serving.channel import OPEN, Access
from serving.errors import ClientError

DEFAULT_ADDRESS: Final = "localhost:50051"
MAX_MESSAGE_BYTES: Final = 64 * 2**20
_SERVICE_CONFIG: Final = {
    "methodConfig": [
        {
            "name": [{"service": pb.DESCRIPTOR.services_by_name["Classifier"].full_name}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "CANCELLED"],
            },
        }
    ]
}
_OPTIONS: Final = (
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    ("grpc.enable_retries", 1),
    ("grpc.per_rpc_retry_buffer_size", MAX_MESSAGE_BYTES),  # the default 256 KiB would not retry a photograph
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_reconnect_backoff_ms", 2000),  # of 120 s: a server that is back would long be called down
)
_NEXT_STEPS: Final = {
    "UNAVAILABLE": "is it running and SERVING, and does it want --tls-ca, or --tls-cert and --tls-key of yours too?",
    "DEADLINE_EXCEEDED": "allow more seconds, or send fewer images",
    "RESOURCE_EXHAUSTED": "the server is busy or the message too large; send less at once",
    "UNAUTHENTICATED": "give --token or CALOTYPE_TOKEN",
    "UNIMPLEMENTED": "is this a Calotype server?",
    "INTERNAL": "look into the server's log",
}
_TOLD_BY_THE_LIBRARY: Final = (  # its words, and what to do
    ("http1.x server", "that port speaks HTTP, wanted the one of gRPC, usually 50051"),
    ("RST_STREAM with error code 7", "the server has no room for so many calls of one connection; send fewer at once"),
)
_TOLD_BY_THE_SERVER: Final = ("DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")  # with what to do, unless the library says so
_LONGEST_S: Final = 30 * 86_400.0

Image = bytes | bytearray | memoryview


class Client:
    """A blocking client for one server; use as a context manager, or call `close`. Threads may share it."""

    def __init__(self, address: str = DEFAULT_ADDRESS, *, access: Access = OPEN) -> None:
        self._address = address
        self._metadata = access.metadata()
        self._channel = access.channel(address, _OPTIONS)  # connects at the first call
        self._stub = classifier_pb2_grpc.ClassifierStub(self._channel)  # type: ignore[no-untyped-call]  # generated

    def classify(
        self,
        images: Sequence[Image],
        *,
        model: str = "",
        version: str = "",
        top_k: int = 0,
        min_score: float = 0.0,
        timeout_s: float = 10.0,
    ) -> Classification:
        """Classify encoded pictures in one request; top_k 0 means 5, timeout_s inf no deadline. Raises ClientError."""
        request = _request(images, model=model, version=version, top_k=top_k, min_score=min_score)
        with _told(self._address):
            deadline_s = _deadline_s(timeout_s)
            response = self._stub.Classify(request, timeout=deadline_s, metadata=self._metadata)
        return _answered(response, request, address=self._address)

    def models(self, *, timeout_s: float = 10.0) -> tuple[ModelInfo, ...]:
        """List what the server knows. Raises ClientError."""
        with _told(self._address):
            deadline_s = _deadline_s(timeout_s)
            asking = pb.ListModelsRequest()
            return read_models(self._stub.ListModels(asking, timeout=deadline_s, metadata=self._metadata))

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncClient:
    """The same for asyncio; make it inside the running loop."""

    def __init__(self, address: str = DEFAULT_ADDRESS, *, access: Access = OPEN) -> None:
        self._address = address
        self._metadata = access.metadata()
        self._channel = access.async_channel(address, _OPTIONS)
        self._stub = classifier_pb2_grpc.ClassifierStub(self._channel)  # type: ignore[no-untyped-call]  # generated
        self._is_closed = False

    async def classify(
        self,
        images: Sequence[Image],
        *,
        model: str = "",
        version: str = "",
        top_k: int = 0,
        min_score: float = 0.0,
        timeout_s: float = 10.0,
    ) -> Classification:
        """Classify encoded pictures in one request; top_k 0 means 5, timeout_s inf no deadline. Raises ClientError."""
        request = _request(images, model=model, version=version, top_k=top_k, min_score=min_score)
        with self._told():
            deadline_s = _deadline_s(timeout_s)
            response = await self._stub.Classify(request, timeout=deadline_s, metadata=self._metadata)
        return _answered(response, request, address=self._address)

    async def models(self, *, timeout_s: float = 10.0) -> tuple[ModelInfo, ...]:
        """List what the server knows. Raises ClientError."""
        with self._told():
            asking = self._stub.ListModels(
                pb.ListModelsRequest(), timeout=_deadline_s(timeout_s), metadata=self._metadata
            )
            return read_models(await asking)

    async def close(self) -> None:
        """Close the connection; calls under way fail."""
        self._is_closed = True
        await self._channel.close(None)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Do what `_told` does; a channel that is closed cancels the tasks of its calls, which nobody has asked for."""
        try:
            with _told(self._address):
                yield
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if self._is_closed and not (task and task.cancelling()):
                raise _closed(self._address) from error
            raise

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _request(images: Sequence[Image], *, model: str, version: str, top_k: int, min_score: float) -> pb.ClassifyRequest:
    if isinstance(images, bytes | bytearray | memoryview | str):
        raise _misused(f"images: found one {type(images).__name__}, wanted a sequence of encoded pictures")
    try:
        encoded = [image if isinstance(image, bytes) else bytes(memoryview(image)) for image in images]
        return pb.ClassifyRequest(model=model, version=version, images=encoded, top_k=top_k, min_score=min_score)
    except UnicodeEncodeError as error:
        raise _misused(f"{error.object!r}: found what is no UTF-8, wanted text") from error
    except (TypeError, ValueError) as error:
        raise _misused(f"{error}; wanted images as bytes, model and version as text, top_k 0..4294967295") from error


def _answered(response: pb.ClassifyResponse, request: pb.ClassifyRequest, *, address: str) -> Classification:
    found, wanted = len(response.results), len(request.images)
    if found != wanted:
        raise ClientError(
            f"{address}: {found} results for {wanted} images; is this a Calotype server?", status="UNKNOWN"
        )
    return read_classification(response)


def _deadline_s(timeout_s: float) -> float | None:
    """Return what gRPC is told: it takes a time too far away for one that has passed."""
    if not isinstance(timeout_s, float | int) or not timeout_s > 0:  # nor NaN
        raise _misused(f"timeout_s: found {timeout_s}, wanted more than 0")
    return None if timeout_s > _LONGEST_S else timeout_s


def _misused(text: str) -> ClientError:
    return ClientError(text, status="INVALID_ARGUMENT")


@contextmanager
def _told(address: str) -> Iterator[None]:
    """Raise what goes wrong in a call as a ClientError."""
    try:
        yield
    except grpc.RpcError as error:
        raise _client_error(error, address) from error
    except (ValueError, grpc.aio.UsageError) as error:
        raise _closed(address) from error


def _closed(address: str) -> ClientError:
    return ClientError(f"{address}: CANCELLED: this client is closed; make another one", status="CANCELLED")


def _client_error(error: grpc.RpcError, address: str) -> ClientError:
    status, details = error.code().name, (error.details() or "").strip()
    text = f"{address}: {status}: {details}"
    is_told = status in _TOLD_BY_THE_SERVER and "; " in details
    return ClientError(text if is_told else with_next_step(text, status=status), status=status)


def with_next_step(text: str, *, status: str) -> str:
    """Return the text, and what is to be tried where a call ended with this status, if anything is known to help."""
    step = next((told for words, told in _TOLD_BY_THE_LIBRARY if words in text), _NEXT_STEPS.get(status))
    return "; ".join(filter(None, (text, step)))
