"""The HTTP door over a real socket, with a real tiny model: answers, statuses, limits, ids, drain."""

import asyncio
import gzip
import http.client
import json
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from io import BytesIO
from types import SimpleNamespace

import grpc
import pytest
import structlog
import tiny_bundle
from one_thread import most_at_once
from PIL import Image
from running import with_runs
from structlog.testing import capture_logs
from test_process import port, process, refusal

from protos import classifier_pb2 as pb
from protos import classifier_pb2_grpc
from serving import http_server
from serving.catalogue import Catalogue
from serving.errors import QueueFullError
from serving.http_door import HttpDoor
from serving.loading import load_model
from serving.metrics import Metrics
from serving.server import Server
from serving.settings import ServerSettings
from serving.tokens import new_token

SETTINGS = ServerSettings(
    address="127.0.0.1:0",
    http_address=":0",
    max_images_per_request=4,
    max_message_bytes=20_000,
    instances=1,
    max_batch=1,
)
COLOURS = {"model": "colours", "version": "1"}
RED = tiny_bundle.picture("red")


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self):
        return json.loads(self.text)

    @property
    def error(self):
        return self.status, self.json["error"]["status"]


def ask(number, path, *, body=None, method=None, headers=None):
    """One request, blocking; POST where there is a body."""
    connection = http.client.HTTPConnection("127.0.0.1", number, timeout=20)
    connection.request(method or ("GET" if body is None else "POST"), path, body, headers or {})
    answer = connection.getresponse()
    reply = Reply(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read().decode())
    connection.close()
    return reply


def form(*pictures, field="images"):
    """A multipart body and its headers."""
    parts = [
        b'--cut\r\ncontent-disposition: form-data; name="%b"; filename="../../x"\r\n\r\n%b\r\n' % (field.encode(), data)
        for data in pictures
    ]
    return {"body": b"".join(parts) + b"--cut--\r\n", "headers": {"content-type": "multipart/form-data; boundary=cut"}}


def serve(models, scene, *, settings=SETTINGS, wrap=lambda model: model):
    """Run `scene(server, ask)` beside a server that says SERVING; return what it returns, and the metrics' reader."""
    metrics = Metrics()

    async def whole():
        catalogue = Catalogue(
            models,
            lambda folder: wrap(load_model(folder, settings, metrics=metrics)),
            default_model=settings.default_model,
            policy=settings.policy(),
            on_refused=lambda name: metrics.load_failures.labels(name).inc(),
        )
        server = Server(catalogue, settings, metrics=metrics)
        await server.startup()
        await server.say_serving()

        async def asking(path, **fields):
            return await asyncio.to_thread(ask, server.http_port, path, **fields)

        try:
            return await scene(server, asking)
        finally:
            await server.shutdown()

    return asyncio.run(whole()), metrics.registry.get_sample_value


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 -- what is waited for happens in the batcher's threads
            await asyncio.sleep(0.001)


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """The HTTP port of a server process."""
    models = tmp_path_factory.mktemp("served")
    tiny_bundle.write(models)
    with process(models, "--http-address", ":0", "--max-images-per-request", "4") as started:
        yield port(started, "http_port")


def labels(reply):
    return [result["predictions"][0]["label"] for result in reply.json["results"]]


def test_raw_body_and_form_are_answered_as_over_grpc(models):
    """The same numbers, the model's name and version, and how long it took."""

    async def scene(server, asking):
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            wanted = await classifier_pb2_grpc.ClassifierStub(channel).Classify(pb.ClassifyRequest(images=[RED]))
        for reply in (await asking("/v1/classify", body=RED), await asking("/v1/models/colours:classify", **form(RED))):
            assert (reply.status, reply.json["model"], reply.json["version"]) == (200, "colours", "1")
            assert "total;dur=" in reply.headers["server-timing"]
            assert reply.headers["cache-control"] == "no-store"
            found = reply.json["results"][0]["predictions"]
            assert [(one["index"], one["label"]) for one in found] == [
                (one.index, one.label) for one in wanted.results[0].predictions
            ]
            assert [one["score"] for one in found] == pytest.approx(
                [one.score for one in wanted.results[0].predictions], abs=1e-6
            )

    serve(models, scene)


def test_a_picture_of_something_else_is_unknown_at_every_door(models):
    """HTTP and gRPC say the same of it and of a known one; the threshold stands in the list of models."""
    pictures = [RED, tiny_bundle.foreign()]

    async def scene(server, asking):
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            told = await classifier_pb2_grpc.ClassifierStub(channel).Classify(pb.ClassifyRequest(images=pictures))
        reply = await asking("/v1/classify", **form(*pictures))
        (listed,) = (await asking("/v1/models")).json["models"]
        assert [result["unknown"] for result in reply.json["results"]] == [False, True]
        assert [result.unknown for result in told.results] == [False, True]
        assert listed["unknown_below"] == 0.5

    serve(models, scene)


def test_connections_that_owe_a_head_or_an_unwanted_body_are_closed(models, monkeypatch):
    """Also one that sends a little now and then. One that rests after its answer stays."""
    monkeypatch.setattr("serving.http_server.OWED_S", 0.3)
    asked = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
    unwanted = b"POST /v1/classify HTTP/1.1\r\nhost: x\r\ncontent-length: 20001\r\n\r\n"

    async def dribbled(reader, writer):
        """The seconds until the server closes; meanwhile it gets byte after byte."""
        started, reading = time.monotonic(), asyncio.create_task(reader.read())
        while not (await asyncio.wait({reading}, timeout=0.02))[0]:
            writer.write(b"x")
        return time.monotonic() - started

    async def scene(server, asking):
        (rested, resting), *others = [await asyncio.open_connection("127.0.0.1", server.http_port) for _ in range(5)]
        resting.write(asked)
        assert b" 200 " in await asyncio.wait_for(rested.readline(), 20)
        for (_, writer), start in zip(others, (b"", unwanted, asked[:9], unwanted), strict=True):
            writer.write(start)
        (silent, _), (told, _), *owing = others
        took_s = await asyncio.wait_for(asyncio.gather(*(dribbled(*one) for one in owing)), 20)
        assert await asyncio.wait_for(silent.read(), 20) == b""
        assert (await asyncio.wait_for(told.read(), 20)).startswith(b"HTTP/1.1 413 ")  # and then not a byte
        assert min(took_s) > 0.25
        resting.write(asked)
        await asyncio.wait_for(rested.readuntil(b"HTTP/1.1 200 "), 20)
        for _, writer in ((rested, resting), *others):
            writer.close()

    serve(models, scene)


@pytest.mark.parametrize("version", [b"HTTP/1.1\r\nhost: x\r\nconnection: close", b"HTTP/1.0"])
@pytest.mark.parametrize(("query", "length", "status"), [(b"?topk=3", 8_000_000, b"400"), (b"", 80_000_000, b"413")])
def test_a_caller_who_keeps_no_connection_hears_why_its_upload_is_refused(running, version, query, length, status):
    """Though it reads only when all is sent, as Python's urllib does: a connection that is reset loses the answer."""
    with socket.create_connection(("127.0.0.1", running), timeout=20) as connection:
        connection.sendall(b"POST /v1/classify%b %b\r\ncontent-length: %d\r\n\r\n" % (query, version, length))
        for _ in range(length // 100_000):
            connection.sendall(bytes(100_000))
        assert read_all(connection).startswith(b"HTTP/1.1 %b " % status)


def test_a_connection_is_kept_after_a_body_that_nobody_wanted(models, monkeypatch):
    """As long as after any other: what closes it sooner than a balancer does loses the balancer's next request."""
    monkeypatch.setattr("serving.http_server.OWED_S", 0.3)
    unwanted = b"POST /v1/classify?topk=3 HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n"

    async def scene(server, asking):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.http_port)
        writer.write(unwanted)
        assert b" 400 " in await asyncio.wait_for(reader.readline(), 20)
        await asyncio.wait_for(reader.readuntil(b"}}"), 20)
        writer.write(b"unwanted!")
        await asyncio.sleep(0.6)
        writer.write(unwanted + b"unwanted!")
        assert b" 400 " in await asyncio.wait_for(reader.readline(), 20)
        writer.close()

    serve(models, scene)


def test_several_pictures_keep_their_order_and_a_bad_one_fails_alone(running):
    """top_k and min_score shorten the answer."""
    pictures = [tiny_bundle.picture("blue"), b"no picture", tiny_bundle.picture("green", file_format="JPEG")]
    reply = ask(running, "/v1/classify?top_k=2", **form(*pictures))
    first, bad, last = reply.json["results"]
    assert [first["predictions"][0]["label"], last["predictions"][0]["label"]] == ["blue", "green"]
    assert (len(first["predictions"]), bad["error"]["code"], "predictions" in bad) == (2, "NOT_AN_IMAGE", False)
    (only,) = ask(running, "/v1/classify?min_score=0.5&version=1", body=RED).json["results"]
    assert [one["label"] for one in only["predictions"]] == ["red"]


@pytest.mark.parametrize(
    ("path", "fields", "error"),
    [
        ("/v1/classify", {"body": b""}, (400, "INVALID_ARGUMENT")),
        ("/v1/classify", form(), (400, "INVALID_ARGUMENT")),
        ("/v1/classify", form(*[RED] * 5), (400, "INVALID_ARGUMENT")),
        ("/v1/classify", form(RED, field="photo"), (400, "INVALID_ARGUMENT")),
        ("/v1/classify", {**form(RED), "body": b"--cut nonsense"}, (400, "INVALID_ARGUMENT")),
        ("/v1/classify", {"body": RED, "headers": {"content-type": "multipart/form-data"}}, (400, "INVALID_ARGUMENT")),
        ("/v1/classify?top_k=many", {"body": RED}, (400, "INVALID_ARGUMENT")),
        ("/v1/classify?top_k=-1", {"body": RED}, (400, "INVALID_ARGUMENT")),
        ("/v1/classify?min_score=nan", {"body": RED}, (400, "INVALID_ARGUMENT")),
        ("/v1/classify?topk=3", {"body": RED}, (400, "INVALID_ARGUMENT")),
        ("/v1/classify?version=latest", {"body": RED}, (400, "INVALID_ARGUMENT")),
        ("/v1/classify?version=7", {"body": RED}, (404, "NOT_FOUND")),
        ("/v1/models/roses:classify", {"body": RED}, (404, "NOT_FOUND")),
        ("/v1/models/..%2f..:classify", {"body": RED}, (404, "NOT_FOUND")),
        ("/v1/classify", {}, (405, "UNIMPLEMENTED")),
        ("/page.css/../../settings.py", {}, (404, "NOT_FOUND")),
        ("/%2e%2e/settings.py", {}, (404, "NOT_FOUND")),
        ("/metrics/", {}, (404, "NOT_FOUND")),
        ("/metrics%0A", {}, (400, "INVALID_ARGUMENT")),
        ("/healthz%0D%0A", {}, (400, "INVALID_ARGUMENT")),
    ],
)
def test_wrong_requests_get_their_status_as_json(running, path, fields, error):
    """The table of statuses, from the outside."""
    assert ask(running, path, **fields).error == error


def test_a_body_beyond_the_limit_is_refused_before_it_is_sent(models):
    """By its Content-Length, without a byte of it; without one, as soon as too much has come."""

    async def scene(server, asking):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.http_port)
        writer.write(b"POST /v1/classify HTTP/1.1\r\nhost: x\r\ncontent-length: 20001\r\n\r\n")
        assert b" 413 " in await asyncio.wait_for(reader.readline(), 20)
        writer.close()
        for body in ((b"x" * 1000 for _ in range(21)), b"x" * 30_000_000):  # the latter is more than a socket holds
            assert (await asking("/v1/classify", body=body)).error == (413, "INVALID_ARGUMENT")
        assert (await asking("/v1/classify", body=RED)).status == 200

    _, value = serve(models, scene)
    assert value("calotype_requests_total", {"door": "http", "model": "", "status": "INVALID_ARGUMENT"}) == 3


def test_bodies_under_way_are_bounded_together(models):
    """What a caller only announces takes nothing; what it has sent does, and the next is told to come back."""
    settings = replace(SETTINGS, max_queue_bytes=20_000)

    async def scene(server, asking):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.http_port)
        writer.write(b"POST /v1/classify HTTP/1.1\r\nhost: x\r\ncontent-length: 19990\r\nexpect: 100-continue\r\n\r\n")
        assert b" 100 " in await asyncio.wait_for(reader.readline(), 20)  # it is being read
        assert (await asking("/v1/classify", body=RED)).status == 200
        writer.write(b"x" * 19_980)
        async with asyncio.timeout(20):
            while (refused := await asking("/v1/classify", body=RED)).status == 200:
                pass
        assert (refused.error, refused.headers["retry-after"]) == ((429, "RESOURCE_EXHAUSTED"), "1")
        writer.close()
        async with asyncio.timeout(20):
            while (await asking("/v1/classify", body=RED)).status != 200:
                pass

    serve(models, scene, settings=settings)


def test_connections_beyond_the_limit_are_told_to_come_back(models):
    """Two that say nothing are all there may be; when one leaves, the next is answered."""

    async def scene(server, asking):
        silent = [(await asyncio.open_connection("127.0.0.1", server.http_port))[1] for _ in range(2)]
        assert (await asking("/healthz")).status == 503
        silent[0].close()
        async with asyncio.timeout(20):
            while (await asking("/healthz")).status != 200:
                pass
        silent[1].close()

    serve(models, scene, settings=replace(SETTINGS, max_connections=2))


def test_connections_far_beyond_the_limit_are_closed_unheard(models):
    """A few are kept to be told; more would use up the descriptors of both doors."""

    async def scene(server, asking):
        lines = [await asyncio.open_connection("127.0.0.1", server.http_port) for _ in range(60)]
        reading = [asyncio.create_task(reader.read()) for reader, _ in lines]
        async with asyncio.timeout(20):
            while sum(task.done() for task in reading) < 60 - 2 - 33:
                await asyncio.wait(reading, return_when=asyncio.FIRST_COMPLETED, timeout=0.05)
        lines[2][1].write(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")  # the first of those beyond
        assert (await asyncio.wait_for(reading[2], 20)).startswith(b"HTTP/1.1 503 ")
        for _, writer in lines:
            writer.close()

    serve(models, scene, settings=replace(SETTINGS, max_connections=2))


class Failing:
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
        (QueueFullError("9 items wait", retry_after_s=2.2), (429, "RESOURCE_EXHAUSTED", "3"), "9 items wait"),
        (QueueFullError("9 items wait"), (429, "RESOURCE_EXHAUSTED", "1"), "9 items wait"),
        (ZeroDivisionError("/secret/path"), (500, "INTERNAL", None), "internal error"),
    ],
)
def test_failures_of_the_engine_get_their_status(models, error, status, text):
    """A full queue says when to come back; the unforeseen tells nothing of the inside, and is logged once."""

    async def scene(server, asking):
        with structlog.testing.capture_logs() as lines:
            return await asking("/v1/classify", body=RED), lines

    (reply, lines), _ = serve(models, scene, wrap=lambda model: Failing(model, error))
    assert (*reply.error, reply.headers.get("retry-after")) == status
    assert reply.json["error"]["message"] == text
    assert sum("exc_info" in line for line in lines) == (status[0] == 500)


class Held:
    """A model that answers only after `let_go`; `taken` is set when it has a picture in hand."""

    def __init__(self):
        self.taken, self.let_go = threading.Event(), threading.Event()

    def around(self, model):
        def waiting(rows, run):
            self.taken.set()
            assert self.let_go.wait(20)
            return run(rows)

        return with_runs(model, waiting)


def test_the_pictures_of_a_caller_who_goes_away_leave_the_queue(models):
    """One instance is held; the second caller closes the connection: its picture is never run."""
    held = Held()

    async def scene(server, asking):
        first = asyncio.create_task(asking("/v1/classify", body=RED))
        await asyncio.to_thread(held.taken.wait, 20)
        _, writer = await asyncio.open_connection("127.0.0.1", server.http_port)
        head = f"POST /v1/classify HTTP/1.1\r\nhost: x\r\ncontent-length: {len(RED)}\r\n\r\n"
        writer.write(head.encode() + RED)
        queued = server._dispatcher.catalogue.find()._batcher
        await until(lambda: queued.queued_items)
        waiting = depth(server)
        writer.close()
        await until(lambda: server._dispatcher._active == 1)
        held.let_go.set()
        status = (await first).status
        await until(lambda: depth(server) == 0)
        return status, waiting

    def depth(server):
        return server._metrics.registry.get_sample_value("calotype_queue_pictures", COLOURS)

    answered, value = serve(models, scene, wrap=held.around)
    assert answered == (200, 1)
    assert value("calotype_requests_total", {"door": "http", "model": "colours", "status": "CANCELLED"}) == 1
    assert value("calotype_rejected_total", {**COLOURS, "reason": "cancelled"}) == 1


def test_a_deadline_is_kept(models):
    """timeout_ms passes while another picture holds the instance: 504 at once, and it is never run."""
    held = Held()

    async def scene(server, asking):
        first = asyncio.create_task(asking("/v1/classify", body=RED))
        await asyncio.to_thread(held.taken.wait, 20)
        second = asyncio.create_task(asking("/v1/classify?timeout_ms=1", body=RED))
        error = (await second).error
        held.let_go.set()
        await first
        return error

    assert serve(models, scene, wrap=held.around)[0] == (504, "DEADLINE_EXCEEDED")


def test_a_deadline_is_kept_while_the_picture_itself_is_run(models):
    """An engine that takes long is not waited for."""
    held = Held()

    async def scene(server, asking):
        error = (await asking("/v1/classify?timeout_ms=200", body=RED)).error
        assert held.taken.is_set()
        held.let_go.set()
        return error

    assert serve(models, scene, wrap=held.around)[0] == (504, "DEADLINE_EXCEEDED")


def test_a_body_that_takes_its_time_takes_it_from_the_deadline(models):
    """Half a second of it, where 200 ms were to be enough for all."""

    def slowly():
        yield RED[:20]
        threading.Event().wait(0.5)
        yield RED[20:]

    async def scene(server, asking):
        assert (await asking("/v1/classify?timeout_ms=20000", body=slowly())).status == 200
        return (await asking("/v1/classify?timeout_ms=200", body=slowly())).error

    assert serve(models, scene)[0] == (504, "DEADLINE_EXCEEDED")


def test_two_credentials_are_none(models, tmp_path):
    """Which of them would count depends on who reads them."""
    (token, line), path = new_token("alice"), tmp_path / "tokens"
    path.write_text(f"{line}\n")

    def ask_with(number, *credentials):
        lines = [f"authorization: Bearer {one}" for one in credentials]
        head = "\r\n".join(["GET /v1/models HTTP/1.1", "host: x", "connection: close", *lines, "", ""])
        with socket.create_connection(("127.0.0.1", number), timeout=20) as connection:
            connection.sendall(head.encode())
            return read_all(connection).split()[1]

    async def scene(server, _):
        given = ((token,), (token, token), (token, "x"), ())
        return [await asyncio.to_thread(ask_with, server.http_port, *one) for one in given]

    answers, _ = serve(models, scene, settings=replace(SETTINGS, tokens=path))
    assert answers == [b"200", b"401", b"401", b"401"]


def test_readiness_follows_the_life_of_the_server(models):
    """Alive but not ready while loading and while draining; what is under way then gets its answer."""
    held = Held()

    async def scene():
        metrics = Metrics()
        catalogue = Catalogue(models, lambda folder: held.around(load_model(folder, SETTINGS, metrics=metrics)))
        server = Server(catalogue, replace(SETTINGS, lame_duck_s=0.2), metrics=metrics)
        await server.startup()

        async def status(path, **fields):
            return (await asyncio.to_thread(ask, server.http_port, path, **fields)).status

        assert (await status("/healthz"), await status("/readyz")) == (200, 503)
        await server.say_serving()
        assert await status("/readyz") == 200
        last = asyncio.create_task(status("/v1/classify", body=RED))
        await asyncio.to_thread(held.taken.wait, 20)
        stopping = asyncio.create_task(server.shutdown())
        await asyncio.sleep(0)
        assert (await status("/healthz"), await status("/readyz")) == (200, 503)
        held.let_go.set()
        assert await last == 200
        await stopping
        with pytest.raises(OSError, match="refused"):
            await status("/healthz")

    asyncio.run(scene())


def test_request_ids_are_kept_or_made_and_logged(models):
    """Over both doors; what could forge a log line is replaced; pictures are not logged."""

    async def scene(server, asking):
        with structlog.testing.capture_logs([structlog.contextvars.merge_contextvars]) as lines:
            mine = await asking("/v1/classify", body=RED, headers={"x-request-id": "order-7"})
            forged = await asking("/v1/classify", body=b"", headers={"x-request-id": "a b\tlevel=error"})
            async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
                stub = classifier_pb2_grpc.ClassifierStub(channel)
                call = stub.Classify(pb.ClassifyRequest(images=[RED]), metadata=(("x-request-id", "order-8"),))
                trailers = await call.trailing_metadata()
                stream = stub.ClassifyStream([pb.ClassifyRequest(images=[RED])])
                assert [answer.model async for answer in stream] == ["colours"]
                streamed = await stream.trailing_metadata()
        return mine, forged, dict(trailers), dict(streamed), lines

    (mine, forged, trailers, streamed, lines), _ = serve(models, scene)
    assert (mine.headers["x-request-id"], trailers["x-request-id"]) == ("order-7", "order-8")
    assert len(forged.headers["x-request-id"]) == len(streamed["x-request-id"]) == 16
    told = [(line["request_id"], line["door"], line["status"], line["log_level"]) for line in lines]
    assert told == [
        ("order-7", "http", "OK", "debug"),
        (forged.headers["x-request-id"], "http", "INVALID_ARGUMENT", "warning"),
        ("order-8", "classifier.v1", "OK", "debug"),
        (streamed["x-request-id"], "classifier.v1", "OK", "debug"),
    ]
    assert "PNG" not in repr(lines)


def test_a_refused_rpc_keeps_its_id_beside_the_push_back(models):
    """Both are trailers."""

    async def scene(server, asking):
        async with grpc.aio.insecure_channel(
            f"127.0.0.1:{server.port}", options=[("grpc.enable_retries", 0)]
        ) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await classifier_pb2_grpc.ClassifierStub(channel).Classify(
                    pb.ClassifyRequest(images=[RED]), metadata=(("x-request-id", "order-9"),)
                )
        return dict(caught.value.trailing_metadata())

    trailers, _ = serve(models, scene, wrap=lambda model: Failing(model, QueueFullError("9 items wait")))
    assert (trailers["x-request-id"], "grpc-retry-pushback-ms" in trailers) == ("order-9", True)


def test_models_are_listed(running):
    """What the page needs to know, and nothing of the folder."""
    (model,) = ask(running, "/v1/models").json["models"]
    assert (model["name"], model["version"], model["state"], model["answers"]) == ("colours", "1", "READY", True)
    assert (model["labels"], model["provider"], model["precision"]) == (list(tiny_bundle.LABELS), "cpu", "fp32")


NO_POLICY = "default-src 'none'; frame-ancestors 'none'"
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)


def test_a_form_that_ends_too_early_is_refused(running):
    """Its last picture would be left out, and nobody would know."""
    whole = form(RED, RED)
    cut = {**whole, "body": whole["body"].removesuffix(b"\r\n--cut--\r\n")}
    reply = ask(running, "/v1/classify", **cut)
    assert reply.error == (400, "INVALID_ARGUMENT")
    assert "ends before its last boundary" in reply.text


@pytest.mark.parametrize(("method", "status"), [("POST", b"HTTP/1.1 400 "), ("HEAD", b"")])
def test_half_a_chunk_is_no_traceback(models, caplog, method, status):
    """What is no HTTP any more gets a 400 where that can be told; the request that it was part of is given up."""

    def talk(number):
        head = f"{method} /v1/nothing HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        with socket.create_connection(("127.0.0.1", number), timeout=20) as connection:
            connection.sendall(head.encode() + b"zz\r\n")
            return b"".join(iter(lambda: connection.recv(4096), b""))

    async def scene(server, asking):
        answer = await asyncio.to_thread(talk, server.http_port)
        assert answer.startswith(status)
        assert answer.count(b"HTTP/1.1") == bool(status)
        assert (await asking("/healthz")).status == 200

    with capture_logs() as log:
        serve(models, scene)
    assert [entry for entry in log if entry["log_level"] == "error"] == []
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_a_dark_bitmap_in_chunks_is_a_picture(running):
    """Its bytes are full of what ends a line; chunks of a byte each are still cut off."""
    dark = Image.new("RGB", (640, 480), (40, 10, 13))
    out = BytesIO()
    dark.save(out, "BMP")
    assert out.getvalue().count(b"\r\n") > 100_000
    parts = [out.getvalue()[start : start + 65_536] for start in range(0, len(out.getvalue()), 65_536)]
    assert ask(running, "/v1/classify", body=iter(parts)).status == 200


@pytest.mark.parametrize("accept", ['text/plain; version="0.0.4"', "text/plain; version=x", "*/*;version=;q=x"])
def test_metrics_are_told_whatever_a_caller_accepts(running, accept):
    """Quoted parameters are HTTP, others are nonsense: neither is an internal error."""
    assert ask(running, "/metrics", headers={"accept": accept}).status == 200


def test_a_charset_that_refuses_everything_is_a_wrong_form(models):
    """Starlette decodes names with the codec that the caller names; the request is counted."""

    async def scene(server, asking):
        fields = form(RED)
        fields["headers"]["content-type"] += "; charset=undefined"
        return await asking("/v1/classify", **fields)

    reply, value = serve(models, scene)
    assert reply.error == (400, "INVALID_ARGUMENT")
    assert value("calotype_requests_total", {"door": "http", "model": "", "status": "INVALID_ARGUMENT"}) == 1


def test_callers_who_do_not_read_are_hung_up_on(models, monkeypatch):
    """They would use up the connections, and keep the process from ending."""
    monkeypatch.setattr("serving.http_server.OWED_S", 0.3)

    async def scene(server, asking):
        with deaf(server.http_port) as connection:
            await asyncio.to_thread(until_hung_up, connection)
        assert (await asking("/healthz")).status == 200

    serve(models, scene)


def test_a_caller_who_does_not_read_does_not_hold_up_the_exit(models):
    """Long before it would be hung up on."""

    async def scene(server, asking):
        connection = deaf(server.http_port)
        await until(lambda: any(one.flow.write_paused for one in server._http._uvicorn.server_state.connections))
        return connection

    connection, _ = serve(models, scene, settings=replace(SETTINGS, drain_s=0.5))
    connection.close()


def test_an_upload_at_the_exit_is_answered_or_told_to_go_elsewhere(models):
    """What arrives within the time to drain is answered, however late; what does not gets UNAVAILABLE, not an end."""

    def begin(number):
        connection = socket.create_connection(("127.0.0.1", number), timeout=20)
        connection.sendall(b"POST /v1/classify HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(RED) + RED[:9])
        return connection

    async def scene(server, asking):
        late, never = begin(server.http_port), begin(server.http_port)
        await until(lambda: len(server._bodies._arriving) == 2)
        stopping = asyncio.create_task(server.shutdown())
        await asyncio.sleep(2)  # more than stragglers have, and than answers to be flushed
        late.sendall(RED[9:])
        answers = [await asyncio.to_thread(read_all, connection) for connection in (late, never)]
        await stopping
        return answers

    (late, never), value = serve(models, scene, settings=replace(SETTINGS, drain_s=4))
    assert late.startswith(b"HTTP/1.1 200 ")
    assert never.startswith(b"HTTP/1.1 503 ")
    assert b'"UNAVAILABLE"' in never
    assert value("calotype_requests_total", {"door": "http", "model": "", "status": "UNAVAILABLE"}) == 1


def deaf(number):
    """A connection on which a thousand pages are asked for, and none is read."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    connection.settimeout(20)
    connection.connect(("127.0.0.1", number))
    connection.sendall(b"GET /page.js HTTP/1.1\r\nhost: x\r\n\r\n" * 1000)
    return connection


def until_hung_up(connection):
    """Send a byte now and then, which says so."""
    with suppress(ConnectionError):
        while True:
            connection.send(b"x")
            time.sleep(0.05)


def read_all(connection):
    with connection:
        return b"".join(iter(lambda: connection.recv(4096), b""))


def test_the_metrics_come_in_the_format_that_is_asked_for(running):
    """Prometheus' own text, or OpenMetrics, which ends in a word of its own."""
    plain, asked = ask(running, "/metrics"), {"accept": "application/openmetrics-text; version=1.0.0"}
    opened = ask(running, "/metrics", headers=asked)
    assert plain.headers["content-type"].startswith("text/plain; version=")
    assert opened.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert (plain.text.endswith("# EOF\n"), opened.text.endswith("# EOF\n")) == (False, True)


@pytest.mark.parametrize(("query", "patience_s"), [(b"", 0.2), (b"?timeout_ms=200", 60)])
def test_a_body_that_dawdles_is_given_up(models, monkeypatch, query, patience_s):
    """It would hold its share of the budget; and when its caller's time has passed, nobody waits for it any more."""
    monkeypatch.setattr("serving.http_body._ARRIVAL_S", patience_s)

    async def scene(server, asking):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.http_port)
        writer.write(b"POST /v1/classify%b HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\nx" % query)
        assert await asyncio.wait_for(reader.readline(), 20) == b"HTTP/1.1 504 Gateway Timeout\r\n"
        writer.close()

    serve(models, scene)


def test_a_body_in_crumbs_is_cut_off(models):
    """One byte a chunk keeps the loop of both doors busy for seconds; small chunks are read."""
    head = b"POST /v1/classify HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"

    async def scene(server, asking):
        for first in (head, head + b"1\r\nx\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.http_port)
            writer.write(first)
            writer.write(b"1\r\nx\r\n" * 20_000)
            with suppress(ConnectionResetError):
                assert await asyncio.wait_for(reader.read(), 20) == b""
            writer.close()
        small = [RED[start : start + 64] for start in range(0, len(RED), 64)]
        assert (await asking("/v1/classify", body=iter(small))).status == 200
        lines = RED + b"\r\n" * 5_000  # no chunks: what is behind a PNG is nobody's business
        assert (await asking("/v1/classify", body=lines)).status == 200

    serve(models, scene)


def test_uploads_stay_in_memory(models, monkeypatch):
    """A container's root is read-only, and a picture of somebody's is no business of a disk."""
    monkeypatch.setattr("tempfile._candidate_tempdir_list", lambda: ["/nonexistent"])
    monkeypatch.setattr("tempfile.tempdir", None)
    settings = replace(SETTINGS, max_message_bytes=8 * 2**20)
    large = tiny_bundle.picture("red", size=(900, 900), file_format="BMP")
    assert len(large) > 2 * 2**20  # Starlette's own limit is 1 MB

    async def scene(server, asking):
        return await asking("/v1/classify", **form(large))

    reply, _ = serve(models, scene, settings=settings)
    assert [one["predictions"][0]["label"] for one in reply.json["results"]] == ["red"]


def test_every_answer_forbids_what_it_does_not_need(running):
    """The page may load from itself alone; nothing may frame anything, sniff it, or learn where a reader came from."""
    for path in ("/", "/page.js", "/page.css", "/icon.svg", "/metrics", "/nowhere"):
        headers = ask(running, path).headers
        policy = headers["content-security-policy"]
        assert policy == (PAGE_POLICY if path in ("/", "/page.js", "/page.css", "/icon.svg") else NO_POLICY)
        assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")
        assert "server" not in headers


def test_a_taken_port_is_one_line(models, running):
    """And the process ends."""
    told = refusal(models, "--http-address", f":{running}")
    assert "another server listens there; choose another --http-address, or off" in told


def test_a_version_that_cannot_answer_says_where_the_reason_is(models):
    """Not to try again later; and the list has it, as over gRPC."""
    tiny_bundle.change_constant(tiny_bundle.write(models), "mean", 0.9)

    async def scene(server, asking):
        _, bad = (await asking("/v1/models")).json["models"]
        assert "golden picture" in bad["reason"]
        asked = await asking("/v1/models/colours:classify?version=2", body=RED)
        assert (asked.status, "the list of models says why" in asked.json["error"]["message"]) == (503, True)
        unknown = await asking("/v1/models/roses:classify", body=RED)
        assert (unknown.status, unknown.json["error"]["message"]) == (404, "no model 'roses', found colours")

    serve(models, scene)


def test_the_list_names_the_model_that_is_meant_by_none(models):
    """Its version that answers; none where a request must name its model."""
    tiny_bundle.write(models)
    tiny_bundle.write(models, name="shades")

    async def scene(server, asking):
        return [(one["name"], one["version"]) for one in (await asking("/v1/models")).json["models"] if one["default"]]

    assert serve(models, scene, settings=replace(SETTINGS, default_model="colours"))[0] == [("colours", "2")]
    assert serve(models, scene)[0] == []


def test_a_forgotten_at_sign_is_told(running):
    """`curl -F images=picture.jpg` sends the name."""
    body = b'--cut\r\ncontent-disposition: form-data; name="images"\r\n\r\npicture.jpg\r\n--cut--\r\n'
    reply = ask(running, "/v1/classify", body=body, headers={"content-type": "multipart/form-data; boundary=cut"})
    assert reply.status == 400
    assert "found a text 'images', wanted only files named 'images'" in reply.json["error"]["message"]
    assert "images=@picture.jpg" in reply.json["error"]["message"]


def test_a_caller_who_reads_again_in_time_is_not_hung_up_on(models):
    """Slow for a while is no reason later on."""

    async def scene(server, asking):
        connection = deaf(server.http_port)
        connections = server._http._uvicorn.server_state.connections
        await until(lambda: any(one.flow.write_paused for one in connections))
        (served,) = connections
        await asyncio.to_thread(read_pages, connection, count=1000)
        await until(lambda: served._unread is None)
        connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        assert await asyncio.to_thread(connection.recv, 12) == b"HTTP/1.1 200"
        connection.close()

    serve(models, scene)


def read_pages(connection, *, count):
    """Read so many answers of the page's script to their ends."""
    size = 0
    with connection.makefile("rb") as answers:
        for _ in range(count):
            while (line := answers.readline()) != b"\r\n":
                name, _, value = line.partition(b":")
                size = int(value) if name.lower() == b"content-length" else size
            answers.read(size)


def test_a_connection_rests_as_long_as_balancers_think(models, monkeypatch):
    """75 s; what it is set to is what uvicorn keeps to."""
    assert http_server._KEEP_ALIVE_S == 75
    monkeypatch.setattr(http_server, "_KEEP_ALIVE_S", 0.2)

    async def scene(server, asking):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.http_port)
        writer.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        async with asyncio.timeout(4):
            assert (await reader.read()).startswith(b"HTTP/1.1 200")
        writer.close()

    serve(models, scene)


def test_an_answer_tells_its_milliseconds_and_is_kept_by_nobody(models):
    """A run of 50 ms takes 50 ms."""

    def slowly(model):
        pause = threading.Event()
        return with_runs(model, lambda rows, run: (pause.wait(0.05), run(rows))[1])

    async def scene(server, asking):
        return await asking("/v1/classify", body=RED)

    reply, _ = serve(models, scene, wrap=slowly)
    name, _, took_ms = reply.headers["server-timing"].partition(";dur=")
    assert (name, reply.headers["cache-control"]) == ("total", "no-store")
    assert 50 <= float(took_ms) < 10_000


def test_bodies_that_have_come_leave_nothing_behind(models):
    """The reader keeps those that are arriving, for the exit to tell them; a server lives for months."""

    async def scene(server, asking):
        for body in (RED, b"", b"x" * 20_001):
            await asking("/v1/classify", body=body)
        assert server._bodies._arriving == set()

    serve(models, scene)


def test_a_connection_that_ends_in_the_midst_of_a_head_is_kept_by_no_timer(models):
    """It would be in memory for 20 s more, and those come and go by the thousand."""

    async def scene(server, asking):
        connections = server._http._uvicorn.server_state.connections
        _, writer = await asyncio.open_connection("127.0.0.1", server.http_port)
        writer.write(b"GET /heal")
        await until(lambda: any(one._owed for one in connections))
        (served,) = connections
        writer.close()
        await until(lambda: not connections)
        assert served._owed is None

    serve(models, scene)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("top_k=2.5", "top_k: found '2.5', wanted a whole number 0..4294967295, once"),
        ("timeout_ms=1000.5", "timeout_ms: found '1000.5', wanted a whole number 1..3600000, once"),
        ("top_k=1_0", "top_k: found '1_0', wanted"),
        ("top_k=1&top_k=2", "top_k: found '1, 2', wanted"),
        ("top_k=%D9%A3", "top_k: found '\u0663', wanted"),
        ("min_score=2", "min_score: found '2', wanted 0..1, once"),
        ("min_score=nan", "min_score: found 'nan', wanted 0..1"),
    ],
)
def test_a_number_that_is_none_is_told_as_such(running, query, words):
    """Kind and range."""
    reply = ask(running, f"/v1/classify?{query}", body=RED)
    assert reply.error == (400, "INVALID_ARGUMENT")
    assert words in reply.json["error"]["message"]


def test_a_body_whose_length_is_told_twice_ends_the_connection(running):
    """What follows it may be another caller's."""
    asked = b"POST /v1/classify HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n"
    with socket.create_connection(("127.0.0.1", running), timeout=20) as connection:
        connection.sendall(asked + b"3\r\nabc\r\n0\r\n\r\nGET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        said = read_all(connection)
    assert said.startswith(b"HTTP/1.1 400 ")
    assert b"wanted one of them" in said
    assert said.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (b"http://x:1/healthz?y", b'{"status":"alive"}'),
        (b"https://x:1/healthz?y", b'{"status":"alive"}'),
        (b"http://a%E2%84%80/healthz", b'{"status":"alive"}'),  # hosts that urllib refuses
        (b"http://[", b"<title>"),
        (b"http://x:1", b"<title>"),
    ],
)
def test_a_target_with_its_host_means_its_path(running, target, words):
    """As of a proxy."""
    with socket.create_connection(("127.0.0.1", running), timeout=20) as connection:
        connection.sendall(b"GET " + target + b" HTTP/1.1\r\nhost: x:1\r\nconnection: close\r\n\r\n")
        assert words in read_all(connection)


def test_one_connection_too_many_turns_nobody_away_who_was_here(models):
    """Neither a balancer's nor a probe's."""

    async def scene(server, asking):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.http_port)
        for strangers in (0, 2):
            silent = [(await asyncio.open_connection("127.0.0.1", server.http_port))[1] for _ in range(strangers)]
            writer.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
            assert b'{"status":"alive"}' in await asyncio.wait_for(reader.readuntil(b"}"), 20)
        assert (await asking("/healthz")).status == 503
        for one in (*silent, writer):
            one.close()

    serve(models, scene, settings=replace(SETTINGS, max_connections=2))


def test_the_metrics_are_written_in_one_thread_whoever_asks(monkeypatch):
    """Else many who ask would have all the threads that others wait for."""

    def ask():
        door = HttpDoor(None, metrics=Metrics(), bodies=None, is_ready=None)
        return lambda _: door._exposition(SimpleNamespace(headers={}))

    assert most_at_once(monkeypatch, "prometheus_client.exposition.generate_latest", ask, result=b"") == [1, 1]


def test_who_finds_no_room_is_told_like_everybody_else(models):
    """In JSON, with an id and a time to come again, and hung up on."""

    async def scene(server, asking):
        silent = [(await asyncio.open_connection("127.0.0.1", server.http_port))[1] for _ in range(2)]
        reply = await asking("/v1/classify", body=RED)
        for writer in silent:
            writer.close()
        return reply

    reply, _ = serve(models, scene, settings=replace(SETTINGS, max_connections=2))
    assert reply.error == (503, "UNAVAILABLE")
    assert (reply.headers["retry-after"], reply.headers["connection"]) == ("1", "close")
    assert len(reply.headers["x-request-id"]) == 16


def test_a_packed_body_is_refused_as_such(running):
    """And not as a bad picture."""
    reply = ask(running, "/v1/classify", body=gzip.compress(RED), headers={"content-encoding": "gzip"})
    assert reply.error == (400, "INVALID_ARGUMENT")
    assert "content-encoding: found 'gzip'" in reply.json["error"]["message"]
    assert ask(running, "/v1/classify", body=RED, headers={"content-encoding": "Identity"}).status == 200


def test_a_version_is_named_once(running):
    """Which of two is meant nobody knows."""
    reply = ask(running, "/v1/classify?version=2&version=1", body=RED)
    assert reply.error == (400, "INVALID_ARGUMENT")
    assert "version: found '2, 1', wanted one" in reply.json["error"]["message"]
