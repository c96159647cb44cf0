"""How many fields a message has: no more than the decoder finds, and no more work than is allowed."""

import grpc
import pytest
import tiny_bundle
from grpc_health.v1 import health_pb2
from hypothesis import given
from hypothesis import strategies as st
from running import Running, plain_channel

from protos import classifier_pb2 as pb
from protos import open_inference_pb2
from protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from serving.fields import count_fields, input_type

INFER = open_inference_pb2.ModelInferRequest
MANY = 10**6


def infer(tensors, contents):
    """A request of so many tensors, each with so many pictures in it."""
    request = INFER(model_name="colours")
    for number in range(tensors):
        tensor = request.inputs.add(name=f"input{number}", datatype="BYTES", shape=[contents])
        tensor.contents.bytes_contents.extend([b"x"] * contents)
    return request


@given(tensors=st.integers(0, 5), contents=st.integers(0, 9))
def test_fields_are_counted_wherever_they_are(tensors, contents):
    """A name; of each tensor itself, two words, a packed shape of a byte or so, the contents, and their pictures."""
    request = infer(tensors, contents)
    assert count_fields(request.SerializeToString(), INFER.DESCRIPTOR, most=MANY) == 1 + tensors * (6 + contents)


@given(message=st.binary(max_size=200))
def test_any_bytes_are_counted(message):
    """Also what is no message; one that is one has no more fields than were counted."""
    count = count_fields(message, INFER.DESCRIPTOR, most=MANY)
    try:
        request = INFER.FromString(message)
    except Exception:
        return
    nested = sum(1 + len(tensor.contents.bytes_contents) for tensor in request.inputs)
    assert nested + len(request.outputs) + len(request.raw_input_contents) <= count


@pytest.mark.parametrize("part", [b"\x2a\x00", b"\x2a\x02\x2a\x00", b"\x2a\x04\x1a\x02\x01\x01", b"\x3b\x3c"])
def test_counting_ends_at_the_limit(part):
    """Empty tensors, tensors with something in them, shapes of numbers, groups."""
    assert 100 < count_fields(part * MANY, INFER.DESCRIPTOR, most=100) < 110


@pytest.mark.parametrize(
    "first",
    [
        b"\x78" + b"\xff" * 9 + b"\x01",  # an int64 of -1, as long as a number can be
        b"\x79" + b"\xff" * 8,  # eight bytes
        b"\x7d" + b"\xff" * 4,  # four
    ],
)
def test_no_field_hides_those_after_it(first):
    """Whatever it is, the next one begins where it ends."""
    assert count_fields(first + b"\x2a\x00" * 200, INFER.DESCRIPTOR, most=MANY) == 201


@pytest.mark.parametrize("value", [0, 127, 128, 255])
def test_a_tensor_of_pixels_is_a_field_for_every_thousand(value):
    """They take little more than what they are, but each is looked at; bright ones are two bytes, and no more."""
    request = INFER()
    request.inputs.add().contents.uint_contents.extend([value] * 10_000)
    assert count_fields(request.SerializeToString(), INFER.DESCRIPTOR, most=MANY) == 3 + 10_000 // 1024


def test_what_a_method_takes_is_known():
    """Of those that are there."""
    assert input_type("/classifier.v1.Classifier/Classify") is pb.ClassifyRequest.DESCRIPTOR
    assert input_type("/grpc.health.v1.Health/Check") is health_pb2.HealthCheckRequest.DESCRIPTOR
    assert input_type("/classifier.v1.Classifier/None") is input_type("/none/None") is input_type("none") is None


@pytest.mark.parametrize("packs", [False, True])
@pytest.mark.parametrize(
    ("method", "part"),
    [
        ("/inference.GRPCInferenceService/ModelInfer", b"\x2a\x00"),
        ("/inference.GRPCInferenceService/ModelInfer", b"\x32\x00"),
        ("/classifier.v1.Classifier/Classify", b"\x1a\x00"),
    ],
)
def test_a_message_of_nothing_but_fields_is_refused_undecoded(models, method, part, packs):
    """Compressed it would be a few KB; a second one is answered, since nothing is held up."""
    compression = grpc.Compression.Gzip if packs else grpc.Compression.NoCompression
    with Running(models) as server, plain_channel(server.address) as channel:
        with pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary(method)(part * MANY, timeout=20, compression=compression)
        answer = channel.unary_unary("/classifier.v1.Classifier/Classify")(
            pb.ClassifyRequest(images=[tiny_bundle.picture("red")]).SerializeToString(), timeout=20
        )
        counted = server.metrics.requests.labels(
            "classifier.v1" if "Classifier" in method else "inference", "", "INVALID_ARGUMENT"
        )
        assert counted._value.get() == 1
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert refused.value.details().startswith("found more than 1,512 fields in a message")
    assert pb.ClassifyResponse.FromString(answer).results[0].predictions


def test_a_tensor_of_millions_of_numbers_is_refused_undecoded(models):
    """Each number would be looked at in the loop; a small one is looked at."""
    contents = {"shape": [1, 1000, 700, 3], "size": 2_100_000}, {"shape": [1, 24, 24, 3], "size": 1728}

    def typed(*, shape, size):
        made = INFER(model_name="colours")
        tensor = made.inputs.add(name="images", datatype="UINT8", shape=shape)
        tensor.contents.uint_contents.extend(bytes(size))
        return made

    with Running(models) as server, plain_channel(server.address) as channel:
        stub = GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError, match="or numbers for as many; send several requests") as refused:
            stub.ModelInfer(typed(**contents[0]))
        assert stub.ModelInfer(typed(**contents[1])).raw_output_contents
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("packs", [False, True])
def test_a_service_for_strangers_takes_small_messages_alone(models, packs):
    """Health asks for no token; what unpacks to more than a name is not unpacked, and nobody waits for it."""
    compression = grpc.Compression.Gzip if packs else grpc.Compression.NoCompression
    with Running(models) as server, plain_channel(server.address) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        small = health_pb2.HealthCheckRequest(service="colours" + "/1" * packs).SerializeToString()
        status = health_pb2.HealthCheckResponse.FromString(check(small, timeout=20, compression=compression)).status
        with pytest.raises(grpc.RpcError) as refused:
            check(
                health_pb2.HealthCheckRequest(service="x" * 4096).SerializeToString(),
                timeout=20,
                compression=compression,
            )
    assert status == health_pb2.HealthCheckResponse.SERVING
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_field_that_says_more_than_came_is_one():
    """Its length counts no further than the message."""
    kind = input_type("/inference.GRPCInferenceService/ModelInfer")
    assert count_fields(b"\x2a\xff\xff\x7f", kind, most=1000) == 1
