"""The rpcs of classifier.v1 on grpc.aio: check a request, hand it to a model, turn the outcome into messages.

Every expected error has its status in one table; anything else goes to the log with its traceback and reaches the
client as "internal error". Knows no onnxruntime.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Final, NoReturn

import grpc
import structlog
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from bundle.errors import ImageError
from protos import classifier_pb2 as pb
from protos import classifier_pb2_grpc
from serving.catalogue import Catalogue, Entry
from serving.classifier import Probabilities, ServedModel
from serving.errors import (
    DeadlineExceededError,
    InvalidRequestError,
    NotReadyError,
    QueueFullError,
    UnknownModelError,
)

STATUS: Final[dict[type[Exception], grpc.StatusCode]] = {
    InvalidRequestError: grpc.StatusCode.INVALID_ARGUMENT,
    UnknownModelError: grpc.StatusCode.NOT_FOUND,
    NotReadyError: grpc.StatusCode.UNAVAILABLE,
    QueueFullError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DeadlineExceededError: grpc.StatusCode.DEADLINE_EXCEEDED,
}
SERVICE_NAME: Final = pb.DESCRIPTOR.services_by_name["Classifier"].full_name
RETRY_AFTER_MS: Final = 100  # a dozen fp32 pictures on one core: by then a full queue has moved
_STREAM_WINDOW: Final = 8  # requests of one stream that wait for their answers

Context = grpc.aio.ServicerContext[object, object]
log = structlog.get_logger(__name__)


class ClassifierService(classifier_pb2_grpc.ClassifierServicer):
    """The servicer. `idle` is set while no request is being answered."""

    def __init__(self, catalogue: Catalogue, *, max_images_per_request: int) -> None:
        self._catalogue = catalogue
        self._max_images = max_images_per_request
        self._active = 0
        self.idle = asyncio.Event()
        self.idle.set()

    async def Classify(self, request: pb.ClassifyRequest, context: Context) -> pb.ClassifyResponse:  # noqa: N802 -- rpc
        """Answer one request."""
        try:
            return await self._classify(request, context)
        except Exception as error:  # noqa: BLE001 -- the table decides, the rest is logged with its traceback
            await _abort(context, error)

    async def ClassifyStream(self, requests: AsyncIterator[pb.ClassifyRequest], context: Context) -> None:  # noqa: N802 -- rpc
        """Answer requests in their order while later ones are already under way."""
        window: asyncio.Queue[asyncio.Task[pb.ClassifyResponse] | None] = asyncio.Queue(_STREAM_WINDOW)
        tasks: set[asyncio.Task[pb.ClassifyResponse]] = set()

        async def read() -> None:
            async for request in requests:
                task = asyncio.create_task(self._classify(request, context))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                await window.put(task)
            await window.put(None)

        reader = asyncio.create_task(read())
        try:
            while (task := await window.get()) is not None:
                await context.write(await task)
        except Exception as error:  # noqa: BLE001 -- as above
            await _abort(context, error)
        finally:
            for pending in (reader, *tasks):
                pending.cancel()

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:  # noqa: ARG002, N802 -- rpc
        """List every known version, also those that failed."""
        return pb.ListModelsResponse(models=[_model_message(entry) for entry in self._catalogue.entries()])

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.Model:  # noqa: N802 -- rpc
        """Describe one version."""
        try:
            return _model_message(self._catalogue.entry(request.model, request.version))
        except Exception as error:  # noqa: BLE001 -- as above
            await _abort(context, error)

    async def _classify(self, request: pb.ClassifyRequest, context: Context) -> pb.ClassifyResponse:
        with self._counted():
            _check(request, max_images=self._max_images)
            model = self._catalogue.find(request.model, request.version)
            remaining_s = context.time_remaining()
            deadline = None if remaining_s is None else time.monotonic() + remaining_s
            waiting = [asyncio.wrap_future(future) for future in model.submit(request.images, deadline=deadline)]
            try:
                outcomes = await asyncio.gather(*waiting, return_exceptions=True)
            finally:
                for future in waiting:  # when the call is cancelled, its pictures leave the queue
                    future.cancel()
            return pb.ClassifyResponse(
                results=[_result(outcome, model, request) for outcome in outcomes],
                model=model.contract.name,
                version=str(model.contract.version),
            )

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._active += 1
        self.idle.clear()
        try:
            yield
        finally:
            self._active -= 1
            if not self._active:
                self.idle.set()


def _check(request: pb.ClassifyRequest, *, max_images: int) -> None:
    if not request.images:
        raise InvalidRequestError("images: found none, wanted at least one")
    if len(request.images) > max_images:
        raise InvalidRequestError(
            f"images: found {len(request.images)}, wanted at most {max_images}; send several requests"
        )
    if not (math.isfinite(request.min_score) and 0 <= request.min_score <= 1):
        raise InvalidRequestError(f"min_score: found {request.min_score}, wanted 0..1")
    if request.version and not (request.version.isascii() and request.version.isdigit()):
        raise InvalidRequestError(f"version: found {request.version[:32]!r}, wanted a positive integer, or nothing")


def _result(outcome: Probabilities | BaseException, model: ServedModel, request: pb.ClassifyRequest) -> pb.ImageResult:
    if isinstance(outcome, ImageError):
        return pb.ImageResult(error=pb.ImageError(code=outcome.code, message=str(outcome)))
    if isinstance(outcome, BaseException):
        raise outcome
    ranked = model.rank(outcome, top_k=request.top_k, min_score=request.min_score)
    return pb.ImageResult(
        predictions=[pb.Prediction(index=one.index, label=one.label, score=one.score) for one in ranked]
    )


def _model_message(entry: Entry) -> pb.Model:
    message = pb.Model(name=entry.name, version=str(entry.version), state=entry.state, reason=entry.reason)
    if entry.served is not None:
        spec = entry.served.contract.preprocess
        message.labels.extend(entry.served.contract.labels)
        message.preprocess.CopyFrom(
            pb.PreprocessSpec(
                resize_px=spec.resize_px,
                crop_px=spec.crop_px,
                interpolation=spec.interpolation,
                decode_rule=spec.decode_rule,
            )
        )
        message.provider = entry.served.provider
        message.precision = entry.served.precision
        message.digest = entry.served.digest
    return message


async def _abort(context: Context, error: Exception) -> NoReturn:
    code = next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), None)
    if code is None:
        log.error("unforeseen error", exc_info=error)
        await context.abort(grpc.StatusCode.INTERNAL, "internal error")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        await context.abort(code, str(error), _push_back(code, str(error)))
    await context.abort(code, str(error))


def _push_back(code: grpc.StatusCode, message: str) -> tuple[tuple[str, str | bytes], ...]:
    """Return the trailers that tell a client, and its gRPC library, when to try again."""
    detail = AnyMessage()
    detail.Pack(RetryInfo(retry_delay=Duration(nanos=RETRY_AFTER_MS * 1_000_000)))
    status = Status(code=code.value[0], message=message, details=[detail])
    return (
        ("grpc-status-details-bin", status.SerializeToString()),
        ("grpc-retry-pushback-ms", str(RETRY_AFTER_MS)),
    )
