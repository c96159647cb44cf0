"""The rpcs of the Open Inference Protocol V2 on grpc.aio: the same pictures, models and batches as classifier.v1.

The written rules stand in protos/open_inference.proto. What is not named there is answered UNIMPLEMENTED: shared
memory, loading and unloading, trace and log settings. Knows no onnxruntime.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Final

import structlog

from bundle import __version__
from bundle.contract import Contract
from protos import open_inference_pb2 as pb
from protos import open_inference_pb2_grpc
from serving.calls import Context
from serving.dispatcher import Dispatcher
from serving.errors import InvalidRequestError, NotReadyError, UnknownModelError, status_name
from serving.inference_answers import answer_message
from serving.metrics import Metrics
from serving.shelves import Entry, State
from serving.statistics import Statistics, read_statistics
from serving.streams import in_order
from serving.tensors import INPUT_NAME, OUTPUT_NAME, UNKNOWN_NAME, asked_outputs, read_pictures, timeout_s
from serving.waking import OneThread

SERVICE_NAME: Final = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
_EXTENSIONS: Final = (
    "classification",
    "model_configuration",
    "statistics",
    "binary_tensor_data",
    "parameters",
    "schedule_policy",
)
_ENDS_AT_ERROR: Final = ("triton_grpc_error", "true")  # of the metadata of a stream
_PLATFORM: Final = "onnxruntime_onnx"
_BACKEND: Final = "onnxruntime"
_STATES: Final[dict[State, str]] = {
    "LOADING": "LOADING",
    "READY": "READY",
    "DRAINING": "UNLOADING",
    "FAILED": "UNAVAILABLE",
}
log = structlog.get_logger(__name__)


class InferenceService(open_inference_pb2_grpc.GRPCInferenceServiceServicer):
    """The servicer. `is_serving` says whether the server as a whole wants requests."""

    def __init__(
        self, dispatcher: Dispatcher, metrics: Metrics, *, max_images_per_request: int, is_serving: Callable[[], bool]
    ) -> None:
        self._dispatcher = dispatcher
        self._metrics = metrics
        self._max_images = max_images_per_request
        self._is_serving = is_serving
        self._reading = OneThread()

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:  # noqa: ARG002, N802 -- rpc
        """Say that the process answers."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:  # noqa: ARG002, N802 -- rpc
        """Say whether every proof is done and no shutdown has begun, as grpc.health.v1 does."""
        return pb.ServerReadyResponse(ready=self._is_serving())

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:  # noqa: ARG002, N802 -- rpc
        """Say whether this version, or any of the model, answers; an unknown one does not."""
        try:
            self._dispatcher.catalogue.find(request.name, request.version)
        except (InvalidRequestError, UnknownModelError, NotReadyError):
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=self._is_serving())

    async def ServerMetadata(self, request: pb.ServerMetadataRequest, context: Context) -> pb.ServerMetadataResponse:  # noqa: ARG002, N802 -- rpc
        """Name the server and the extensions that work."""
        return pb.ServerMetadataResponse(name="calotype", version=__version__, extensions=_EXTENSIONS)

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Context) -> pb.ModelMetadataResponse:  # noqa: ARG002, N802 -- rpc
        """Describe the tensors of a model."""
        contract = self._dispatcher.catalogue.find(request.name, request.version).contract
        tensor = pb.ModelMetadataResponse.TensorMetadata
        return pb.ModelMetadataResponse(
            name=contract.name,
            versions=[str(entry.version) for entry in self._ready() if entry.name == contract.name],
            platform=_PLATFORM,
            inputs=[tensor(name=INPUT_NAME, datatype="BYTES", shape=[-1, 1])],
            outputs=[
                tensor(name=OUTPUT_NAME, datatype="FP32", shape=[-1, len(contract.labels)]),
                tensor(name=UNKNOWN_NAME, datatype="BOOL", shape=[-1, 1]),
            ],
        )

    async def ModelConfig(self, request: pb.ModelConfigRequest, context: Context) -> pb.ModelConfigResponse:  # noqa: ARG002, N802 -- rpc
        """Describe a model in the terms of Triton's configuration."""
        contract = self._dispatcher.catalogue.find(request.name, request.version).contract
        return pb.ModelConfigResponse(config=_config(contract, max_batch_size=self._max_images))

    async def ModelStatistics(self, request: pb.ModelStatisticsRequest, context: Context) -> pb.ModelStatisticsResponse:  # noqa: ARG002, N802 -- rpc
        """Tell the statistics of what answers: of one model or, without a name, all; of one version or all."""
        asked = [
            entry
            for entry in self._ready()
            if request.name in ("", entry.name) and request.version in ("", str(entry.version))
        ]
        if not asked and (request.name or request.version):
            self._dispatcher.catalogue.find(request.name, request.version)  # which says why
        found = await self._read_statistics([(entry.name, entry.version) for entry in asked])
        return pb.ModelStatisticsResponse(model_stats=list(map(_statistics, asked, found)))

    async def _read_statistics(self, versions: Sequence[tuple[str, int]]) -> list[Statistics]:
        """Read in a thread, one caller after another: the files of several workers, or a thousand labels, take long."""
        return await self._reading.run(read_statistics, self._metrics, versions)

    async def RepositoryIndex(self, request: pb.RepositoryIndexRequest, context: Context) -> pb.RepositoryIndexResponse:  # noqa: ARG002, N802 -- rpc
        """List every known version, or those that answer."""
        entries = self._ready() if request.ready else self._dispatcher.catalogue.entries()
        index = pb.RepositoryIndexResponse.ModelIndex
        return pb.RepositoryIndexResponse(
            models=[
                index(name=one.name, version=str(one.version), state=_STATES[one.state], reason=one.reason)
                for one in entries
            ]
        )

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:  # noqa: N802 -- rpc
        """Answer one request."""
        answering = self._infer(request, context)
        del request  # as below
        return await answering

    async def ModelStreamInfer(self, requests: AsyncIterator[pb.ModelInferRequest], context: Context) -> None:  # noqa: N802 -- rpc
        """Answer requests in their order; one that fails gets a message of its own.

        Who sends `triton_grpc_error: true`, Triton's own switch, wants the stream to end with its status instead.
        """
        ends_at_error = _ENDS_AT_ERROR in (context.invocation_metadata() or ())
        answer = partial(self._infer_alone, context=context, ends_at_error=ends_at_error)
        async with aclosing(in_order(requests, answer, weigh=_weigh)) as answers:
            async for message in answers:
                await context.write(message)

    async def _infer_alone(
        self, request: pb.ModelInferRequest, *, context: Context, ends_at_error: bool
    ) -> pb.ModelStreamInferResponse:
        """Answer one request of a stream, with its only and so its final response.

        A server that stops raises what ends the stream: its caller is to send the rest to another one.
        """
        answering, request_id = self._infer(request, context), request.id
        del request  # as below
        try:
            answer = pb.ModelStreamInferResponse(infer_response=await answering)
        except Exception as error:
            if ends_at_error or (isinstance(error, NotReadyError) and not self._is_serving()):
                raise
            is_foreseen = status_name(error) != "INTERNAL"
            if not is_foreseen:
                log.error("unforeseen error", exc_info=error)
            answer = pb.ModelStreamInferResponse(error_message=str(error) if is_foreseen else "internal error")
            answer.infer_response.id = request_id
        # Clients that ask for an empty final response look for this flag; a response that is itself final carries it.
        answer.infer_response.parameters["triton_final_response"].bool_param = True
        return answer

    async def _infer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        with self._dispatcher.refusals(door="inference"):
            asked, request_id = asked_outputs(request), request.id
            answering = self._dispatcher.classify(
                read_pictures(request, max_images=self._max_images),
                door="inference",
                model=request.model_name,
                version=request.model_version,
                time_left_s=_sooner(context.time_remaining(), timeout_s(request)),
                all_or_none=True,
            )
        del request  # or its pictures would be in memory once more for as long as they wait
        return answer_message(await answering, asked, request_id=request_id)

    def _ready(self) -> list[Entry]:
        return [entry for entry in self._dispatcher.catalogue.entries() if entry.state == "READY"]


def _weigh(request: pb.ModelInferRequest) -> int:
    """Return how many pictures a request says that it brings."""
    return max(1, next((size for tensor in request.inputs for size in tensor.shape), 1))


def _sooner(first_s: float | None, second_s: float | None) -> float | None:
    return min((one for one in (first_s, second_s) if one is not None), default=None)


def _config(contract: Contract, *, max_batch_size: int) -> pb.ModelConfig:
    return pb.ModelConfig(
        name=contract.name,
        platform=_PLATFORM,
        backend=_BACKEND,
        max_batch_size=max_batch_size,
        input=[pb.ModelInput(name=INPUT_NAME, data_type=pb.TYPE_STRING, dims=[1])],
        output=[
            pb.ModelOutput(name=OUTPUT_NAME, data_type=pb.TYPE_FP32, dims=[len(contract.labels)]),
            pb.ModelOutput(name=UNKNOWN_NAME, data_type=pb.TYPE_BOOL, dims=[1]),
        ],
        dynamic_batching=pb.ModelDynamicBatching(),
        parameters={"crop_px": pb.ModelParameter(string_value=str(contract.preprocess.crop_px))},
    )


def _statistics(entry: Entry, found: Statistics) -> pb.ModelStatistics:
    def duration(total_ns: int) -> pb.StatisticDuration:
        # One count for all stages: perf_analyzer divides each by the requests, and aborts where some differ.
        return pb.StatisticDuration(count=found.answered, ns=total_ns)

    return pb.ModelStatistics(
        name=entry.name,
        version=str(entry.version),
        inference_count=found.pictures,
        execution_count=found.batches,
        inference_stats=pb.InferStatistics(
            success=duration(found.queue_ns + found.input_ns + found.infer_ns),
            fail=pb.StatisticDuration(count=found.failed),
            queue=duration(found.queue_ns),
            compute_input=duration(found.input_ns),
            compute_infer=duration(found.infer_ns),
            compute_output=duration(0),
        ),
    )
