"""A bundle small enough to compute by hand: its graph looks at nothing but the mean brightness of the crop.

With brightness m (0 black, 1 white) and C labels, logit i is w_i * (m - 1/2), w evenly spaced from -steepness to
+steepness: with two labels and steepness 8, black gets (4, -4) and white (-4, 4). The similarity is |2 m - 1|: black
and white are known, grey is unlike anything. Needs onnx, not torch.
"""

import hashlib
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from bundle.contract import CONTRACT_KEY, IMAGES, LOGITS, SIMILARITY, Contract, contract_to_json
from bundle.manifest import Candidate, GoldenPicture, Interval, Manifest, Precision, Provenance, Twin, Variant
from bundle.preprocess import PreprocessSpec, load_input
from bundle.repository import GOLDEN_FOLDER, Bundle, load_bundle, new_version, write_manifest

SPEC = PreprocessSpec(resize_px=8, crop_px=4)
STEEPNESS = 8.0
MODEL_FILE = "model.onnx"


def png(picture: Image.Image) -> bytes:
    """Return a picture as PNG bytes."""
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def golden_files() -> dict[str, bytes]:
    """Return black, white, and a black 4 x 4 px centre in a white 8 x 8 px frame: only the crop decides the last."""
    framed = Image.new("RGB", (8, 8), "white")
    framed.paste("black", (2, 2, 6, 6))
    return {
        "black.png": png(Image.new("RGB", (8, 8), "black")),
        "white.png": png(Image.new("RGB", (8, 8), "white")),
        "framed.png": png(framed),
    }


def weights(class_count: int, *, steepness: float = STEEPNESS) -> np.ndarray:
    """Return (1, C) float32, evenly spaced from -steepness to +steepness."""
    return np.linspace(-steepness, steepness, class_count, dtype=np.float32)[np.newaxis]


def expected_logits(data: bytes, contract: Contract, *, steepness: float = STEEPNESS) -> tuple[float, ...]:
    """Return one encoded picture's logits, computed without onnxruntime."""
    brightness = load_input(data, contract.preprocess).mean() / 255
    return tuple(float(logit) for logit in weights(len(contract.labels), steepness=steepness)[0] * (brightness - 0.5))


def expected_similarity(data: bytes, contract: Contract) -> float:
    """Return one encoded picture's similarity, computed without onnxruntime."""
    return float(abs(load_input(data, contract.preprocess).mean() / 127.5 - 1))


def graph(
    contract: Contract,
    *,
    steepness: float = STEEPNESS,
    batch: str | int = "batch",
    crop_px: int | None = None,
    class_count: int | None = None,
    output_name: str = LOGITS.name,
    bank: float = 1.0,
    similarity_name: str = SIMILARITY.name,
    similarity_rank: int = 1,
    embedded: str | None = None,
    is_mixed: bool = False,
) -> bytes:
    """Return ONNX bytes for a contract; the options make graphs that contradict it. `embedded=""` embeds nothing.

    `is_mixed`: each picture is answered as the darkest of its batch.
    """
    crop_px, class_count = crop_px or contract.preprocess.crop_px, class_count or len(contract.labels)
    weight = weights(class_count, steepness=steepness)
    constants = {"axes": np.array([1, 2, 3]), "weight": weight / 255, "bias": -weight[0] / 2}
    constants |= {"middle": np.float32(127.5), "bank": np.float32(bank / 127.5), "column": np.array([1])}
    constants |= {"row": np.array([0])}
    model = helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Cast", [IMAGES.name], ["samples"], to=TensorProto.FLOAT),
                helper.make_node("ReduceMean", ["samples", "axes"], ["cube"], keepdims=1),
                helper.make_node("Flatten", ["cube"], ["own"]),  # (N, 1, 1, 1) -> (N, 1)
                helper.make_node("ReduceMin", ["own", "row"], ["least"], keepdims=1),
                helper.make_node("Min", ["own", "least" if is_mixed else "own"], ["mean"]),
                helper.make_node("Gemm", ["mean", "weight", "bias"], [output_name]),
                helper.make_node("Sub", ["mean", "middle"], ["centred"]),
                helper.make_node("Mul", ["centred", "bank"], ["signed"]),
                helper.make_node("ReduceMax", ["signed", "column"], ["flat"], keepdims=similarity_rank - 1),
                helper.make_node("Abs", ["flat"], [similarity_name]),
            ],
            "brightness",
            [helper.make_tensor_value_info(IMAGES.name, TensorProto.UINT8, [batch, crop_px, crop_px, 3])],
            [
                helper.make_tensor_value_info(output_name, TensorProto.FLOAT, [batch, class_count]),
                helper.make_tensor_value_info(similarity_name, TensorProto.FLOAT, [batch, 1][:similarity_rank]),
            ],
            [numpy_helper.from_array(array, key) for key, array in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    text = contract_to_json(contract) if embedded is None else embedded
    helper.set_model_props(model, {CONTRACT_KEY: text} if text else {})
    onnx.checker.check_model(model)
    return model.SerializeToString()


def make_contract(
    *,
    name: str = "tiny",
    version: int = 1,
    labels: tuple[str, ...] = ("dark", "light"),
    spec: PreprocessSpec = SPEC,
    temperature: float = 1.0,
) -> Contract:
    """Return the tiny graph's contract."""
    return Contract(
        name=name,
        version=version,
        labels=labels,
        preprocess=spec,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        temperature=temperature,
        unknown_below=0.5,
    )


def make_manifest(
    contract: Contract, *, model: bytes = b"", tolerance: float = 1e-3, logit_tolerance: float = 1e-2
) -> Manifest:
    """Return a whole manifest over the golden files, their logits computed by hand."""
    pictures = golden_files()
    return Manifest(
        contract=contract,
        created="2026-01-01T00:00:00Z",
        variants=(
            Variant(
                precision="fp32",
                file=MODEL_FILE,
                sha256=hashlib.sha256(model).hexdigest(),
                golden_logits=tuple(expected_logits(data, contract) for data in pictures.values()),
                golden_similarity=tuple(expected_similarity(data, contract) for data in pictures.values()),
                tolerance=tolerance,
                logit_tolerance=logit_tolerance,
                similarity_tolerance=1e-3,
                accuracy=Interval(value=1.0, low=0.9, high=1.0),
            ),
        ),
        twins=(Twin(runtime="torchscript", file="model.pt", sha256="0" * 64),),
        golden=tuple(
            GoldenPicture(
                file=file,
                sha256=hashlib.sha256(data).hexdigest(),
                label=contract.labels[-1] if file == "white.png" else contract.labels[0],
            )
            for file, data in pictures.items()
        ),
        metrics={"top1": Interval(value=1.0, low=0.9, high=1.0)},
        provenance=Provenance(
            backbone="brightness",
            weights="by hand",
            weights_licence="CC0-1.0",
            data_fingerprint="0" * 64,
            split="none",
            seed=0,
            libraries={"onnx": onnx.__version__},
        ),
        candidates=tuple(
            Candidate(
                name=name,
                accuracy=Interval(value=1.0, low=0.9, high=1.0),
                agreement=1.0,
                latency_ms=2.0,
                latency_batch8_ms=16.0,
                size_bytes=1000,
                verdict=verdict,
            )
            for name, verdict in (("fp32", "reference"), ("minmax per channel", "not faster"))
        ),
    )


def make_bundle(
    models: Path,
    name: str = "tiny",
    labels: tuple[str, ...] = ("dark", "light"),
    *,
    spec: PreprocessSpec = SPEC,
    temperature: float = 1.0,
    twins: tuple[Twin, ...] | None = None,
) -> Bundle:
    """Write the next version of a tiny model below `models`, provable, and return it; its default twin is no file."""
    with new_version(models, name) as (folder, version):
        contract = make_contract(name=name, version=version, labels=labels, spec=spec, temperature=temperature)
        model = graph(contract)
        (folder / MODEL_FILE).write_bytes(model)
        (folder / GOLDEN_FOLDER).mkdir()
        for file, data in golden_files().items():
            (folder / GOLDEN_FOLDER / file).write_bytes(data)
        manifest = make_manifest(contract, model=model)
        write_manifest(folder, manifest if twins is None else replace(manifest, twins=twins))
    return load_bundle(models / name / str(version))


def add_variant(bundle: Bundle, precision: Precision, *, steepness: float = STEEPNESS) -> Bundle:
    """Add an int8 or fp16 variant, floats in truth; with another steepness its golden answers are a lie."""
    contract, manifest = bundle.manifest.contract, bundle.manifest
    model, file = graph(contract, steepness=steepness), f"model.{precision}.onnx"
    (bundle.folder / file).write_bytes(model)
    added = replace(manifest.variant("fp32"), precision=precision, file=file, sha256=hashlib.sha256(model).hexdigest())
    write_manifest(bundle.folder, replace(manifest, variants=(*manifest.variants, added)))
    return load_bundle(bundle.folder)


def forge(
    bundle: Bundle,
    model: bytes,
    *,
    contract: Contract | None = None,
    tolerance: float = 1e-3,
    logit_tolerance: float = 1e-2,
) -> Bundle:
    """Put another model (and contract) into a bundle, hash rewritten and golden logits kept: a consistent lie."""
    manifest = bundle.manifest
    (variant,) = manifest.variants
    forged = replace(
        variant, sha256=hashlib.sha256(model).hexdigest(), tolerance=tolerance, logit_tolerance=logit_tolerance
    )
    (bundle.folder / variant.file).write_bytes(model)
    write_manifest(bundle.folder, replace(manifest, contract=contract or manifest.contract, variants=(forged,)))
    return load_bundle(bundle.folder)
