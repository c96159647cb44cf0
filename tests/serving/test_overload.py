"""A server whose queue is full: what is refused, and that it is refused unread."""

import contextlib
import threading

import grpc
import pytest
import structlog
import tiny_bundle
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from running import LIMIT_S, Running, classify, held_by, plain_channel, until

from protos import classifier_pb2 as pb
from protos import classifier_pb2_grpc
from serving.tokens import new_token

CLASSIFY, INFER = "/classifier.v1.Classifier/Classify", "/inference.GRPCInferenceService/ModelInfer"
NO_MESSAGE = b"\0"
COLOURS = {"model": "colours", "version": "1"}


@contextlib.contextmanager
def full(models, **changes):
    """A server whose one model has as much to do as it may have, and a channel to it."""
    with Running(models, **changes) as running, plain_channel(running.address) as channel:
        running.catalogue.find("colours")._batcher._admission.items = running.settings.max_queue_images
        yield running, channel


def refusal(channel, method, **options):
    """The error of a call whose bytes are no message."""
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(method)(NO_MESSAGE, timeout=LIMIT_S, **options)
    return caught.value


@pytest.mark.parametrize(("method", "door"), [(CLASSIFY, "classifier.v1"), (INFER, "inference")])
def test_a_full_queue_refuses_a_call_before_its_request_is_read(models, method, door):
    """Bytes that are no message are never looked at; the refusal says when to come again, and is counted."""
    with full(models) as (running, channel):
        error = refusal(channel, method, metadata=[("x-request-id", "seven")])
        value = running.metrics.registry.get_sample_value
        labels = {"door": door, "model": "colours", "status": "RESOURCE_EXHAUSTED"}
        assert value("calotype_requests_total", labels) == 1
        assert value("calotype_rejected_total", {**COLOURS, "reason": "queue"}) == 1
    trailers = dict(error.trailing_metadata())
    (detail,) = Status.FromString(trailers["grpc-status-details-bin"]).details
    assert detail.Unpack(info := RetryInfo())
    assert info.retry_delay.ToMilliseconds() > 0
    assert trailers["x-request-id"] == "seven"
    assert error.code().name == "RESOURCE_EXHAUSTED"
    assert error.details().startswith("256 items wait")


@pytest.mark.parametrize(("method", "door"), [(CLASSIFY, "classifier.v1"), (INFER, "inference")])
def test_a_hopeless_deadline_is_refused_before_its_request_is_read(models, method, door):
    """Callers who try again at once would else cost all the time that there is."""
    with Running(models, max_queue_ms=1e6) as running, plain_channel(running.address) as channel:
        admission = running.catalogue.find("colours")._batcher._admission
        admission.items = 2
        admission.note_pace(60.0)
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(method)(NO_MESSAGE, timeout=20)
        value = running.metrics.registry.get_sample_value
        refused = {"door": door, "model": "colours", "status": "DEADLINE_EXCEEDED"}
        assert value("calotype_requests_total", refused) == 1
        assert value("calotype_rejected_total", {**COLOURS, "reason": "deadline"}) == 1
        admission.items = 0
    assert caught.value.code().name == "DEADLINE_EXCEEDED"
    assert "an answer would take about" in caught.value.details()


def test_one_connection_can_fill_the_queue_and_hear_that_it_is_full(models):
    """What comes beyond is refused while the queue stands still, not held back by the connection."""
    is_running, may_run = threading.Event(), threading.Event()
    request = pb.ClassifyRequest(images=[tiny_bundle.picture("red")])
    running = Running(models, load=lambda folder: held_by(may_run, running, on_run=is_running.set)(folder), max_batch=1)
    with running, plain_channel(running.address) as channel:
        call = classifier_pb2_grpc.ClassifierStub(channel).Classify
        calls = [call.future(request, timeout=LIMIT_S)]
        until(lambda: is_running.is_set(), what="the first run")
        calls += [call.future(request, timeout=LIMIT_S) for _ in range(running.settings.max_queue_images + 20)]
        until(lambda: sum(one.done() for one in calls) == 20, what="the refusals")
        assert {one.code().name for one in calls if one.done()} == {"RESOURCE_EXHAUSTED"}
        may_run.set()
        assert sum(one.exception(LIMIT_S) is None for one in calls) == len(calls) - 20


def test_as_soon_as_there_is_room_calls_are_answered(models):
    """And what brings no pictures is answered all the time."""
    with full(models) as (running, channel):
        assert refusal(channel, CLASSIFY).code().name == "RESOURCE_EXHAUSTED"
        listed = classifier_pb2_grpc.ClassifierStub(channel).ListModels(pb.ListModelsRequest(), timeout=LIMIT_S)
        assert [one.state for one in listed.models] == [pb.Model.READY]
        running.catalogue.find()._batcher._admission.items = 0
        assert refusal(channel, CLASSIFY).code().name == "INVALID_ARGUMENT"
        assert classify(channel) == "1"


def test_where_several_models_are_served_a_request_is_read_first(models):
    """It may be for one that has room."""
    tiny_bundle.write(models, name="shades")
    with full(models) as (_, channel):
        assert refusal(channel, CLASSIFY).code().name == "INVALID_ARGUMENT"
        assert classify(channel, model="shades") == "1"
        with pytest.raises(grpc.RpcError, match="256 items wait"):
            classify(channel, model="colours")


def test_a_stranger_hears_nothing_of_the_queue(models, tmp_path):
    """The token is asked for first."""
    token, line = new_token("someone")
    (tmp_path / "tokens").write_text(f"{line}\n")
    with full(models, tokens=tmp_path / "tokens") as (_, channel):
        assert refusal(channel, CLASSIFY).code().name == "UNAUTHENTICATED"
        let_in = refusal(channel, CLASSIFY, metadata=[("authorization", f"Bearer {token}")])
        assert let_in.code().name == "RESOURCE_EXHAUSTED"


def test_refusals_by_the_queue_are_no_line_each(models):
    """They would cost most when there is least time; at debug they can be seen."""
    with full(models) as (_, channel), structlog.testing.capture_logs() as lines:
        refusal(channel, CLASSIFY)
    (line,) = (line for line in lines if line["event"] == "request")
    assert (line["log_level"], line["status"]) == ("debug", "RESOURCE_EXHAUSTED")
