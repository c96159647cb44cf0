"""An ONNX network without training: normalise, the layers under test, then the mean colour as logits."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import NodeProto, TensorProto, helper, numpy_helper

from bundle.contract import CONTRACT_KEY, IMAGES, LOGITS, SIMILARITY, Contract, contract_to_json
from bundle.preprocess import PreprocessSpec

LABELS = ("blue", "green", "red")
SIDE = 32
CONTRACT = Contract(
    name="m",
    version=1,
    labels=LABELS,
    preprocess=PreprocessSpec(resize_px=36, crop_px=SIDE),
    mean=(0.5,) * 3,
    std=(0.5,) * 3,
    unknown_below=-1.0,
)
NORMAL = "normal"  # what the first layer reads: float32 (N, 3, SIDE, SIDE), about -1..1


def write_colour_graph(
    path: Path,
    contract: Contract,
    layers: Sequence[NodeProto],
    constants: Mapping[str, ArrayLike],
    *,
    mean: float,
    channels: int = 3,
) -> Path:
    """Write the graph; `layers` read NORMAL, and the last of them ends in `channels`, the first three red, green, blue.

    `mean`, in grey levels, is subtracted from all three.
    """
    head, bank = np.zeros((channels, 3), np.float32), np.zeros((channels, 1), np.float32)
    head[:3], bank[:3] = 20 * np.eye(3)[:, ::-1], 0.1
    values = {
        "mean": np.full((1, 3, 1, 1), mean, np.float32),
        "scale": np.float32(1 / 127.5),
        **constants,
        "head": head,
        "bank": bank,
        "last": np.array([1]),
    }
    nodes = [
        helper.make_node("Transpose", [IMAGES.name], ["planes"], "transpose", perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["planes"], ["floats"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Sub", ["floats", "mean"], ["centred"], "sub"),
        helper.make_node("Mul", ["centred", "scale"], [NORMAL], "mul"),
        *layers,
        helper.make_node("GlobalAveragePool", [layers[-1].output[0]], ["pooled"], "pool"),
        helper.make_node("Flatten", ["pooled"], ["features"], "flatten"),
        helper.make_node("Gemm", ["features", "head"], [LOGITS.name], "gemm"),
        helper.make_node("MatMul", ["features", "bank"], ["likeness"], "matmul"),
        helper.make_node("Squeeze", ["likeness", "last"], [SIMILARITY.name], "squeeze"),
    ]
    made = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info(IMAGES.name, TensorProto.UINT8, ["N", SIDE, SIDE, 3])],
        [
            helper.make_tensor_value_info(LOGITS.name, TensorProto.FLOAT, ["N", 3]),
            helper.make_tensor_value_info(SIMILARITY.name, TensorProto.FLOAT, ["N"]),
        ],
        [numpy_helper.from_array(np.asarray(value), key) for key, value in values.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {CONTRACT_KEY: contract_to_json(contract)})
    onnx.save(model, path)
    return path
