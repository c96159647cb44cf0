"""A small typed client, blocking and asyncio: bytes of pictures in, ranked labels out.

Calls have a deadline. UNAVAILABLE and RESOURCE_EXHAUSTED are tried again by the gRPC library, after the server's own
push-back where it names one; so is CANCELLED, which gRPC says of calls that reach a server in the moment it stops.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

import grpc

from protos import classifier_pb2 as pb
from protos import classifier_pb2_grpc
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
    "UNAVAILABLE": "is it running and SERVING, and does it want --tls-ca? try `serving health` with the same options",
    "DEADLINE_EXCEEDED": "allow more seconds, or send fewer images",
    "RESOURCE_EXHAUSTED": "the server is busy or the message too large; send less at once",
    "UNAUTHENTICATED": "give --token or CALOTYPE_TOKEN",
    "UNIMPLEMENTED": "is this a Calotype server?",
    "INTERNAL": "look into the server's log",
}


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One label of an answer; score is a calibrated probability, 0..1."""

    index: int
    label: str
    score: float


@dataclass(frozen=True, kw_only=True)
class PictureError:
    """Why one picture got no answer; `code` as in classifier.proto, such as "TRUNCATED"."""

    code: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one picture got: predictions, best first, or an error."""

    predictions: tuple[Prediction, ...] = ()
    unknown: bool = False  # unlike anything that the model was trained on
    error: PictureError | None = None


@dataclass(frozen=True, kw_only=True)
class Classification:
    """The results of one request, in the order of its pictures, and the model that gave them."""

    results: tuple[Result, ...]
    model: str
    version: str


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """One version of one model, as the server describes it."""

    name: str
    version: str
    state: str  # LOADING, READY, DRAINING or FAILED
    reason: str
    labels: tuple[str, ...]
    provider: str
    precision: str
    digest: str
    unknown_below: float  # similarity to the training pictures under which one is unknown, -1..1


class Client:
    """A blocking client for one server; use as a context manager, or call `close`. Threads may share it."""

    def __init__(self, address: str = DEFAULT_ADDRESS, *, access: Access = OPEN) -> None:
        self._address = address
        self._metadata = access.metadata()
        self._channel = access.channel(address, _OPTIONS)  # connects at the first call
        self._stub = classifier_pb2_grpc.ClassifierStub(self._channel)  # type: ignore[no-untyped-call]  # generated

    def classify(
        self,
        images: Sequence[bytes],
        *,
        model: str = "",
        version: str = "",
        top_k: int = 0,
        min_score: float = 0.0,
        timeout_s: float = 10.0,
    ) -> Classification:
        """Classify encoded pictures in one request; top_k 0 means 5. Raises ClientError."""
        request = _request(images, model=model, version=version, top_k=top_k, min_score=min_score)
        try:
            return _classification(self._stub.Classify(request, timeout=timeout_s, metadata=self._metadata))
        except grpc.RpcError as error:
            raise _client_error(error, self._address) from error

    def models(self, *, timeout_s: float = 10.0) -> tuple[ModelInfo, ...]:
        """List what the server knows. Raises ClientError."""
        try:
            return _models(self._stub.ListModels(pb.ListModelsRequest(), timeout=timeout_s, metadata=self._metadata))
        except grpc.RpcError as error:
            raise _client_error(error, self._address) from error

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

    async def classify(
        self,
        images: Sequence[bytes],
        *,
        model: str = "",
        version: str = "",
        top_k: int = 0,
        min_score: float = 0.0,
        timeout_s: float = 10.0,
    ) -> Classification:
        """Classify encoded pictures in one request; top_k 0 means 5. Raises ClientError."""
        request = _request(images, model=model, version=version, top_k=top_k, min_score=min_score)
        try:
            return _classification(await self._stub.Classify(request, timeout=timeout_s, metadata=self._metadata))
        except grpc.RpcError as error:
            raise _client_error(error, self._address) from error

    async def models(self, *, timeout_s: float = 10.0) -> tuple[ModelInfo, ...]:
        """List what the server knows. Raises ClientError."""
        try:
            return _models(
                await self._stub.ListModels(pb.ListModelsRequest(), timeout=timeout_s, metadata=self._metadata)
            )
        except grpc.RpcError as error:
            raise _client_error(error, self._address) from error

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _request(images: Sequence[bytes], *, model: str, version: str, top_k: int, min_score: float) -> pb.ClassifyRequest:
    return pb.ClassifyRequest(model=model, version=version, images=images, top_k=top_k, min_score=min_score)


def _classification(response: pb.ClassifyResponse) -> Classification:
    results = tuple(_result(result) for result in response.results)
    return Classification(results=results, model=response.model, version=response.version)


def _result(result: pb.ImageResult) -> Result:
    if result.HasField("error"):
        code = pb.ImageError.Code.Name(result.error.code)
        return Result(error=PictureError(code=code, message=result.error.message))
    return Result(
        predictions=tuple(Prediction(index=one.index, label=one.label, score=one.score) for one in result.predictions),
        unknown=result.unknown,
    )


def _models(response: pb.ListModelsResponse) -> tuple[ModelInfo, ...]:
    return tuple(
        ModelInfo(
            name=model.name,
            version=model.version,
            state=pb.Model.State.Name(model.state),
            reason=model.reason,
            labels=tuple(model.labels),
            provider=model.provider,
            precision=model.precision,
            digest=model.digest,
            unknown_below=model.unknown_below,
        )
        for model in response.models
    )


def _client_error(error: grpc.RpcError, address: str) -> ClientError:
    status, details = error.code().name, (error.details() or "").strip()
    next_step = _NEXT_STEPS.get(status, "")
    return ClientError("; ".join(filter(None, (f"{address}: {status}: {details}", next_step))), status=status)
