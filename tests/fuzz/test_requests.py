"""Any request at all to a real server: an answer or an expected status, nothing of the inside, and it still serves."""

import grpc
import pytest
import tried
from broken_files import broken_files
from hypothesis import given
from hypothesis import strategies as st

from protos import classifier_pb2 as pb
from tests.serving import tiny_bundle

EXPECTED = {"OK", "INVALID_ARGUMENT", "NOT_FOUND"}
CLASSIFY, STREAM = ("/classifier.v1.Classifier/" + name for name in ("Classify", "ClassifyStream"))
WAIT_S = 30


@pytest.fixture(scope="module")
def channel(server):
    with grpc.insecure_channel(server.address, options=[("grpc.enable_retries", 0)]) as opened:
        yield opened


PICTURES = st.one_of(
    broken_files(), st.binary(max_size=50), st.sampled_from(tiny_bundle.LABELS).map(tiny_bundle.picture)
)
NAMES = st.one_of(st.text(), st.sampled_from(["", "colours", "../colours", "/etc/passwd", "colours/1", "\0"]))
REQUESTS = st.builds(
    pb.ClassifyRequest,
    model=NAMES | st.just(""),
    version=st.one_of(st.sampled_from(["", "1", "01", "-1", "9" * 40, "١"]), st.text(max_size=5)),
    images=st.lists(PICTURES, max_size=9),
    top_k=st.integers(0, 2**32 - 1),
    min_score=st.floats(width=32) | st.just(0.0),
).map(pb.ClassifyRequest.SerializeToString)


@st.composite
def damaged(draw):
    """The bytes of a request after a change that the protobuf library may or may not notice."""
    data = bytearray(draw(REQUESTS))
    place = draw(st.integers(0, len(data)))
    data[place : place + draw(st.integers(0, 5))] = draw(st.binary(max_size=5))
    return bytes(data)


MESSAGES = st.one_of(REQUESTS, damaged(), st.binary(max_size=30))


def _check_error(error, server):
    assert error.code().name in EXPECTED, error.details()
    server.check_text(error.details())


@tried.ROUND
@given(message=MESSAGES)
def test_any_request_gets_an_answer_or_its_status(server, channel, message):
    """Bytes that are no message are INVALID_ARGUMENT like other nonsense."""
    tried.COUNTS["requests"] += 1
    try:
        answer = pb.ClassifyResponse.FromString(channel.unary_unary(CLASSIFY)(message, timeout=WAIT_S))
    except grpc.RpcError as error:
        _check_error(error, server)
        return
    assert len(answer.results) == len(pb.ClassifyRequest.FromString(message).images)
    for result in answer.results:
        server.check_text(result.error.message)


@tried.ROUND
@given(messages=st.lists(MESSAGES, max_size=4))
def test_any_stream_ends(server, channel, messages):
    """With all answers, or with the status of the first message that gets none."""
    tried.COUNTS["streams"] += 1
    call, answers = channel.stream_stream(STREAM)(iter(messages), timeout=WAIT_S), []
    try:
        answers.extend(call)
    except grpc.RpcError as error:
        _check_error(error, server)
    else:
        assert len(answers) == len(messages)


@tried.ROUND
@given(path=st.text(st.characters(min_codepoint=33, max_codepoint=126)))
def test_any_method_is_refused(channel, path):
    """Unknown rpcs, whatever their name."""
    tried.COUNTS["names of methods"] += 1
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(f"/{path}")(b"", timeout=WAIT_S)
    assert caught.value.code().name == "UNIMPLEMENTED"


def test_it_still_serves(server, channel):
    """After all that, of which nothing was unforeseen."""
    server.check_log()
    message = pb.ClassifyRequest(images=[tiny_bundle.picture("green")]).SerializeToString()
    answer = pb.ClassifyResponse.FromString(channel.unary_unary(CLASSIFY)(message, timeout=WAIT_S))
    assert answer.results[0].predictions[0].label == "green"
