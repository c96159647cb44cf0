"""The V2 rpcs over a real socket with our own stubs: perf_analyzer's order of calls, statuses, streams, limits.

The unmodified client of Triton has its own tests, in test_tritonclient.py.
"""

import asyncio
import threading
from dataclasses import replace

import grpc
import pytest
import tiny_bundle
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from inference_door import CROP, LABELS, SETTINGS, best, pixels, request, scene_with
from one_thread import most_at_once
from running import Running, counted, plain_channel, until

from protos import open_inference_pb2 as pb
from protos import open_inference_pb2_grpc
from serving.catalogue import Catalogue
from serving.loading import load_model
from serving.metrics import Metrics
from serving.open_inference import InferenceService
from serving.server import Server
from serving.settings import ServerSettings
from serving.tensors import join


def test_pictures_and_pixels_get_the_same_answers(models):
    """Encoded and already preprocessed, in their order."""

    async def scene(stub, channel):
        assert best(await stub.ModelInfer(request("red", "blue", "green"))) == ["red", "blue", "green"]
        assert best(await stub.ModelInfer(pixels(2, CROP, CROP, 3))) == ["red", "red"]

    scene_with(models, scene)


@pytest.mark.parametrize("names", [["unknown"], ["unknown", "probabilities"], ["probabilities"], []])
def test_the_outputs_that_are_asked_for_come_in_their_order(models, names):
    """A picture of something else is unknown, and has its best label all the same."""
    made = request("red")
    made.inputs[0].shape[0] = 2
    made.raw_input_contents[0] += join([tiny_bundle.foreign()])
    made.outputs.extend(pb.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in names)

    async def scene(stub, channel):
        return await stub.ModelInfer(made)

    answer = scene_with(models, scene)
    assert [tensor.name for tensor in answer.outputs] == (names or ["probabilities", "unknown"])
    for tensor, raw in zip(answer.outputs, answer.raw_output_contents, strict=True):
        if tensor.name == "unknown":
            assert (tensor.datatype, list(tensor.shape), raw) == ("BOOL", [2, 1], b"\0\1")


def test_the_calls_of_perf_analyzer_in_its_order(models):
    """Metadata, config, server metadata, statistics, requests, statistics; and what it needs to find in them."""

    async def scene(stub, channel):
        metadata = await stub.ModelMetadata(pb.ModelMetadataRequest(name="colours"))
        config = (await stub.ModelConfig(pb.ModelConfigRequest(name="colours"))).config
        extensions = (await stub.ServerMetadata(pb.ServerMetadataRequest())).extensions
        (before,) = (await stub.ModelStatistics(pb.ModelStatisticsRequest(name="colours"))).model_stats
        for number in range(5):
            response = await stub.ModelInfer(request("red", id=str(number)))
            assert (response.id, len(response.raw_output_contents)) == (str(number), 2)
        answer = await stub.ModelInfer(request(*["red", "blue"] * 4))
        assert len(answer.raw_output_contents) == len(answer.outputs) == 2
        (after,) = (await stub.ModelStatistics(pb.ModelStatisticsRequest(name="colours"))).model_stats
        return metadata, config, extensions, before, after

    metadata, config, extensions, before, after = scene_with(models, scene)
    assert metadata.inputs[0].shape[0] == metadata.outputs[0].shape[0] == -1
    assert config.max_batch_size == SETTINGS.max_images_per_request
    assert (list(config.input[0].dims), list(config.output[0].dims)) == ([1], [len(LABELS)])
    supported = ("classification", "model_configuration", "statistics", "binary_tensor_data", "parameters")
    assert sorted(extensions) == sorted((*supported, "schedule_policy"))  # what is named must work
    assert int(after.version) == 1
    assert after.inference_count - before.inference_count == 13  # pictures
    for stage in ("success", "queue", "compute_input"):  # requests
        assert getattr(after.inference_stats, stage).count - getattr(before.inference_stats, stage).count == 6
    took = {stage.name: value.ns for stage, value in after.inference_stats.ListFields()}
    assert took["success"] == took["queue"] + took["compute_input"] + took["compute_infer"]
    for stats in (before.inference_stats, after.inference_stats):
        assert stats.compute_input.count == stats.compute_infer.count == stats.compute_output.count
    assert 6 <= after.execution_count - before.execution_count < 13  # the eight ran several together
    assert after.inference_stats.compute_infer.ns > before.inference_stats.compute_infer.ns
    assert after.inference_stats.compute_input.ns > before.inference_stats.compute_input.ns


@pytest.mark.parametrize(
    ("made", "status", "text"),
    [
        (pb.ModelInferRequest(model_name="colours"), "INVALID_ARGUMENT", "inputs: found none"),
        (pixels(1, CROP + 1, CROP, 3), "INVALID_ARGUMENT", r"images[0]: found shape (25, 24, 3)"),
        (request(*["red"] * 9), "INVALID_ARGUMENT", "wanted at most 8"),
        (request("red", model_version="latest"), "INVALID_ARGUMENT", "latest"),
        (request("red", model_version="7"), "NOT_FOUND", "no version '7'"),
        (request("red", parameters={"timeout": pb.InferParameter(int64_param=-5)}), "INVALID_ARGUMENT", "timeout"),
    ],
)
def test_wrong_requests_get_their_status(models, made, status, text):
    """The table of statuses, from the outside; the metrics count what the caller saw."""
    metrics = Metrics()

    async def scene(stub, channel):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ModelInfer(made)
        assert caught.value.code().name == status
        assert text in caught.value.details()

    scene_with(models, scene, metrics=metrics)
    assert counted(metrics) == {("inference", status): 1}


def test_an_unreadable_picture_fails_its_request_by_place_and_code(models):
    """This protocol has no errors of single pictures; the metrics count what the caller saw."""
    made, metrics = request("red", "blue"), Metrics()
    made.raw_input_contents[0] = join([tiny_bundle.picture("red"), b"no picture"])

    async def scene(stub, channel):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ModelInfer(made)
        assert caught.value.code().name == "INVALID_ARGUMENT"
        assert caught.value.details().startswith("images[1]: NOT_AN_IMAGE: ")
        (stats,) = (await stub.ModelStatistics(pb.ModelStatisticsRequest())).model_stats
        assert (stats.inference_count, stats.inference_stats.fail.count) == (1, 1)

    scene_with(models, scene, metrics=metrics)
    assert counted(metrics) == {("inference", "INVALID_ARGUMENT"): 1}


def test_unknown_names_are_not_found_and_not_ready(models):
    """ModelReady alone answers; what is not served at all is UNIMPLEMENTED."""

    async def scene(stub, channel):
        for version in ("", "1"):
            assert (await stub.ModelReady(pb.ModelReadyRequest(name="colours", version=version))).ready
        for name, version in (("roses", ""), ("colours", "7"), ("colours", "latest")):
            assert not (await stub.ModelReady(pb.ModelReadyRequest(name=name, version=version))).ready
        calls = [
            stub.ModelMetadata(pb.ModelMetadataRequest(name="roses")),
            stub.ModelConfig(pb.ModelConfigRequest(name="roses")),
            stub.ModelStatistics(pb.ModelStatisticsRequest(name="roses")),
            channel.unary_unary("/inference.GRPCInferenceService/RepositoryModelLoad")(b""),
        ]
        codes = []
        for call in calls:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            codes.append(caught.value.code().name)
        assert codes == ["NOT_FOUND"] * 3 + ["UNIMPLEMENTED"]

    scene_with(models, scene)


class WatchedModel:
    """A model that notes the deadlines, and fails where it is told to."""

    def __init__(self, model):
        self._model = model
        self.deadlines = []
        self.failure = None

    def __getattr__(self, name):
        return getattr(self._model, name)

    def submit(self, images, *, deadline):
        self.deadlines.append(deadline)
        if self.failure:
            raise self.failure
        return self._model.submit(images, deadline=deadline)


def test_the_sooner_deadline_holds(models):
    """The parameter is in microseconds; the call's own deadline may be sooner."""
    watched = []

    def wrap(served):
        watched.append(WatchedModel(served))
        return watched[0]

    async def scene(stub, channel):
        minute = {"timeout": pb.InferParameter(int64_param=60_000_000)}
        await stub.ModelInfer(request("red"))
        await stub.ModelInfer(request("red", parameters=minute))
        await stub.ModelInfer(request("red", parameters=minute), timeout=30)
        await stub.ModelInfer(request("red", parameters=minute), timeout=600)
        now = asyncio.get_running_loop().time()  # monotonic, as the deadlines
        return [deadline and deadline - now for deadline in watched[0].deadlines]

    none, parameter, call, sooner = scene_with(models, scene, wrap=wrap)
    assert none is None
    assert 40 < parameter <= 60
    assert 10 < call < 40  # gRPC rounds it up a little
    assert 40 < sooner <= 60


def test_a_stream_survives_its_bad_requests(models):
    """Answers in order, each with its id and the flag of the last response; a failed one with its message."""
    requests = [
        request("red", id="a"),
        pb.ModelInferRequest(id="b"),
        request("blue", id="c", parameters={"triton_enable_empty_final_response": pb.InferParameter(bool_param=True)}),
    ]

    async def scene(stub, channel):
        return [answer async for answer in stub.ModelStreamInfer(requests)]

    answers = scene_with(models, scene)
    assert [answer.infer_response.id for answer in answers] == ["a", "b", "c"]
    assert all(answer.infer_response.parameters["triton_final_response"].bool_param for answer in answers)
    assert [answer.error_message[:7] for answer in answers] == ["", "inputs:", ""]
    assert [best(answers[place].infer_response) for place in (0, 2)] == [["red"], ["blue"]]


def test_a_stream_ends_with_the_status_of_an_error_where_its_caller_asks_for_that(models):
    """As Triton does with this metadata: without a status nobody can tell overload from bad input."""
    requests = [request("red", id="a"), pb.ModelInferRequest(id="b"), request("blue", id="c")]

    async def scene(stub, channel):
        stream = stub.ModelStreamInfer(requests, metadata=(("triton_grpc_error", "true"),))
        assert (await stream.read()).infer_response.id == "a"
        with pytest.raises(grpc.aio.AioRpcError, match="inputs: found none") as caught:
            await stream.read()
        assert caught.value.code().name == "INVALID_ARGUMENT"

    scene_with(models, scene)


def test_a_stream_of_large_requests_is_not_refused_for_what_it_sent_itself(models):
    """It is read as fast as it is answered: 32 pictures are all that may wait, and six requests bring 192."""
    settings = replace(SETTINGS, max_queue_images=32, max_images_per_request=32)
    requests = [request(*["red"] * 32, id=str(number)) for number in range(6)]

    async def scene(stub, channel):
        return [answer async for answer in stub.ModelStreamInfer(requests)]

    answers = scene_with(models, scene, settings=settings)
    assert [(answer.infer_response.id, answer.error_message) for answer in answers] == [(str(n), "") for n in range(6)]


def test_the_unforeseen_tells_nothing(models):
    """Neither the single rpc nor the stream gives away what went wrong inside."""

    def wrap(served):
        model = WatchedModel(served)
        model.failure = ZeroDivisionError("/secret/path")
        return model

    async def scene(stub, channel):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ModelInfer(request("red"))
        assert (caught.value.code().name, caught.value.details()) == ("INTERNAL", "internal error")
        (answer,) = [answer async for answer in stub.ModelStreamInfer([request("red", id="a")])]
        assert (answer.error_message, answer.infer_response.id) == ("internal error", "a")

    scene_with(models, scene, wrap=wrap)


def test_compressed_requests_are_read_and_their_bombs_refused(models):
    """gzip and deflate; the limit of a message holds for what it unpacks to."""
    small = ServerSettings(address="127.0.0.1:0", http_address="off", max_message_bytes=2**20)
    bomb = request("red")
    bomb.raw_input_contents[0] = bytes(2**22)

    async def scene(stub, channel):
        for method in (grpc.Compression.Gzip, grpc.Compression.Deflate):
            assert best(await stub.ModelInfer(request("red"), compression=method)) == ["red"]
            (answer,) = [answer async for answer in stub.ModelStreamInfer([request("red")], compression=method)]
            assert best(answer.infer_response) == ["red"]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ModelInfer(bomb, compression=grpc.Compression.Gzip)
        assert caught.value.code().name == "RESOURCE_EXHAUSTED"
        trailers = dict(caught.value.trailing_metadata())
        assert trailers["grpc-retry-pushback-ms"] == "-1"  # it would be too large again
        assert "x-request-id" in trailers

    scene_with(models, scene, settings=small)


def test_the_repository_index_names_states(models):
    """A refused version is UNAVAILABLE, says why, is left out of what is ready, and our files are not named."""
    tiny_bundle.change_constant(tiny_bundle.write(models), "mean", 0.5)

    async def scene(stub, channel):
        every = (await stub.RepositoryIndex(pb.RepositoryIndexRequest())).models
        ready = (await stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=True))).models
        assert [(one.version, one.state) for one in every] == [("1", "READY"), ("2", "UNAVAILABLE")]
        assert (every[0].reason, "golden picture" in every[1].reason) == ("", True)
        assert str(models) not in every[1].reason
        assert [one.version for one in ready] == ["1"]
        assert (await stub.ModelMetadata(pb.ModelMetadataRequest(name="colours"))).versions == ["1"]

    scene_with(models, scene)


def test_health_and_reflection_name_the_service(models):
    """Health by its full name, reflection in the list."""
    name = "inference.GRPCInferenceService"

    async def scene(stub, channel):
        health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=name))
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        ask = reflection_pb2.ServerReflectionRequest(list_services="")
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([ask]))
        (answer,) = [answer async for answer in call]
        assert name in [service.name for service in answer.list_services_response.service]

    scene_with(models, scene)


def test_ready_only_while_serving(models):
    """Live at once; ready after the models are proved, and no longer when the shutdown begins."""
    is_loading, may_load = threading.Event(), threading.Event()
    metrics = Metrics()
    settings = ServerSettings(address="127.0.0.1:0", http_address="off", lame_duck_s=20)

    def load(folder):
        is_loading.set()
        assert may_load.wait(20)
        return load_model(folder, settings, metrics=metrics)

    async def states(stub):
        model = pb.ModelReadyRequest(name="colours")
        live = (await stub.ServerLive(pb.ServerLiveRequest(), wait_for_ready=True)).live
        return live, (await stub.ServerReady(pb.ServerReadyRequest())).ready, (await stub.ModelReady(model)).ready

    async def scene():
        server = Server(Catalogue(models, load), settings, metrics=metrics)
        starting = asyncio.create_task(server.startup())
        await asyncio.to_thread(is_loading.wait, 20)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
            assert await states(stub) == (True, False, False)
            may_load.set()
            await starting
            await server.say_serving()
            assert await states(stub) == (True, True, True)
            stopping = asyncio.create_task(server.shutdown())
            assert await states(stub) == (True, False, False)
            stopping.cancel()
        await server.abandon()

    asyncio.run(scene())


def test_statistics_and_versions_are_those_of_one_model_and_one_version(models):
    """Two models, one of them with two versions that were asked a different number of times."""
    tiny_bundle.write(models)
    tiny_bundle.write(models, name="shades")
    with Running(models) as server, plain_channel(server.address) as channel:
        until(lambda: server.states() == {1: "READY", 2: "READY"}, what="both versions")
        until(lambda: server.states("shades") == {1: "READY"}, what="the other model")
        stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        for version, count in (("1", 1), ("2", 3)):
            for _ in range(count):
                stub.ModelInfer(request("red", model_version=version))

        def counts(**fields):
            stats = stub.ModelStatistics(pb.ModelStatisticsRequest(**fields)).model_stats
            return sorted((one.name, one.version, one.inference_count) for one in stats)

        assert counts(name="colours", version="2") == [("colours", "2", 3)]
        assert counts(name="colours") == [("colours", "1", 1), ("colours", "2", 3)]
        assert counts() == [("colours", "1", 1), ("colours", "2", 3), ("shades", "1", 0)]
        assert counts(version="1") == [("colours", "1", 1), ("shades", "1", 0)]
        assert counts(version="2") == [("colours", "2", 3)]
        for fields in ({"version": "x"}, {"name": "colours", "version": "x"}):
            with pytest.raises(grpc.RpcError, match="wanted a positive integer"):
                counts(**fields)
        assert list(stub.ModelMetadata(pb.ModelMetadataRequest(name="shades")).versions) == ["1"]


def test_statistics_are_read_by_one_thread_at_a_time_also_when_callers_go(monkeypatch):
    """A thread goes on when its caller has gone: those who come and go would fill the pool."""

    def ask():
        service = InferenceService(None, None, max_images_per_request=1, is_serving=bool)
        return lambda number: service._read_statistics([("colours", number)])

    assert most_at_once(monkeypatch, "serving.open_inference.read_statistics", ask) == [1, 1]
