"""A manifest before its answers are measured: the files and their hashes, the golden pictures, the provenance."""

import datetime
import importlib.metadata
import os
from dataclasses import replace
from pathlib import Path
from typing import Final

from bundle.contract import Contract
from bundle.manifest import GoldenPicture, Manifest, Precision, Twin, Variant
from bundle.repository import GOLDEN_FOLDER, file_sha256
from trainer.checkpoint import Run
from trainer.data import Picture
from trainer.half import FP16_FILE
from trainer.onnx_graph import ONNX_FILE
from trainer.variants import GOLDEN_LOGIT_TOLERANCE, GOLDEN_SIMILARITY_TOLERANCE, GOLDEN_TOLERANCE

INT8_FILE: Final = "model.int8.onnx"
GOLDEN_COUNT: Final = 8
_FILES: Final[dict[Precision, str]] = {"fp32": ONNX_FILE, "fp16": FP16_FILE, "int8": INT8_FILE}
_LIBRARIES: Final = (
    *("torch", "torchvision", "timm", "onnx", "onnxruntime", "numpy"),
    *("pillow", "simplejpeg", "cykooz-resizer"),  # decide what a pixel is
)


def choose_golden(pictures: tuple[Picture, ...]) -> tuple[Picture, ...]:
    """Return up to 8 pictures: class after class in turn, the smallest files first, so that bundles stay light."""
    by_label: dict[str, list[Picture]] = {}
    for picture in sorted(pictures, key=lambda item: (item.path.stat().st_size, item.sha256)):
        by_label.setdefault(picture.label, []).append(picture)
    turns = max(len(members) for members in by_label.values())
    in_turn = [
        by_label[label][turn] for turn in range(turns) for label in sorted(by_label) if turn < len(by_label[label])
    ]
    return tuple(in_turn[:GOLDEN_COUNT])


def draft(run: Run, contract: Contract, twins: tuple[Twin, ...], folder: Path, golden: tuple[Picture, ...]) -> Manifest:
    """Write the golden pictures into `folder`; return a manifest whose golden answers are still to be measured."""
    (folder / GOLDEN_FOLDER).mkdir()
    items = []
    for number, picture in enumerate(golden):
        file = f"{number:02d}{picture.path.suffix.lower()}"
        (folder / GOLDEN_FOLDER / file).write_bytes(picture.path.read_bytes())
        items.append(GoldenPicture(file=file, sha256=file_sha256(folder / GOLDEN_FOLDER / file), label=picture.label))
    unmeasured = Variant(
        precision="fp32",
        file=ONNX_FILE,
        sha256="",
        golden_logits=tuple((0.0,) * len(contract.labels) for _ in golden),
        golden_similarity=tuple(0.0 for _ in golden),
        tolerance=GOLDEN_TOLERANCE,
        logit_tolerance=GOLDEN_LOGIT_TOLERANCE,
        similarity_tolerance=GOLDEN_SIMILARITY_TOLERANCE,
    )
    variants = tuple(
        replace(unmeasured, precision=precision, file=file, sha256=file_sha256(folder / file))
        for precision, file in _FILES.items()
        if (folder / file).exists()
    )
    created = datetime.datetime.now(datetime.UTC)
    if "SOURCE_DATE_EPOCH" in os.environ:
        created = datetime.datetime.fromtimestamp(int(os.environ["SOURCE_DATE_EPOCH"]), datetime.UTC)
    return Manifest(
        contract=contract,
        created=created.isoformat(timespec="seconds"),
        variants=variants,
        twins=twins,
        golden=tuple(items),
        metrics={},
        provenance=replace(
            run.provenance, libraries={library: importlib.metadata.version(library) for library in _LIBRARIES}
        ),
    )
