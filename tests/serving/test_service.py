"""The rpcs over a real socket, with a real tiny model, in one event loop."""

import asyncio
import threading
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from io import BytesIO

import grpc
import numpy as np
import pytest
import structlog
import tiny_bundle
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from PIL import Image
from running import counted

from protos import classifier_pb2 as pb
from protos import classifier_pb2_grpc
from serving.catalogue import Catalogue
from serving.client import AsyncClient
from serving.errors import QueueFullError
from serving.loading import load_model
from serving.metrics import Metrics
from serving.server import Server
from serving.settings import ServerSettings
from serving.streams import in_order

SETTINGS = ServerSettings(address="127.0.0.1:0", http_address="off", max_images_per_request=8)
METRICS = Metrics()
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@asynccontextmanager
async def serving(models, *, load=lambda folder: load_model(folder, SETTINGS, metrics=METRICS), metrics=None):
    """A server that says SERVING, and a channel to it without retries."""
    server = Server(Catalogue(models, load), SETTINGS, metrics=metrics or Metrics())
    await server.startup()
    try:
        await server.say_serving()
        options = [("grpc.enable_retries", 0)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=options) as channel:
            yield channel
    finally:
        await server.shutdown()


def request(*labels, **fields):
    return pb.ClassifyRequest(images=[tiny_bundle.picture(label) for label in labels], **fields)


def best(response):
    return [result.predictions[0].label for result in response.results]


def test_pictures_are_ranked_in_their_order(models):
    """One request, several pictures, every label where top_k allows it."""

    async def scene():
        async with serving(models) as channel:
            response = await classifier_pb2_grpc.ClassifierStub(channel).Classify(request("red", "blue", "green"))
        assert best(response) == ["red", "blue", "green"]
        assert [len(result.predictions) for result in response.results] == [3, 3, 3]
        assert sum(one.score for one in response.results[0].predictions) == pytest.approx(1, abs=1e-6)
        assert (response.model, response.version) == ("colours", "1")

    asyncio.run(scene())


def test_a_picture_of_something_else_is_unknown(models):
    """And its neighbours are known; GetModel tells the threshold."""

    async def scene():
        asked = pb.ClassifyRequest(
            images=[tiny_bundle.picture("red"), tiny_bundle.foreign(), tiny_bundle.picture("blue")]
        )
        async with serving(models) as channel:
            stub = classifier_pb2_grpc.ClassifierStub(channel)
            response = await stub.Classify(asked)
            model = await stub.GetModel(pb.GetModelRequest())
        assert [result.unknown for result in response.results] == [False, True, False]
        assert len(response.results[1].predictions) == 3
        assert model.unknown_below == 0.5

    asyncio.run(scene())


def test_top_k_and_min_score_shorten_the_answer(models):
    """top_k 1 leaves the best; min_score leaves out what is unlikely."""

    async def scene():
        async with serving(models) as channel:
            stub = classifier_pb2_grpc.ClassifierStub(channel)
            for fields in ({"top_k": 1}, {"min_score": 0.5}):
                (result,) = (await stub.Classify(request("red", **fields))).results
                assert [one.label for one in result.predictions] == ["red"]

    asyncio.run(scene())


@pytest.mark.parametrize("colour", ["red", "green", "blue"])
def test_a_score_is_no_less_than_itself(models, colour):
    """Asked for again as min_score, each label that was told is told again, and none below it."""

    async def scene():
        async with serving(models) as channel:
            stub = classifier_pb2_grpc.ClassifierStub(channel)
            (whole,) = (await stub.Classify(request(colour))).results
            for count, one in enumerate(whole.predictions, start=1):
                (again,) = (await stub.Classify(request(colour, min_score=one.score))).results
                assert again.predictions == whole.predictions[:count]

    asyncio.run(scene())


def test_one_bad_picture_fails_alone(models):
    """Its neighbours get their answers; it gets a code of its own."""
    images = [
        tiny_bundle.picture("red"),
        b"",
        b"no picture",
        tiny_bundle.picture("red")[:-60],
        tiny_bundle.picture("blue"),
    ]

    async def scene():
        async with serving(models) as channel:
            response = await classifier_pb2_grpc.ClassifierStub(channel).Classify(pb.ClassifyRequest(images=images))
        codes = [pb.ImageError.Code.Name(result.error.code) for result in response.results[1:4]]
        assert codes == ["EMPTY", "NOT_AN_IMAGE", "TRUNCATED"]
        assert [response.results[place].predictions[0].label for place in (0, 4)] == ["red", "blue"]
        assert not response.results[0].HasField("error")

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("bad", "status"),
    [
        (pb.ClassifyRequest(), "INVALID_ARGUMENT"),
        (pb.ClassifyRequest(images=[b"x"] * 9), "INVALID_ARGUMENT"),
        (pb.ClassifyRequest(images=[b"x"], min_score=float("nan")), "INVALID_ARGUMENT"),
        (pb.ClassifyRequest(images=[b"x"], min_score=1.5), "INVALID_ARGUMENT"),
        (pb.ClassifyRequest(images=[b"x"], version="latest"), "INVALID_ARGUMENT"),
        (pb.ClassifyRequest(images=[b"x"], model="roses"), "NOT_FOUND"),
        (pb.ClassifyRequest(images=[b"x"], version="7"), "NOT_FOUND"),
    ],
)
def test_wrong_requests_get_their_status(models, bad, status):
    """The table of statuses, from the outside; the metrics count what the caller saw."""
    metrics = Metrics()

    async def scene():
        async with serving(models, metrics=metrics) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await classifier_pb2_grpc.ClassifierStub(channel).Classify(bad)
        assert caught.value.code().name == status

    asyncio.run(scene())
    assert counted(metrics) == {("classifier.v1", status): 1}


class FailingModel:
    """A model whose queue raises."""

    def __init__(self, model, error):
        self._model, self._error = model, error

    def __getattr__(self, name):
        return getattr(self._model, name)

    def submit(self, images, *, deadline):
        raise self._error


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (QueueFullError("9 items wait"), "RESOURCE_EXHAUSTED", "9 items wait"),
        (ZeroDivisionError("/secret/path"), "INTERNAL", "internal error"),
    ],
)
def test_failures_of_the_engine_get_their_status(models, error, status, text):
    """A full queue carries RetryInfo and the push-back trailer; the unforeseen tells nothing of the inside."""

    async def scene():
        def load(folder):
            return FailingModel(load_model(folder, SETTINGS, metrics=METRICS), error)

        async with serving(models, load=load) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await classifier_pb2_grpc.ClassifierStub(channel).Classify(request("red"))
        assert (caught.value.code().name, caught.value.details()) == (status, text)
        return dict(caught.value.trailing_metadata() or ())

    trailers = asyncio.run(scene())
    if status == "RESOURCE_EXHAUSTED":
        (detail,) = Status.FromString(trailers["grpc-status-details-bin"]).details
        info = RetryInfo()
        assert detail.Unpack(info)
        assert info.retry_delay.ToMilliseconds() == int(trailers["grpc-retry-pushback-ms"]) > 0


def test_stream_answers_in_request_order(models):
    """More requests than the window, all answered, in their order."""
    labels = [tiny_bundle.LABELS[number * 7 % 3] for number in range(40)]

    async def scene():
        async with serving(models) as channel:
            call = classifier_pb2_grpc.ClassifierStub(channel).ClassifyStream(request(label) for label in labels)
            return [best(response)[0] async for response in call]

    assert asyncio.run(scene()) == labels


def test_stream_ends_with_the_status_of_a_wrong_request(models):
    """Answers before it arrive first."""

    async def scene():
        async with serving(models) as channel:
            call = classifier_pb2_grpc.ClassifierStub(channel).ClassifyStream([request("red"), pb.ClassifyRequest()])
            answers = []
            try:
                async for response in call:
                    answers.append(best(response)[0])  # noqa: PERF401 -- kept when the stream breaks
            except grpc.aio.AioRpcError as error:
                return answers, error.code().name
        return answers, "OK"

    assert asyncio.run(scene()) == (["red"], "INVALID_ARGUMENT")


def test_a_stream_that_is_left_cancels_what_is_under_way():
    """Its requests leave the queue, and no more of them are read."""

    async def scene():
        started, cancelled = set(), set()
        several, never = asyncio.Event(), asyncio.Event()

        async def requests():
            for number in range(100):
                yield number

        async def answer(number):
            started.add(number)
            if len(started) == 4:
                several.set()
            try:
                await (asyncio.sleep(0) if number == 0 else never.wait())
            except asyncio.CancelledError:
                cancelled.add(number)
                raise

        stream = in_order(requests(), answer, weigh=lambda _: 1)
        await anext(stream)
        await several.wait()
        await stream.aclose()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        if left:
            await asyncio.wait(left, timeout=20)
        assert cancelled == started - {0}
        assert len(started) < 20

    asyncio.run(scene())


@pytest.mark.parametrize(("weight", "at_once"), [(1, 10), (16, 2), (17, 1), (100, 1)])
def test_a_stream_has_so_many_pictures_under_way_and_no_more(weight, at_once):
    """Of small requests as many as the window holds; a large one alone."""

    async def scene():
        under_way, most = 0, 0

        async def requests():
            for number in range(30):
                yield number

        async def answer(number):
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            for _ in range(100):  # until the reader has read what it may
                await asyncio.sleep(0)
            under_way -= 1
            return number

        assert [one async for one in in_order(requests(), answer, weigh=lambda _: weight)] == list(range(30))
        assert most == at_once

    asyncio.run(scene())


def test_models_are_described(models):
    """Both the list and the single one name labels, preprocessing, provider and digest."""

    async def scene():
        async with serving(models) as channel:
            stub = classifier_pb2_grpc.ClassifierStub(channel)
            (listed,) = (await stub.ListModels(pb.ListModelsRequest())).models
            assert await stub.GetModel(pb.GetModelRequest()) == listed
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.GetModel(pb.GetModelRequest(model="roses"))
        assert caught.value.code().name == "NOT_FOUND"
        assert (listed.state, tuple(listed.labels)) == (pb.Model.READY, tiny_bundle.LABELS)
        assert (listed.preprocess.resize_px, listed.preprocess.crop_px) == (32, tiny_bundle.CROP_PX)
        assert (listed.provider, listed.precision, len(listed.digest)) == ("cpu", "fp32", 64)

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("variant", "scale", "served"),
    [
        ("auto", 1.0, "int8"),
        ("int8", 1.0, "int8"),
        ("fp16", 1.0, "fp16"),
        ("fp32", 1.0, "fp32"),
        ("auto", 0.5, "fp32"),
    ],
    ids=["auto", "by name", "fp16 by name", "fp32 by name", "int8 that fails its golden pictures"],
)
def test_variant_that_serves_is_named(models, variant, scale, served):
    """Auto takes int8 on a CPU, and fp32 where int8 does not prove itself on this machine."""
    for precision in ("int8", "fp16"):
        tiny_bundle.add_variant(models / "colours" / "1", precision, scale=scale)
    settings = replace(SETTINGS, variant=variant)

    async def scene():
        async with serving(models, load=lambda folder: load_model(folder, settings, metrics=METRICS)) as channel:
            stub = classifier_pb2_grpc.ClassifierStub(channel)
            assert (await stub.GetModel(pb.GetModelRequest())).precision == served
            assert best(await stub.Classify(request("red", "blue"))) == ["red", "blue"]

    asyncio.run(scene())


def test_health_and_reflection(models):
    """Overall, for the service and for each model; an unknown name is NOT_FOUND."""

    async def scene():
        async with serving(models) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            for name in ("", "classifier.v1.Classifier", "colours"):
                assert (await stub.Check(health_pb2.HealthCheckRequest(service=name))).status == SERVING
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.Check(health_pb2.HealthCheckRequest(service="roses"))
            ask = reflection_pb2.ServerReflectionRequest(list_services="")
            call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([ask]))
            names = [one.name async for reply in call for one in reply.list_services_response.service]
        assert {"classifier.v1.Classifier", "grpc.health.v1.Health"} <= set(names)

    asyncio.run(scene())


def test_not_serving_while_models_load(models):
    """The port answers at once: health says NOT_SERVING, Classify says UNAVAILABLE."""
    is_loading, may_load = threading.Event(), threading.Event()

    def load(folder):
        is_loading.set()
        assert may_load.wait(20)
        return load_model(folder, SETTINGS, metrics=METRICS)

    async def scene():
        server = Server(Catalogue(models, load), SETTINGS, metrics=Metrics())
        starting = asyncio.create_task(server.startup())
        await asyncio.to_thread(is_loading.wait, 20)
        async with grpc.aio.insecure_channel(
            f"127.0.0.1:{server.port}", options=[("grpc.enable_retries", 0)]
        ) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), wait_for_ready=True)
            assert (await check).status == NOT_SERVING
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await classifier_pb2_grpc.ClassifierStub(channel).Classify(request("red"))
            assert caught.value.code().name == "UNAVAILABLE"
            may_load.set()
            await starting
            await server.say_serving()
            assert best(await classifier_pb2_grpc.ClassifierStub(channel).Classify(request("red"))) == ["red"]
        await server.shutdown()

    asyncio.run(scene())


def test_watchers_do_not_hold_up_the_shutdown(models):
    """A balancer that watches health for ever sees NOT_SERVING, and the server still ends."""

    async def scene():
        server = Server(
            Catalogue(models, lambda folder: load_model(folder, SETTINGS, metrics=METRICS)), SETTINGS, metrics=Metrics()
        )
        await server.startup()
        await server.say_serving()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == SERVING
            stopping = asyncio.create_task(server.shutdown())
            assert (await watch.read()).status == NOT_SERVING
            await asyncio.wait_for(stopping, timeout=SETTINGS.drain_s / 3)

    asyncio.run(scene())


def test_no_more_calls_watch_health_than_may(models, monkeypatch):
    """Strangers may watch; who leaves makes room."""
    monkeypatch.setattr("serving.health._MAX_WATCHERS", 2)

    async def scene():
        async with serving(models) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            watching = [stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(2)]
            for call in watching:
                assert (await call.read()).status == SERVING
            with pytest.raises(grpc.aio.AioRpcError, match="2 calls watch already"):
                await stub.Watch(health_pb2.HealthCheckRequest()).read()
            watching[0].cancel()
            async with asyncio.timeout(20):
                while True:  # until the server has heard that one has left
                    call = stub.Watch(health_pb2.HealthCheckRequest())
                    with suppress(grpc.aio.AioRpcError):
                        return (await call.read()).status

    assert asyncio.run(scene()) == SERVING


@pytest.mark.parametrize("version", ["\u00b2", "v1", "-1", "1 "])
def test_a_version_is_a_number_in_ascii(models, version):
    """Anything else is a mistake, not a version that is not here."""

    async def scene():
        async with serving(models) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await classifier_pb2_grpc.ClassifierStub(channel).Classify(request("red", version=version))
        return caught.value.code()

    assert asyncio.run(scene()) is grpc.StatusCode.INVALID_ARGUMENT


def test_a_large_picture_is_tried_again_once_there_is_room(models):
    """By the gRPC library, after the server's push-back: the client does not hear of a queue that was full."""
    refused = []

    class Full:
        def __init__(self, served):
            self._served = served

        def __getattr__(self, name):
            return getattr(self._served, name)

        def submit(self, images, **fields):
            if not refused:
                refused.append(len(images[0]))
                raise QueueFullError("full", retry_after_s=0.01)
            return self._served.submit(images, **fields)

    picture = noise(640)

    async def scene():
        server = Server(
            Catalogue(models, lambda folder: Full(load_model(folder, SETTINGS, metrics=METRICS))),
            SETTINGS,
            metrics=Metrics(),
        )
        await server.startup()
        try:
            await server.say_serving()
            async with AsyncClient(f"127.0.0.1:{server.port}") as client:
                return await client.classify([picture])
        finally:
            await server.shutdown()

    assert asyncio.run(scene()).results[0].predictions
    assert refused == [len(picture)]
    assert len(picture) > 2**20


def noise(side):
    """A picture that no format makes small."""
    data = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)).save(data, "PNG")
    return data.getvalue()


@pytest.mark.parametrize("method", ["ListModels", "GetModel"])
def test_the_unforeseen_tells_nothing_whatever_is_asked(models, monkeypatch, method):
    """One rule for every rpc."""

    def fail(*_):
        raise ZeroDivisionError("/secret/path")

    async def scene():
        async with serving(models) as channel:
            monkeypatch.setattr(Catalogue, "entries", fail)
            monkeypatch.setattr(Catalogue, "entry", fail)
            request_of = {"ListModels": pb.ListModelsRequest(), "GetModel": pb.GetModelRequest()}
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await getattr(classifier_pb2_grpc.ClassifierStub(channel), method)(request_of[method])
            monkeypatch.undo()
        return caught.value.code().name, caught.value.details()

    assert asyncio.run(scene()) == ("INTERNAL", "internal error")


def test_health_is_not_listed_to_strangers_and_says_so_quietly(models):
    """The generated code would raise an error of its own, with a traceback a call."""

    async def scene():
        async with serving(models) as channel:
            with structlog.testing.capture_logs() as lines, pytest.raises(grpc.aio.AioRpcError) as caught:
                await health_pb2_grpc.HealthStub(channel).List(health_pb2.HealthListRequest())
        assert caught.value.code().name == "UNIMPLEMENTED"
        assert "NotImplementedError" not in caught.value.details()
        return [line for line in lines if line["log_level"] == "error"]

    assert asyncio.run(scene()) == []


@pytest.mark.parametrize("version", ["abc", "-1", "0", "01", "\u0661"])
def test_a_version_that_is_none_has_one_status(models, version):
    """Whoever is asked."""

    async def scene():
        async with serving(models) as channel:
            stub = classifier_pb2_grpc.ClassifierStub(channel)
            wrong = pb.ClassifyRequest(images=[tiny_bundle.picture("red")], version=version)
            codes = []
            for call in (stub.Classify(wrong), stub.GetModel(pb.GetModelRequest(version=version))):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call
                codes.append(caught.value.code().name)
            return codes

    assert asyncio.run(scene()) == ["INVALID_ARGUMENT"] * 2
