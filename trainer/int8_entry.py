"""The way from uint8 pictures into a network of integer convolutions: what normalisation becomes there.

Pixels have eight bits already. Where all channels share mean and std, as in EfficientNet-Lite, the pixels are the
quantised input themselves: scale 1 / (255 std), zero point 255 mean. Else normalisation stays in float, made cheap.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from bundle.contract import IMAGES, Contract
from trainer.onnx_graph import WEIGHTED

_NORMALISING: Final = ("Cast", "Sub", "Mul", "Add", "Div")
_LEVELS: Final = 255


@dataclass(frozen=True, kw_only=True)
class PixelEntry:
    """The place where pixels may enter the first convolution as they are."""

    planes: str  # uint8 (N, 3, H, W)
    normalised: str  # the same as float32, which only `convolution` reads
    between: tuple[str, ...]  # the nodes from one to the other
    convolution: str
    scale: float
    zero_point: int  # the nearest to 255 mean
    shift: float  # what is lost by that rounding: normalised - scale (pixel - zero_point), equal for every pixel

    def overrides(self) -> dict[str, list[dict[str, NDArray[np.generic]]]]:
        """Return onnxruntime's TensorQuantOverrides."""
        scale, zero_point = np.array([self.scale], np.float32), np.array([self.zero_point], np.uint8)
        return {self.normalised: [{"scale": scale, "zero_point": zero_point}]}


def find_entry(model: onnx.ModelProto, contract: Contract) -> PixelEntry | None:
    """Return where pixels may enter, or nothing where channels differ or no convolution with a bias comes first."""
    (mean, *other_means), (std, *other_stds) = contract.mean, contract.std
    first = next((node for node in model.graph.node if node.op_type in WEIGHTED), None)
    constants = {tensor.name for tensor in model.graph.initializer}
    if {mean, *other_means} != {mean} or {std, *other_stds} != {std}:
        return None
    if first is None or first.op_type != "Conv" or len(first.input) < 3 or not constants.issuperset(first.input[1:]):
        return None
    makers = {output: node for node in model.graph.node for output in node.output}
    tensor, between = first.input[0], list[str]()
    while (maker := makers.get(tensor)) is not None and maker.op_type in _NORMALISING:
        between.append(maker.name)
        readers = sum(list(node.input).count(tensor) for node in model.graph.node)
        tensor, *others = [name for name in maker.input if name not in constants]
        if others or readers != 1:
            return None
    if maker is None or maker.op_type != "Transpose" or list(maker.input) != [IMAGES.name]:
        return None
    scale, zero_point = 1 / (_LEVELS * std), round(_LEVELS * mean)
    return PixelEntry(
        planes=tensor,
        normalised=first.input[0],
        between=tuple(between),
        convolution=first.name,
        scale=scale,
        zero_point=zero_point,
        shift=scale * (zero_point - _LEVELS * mean),
    )


def take_shift(model: onnx.ModelProto, entry: PixelEntry) -> None:
    """Add to the first convolution's bias what `entry.shift` adds to each of its sums, except at padded borders."""
    first = next(node for node in model.graph.node if node.name == entry.convolution)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    weight, bias = (numpy_helper.to_array(constants[name]) for name in first.input[1:3])
    moved = (bias + entry.shift * weight.sum(axis=(1, 2, 3))).astype(np.float32)
    constants[first.input[2]].CopyFrom(numpy_helper.from_array(moved, first.input[2]))


def let_pixels_in(model: onnx.ModelProto, entry: PixelEntry) -> None:
    """Replace normalising and quantising by the pixels themselves, in a graph that was quantised with `overrides`."""
    graph = model.graph
    (quantising,) = (
        node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] == entry.normalised
    )
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] == quantising.output[0]:
            node.input[0] = entry.planes
    for node in [quantising, *(node for node in graph.node if node.name in entry.between)]:
        graph.node.remove(node)
    used = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)


def widen_normalisation(model: onnx.ModelProto) -> None:
    """Repeat mean and scale (1, 3, 1, 1) along the width: (1, 3, 1, W).

    Beside integer convolutions onnxruntime keeps pictures as NHWC, where numbers that change every third element cost
    0.5 ms a step at 224 px, and whole rows of them 0.04 ms.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    known = {value.name: value for value in (*model.graph.value_info, *model.graph.input)}
    width = model.graph.input[0].type.tensor_type.shape.dim[2].dim_value  # (N, H, W, 3)
    for node in model.graph.node:
        if node.op_type in WEIGHTED:
            return
        for name in node.input if node.op_type in ("Add", "Div", "Mul", "Sub") else ():
            if name in constants and list(constants[name].dims) == [1, 3, 1, 1]:
                wide = np.broadcast_to(numpy_helper.to_array(constants[name]), (1, 3, 1, width))
                constants[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(wide), name))
                if name in known:
                    known[name].type.tensor_type.shape.dim[3].dim_value = width
