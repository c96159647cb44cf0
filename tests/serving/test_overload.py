"""A server whose queue is full: what is refused, and that it is refused unread."""

import contextlib

import grpc
import pytest
import tiny_bundle
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from running import LIMIT_S, Running, classify, plain_channel

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
