"""The rpcs of classifier.v1 on grpc.aio: check a request, hand it to a model, turn the outcome into messages.

Every expected error has its status in one table; anything else goes to the log with its traceback and reaches the
client as "internal error". Knows no onnxruntime.
"""

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from typing import Final, NoReturn, TypeVar

import grpc
import structlog
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from bundle.errors import ImageError
from protos import classifier_pb2 as pb
from protos import classifier_pb2_grpc
from serving.classifier import ServedModel
from serving.dispatcher import Dispatcher
from serving.errors import InvalidRequestError, RateLimitedError, TryLaterError, status_name, without_frames
from serving.shelves import Entry
from serving.steps import Verdict

SERVICE_NAME: Final = pb.DESCRIPTOR.services_by_name["Classifier"].full_name
_RETRY_MS: Final = (20, 2000)  # the shortest and longest time after which a refused client is told to try again
_STREAM_WINDOW: Final = 8  # requests of one stream that wait for their answers

Request = TypeVar("Request")
Answer = TypeVar("Answer")
Context = grpc.aio.ServicerContext[object, object]
log = structlog.get_logger(__name__)


class ClassifierService(classifier_pb2_grpc.ClassifierServicer):
    """The servicer."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    async def Classify(self, request: pb.ClassifyRequest, context: Context) -> pb.ClassifyResponse:  # noqa: N802 -- rpc
        """Answer one request."""
        answering = self._classify(request, context)
        del request  # as below
        try:
            return await answering
        except Exception as error:  # noqa: BLE001 -- the table decides, the rest is logged with its traceback
            await abort(context, error)

    async def ClassifyStream(self, requests: AsyncIterator[pb.ClassifyRequest], context: Context) -> None:  # noqa: N802 -- rpc
        """Answer requests in their order while later ones are already under way."""
        try:
            async with aclosing(in_order(requests, lambda request: self._classify(request, context))) as answers:
                async for answer in answers:
                    await context.write(answer)
        except Exception as error:  # noqa: BLE001 -- as above
            await abort(context, error)

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:  # noqa: ARG002, N802 -- rpc
        """List every known version, also those that failed."""
        return pb.ListModelsResponse(models=[_model_message(entry) for entry in self._dispatcher.catalogue.entries()])

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.Model:  # noqa: N802 -- rpc
        """Describe one version."""
        try:
            return _model_message(self._dispatcher.catalogue.entry(request.model, request.version))
        except Exception as error:  # noqa: BLE001 -- as above
            await abort(context, error)

    async def _classify(self, request: pb.ClassifyRequest, context: Context) -> pb.ClassifyResponse:
        if not (math.isfinite(request.min_score) and 0 <= request.min_score <= 1):
            with self._dispatcher.refusals(door="classifier.v1"):
                raise InvalidRequestError(f"min_score: found {request.min_score}, wanted 0..1")
        answering = self._dispatcher.classify(
            tuple(request.images),  # every look at a repeated field copies the bytes anew
            door="classifier.v1",
            model=request.model,
            version=request.version,
            time_left_s=context.time_remaining(),
        )
        top_k, min_score = request.top_k, request.min_score
        del request  # or its pictures would be in memory once more for as long as they wait
        answers = await answering
        return pb.ClassifyResponse(
            results=[_result(outcome, answers.model, top_k=top_k, min_score=min_score) for outcome in answers.outcomes],
            model=answers.model.contract.name,
            version=str(answers.model.contract.version),
        )


async def in_order(
    requests: AsyncIterable[Request], answer: Callable[[Request], Coroutine[None, None, Answer]]
) -> AsyncGenerator[Answer]:
    """Yield the answers of a stream in the order of its requests, while later ones are already under way.

    Raises what an answer, or the reading of a request, raised: in its turn, after the answers before it.
    """
    window: asyncio.Queue[asyncio.Task[Answer | Exception] | Exception | None] = asyncio.Queue(_STREAM_WINDOW)
    tasks: set[asyncio.Task[Answer | Exception]] = set()

    async def read() -> None:
        try:
            async for request in requests:
                task = asyncio.create_task(_outcome(answer, request))
                del request  # as above
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                await window.put(task)
        except Exception as error:  # noqa: BLE001 -- raised below
            await window.put(error)
        await window.put(None)

    reader = asyncio.create_task(read())
    try:
        while (entry := await window.get()) is not None:
            outcome = entry if isinstance(entry, Exception) else await entry
            if isinstance(outcome, Exception):
                raise outcome
            yield outcome
    finally:
        for pending in (reader, *tasks):
            pending.cancel()


async def _outcome(answer: Callable[[Request], Coroutine[None, None, Answer]], request: Request) -> Answer | Exception:
    """Return the error instead of raising it: a stream that ends early asks nobody for the rest."""
    answering = answer(request)
    del request  # as above
    try:
        return await answering
    except Exception as error:  # noqa: BLE001 -- raised by who asks
        return error


def _result(outcome: Verdict | ImageError, model: ServedModel, *, top_k: int, min_score: float) -> pb.ImageResult:
    if isinstance(outcome, ImageError):
        return pb.ImageResult(error=pb.ImageError(code=outcome.code, message=str(outcome)))
    ranked = [
        pb.Prediction(index=one.index, label=one.label, score=one.score)
        for one in model.rank(outcome.scores, top_k=top_k)
    ]
    # A message rounds to float32, up or down: who asks for what it said must find it again.
    return pb.ImageResult(predictions=[one for one in ranked if one.score >= min_score], unknown=outcome.unknown)


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
        message.unknown_below = entry.served.contract.unknown_below
    return message


async def abort(context: Context, error: Exception) -> NoReturn:
    """End a call with the status of an error; the unforeseen is logged, and told as "internal error"."""
    if isinstance(error, grpc.aio.AbortError):  # it is over already, see `arrivals`
        raise error
    code = grpc.StatusCode[status_name(error)]
    is_foreseen = code is not grpc.StatusCode.INTERNAL
    if not is_foreseen:
        log.error("unforeseen error", exc_info=error)
    without_frames(error)  # which the library keeps from now on
    if isinstance(error, TryLaterError):
        push_back = _push_back(code, error, time_left_s=context.time_remaining())
        await context.abort(code, str(error), (*context.trailing_metadata(), *push_back))
    await context.abort(code, str(error) if is_foreseen else "internal error")


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
        ("grpc-retry-pushback-ms", str(retry_ms if time_left_s is None or retry_ms < 1000 * time_left_s else -1)),
    )
