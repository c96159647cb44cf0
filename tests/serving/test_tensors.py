"""What is read from V2 tensors, and what is refused: every lie about a shape or a length, before it costs memory."""

import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protos import open_inference_pb2 as pb
from serving.errors import InvalidRequestError
from serving.tensors import _split, asked_outputs, join, read_pictures, timeout_s

PIXELS = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)


def request(datatype, shape, *raw, **contents):
    """A request with one input; typed contents where they are given."""
    made = pb.ModelInferRequest(raw_input_contents=raw)
    made.inputs.add(name="images", datatype=datatype, shape=shape)
    if contents:
        made.inputs[0].contents.CopyFrom(pb.InferTensorContents(**contents))
    return made


def read(made):
    return read_pictures(made, max_images=4)


@pytest.mark.parametrize(
    "made",
    [
        request("BYTES", [2], join([b"one", b""])),
        request("BYTES", [2, 1], join([b"one", b""])),
        request("BYTES", [2], bytes_contents=[b"one", b""]),
    ],
)
def test_encoded_pictures_are_read(made):
    """Raw or typed, with or without the second axis; an empty element is one too."""
    assert read(made) == [b"one", b""]


@pytest.mark.parametrize(
    "made",
    [
        request("UINT8", PIXELS.shape, PIXELS.tobytes()),
        request("UINT8", PIXELS.shape, uint_contents=PIXELS.ravel().tolist()),
    ],
)
def test_pixels_are_read(made):
    """Raw or typed, as uint8 pictures in their order."""
    pictures = read(made)
    assert [picture.dtype for picture in pictures] == [np.uint8, np.uint8]
    assert np.array_equal(pictures, PIXELS)


def test_raw_pixels_are_not_copied():
    """The pictures are views of what came."""
    made = request("UINT8", PIXELS.shape, PIXELS.tobytes())
    assert all(not picture.flags.owndata for picture in read(made))


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (pb.ModelInferRequest(), "inputs: found none"),
        (pb.ModelInferRequest(inputs=[{"name": "image"}]), "inputs: found 'image'"),
        (pb.ModelInferRequest(inputs=[{"name": "images"}] * 2), "inputs: found 'images', 'images'"),
        (request("FP32", [1], b"1234"), "datatype 'FP32'"),
        (request("BYTES", [], join([b"x"])), r"shape \[\]"),
        (request("BYTES", [0], b""), r"shape \[0\]"),
        (request("BYTES", [-1], join([b"x"])), r"shape \[-1\]"),
        (request("BYTES", [1, 2], join([b"x", b"y"])), r"shape \[1, 2\]"),
        (request("BYTES", [5], join([b"x"] * 5)), "found 5 pictures, wanted at most 4"),
        (request("BYTES", [2**62], join([b"x"])), "wanted at most 4"),
        (request("BYTES", [1]), "found 0 elements"),
        (request("BYTES", [2], join([b"x"])), r"images\[1\]: the bytes end"),
        (request("BYTES", [1], join([b"x", b"y"])), "found 5 bytes after the last"),
        (request("BYTES", [1], struct.pack("<I", 2**32 - 1) + b"x"), r"images\[0\]: the bytes end"),
        (request("BYTES", [1], b"\1\0"), r"images\[0\]: the bytes end"),
        (request("BYTES", [1], join([b"x"]), b""), "raw_input_contents: found 2"),
        (request("BYTES", [1], join([b"x"]), bytes_contents=[b"x"]), "beside raw_input_contents"),
        (request("UINT8", [1, 4, 4], b"x" * 16), r"shape \[1, 4, 4\]"),
        (request("UINT8", [1, 3, 4, 4], b"x" * 48), r"shape \[1, 3, 4, 4\]"),
        (request("UINT8", [1, 4, 4, 3, 1], b"x" * 48), "shape"),
        (request("UINT8", [1, -4, -4, 3], b"x" * 48), r"shape \[1, -4, -4, 3\]"),
        (request("UINT8", [1, 2**40, 2**40, 3], b""), "found 0 bytes"),
        (request("UINT8", [1, 4, 4, 3], b"x" * 47), "found 47 bytes, its shape says 48"),
        (request("UINT8", [1, 1, 1, 3], uint_contents=[1, 2, 256]), "found 256"),
    ],
)
def test_a_tensor_that_is_not_what_it_says_is_refused(made, text):
    """The message says what was found."""
    with pytest.raises(InvalidRequestError, match=text):
        read(made)


def test_shared_memory_is_refused():
    """As an input and as an output: the client would look for its answer in the wrong place."""
    made = request("BYTES", [1])
    made.inputs[0].parameters["shared_memory_region"].string_param = "here"
    with pytest.raises(InvalidRequestError, match="shared memory"):
        read(made)
    made.outputs.add(name="probabilities").parameters["shared_memory_region"].string_param = "here"
    with pytest.raises(InvalidRequestError, match="shared memory"):
        asked_outputs(made)


@pytest.mark.parametrize(
    ("outputs", "asked"),
    [
        ([], [("probabilities", 0), ("unknown", 0)]),
        ([{"name": "probabilities"}], [("probabilities", 0)]),
        ([{"name": "unknown"}, {"name": "probabilities"}], [("unknown", 0), ("probabilities", 0)]),
        (
            [{"name": "probabilities", "parameters": {"classification": pb.InferParameter(int64_param=3)}}],
            [("probabilities", 3)],
        ),
    ],
)
def test_the_asked_for_outputs_are_read(outputs, asked):
    """In their order; none means all of them."""
    assert list(asked_outputs(pb.ModelInferRequest(outputs=outputs)).items()) == asked


@pytest.mark.parametrize(
    "outputs",
    [
        [{"name": "logits"}],
        [{"name": "probabilities"}] * 2,
        [{"name": "probabilities", "parameters": {"classification": pb.InferParameter(int64_param=0)}}],
        [{"name": "probabilities", "parameters": {"classification": pb.InferParameter(string_param="3")}}],
        [{"name": "unknown", "parameters": {"classification": pb.InferParameter(int64_param=1)}}],
    ],
)
def test_another_output_is_refused(outputs):
    """Unknown, twice, or with a count that is none."""
    with pytest.raises(InvalidRequestError):
        asked_outputs(pb.ModelInferRequest(outputs=outputs))


def test_timeout_is_in_microseconds():
    """0 is none, as the protocol has it; text and the negative are refused."""
    made = pb.ModelInferRequest()
    assert timeout_s(made) is None
    for value, seconds in ((1500, 0.0015), (0, None)):
        made.parameters["timeout"].int64_param = value
        assert timeout_s(made) == seconds
    for bad in (pb.InferParameter(int64_param=-1), pb.InferParameter(string_param="1")):
        made.parameters["timeout"].CopyFrom(bad)
        with pytest.raises(InvalidRequestError):
            timeout_s(made)


sizes = st.one_of(st.integers(-2, 5), st.sampled_from([2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, -(2**63)]))
bodies = st.one_of(
    st.binary(max_size=200),
    st.lists(st.binary(max_size=20), max_size=5).map(join),
    st.integers(0, 64).map(bytes),
)
inputs = st.builds(
    pb.ModelInferRequest.InferInputTensor,
    name=st.sampled_from(["images", "images", "images", "other"]),
    datatype=st.sampled_from(["BYTES", "UINT8", "FP32", ""]),
    shape=st.lists(sizes, max_size=6),
    contents=st.none()
    | st.builds(
        pb.InferTensorContents,
        bytes_contents=st.lists(st.binary(max_size=8), max_size=5),
        uint_contents=st.lists(st.integers(0, 300), max_size=60),
    ),
)
requests = st.builds(
    pb.ModelInferRequest,
    inputs=st.lists(inputs, min_size=1, max_size=2),
    raw_input_contents=st.lists(bodies, max_size=2),
)


@settings(max_examples=400, deadline=None)
@given(requests)
def test_no_request_costs_more_memory_than_it_brings(made):
    """Whatever a shape or a length says: an answer is made of bytes that came, a refusal of nothing but its text."""
    came = made.ByteSize()
    tracemalloc.start()
    try:
        pictures = read(made)
        assert sum(len(one) if isinstance(one, bytes) else one.nbytes for one in pictures) <= came
    except InvalidRequestError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 100_000 + 8 * came


def test_a_length_without_its_bytes_is_refused():
    """It is no empty picture."""
    with pytest.raises(InvalidRequestError, match="end before"):
        _split(struct.pack("<I", 5), count=1)
