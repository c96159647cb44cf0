"""Requests to the V2 door that are wrong in every place a client can reach: a status each, none "internal error"."""

import asyncio
import os

import grpc
import tiny_bundle
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from inference_door import CROP, pixels, request, serving

from protos import open_inference_pb2 as pb
from protos import open_inference_pb2_grpc
from serving.tensors import join

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "300"))  # as in tests/fuzz
WHOLE = [request("red"), request("red", "blue"), pixels(1, CROP, CROP, 3), request("red", id="7", model_version="1")]
TEXTS = st.sampled_from(["", "colours", "roses", "1", "7", "images", "probabilities", "BYTES", "UINT8", "x" * 99, "-1"])
SHAPES = st.sampled_from([[], [1], [2, 1], [1, CROP, CROP, 3], [-1, CROP, CROP, 3], [2**62, 4], [1, 2**40, 2**40, 3]])
BODIES = st.one_of(
    st.binary(max_size=64),
    st.lists(st.sampled_from([b"", b"x", tiny_bundle.picture("red"), tiny_bundle.picture("red")[:50]])).map(join),
    st.just(bytes(CROP * CROP * 3)),
)
PARAMETERS = st.one_of(
    st.builds(pb.InferParameter, int64_param=st.sampled_from([-(2**63), -1, 0, 1, 2, 2**63 - 1])),
    st.builds(pb.InferParameter, uint64_param=st.sampled_from([0, 1, 2**64 - 1])),
    st.builds(pb.InferParameter, string_param=TEXTS),
    st.builds(pb.InferParameter, double_param=st.floats()),
)


def replace_shape(made, draw):
    made.inputs[0].shape[:] = draw(SHAPES)


def replace_body(made, draw):
    made.raw_input_contents[:] = draw(st.lists(BODIES, max_size=2))


def add_contents(made, draw):
    contents = made.inputs[0].contents
    contents.bytes_contents.extend(draw(st.lists(st.binary(max_size=9), max_size=3)))
    contents.uint_contents.extend(draw(st.lists(st.integers(0, 2**32 - 1), max_size=9)))


def replace_a_name(made, draw):
    places = [(made, "model_name"), (made, "model_version"), (made.inputs[0], "name"), (made.inputs[0], "datatype")]
    holder, field = draw(st.sampled_from(places))
    setattr(holder, field, draw(TEXTS))


def add_an_input(made, draw):
    made.inputs.add(name=draw(TEXTS))


def add_a_parameter(made, draw):
    names = st.sampled_from(["timeout", "priority", "triton_enable_empty_final_response"])
    made.parameters[draw(names)].CopyFrom(draw(PARAMETERS))


def add_an_output(made, draw):
    output = made.outputs.add(name=draw(st.sampled_from(["probabilities", "unknown", "logits"])))
    output.parameters[draw(st.sampled_from(["classification", "binary_data"]))].CopyFrom(draw(PARAMETERS))


def flip_bytes(made, draw):
    data = bytearray(made.SerializeToString())
    for _ in range(draw(st.integers(1, 4))):
        data[draw(st.integers(0, min(len(data), 120) - 1))] = draw(st.integers(0, 255))
    try:
        flipped = pb.ModelInferRequest.FromString(bytes(data))
    except DecodeError:  # gRPC itself refuses these
        return
    if flipped.inputs:
        made.CopyFrom(flipped)


@st.composite
def mutants(draw):
    """A whole request, and up to three things in it that are changed."""
    made = pb.ModelInferRequest()
    made.CopyFrom(draw(st.sampled_from(WHOLE)))
    changes = [replace_shape, replace_body, add_contents, replace_a_name, add_an_input, add_a_parameter, add_an_output]
    for change in draw(st.lists(st.sampled_from([*changes, flip_bytes]), max_size=3)):
        change(made, draw)
    return made


def test_no_request_is_an_internal_error(models):
    """Hundreds of requests, wrong in every place that a client can reach."""
    loop = asyncio.new_event_loop()

    async def send(stub, made):
        try:
            answer = await stub.ModelInfer(made)
        except grpc.aio.AioRpcError as error:
            return error.code().name
        assert len(answer.raw_output_contents) == len(answer.outputs)
        return "OK"

    server = serving(models)
    channel, _ = loop.run_until_complete(server.__aenter__())
    stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
    seen = set()

    @settings(max_examples=EXAMPLES, deadline=None)
    @given(mutants())
    def attempt(made):
        status = loop.run_until_complete(send(stub, made))
        seen.add(status)
        assert status in {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "DEADLINE_EXCEEDED"}

    try:
        attempt()
    finally:
        loop.run_until_complete(server.__aexit__(None, None, None))
        loop.close()
    assert {"OK", "INVALID_ARGUMENT", "NOT_FOUND"} <= seen
