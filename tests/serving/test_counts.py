"""What is counted of requests that get no answer, and that it is counted once."""

import shutil
import threading
from io import BytesIO

import grpc
import pytest
import tiny_bundle
from PIL import Image
from running import Running, classify, counted, held_by, plain_channel, until

from bundle.runtime import OnnxModel
from protos import classifier_pb2 as pb
from protos import classifier_pb2_grpc

CLASSIFY, STREAM = "/classifier.v1.Classifier/Classify", "/classifier.v1.Classifier/ClassifyStream"
NO_MESSAGE, NO_GZIP = b"\xff\xff", b"\x1f\xff"
RED = pb.ClassifyRequest(images=[tiny_bundle.picture("red")])


def test_bytes_that_are_no_message_are_counted(models):
    """By both kinds of calls, compressed or not."""
    with Running(models) as server, plain_channel(server.address) as channel:
        for message in (NO_MESSAGE, NO_GZIP):
            with pytest.raises(grpc.RpcError):
                channel.unary_unary(CLASSIFY)(message)
            with pytest.raises(grpc.RpcError):
                list(channel.stream_stream(STREAM)(iter([message])))
        assert counted(server.metrics) == {("classifier.v1", "INVALID_ARGUMENT"): 4}


def test_calls_that_bring_no_message_are_counted(models):
    """None at all; one that is too large for the library."""
    with Running(models, max_message_bytes=1000) as server, plain_channel(server.address) as channel:
        with pytest.raises(grpc.RpcError) as empty:
            channel.stream_unary(CLASSIFY)(iter([]))
        assert empty.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.RpcError) as large:
            channel.unary_unary(CLASSIFY)(bytes(1001))
        assert large.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        until(lambda: sum(counted(server.metrics).values()) == 2, what="the count")
        assert counted(server.metrics)["classifier.v1", "INVALID_ARGUMENT"] == 1


@pytest.mark.parametrize(("timeout", "status"), [(0.3, "DEADLINE_EXCEEDED"), (None, "CANCELLED")])
def test_calls_that_end_before_their_message_has_come_are_counted(models, timeout, status):
    """At their deadline, or because the caller goes."""
    never = threading.Event()

    def nothing():
        never.wait(60)
        yield b""

    with Running(models) as server, plain_channel(server.address) as channel:
        call = channel.stream_unary(CLASSIFY).future(nothing(), timeout=timeout)
        if timeout is None:
            until(lambda: server._server._rpcs._arrivals._coming, what="the call")
            call.cancel()
        until(lambda: counted(server.metrics), what="the count")
        never.set()
        assert counted(server.metrics) == {("classifier.v1", status): 1}


def test_a_call_that_the_library_ends_at_its_deadline_was_late_and_not_cancelled(models):
    """The engine is busy with it when its time is over."""
    may_run = threading.Event()

    server = Running(models, load=lambda folder: held_by(may_run, server)(folder))
    with server, plain_channel(server.address) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            classifier_pb2_grpc.ClassifierStub(channel).Classify(RED, timeout=0.3)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        until(lambda: counted(server.metrics), what="the count")
        assert counted(server.metrics) == {("classifier.v1", "DEADLINE_EXCEEDED"): 1}
        may_run.set()


def test_pictures_that_the_engine_fails_on_are_counted_and_only_answers_are_timed(models, monkeypatch):
    """A refusal takes microseconds: timed with the answers, an overloaded server would look fast."""
    with Running(models) as server, plain_channel(server.address) as channel:
        classify(channel)

        def fail(*_):
            raise RuntimeError("the engine")

        monkeypatch.setattr(OnnxModel, "run", fail)
        with pytest.raises(grpc.RpcError):
            classifier_pb2_grpc.ClassifierStub(channel).Classify(RED)
        value = server.metrics.registry.get_sample_value
        labels = {"model": "colours", "version": "1"}
        assert value("calotype_pictures_total", {**labels, "outcome": "INTERNAL"}) == 1
        assert value("calotype_pictures_total", {**labels, "outcome": "OK"}) == 1
        assert value("calotype_request_seconds_count", {"door": "classifier.v1", "model": "colours"}) == 1


def test_a_picture_of_which_the_network_makes_no_numbers_is_no_answer(models):
    """As where a half float overflows, for a picture unlike the golden ones; its neighbours are answered."""
    for folder in (models / "colours").iterdir():
        shutil.rmtree(folder)
    tiny_bundle.write(models, scale=1.12e38, mean=0.485)
    out = BytesIO()
    Image.new("RGB", (48, 48), (255, 0, 255)).save(out, "PNG")
    overflowing = pb.ClassifyRequest(images=[out.getvalue()])
    with Running(models) as server, plain_channel(server.address) as channel:
        stub = classifier_pb2_grpc.ClassifierStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Classify(overflowing)
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        assert stub.Classify(RED).results[0].predictions[0].label == "red"
        value = server.metrics.registry.get_sample_value
        labels = {"model": "colours", "version": "1"}
        assert value("calotype_pictures_total", {**labels, "outcome": "INTERNAL"}) == 1
        assert value("calotype_pictures_total", {**labels, "outcome": "OK"}) == 1
        assert 0 <= value("calotype_confidence_sum", {"model": "colours"} | labels) <= 1


def test_a_picture_whose_preparation_fails_unforeseen_is_counted(models, monkeypatch):
    """As those that the engine fails on are."""

    def fail(*_, **__):
        raise RuntimeError("out of order")

    monkeypatch.setattr("serving.steps.decode_pixels", fail)
    with Running(models) as server, plain_channel(server.address) as channel:
        with pytest.raises(grpc.RpcError, match="INTERNAL"):
            classify(channel)
        labels = {"model": "colours", "version": "1", "outcome": "INTERNAL"}
        assert server.metrics.registry.get_sample_value("calotype_pictures_total", labels) == 1
