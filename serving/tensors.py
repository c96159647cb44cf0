"""The tensors of the Open Inference Protocol V2: what is in a request, checked against what it says of itself.

Nothing is allocated by a shape: a shape is compared with the bytes that did come, and pictures are views of them or
slices. Knows no model: whether a picture has the model's size is for the model to say.
"""

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protos import open_inference_pb2 as pb
from serving.errors import InvalidRequestError

INPUT_NAME: Final = "images"
OUTPUT_NAME: Final = "probabilities"
UNKNOWN_NAME: Final = "unknown"
Pictures = list[bytes] | list[NDArray[np.uint8]]

_LENGTH: Final = struct.Struct("<I")
_SHARED_MEMORY: Final = "shared_memory_region"
_SHAPES: Final = {"BYTES": "[N] or [N, 1]", "UINT8": "[N, crop, crop, 3]"}


def read_pictures(request: pb.ModelInferRequest, *, max_images: int) -> Pictures:
    """Return the pictures of the input `images`: encoded bytes of a BYTES tensor, (H, W, 3) views of a UINT8 one.

    Raises InvalidRequestError where a tensor is not what its name, datatype, shape or length says.
    """
    if [tensor.name for tensor in request.inputs] != [INPUT_NAME]:
        found = ", ".join(repr(tensor.name[:32]) for tensor in request.inputs[:4]) or "none"
        raise InvalidRequestError(f"inputs: found {found}, wanted one, {INPUT_NAME!r}")
    (tensor,) = request.inputs
    _refuse_shared_memory(tensor.parameters, name=INPUT_NAME)
    shape = _checked_shape(tensor, max_images=max_images)
    raw = _raw_contents(request, tensor)
    if tensor.datatype == "BYTES":
        elements = list(tensor.contents.bytes_contents) if raw is None else _split(raw, count=shape[0])
        if len(elements) != shape[0]:
            raise InvalidRequestError(f"{INPUT_NAME}: found {len(elements)} elements, its shape says {shape[0]}")
        return elements
    return list(_bytes_of_uint8(tensor, raw, size=math.prod(shape)).reshape(shape))


def asked_outputs(request: pb.ModelInferRequest) -> dict[str, int]:
    """Return the outputs that are asked for, all where none is, in their order.

    With each the number of labels that are wanted instead of its numbers, 0 for none. Raises InvalidRequestError.
    """
    names = [output.name for output in request.outputs]
    if len(set(names)) < len(names) or not set(names) <= {OUTPUT_NAME, UNKNOWN_NAME}:
        found = ", ".join(repr(name[:32]) for name in names[:4])
        raise InvalidRequestError(
            f"outputs: found {found}, wanted {OUTPUT_NAME!r} and {UNKNOWN_NAME!r} once at most, or none for both"
        )
    if not names:
        return {OUTPUT_NAME: 0, UNKNOWN_NAME: 0}
    return {output.name: _classification_count(output) for output in request.outputs}


def _classification_count(output: pb.ModelInferRequest.InferRequestedOutputTensor) -> int:
    _refuse_shared_memory(output.parameters, name=output.name)
    if "classification" not in output.parameters:
        return 0
    if output.name != OUTPUT_NAME:
        raise InvalidRequestError(f"classification: found with {output.name!r}, wanted with {OUTPUT_NAME!r} alone")
    count = whole_number(output.parameters["classification"])
    if count is None or count < 1:
        raise InvalidRequestError("classification: wanted a positive int64_param, the number of labels")
    return count


def timeout_s(request: pb.ModelInferRequest) -> float | None:
    """Return the request parameter `timeout`, microseconds there, seconds here. Raises InvalidRequestError."""
    if "timeout" not in request.parameters:
        return None
    microseconds = whole_number(request.parameters["timeout"])
    if microseconds is None or microseconds < 0:
        raise InvalidRequestError("timeout: wanted a positive int64_param, in microseconds")
    return microseconds / 1e6 or None  # 0 is the protocol's "no timeout"


def whole_number(parameter: pb.InferParameter) -> int | None:
    """Return what an integer parameter holds; None where it holds something else."""
    kind = parameter.WhichOneof("parameter_choice")
    if kind == "int64_param":
        return parameter.int64_param
    return parameter.uint64_param if kind == "uint64_param" else None


def join(elements: Iterable[bytes]) -> bytes:
    """Return the raw contents of a BYTES tensor: each element after its length, four bytes little-endian."""
    return b"".join(part for element in elements for part in (_LENGTH.pack(len(element)), element))


def _refuse_shared_memory(parameters: Mapping[str, pb.InferParameter], *, name: str) -> None:
    if _SHARED_MEMORY in parameters:
        raise InvalidRequestError(f"{name}: shared memory is not served here; send and receive the contents")


def _checked_shape(tensor: pb.ModelInferRequest.InferInputTensor, *, max_images: int) -> Sequence[int]:
    shape = list(tensor.shape[:5])
    fits = {
        "BYTES": len(shape) == 1 or (len(shape) == 2 and shape[1] == 1),
        "UINT8": len(shape) == 4 and shape[3] == 3,
    }
    if tensor.datatype not in fits:
        raise InvalidRequestError(f"{INPUT_NAME}: found datatype {tensor.datatype[:16]!r}, wanted BYTES or UINT8")
    if not fits[tensor.datatype] or any(side < 1 for side in shape):
        wanted = _SHAPES[tensor.datatype]
        raise InvalidRequestError(f"{INPUT_NAME}: found shape {shape} of {tensor.datatype}, wanted {wanted}")
    if shape[0] > max_images:
        raise InvalidRequestError(
            f"{INPUT_NAME}: found {shape[0]} pictures, wanted at most {max_images}; send several requests"
        )
    return shape


def _raw_contents(request: pb.ModelInferRequest, tensor: pb.ModelInferRequest.InferInputTensor) -> bytes | None:
    """Return the raw contents of the only input, or None where they are typed."""
    if not request.raw_input_contents:
        return None
    if len(request.raw_input_contents) != 1:
        raise InvalidRequestError(f"raw_input_contents: found {len(request.raw_input_contents)}, wanted one an input")
    if tensor.HasField("contents"):
        raise InvalidRequestError(f"{INPUT_NAME}: found contents beside raw_input_contents, wanted one of them")
    return request.raw_input_contents[0]


def _split(raw: bytes, *, count: int) -> list[bytes]:
    """Return the `count` elements of a BYTES tensor. Raises InvalidRequestError where lengths and bytes disagree."""
    elements, offset = [], 0
    for place in range(count):
        left = len(raw) - offset - _LENGTH.size
        length = _LENGTH.unpack_from(raw, offset)[0] if left >= 0 else 0
        if length > left:
            raise InvalidRequestError(
                f"{INPUT_NAME}[{place}]: the bytes end before the element does; each is its length, four bytes "
                "little-endian, and itself"
            )
        offset += _LENGTH.size
        elements.append(raw[offset : offset + length])
        offset += length
    if offset != len(raw):
        raise InvalidRequestError(f"{INPUT_NAME}: found {len(raw) - offset} bytes after the last of {count} elements")
    return elements


def _bytes_of_uint8(
    tensor: pb.ModelInferRequest.InferInputTensor, raw: bytes | None, *, size: int
) -> NDArray[np.uint8]:
    """Return the (size,) values of a UINT8 tensor. Raises InvalidRequestError where there are more or fewer."""
    values = tensor.contents.uint_contents
    found = len(values) if raw is None else len(raw)
    if found != size:
        raise InvalidRequestError(f"{INPUT_NAME}: found {found} bytes, its shape says {size}")
    if raw is not None:
        return np.frombuffer(raw, dtype=np.uint8)
    numbers = np.asarray(values, dtype=np.uint32)  # not uint8 at once: that would wrap what is larger
    if numbers.max() > 255:
        raise InvalidRequestError(f"{INPUT_NAME}: found {numbers.max()}, wanted UINT8, at most 255")
    return numbers.astype(np.uint8)
