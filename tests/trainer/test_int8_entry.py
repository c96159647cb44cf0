"""Eight bits are eight bits: where it can be, pixels enter the first integer convolution as they are."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import helper

from bundle.contract import IMAGES, LOGITS, Contract
from trainer import quantize
from trainer.int8_entry import find_entry, take_shift
from trainer.quantize import NumberTypes, Quantizer, Recipe

from .colour_graph import CONTRACT, NORMAL, SIDE, write_colour_graph

RECIPE = Recipe(method="minmax", per_channel=True)
EDGES = np.random.default_rng(0).normal(size=(3, 3, 3, 3)).astype(np.float32) / 9


def written(folder: Path, contract: Contract = CONTRACT, recipe: Recipe = RECIPE) -> tuple[Path, Path]:
    """The fp32 graph and its INT8 form; 3 x 3 convolutions with a border, calibrated on greys of all levels."""
    layers = [
        helper.make_node("Conv", [NORMAL, "w", "b"], ["y"], "conv0", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["y", "v", "b"], ["x"], "conv1", pads=[1, 1, 1, 1]),
    ]
    constants = {"w": EDGES, "v": EDGES[::-1].copy(), "b": np.zeros(3, np.float32)}
    graph = write_colour_graph(folder / "fp32.onnx", contract, layers, constants, mean=127.5)
    Quantizer(graph, folder, contract=contract, pictures=pixels()).write(recipe, folder / "int8.onnx")
    return graph, folder / "int8.onnx"


def pixels() -> NDArray[np.uint8]:
    """(16, SIDE, SIDE, 3), all levels, the ends among them."""
    made = np.random.default_rng(1).integers(0, 256, (16, SIDE, SIDE, 3), dtype=np.uint8)
    made[0], made[1] = 0, 255
    return made


def first_steps(path: Path) -> list[str]:
    """The kinds of nodes between the pictures and the first convolution."""
    model, kinds = onnx.load(path), list[str]()
    node = next(node for node in model.graph.node if IMAGES.name in node.input)
    while node.op_type != "Conv":
        kinds.append(node.op_type)
        node = next(other for other in model.graph.node if node.output[0] in other.input)
    return kinds


def logits(path: Path, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    found: NDArray[np.float32] = session.run([LOGITS.name], {IMAGES.name: images})[0]
    return found


def test_pixels_are_the_quantised_input(tmp_path: Path) -> None:
    """Nothing is computed on them."""
    fp32, int8 = written(tmp_path)
    assert first_steps(int8) == ["Transpose", "DequantizeLinear"]
    wanted = logits(fp32, pixels())
    assert np.abs(logits(int8, pixels()) - wanted).max() < 0.02 * np.ptp(wanted)


def test_what_a_whole_zero_point_loses_goes_into_the_bias(tmp_path: Path) -> None:
    """255 x 0.5 is no whole number: pixels lie half a level off, and every sum by that of its weights."""
    graph, _ = written(tmp_path)
    model = onnx.load(graph)
    entry = find_entry(model, CONTRACT)
    assert entry
    levels = np.arange(256)
    assert entry.scale * (levels - entry.zero_point) + entry.shift == pytest.approx((levels / 255 - 0.5) / 0.5)
    take_shift(model, entry)
    (bias,) = (onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name == "b")
    assert entry.shift == pytest.approx(1 / 255)
    assert bias == pytest.approx(EDGES.sum((1, 2, 3)) / 255)


@pytest.mark.parametrize("changes", [{"mean": (0.5, 0.4, 0.5)}, {"std": (0.5, 0.5, 0.2)}])
def test_channels_that_differ_are_normalised_in_float(tmp_path: Path, changes: dict[str, tuple[float, ...]]) -> None:
    """One scale cannot stand for three."""
    _, int8 = written(tmp_path, replace(CONTRACT, **changes))
    assert first_steps(int8) == ["Transpose", "Cast", "Sub", "Mul", "QuantizeLinear", "DequantizeLinear"]


def test_a_first_layer_that_stays_float_reads_floats(tmp_path: Path) -> None:
    """And the same Quantizer writes both."""
    fp32, int8 = written(tmp_path, recipe=replace(RECIPE, float_blocks=(0,)))
    assert first_steps(int8) == ["Transpose", "Cast", "Sub", "Mul"]
    wanted = logits(fp32, pixels())
    assert np.abs(logits(int8, pixels()) - wanted).max() < 0.02 * np.ptp(wanted)


def test_signed_activations_keep_the_normalisation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels are unsigned."""
    types = NumberTypes(activation=quantize.QuantType.QInt8)
    monkeypatch.setattr(quantize, "own_number_types", lambda: types)
    _, int8 = written(tmp_path)
    assert first_steps(int8)[1:4] == ["Cast", "Sub", "Mul"]
