"""A bundle without torch: the mean colour of a picture decides between red, green and blue; white is none."""

import hashlib
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16
from PIL import Image

from bundle import golden
from bundle.contract import CONTRACT_KEY, Contract, contract_to_json
from bundle.manifest import GoldenPicture, Manifest, Provenance, Variant
from bundle.preprocess import PreprocessSpec
from bundle.repository import GOLDEN_FOLDER, load_bundle, new_version, write_manifest
from bundle.runtime import open_model

LABELS = ("blue", "green", "red")
COLOURS = {"red": (250, 20, 20), "green": (20, 250, 20), "blue": (20, 20, 250)}
CROP_PX = 24


def picture(label: str, *, size=(48, 40), file_format="PNG") -> bytes:
    """Return an encoded picture: its middle in the label's colour, its border of another."""
    image = Image.new("RGB", size, (90, 60, 160))
    image.paste(COLOURS[label], (8, 6, size[0] - 8, size[1] - 6))
    out = BytesIO()
    image.save(out, file_format)
    return out.getvalue()


def foreign() -> bytes:
    """Return an encoded picture of something else: it is white."""
    out = BytesIO()
    Image.new("RGB", (48, 40), "white").save(out, "PNG")
    return out.getvalue()


def write(models: Path, *, name="colours", scale=1.0, mean=0.5, ballast_bytes=0, is_mixed=False) -> Path:
    """Write the next version; return its folder.

    The ballast is weights that change no answer; `is_mixed` answers each picture by the darkest of its batch.
    """
    with new_version(models, name) as (folder, version):
        contract = Contract(
            name=name,
            version=version,
            labels=LABELS,
            preprocess=PreprocessSpec(resize_px=32, crop_px=CROP_PX),
            mean=(mean,) * 3,
            std=(0.5,) * 3,
            unknown_below=0.5,
        )
        model = graph(contract, scale=scale, ballast_bytes=ballast_bytes, is_mixed=is_mixed)
        (folder / "model.onnx").write_bytes(model)
        _write_parts(folder, contract, model)
    return models / name / str(version)


def graph(contract: Contract, *, scale: float, ballast_bytes: int = 0, is_mixed: bool = False) -> bytes:
    """Return uint8 NHWC -> cast -> mean over H, W -> normalise -> three logits, with the contract inside.

    The similarity is the cosine to the nearest of the three colours.
    """
    # (RGB, labels): unequal and small, or a shift of the mean would cancel in the softmax or drown in its saturation
    weights = scale * np.array([[0, 0, 1.4], [0, 2, 0], [3, 0, 0]], dtype=np.float32)
    constants = {
        "mean": np.array(contract.mean, dtype=np.float32) * 255,
        "std": np.array(contract.std, dtype=np.float32) * 255,
        "weights": weights,
        "axes": np.array([1, 2], dtype=np.int64),
        "bank": np.array([[2, -1, -1], [-1, 2, -1], [-1, -1, 2]], dtype=np.float32) / np.float32(6**0.5),
        "last": np.array([1], dtype=np.int64),
        "first": np.array([0], dtype=np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "axes"], ["own"], keepdims=0),
        helper.make_node("ReduceMin", ["own", "first"], ["least"], keepdims=1),
        helper.make_node("Min", ["own", "least" if is_mixed else "own"], ["colour"]),
        helper.make_node("Sub", ["colour", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "std"], ["scaled"]),
        helper.make_node("MatMul", ["scaled", "weights"], ["light" if ballast_bytes else "logits"]),
        helper.make_node("MatMul", ["scaled", "bank"], ["products"]),
        helper.make_node("ReduceMax", ["products", "last"], ["nearest"], keepdims=0),
        helper.make_node("ReduceL2", ["scaled", "last"], ["length"], keepdims=0),
        helper.make_node("Div", ["nearest", "length"], ["similarity"]),
    ]
    if ballast_bytes:
        constants["ballast"] = np.zeros((len(LABELS), ballast_bytes // 4 // len(LABELS)), dtype=np.float32)
        nodes += [  # a product with the input, or the optimiser would fold it away
            helper.make_node("MatMul", ["light", "ballast"], ["heavy"]),
            helper.make_node("ReduceMax", ["heavy", "last"], ["nothing"], keepdims=1),
            helper.make_node("Add", ["light", "nothing"], ["logits"]),
        ]
    made = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", CROP_PX, CROP_PX, 3])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", len(LABELS)]),
            helper.make_tensor_value_info("similarity", TensorProto.FLOAT, ["N"]),
        ],
        [numpy_helper.from_array(value, key) for key, value in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {CONTRACT_KEY: contract_to_json(contract)})
    return model.SerializeToString()


def add_variant(folder: Path, precision: str, *, scale=1.0) -> None:
    """Add an int8 variant, floats in truth, or an fp16 one; with another scale its golden answers are a lie."""
    manifest, tolerance = load_bundle(folder).manifest, 1e-4
    data = graph(manifest.contract, scale=scale)
    if precision == "fp16":
        data, tolerance = (
            convert_float_to_float16(onnx.load_from_string(data), keep_io_types=True).SerializeToString(),
            0.02,
        )
    (folder / f"model.{precision}.onnx").write_bytes(data)
    added = replace(
        manifest.variant("fp32"),
        precision=precision,
        file=f"model.{precision}.onnx",
        sha256=_sha256(data),
        tolerance=tolerance,
        logit_tolerance=tolerance,
        similarity_tolerance=tolerance,
    )
    write_manifest(folder, replace(manifest, variants=(*manifest.variants, added)))


def change_constant(folder: Path, name: str, factor: float) -> None:
    """Scale a constant in the graph and sign the file anew: only the golden pictures can tell."""
    path = folder / "model.onnx"
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), name))
    data = model.SerializeToString()
    path.write_bytes(data)
    manifest = load_bundle(folder).manifest
    (variant,) = manifest.variants
    write_manifest(folder, replace(manifest, variants=(replace(variant, sha256=_sha256(data)),)))


def change_contract(folder: Path, **changes: object) -> None:
    """Change the contract in bundle.json alone."""
    manifest = load_bundle(folder).manifest
    write_manifest(folder, replace(manifest, contract=replace(manifest.contract, **changes)))


def _write_parts(folder: Path, contract: Contract, model: bytes) -> None:
    (folder / GOLDEN_FOLDER).mkdir()
    pictures = {label: picture(label) for label in LABELS}
    for label, data in pictures.items():
        (folder / GOLDEN_FOLDER / f"{label}.png").write_bytes(data)
    unproved = Manifest(
        contract=contract,
        created="2026-01-01T00:00:00Z",
        variants=(_variant(model),),
        twins=(),
        golden=tuple(
            GoldenPicture(file=f"{label}.png", sha256=_sha256(data), label=label) for label, data in pictures.items()
        ),
        metrics={},
        provenance=Provenance(
            backbone="mean colour",
            weights="none",
            weights_licence="none",
            data_fingerprint="0" * 64,
            split="none",
            seed=0,
            libraries={},
        ),
    )
    write_manifest(folder, unproved)
    output = golden.answers(open_model(load_bundle(folder)), list(pictures.values()), contract.preprocess)
    proved = replace(
        unproved.variants[0],
        golden_logits=tuple(tuple(float(value) for value in row) for row in output.logits),
        golden_similarity=tuple(float(value) for value in output.similarity),
    )
    write_manifest(folder, replace(unproved, variants=(proved,)))


def _variant(model: bytes) -> Variant:
    """Return a variant whose golden answers are still to be asked for."""
    return Variant(
        precision="fp32",
        file="model.onnx",
        sha256=_sha256(model),
        golden_logits=((0.0,) * len(LABELS),) * len(LABELS),
        golden_similarity=(0.0,) * len(LABELS),
        tolerance=1e-4,
        logit_tolerance=1e-4,
        similarity_tolerance=1e-4,
    )


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
