"""Spans of a request and its pictures, in memory; the caller's trace is continued over both doors."""

import asyncio
import signal
import subprocess
import sys

import grpc
import pytest
import tiny_bundle
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased
from opentelemetry.trace import StatusCode
from test_http import RED, SETTINGS, ask, form
from test_process import ENVIRONMENT, port, process, refusal

from protos import classifier_pb2 as pb
from protos import classifier_pb2_grpc
from serving.catalogue import Catalogue
from serving.client import Client
from serving.loading import load_model
from serving.metrics import Metrics
from serving.server import Server
from serving.tracing import OpenTelemetry

TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, UNSAMPLED = (f"00-{TRACE_ID}-{SPAN_ID}-{flag}" for flag in ("01", "00"))


def spans_of(models, scene):
    """Run scene(server) with tracing into memory; return the spans."""
    exporter, metrics = InMemorySpanExporter(), Metrics()
    provider = TracerProvider(sampler=ParentBased(root=TracerProvider().sampler), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))

    async def whole():
        catalogue = Catalogue(models, lambda folder: load_model(folder, SETTINGS, metrics=metrics))
        server = Server(catalogue, SETTINGS, metrics=metrics, tracing=OpenTelemetry(provider))
        await server.startup()
        await server.say_serving()
        await scene(server)
        await server.shutdown()

    asyncio.run(whole())
    return exporter.get_finished_spans()


async def over_http(server, **fields):
    return await asyncio.to_thread(ask, server.http_port, "/v1/classify", **fields)


async def over_grpc(server, *images, traceparent):
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = classifier_pb2_grpc.ClassifierStub(channel)
        await stub.Classify(pb.ClassifyRequest(images=images), metadata=(("traceparent", traceparent),))


@pytest.mark.parametrize("door", ["http", "classifier.v1"])
def test_a_callers_trace_continues_down_to_the_stages(models, door):
    """Request, then queue, decode, preprocess, inference, one after another, all below the caller's span."""

    async def scene(server):
        if door == "http":
            await over_http(server, body=RED, headers={"traceparent": SAMPLED})
        else:
            await over_grpc(server, RED, traceparent=SAMPLED)

    *stages, request = spans_of(models, scene)
    assert {f"{span.context.trace_id:032x}" for span in (request, *stages)} == {TRACE_ID}
    assert f"{request.parent.span_id:016x}" == SPAN_ID
    assert {span.parent.span_id for span in stages} == {request.context.span_id}
    assert [span.name for span in stages] == ["queue", "decode", "preprocess", "inference"]
    times = [time for span in stages for time in (span.start_time, span.end_time)]
    assert request.start_time <= times[0]
    assert times == sorted(times)
    assert times[-1] <= request.end_time
    told = dict(request.attributes)
    assert (told["calotype.door"], told["calotype.model"], told["calotype.version"]) == (door, "colours", 1)


def test_every_picture_has_its_own_stages_and_a_bad_one_ends_early(models):
    """The unreadable picture was queued and looked at, and nothing more."""

    async def scene(server):
        await over_http(server, **form(RED, b"no picture", tiny_bundle.picture("blue")))

    *stages, request = spans_of(models, scene)
    names = [[span.name for span in stages if span.attributes["calotype.picture"] == number] for number in range(3)]
    assert [len(one) for one in names] == [4, 2, 4]
    assert request.parent is None


def test_a_refused_request_is_an_error_and_an_unsampled_one_nothing(models):
    """The caller's decision not to sample is kept."""

    async def scene(server):
        await over_http(server, body=b"")
        await over_http(server, body=RED, headers={"traceparent": UNSAMPLED})

    (refused,) = spans_of(models, scene)
    assert (refused.status.is_ok, "wanted at least one" in refused.status.description) == (False, True)


def test_a_request_whose_caller_has_gone_is_an_error():
    """Or it would look answered."""
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with pytest.raises(asyncio.CancelledError), OpenTelemetry(provider).request("http", picture_count=1):
        raise asyncio.CancelledError
    (span,) = exporter.get_finished_spans()
    assert not span.status.is_ok
    assert span.status.status_code is StatusCode.ERROR


def test_untraced_servers_do_not_import_it():
    """No endpoint, no cost: neither package is loaded."""
    code = "import sys, serving.process as s; assert s._start_tracing() is None; print('opentelemetry' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert done.stdout.strip() == "False"


def test_an_endpoint_without_the_packages_is_one_line(models, tmp_path, monkeypatch):
    """It says what to install."""
    (tmp_path / "opentelemetry").mkdir()
    (tmp_path / "opentelemetry" / "__init__.py").write_text("raise ImportError('not installed')")
    monkeypatch.setitem(ENVIRONMENT, "OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setitem(ENVIRONMENT, "PYTHONPATH", f"{tmp_path}:{ENVIRONMENT['PYTHONPATH']}")
    assert "install calotype[otel]" in refusal(models)


@pytest.mark.parametrize(
    ("name", "value"), [("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"), ("OTEL_TRACES_EXPORTER", "zipkin")]
)
def test_what_is_not_sent_here_is_refused_and_none_is_none(models, monkeypatch, name, value):
    """Spans go over gRPC alone; a collector that listens for something else would get nothing, without a word."""
    monkeypatch.setitem(ENVIRONMENT, "OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setitem(ENVIRONMENT, name, value)
    assert "wanted otlp and grpc" in refusal(models)
    code = "import serving.process as s; print(s._start_tracing())"
    silent = {**ENVIRONMENT, "OTEL_TRACES_EXPORTER": "none"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=silent, check=True)
    assert done.stdout.strip() == "None"


def test_a_variable_that_cannot_be_read_is_one_line(models, monkeypatch):
    """The library says which."""
    monkeypatch.setitem(ENVIRONMENT, "OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setitem(ENVIRONMENT, "OTEL_BSP_SCHEDULE_DELAY", "-1")
    assert "OTEL_*: " in refusal(models)


def test_a_collector_that_is_down_does_not_hold_up_the_exit(models, monkeypatch):
    """The library would try it for half a minute."""
    monkeypatch.setitem(ENVIRONMENT, "OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    with process(models, "--http-address", "off") as started:
        with Client(f"127.0.0.1:{port(started)}") as client:
            client.classify([RED])
        started.send_signal(signal.SIGTERM)
        assert started.wait(timeout=5) == 0


def test_a_request_on_the_heels_of_another_is_no_part_of_its_trace(models):
    """Its task is begun by the one before it on the connection."""
    second = b"POST /v1/classify HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(RED), RED)
    first = second.replace(b"host: x", b"host: x\r\ntraceparent: " + SAMPLED.encode(), 1)

    async def scene(server):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.http_port)
        writer.write(first + second)
        async with asyncio.timeout(20):
            for _ in range(2):
                await reader.readuntil(b"HTTP/1.1 200 OK\r\n")
        writer.close()

    requests = [span for span in spans_of(models, scene) if span.name == "classify"]
    assert [f"{span.context.trace_id:032x}" == TRACE_ID for span in requests] == [True, False]
