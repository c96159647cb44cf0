"""The rpcs of classifier.v1 on grpc.aio: check a request, hand it to a model, turn the outcome into messages.

Knows no onnxruntime.
"""

from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial
from typing import Final

from bundle.errors import ImageError
from protos import classifier_pb2 as pb
from protos import classifier_pb2_grpc
from serving.calls import Context
from serving.classifier import ServedModel
from serving.dispatcher import Dispatcher
from serving.errors import InvalidRequestError
from serving.shelves import Entry
from serving.steps import Verdict
from serving.streams import in_order

SERVICE_NAME: Final = pb.DESCRIPTOR.services_by_name["Classifier"].full_name


class ClassifierService(classifier_pb2_grpc.ClassifierServicer):
    """The servicer."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    async def Classify(self, request: pb.ClassifyRequest, context: Context) -> pb.ClassifyResponse:  # noqa: N802 -- rpc
        """Answer one request."""
        answering = self._classify(request, context)
        del request  # as below
        return await answering

    async def ClassifyStream(self, requests: AsyncIterator[pb.ClassifyRequest], context: Context) -> None:  # noqa: N802 -- rpc
        """Answer requests in their order while later ones are already under way."""
        async with aclosing(in_order(requests, partial(self._classify, context=context), weigh=_weigh)) as answers:
            async for answer in answers:
                await context.write(answer)

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:  # noqa: ARG002, N802 -- rpc
        """List every known version, also those that failed."""
        return pb.ListModelsResponse(models=[_model_message(entry) for entry in self._dispatcher.catalogue.entries()])

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.Model:  # noqa: ARG002, N802 -- rpc
        """Describe one version."""
        return _model_message(self._dispatcher.catalogue.entry(request.model, request.version))

    async def _classify(self, request: pb.ClassifyRequest, context: Context) -> pb.ClassifyResponse:
        if not 0 <= request.min_score <= 1:  # nor NaN
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


def _weigh(request: pb.ClassifyRequest) -> int:
    return len(request.images)


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
