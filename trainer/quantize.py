"""Write an fp32 ONNX graph in INT8: static QDQ by onnxruntime.quantization, calibrated on training pictures.

One graph, many recipes; which of them is worth keeping is decided in `int8_search`. What stands before the first
layer with weights is the business of `int8_entry`. The logits stay float: eight bits would round them to 256 levels
and the calibrated probabilities with them.
"""

import contextlib
import io
import math
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationMethod,
    QDQQuantizer,
    QuantType,
    TensorsData,
    create_calibrator,
    quant_pre_process,
)

from bundle.contract import CONTRACT_KEY, IMAGES, Contract, contract_to_json
from bundle.runtime import Output, joined, run_session
from trainer.errors import QuantizationError
from trainer.int8_entry import find_entry, let_pixels_in, take_shift, widen_normalisation
from trainer.onnx_graph import WEIGHTED, bank_nodes

Method = Literal["minmax", "percentile", "entropy"]
MAX_BLOCKS: Final = 25  # of consecutive layers, as fine as sensitivity is measured
PICTURES: Final[dict[Method, int]] = {"minmax": 128, "percentile": 32, "entropy": 16}  # histograms are slow
_METHODS: Final = {
    "minmax": (CalibrationMethod.MinMax, {}),
    # asymmetric, or half of the range behind a ReLU would go to values that never come
    "percentile": (CalibrationMethod.Percentile, {"symmetric": False, "percentile": 99.99}),
    "entropy": (CalibrationMethod.Entropy, {}),
}
_QUANTISED: Final = (
    *WEIGHTED,
    *("Add", "AveragePool", "Clip", "Concat", "Flatten", "GlobalAveragePool", "LeakyRelu", "MaxPool", "Mul"),
    *("Relu", "Reshape", "Sigmoid", "Split", "Transpose"),
)
_CPUINFO: Final = Path("/proc/cpuinfo")
_INT8_DOT_FLAGS: Final = {"avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8"}


@dataclass(frozen=True, kw_only=True)
class NumberTypes:
    """Which integers suit a CPU."""

    activation: QuantType
    weight: QuantType = QuantType.QInt8
    reduce_range: bool = False  # 7-bit weights


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What one candidate is made of."""

    method: Method
    per_channel: bool
    float_blocks: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """Short enough for a table."""
        grain = "per channel" if self.per_channel else "per tensor"
        count = len(self.float_blocks)
        blocks = "first block" if self.float_blocks == (0,) else f"{count} block{'s' * (count > 1)}"
        kept = f", {blocks} float" if count else ""
        return f"{self.method} {grain}{kept}"


def number_types(machine: str, cpu_flags: frozenset[str]) -> NumberTypes:
    """Return the types for a CPU, after onnxruntime's guidance in `quantize_static`.

    ARM has signed dot products. x86 multiplies u8 by s8; without VNNI or AMX the pairs are added in 16 bits, which
    saturate unless weights have 7.
    """
    if machine.lower() in ("aarch64", "arm64"):
        return NumberTypes(activation=QuantType.QInt8)
    return NumberTypes(activation=QuantType.QUInt8, reduce_range=not cpu_flags & _INT8_DOT_FLAGS)


def own_number_types() -> NumberTypes:
    """Return the types for this machine's CPU."""
    text = _CPUINFO.read_text(encoding="utf-8", errors="replace") if _CPUINFO.exists() else ""
    flags = next((line.partition(":")[2] for line in text.splitlines() if line.startswith("flags")), "")
    return number_types(platform.machine(), frozenset(flags.split()))


class Quantizer:
    """One fp32 graph, ready to be written by several recipes. Calibrates once a method."""

    def __init__(self, graph: Path, scratch: Path, *, contract: Contract, pictures: NDArray[np.uint8]) -> None:
        self._prepared = scratch / "prepared.onnx"
        self._scratch = scratch
        self._contract = contract
        self.pictures = pictures  # (N, H, W, 3), of the training side
        self._ranges: dict[Method, TensorsData] = {}
        self._types = own_number_types()
        # folds BatchNorm into convolutions, and infers the shapes without which a tensor is not quantised
        with library("int8"):
            quant_pre_process(graph, self._prepared, skip_symbolic_shape=True)
        prepared = onnx.load(self._prepared)
        # pixels are unsigned; signed activations (ARM) would put a conversion between
        self._entry = find_entry(prepared, contract) if self._types.activation is QuantType.QUInt8 else None
        widen_normalisation(prepared)
        onnx.save(prepared, self._prepared)
        self._kept, self.blocks = _blocks(prepared)

    def write(self, recipe: Recipe, path: Path) -> None:
        """Write one INT8 file, with the contract in its metadata, and check it. Raises QuantizationError."""
        with library("int8"):
            self._write(recipe, path)

    def _write(self, recipe: Recipe, path: Path) -> None:
        ranges = self.ranges(recipe.method)
        excluded = [*self._kept, *(name for block in recipe.float_blocks for name in self.blocks[block])]
        entry = self._entry if self._entry and self._entry.convolution not in excluded else None
        prepared = onnx.load(self._prepared)
        if entry:
            take_shift(prepared, entry)
        quantizer = QDQQuantizer(
            prepared,
            recipe.per_channel,
            self._types.reduce_range,
            self._types.weight,
            self._types.activation,
            ranges,
            [],
            excluded,
            list(_QUANTISED),
            {
                "OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"],
                "TensorQuantOverrides": entry.overrides() if entry else {},
            },
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()  # as its own saving does
        proto = quantizer.model.model
        if entry:
            let_pixels_in(proto, entry)
        used = {node.domain for node in proto.graph.node}
        kept = [opset for opset in proto.opset_import if opset.domain in used]
        del proto.opset_import[:], proto.metadata_props[:], proto.graph.value_info[:]
        proto.opset_import.extend(kept)  # the optimiser declares every domain that it knows
        proto.metadata_props.add(key=CONTRACT_KEY, value=contract_to_json(self._contract))
        onnx.save(proto, path)
        onnx.checker.check_model(path, full_check=True)

    def ranges(self, method: Method) -> TensorsData:
        """Return what each tensor ranges over, measured on the training pictures at the first call."""
        if method not in self._ranges:
            wanted, options = _METHODS[method]
            with contextlib.redirect_stdout(io.StringIO()):  # the library prints each step; stdout is for results
                calibrator = create_calibrator(
                    self._prepared,
                    _QUANTISED,
                    augmented_model_path=str(self._scratch / "augmented.onnx"),
                    calibrate_method=wanted,
                    extra_options=options,
                )
                for picture in self.pictures[: PICTURES[method]]:
                    calibrator.collect_data(_Reader(picture))  # one by one, or every activation is held at once
                self._ranges[method] = calibrator.compute_data()
        return self._ranges[method]


def kernel_deviation(path: Path, images: NDArray[np.uint8]) -> tuple[Output, Output]:
    """Return what an INT8 file says of pictures by this CPU's integer kernels, and by floats that only round like them.

    What another CPU's kernels may answer lies about as far away: both round the same products at other places.
    """
    levels = (ort.GraphOptimizationLevel.ORT_ENABLE_ALL, ort.GraphOptimizationLevel.ORT_DISABLE_ALL)
    answers = []
    for level in levels:
        options = ort.SessionOptions()
        options.graph_optimization_level = level
        options.log_severity_level = 3
        session = ort.InferenceSession(path.read_bytes(), sess_options=options, providers=["CPUExecutionProvider"])
        answers.append(joined([run_session(session, image[np.newaxis]) for image in images]))
    return answers[0], answers[1]


@contextlib.contextmanager
def library(form: str) -> Iterator[None]:
    """Turn what the libraries that rewrite a graph raise into QuantizationError; `form` names the numbers."""
    try:
        yield
    except Exception as error:  # onnx, onnxruntime and its tools raise a dozen types, all meaning this graph
        reason = str(error).splitlines()[0]
        raise QuantizationError(f"onnxruntime cannot write this graph in {form}: {reason}") from error


class _Reader:
    """What a calibrator reads: one picture, then the end."""

    def __init__(self, picture: NDArray[np.uint8]) -> None:
        self._batches: Iterator[dict[str, NDArray[np.uint8]]] = iter([{IMAGES.name: picture[np.newaxis]}])

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        return next(self._batches, None)


def _blocks(model: onnx.ModelProto) -> tuple[list[str], list[list[str]]]:
    """Return the names of the nodes that stay float, and of the rest in at most MAX_BLOCKS blocks.

    Float are those before the first weights, and those that make the similarity alone: the bank. A block is a run of
    consecutive layers with weights, each with what stands between it and the next.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    bank = bank_nodes(model)
    kept: list[str] = []
    layers: list[list[str]] = []
    for node in model.graph.node:  # in topological order
        if node.op_type in WEIGHTED and constants & set(node.input) and node.name not in bank:
            layers.append([])
        (layers[-1] if layers and node.name not in bank else kept).append(node.name)
    size = max(1, math.ceil(len(layers) / MAX_BLOCKS))
    runs = [layers[start : start + size] for start in range(0, len(layers), size)]
    return kept, [[name for layer in run for name in layer] for run in runs]
