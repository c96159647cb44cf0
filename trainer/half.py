"""Write an fp32 ONNX graph with float16 weights and arithmetic, for GPUs, and rehearse it where there is none.

onnxruntime's CPU provider computes float16 graphs in float32 and drops the roundings between layers: a value beyond
65504, infinite on a GPU, passes there unseen (1.32). So a rehearsal judges: the same graph in float32, with every value
between layers rounded to float16 by a pair of casts, which onnxruntime leaves in place.

What stands before the first layer with weights stays float32: the mean of ImageNet's red, 123.675, is 123.6875 in
float16. So does what makes the similarity alone, which takes no time. Ends, contract and opset are those of the fp32
file.
"""

import itertools
import tempfile
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from bundle.contract import Contract
from bundle.errors import BundleError
from bundle.runtime import Output, joined, open_session, run_session
from trainer.data import Picture
from trainer.errors import QuantizationError
from trainer.int8_trials import Examination
from trainer.onnx_graph import WEIGHTED, bank_nodes, save
from trainer.quantize import library

FP16_FILE: Final = "model.fp16.onnx"
LARGEST: Final = float(np.finfo(np.float16).max)


def add_half(graph: Path, target: Path, *, contract: Contract, pictures: tuple[Picture, ...]) -> str:
    """Write `target` where its rehearsal is as right as fp32 on labelled pictures; return what came of it, or why not.

    The rule is INT8's, `trainer.agreement`.
    """
    try:
        write_half(graph, target, contract)
        with tempfile.TemporaryDirectory(prefix="calotype-fp16-") as scratch:
            rehearsed = Path(scratch) / FP16_FILE
            rehearsed.write_bytes(rehearsal(target))
            likeness = Examination(pictures, graph, contract=contract).likeness(rehearsed)
    except (QuantizationError, BundleError) as error:  # fp32 is whole and proved on its own
        target.unlink(missing_ok=True)
        return f"fp16 left out: {error}"
    if likeness.objection:
        target.unlink()
        return f"fp16 left out: its rehearsal on {likeness.picture_count} pictures: {likeness.objection}"
    sizes = " for ".join(f"{path.stat().st_size / 1e6:.1f} MB" for path in (target, graph))
    return f"fp16 added, for GPUs: {sizes}, {likeness.agreement:.1%} of its rehearsal's answers as fp32's"


def write_half(graph: Path, target: Path, contract: Contract) -> None:
    """Write the fp16 form of an fp32 file, and let onnx check it. Equal files give equal bytes.

    Raises QuantizationError for a graph that the converter cannot write, and where a weight is larger than float16 can
    hold: it would be clamped.
    """
    with library("float16"):
        half = _converted(onnx.load(graph))
    _check_weights(half)
    with library("float16"):
        save(half, contract, target)


def rehearsal(path: Path) -> bytes:
    """Return an fp16 file's graph in float32, each value that is float16 there rounded to it."""
    half = onnx.load(path)
    typed = onnx.shape_inference.infer_shapes(half, strict_mode=True).graph.value_info
    narrow = {value.name for value in typed if value.type.tensor_type.elem_type == TensorProto.FLOAT16}
    for tensor in half.graph.initializer:
        _widen(tensor)
    nodes = []
    for node in half.graph.node:
        for attribute in node.attribute:
            _widen(attribute.t)
            if node.op_type == "Cast" and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.FLOAT
        nodes.append(node)
        for place, name in enumerate(node.output):
            if name in narrow:
                node.output[place] = f"{name} unrounded"
                nodes.append(helper.make_node("Cast", [f"{name} unrounded"], [f"{name} half"], to=TensorProto.FLOAT16))
                nodes.append(helper.make_node("Cast", [f"{name} half"], [name], to=TensorProto.FLOAT))
    del half.graph.node[:]
    half.graph.node.extend(nodes)
    return half.SerializeToString()


def rehearsal_deviation(path: Path, images: NDArray[np.uint8]) -> tuple[Output, Output]:
    """Return what an fp16 file says of pictures on this CPU, which rounds its weights alone, and its rehearsal."""
    answers = []
    for data in (path.read_bytes(), rehearsal(path)):
        session = open_session(data, path, intra_op_threads=1)
        answers.append(joined([run_session(session, image[np.newaxis]) for image in images]))
    return answers[0], answers[1]


def _converted(proto: onnx.ModelProto) -> onnx.ModelProto:
    del proto.graph.value_info[:]  # the exporter types weights there too; the converter would take all for float16
    before = {node.name for node in itertools.takewhile(lambda node: node.op_type not in WEIGHTED, proto.graph.node)}
    narrowed = convert_float_to_float16(proto, keep_io_types=True, node_block_list=sorted(before | bank_nodes(proto)))
    model = OnnxModel(narrowed)
    model.disable_shape_inference()  # it fails on these graphs, and prints so; casts to the same type show without it
    model.remove_cascaded_cast_nodes()
    model.remove_useless_cast_nodes()
    model.topological_sort(is_deterministic=True)
    half: onnx.ModelProto = model.model
    del half.graph.value_info[:]
    return half


def _check_weights(half: onnx.ModelProto) -> None:
    for tensor in half.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16 and np.abs(numpy_helper.to_array(tensor)).max(initial=0) >= LARGEST:
            raise QuantizationError(f"weights of {tensor.name!r} go beyond {LARGEST:g}, where float16 ends")


def _widen(tensor: TensorProto) -> None:
    if tensor.data_type == TensorProto.FLOAT16:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
