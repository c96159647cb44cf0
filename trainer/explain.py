"""Which part of a picture a bundle's answer rests on: occlusion sensitivity, after Zeiler and Fergus 2014
(arXiv:1311.2901), section 4.2, with ONNX Runtime.

Grad-CAM, which the report uses, needs the network's inner feature maps. Neither an ONNX file nor a TorchScript module
gives them away, whereas covering a part of the picture and asking again works for any bundle, and asks the very model
that is served.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bundle.errors import ImageError
from bundle.preprocess import load_input
from bundle.repository import load_bundle
from bundle.runtime import OnnxModel, open_model
from bundle.scores import probabilities, rank
from trainer.errors import DataError
from trainer.report.pictures import overlay

_CELLS: Final = 16  # a side; the map's resolution
_COVERED_CELLS: Final = 4  # a side of the patch: a quarter of the picture's, moved cell by cell
_BATCH: Final = 16


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """An answer, and the picture with heat where covering it would take the answer away."""

    label: str
    score: float  # calibrated
    picture: Image.Image


def explain(bundle: Path, image: Path) -> Explanation:
    """Explain the first answer of a bundle to a picture; raises BundleError, DataError for an unreadable picture."""
    model = open_model(load_bundle(bundle), intra_op_threads=len(os.sched_getaffinity(0)))
    contract = model.bundle.manifest.contract
    try:
        pixels = load_input(image.read_bytes(), contract.preprocess)
    except (ImageError, OSError) as error:
        raise DataError(f"{image}: {error if isinstance(error, ImageError) else error.strerror}") from error
    row = probabilities(model.run(pixels[np.newaxis]).logits[0], temperature=contract.temperature)
    (first,) = rank(row, contract.labels, top_k=1)
    heat = occlusion(model, pixels, index=first.index)
    return Explanation(label=first.label, score=first.score, picture=overlay(pixels, heat))


def occlusion(model: OnnxModel, pixels: NDArray[np.uint8], *, index: int) -> NDArray[np.float32]:
    """Return heat (H, W) float32 in 0..1: how far class `index` falls where a patch of the mean colour covers a place.

    pixels: (H, W, 3), H = W. Measured in log-odds, not in probability, which hardly moves where an answer is sure.
    """
    side = len(pixels)
    cells = min(_CELLS, side)
    covered = max(1, cells * _COVERED_CELLS // _CELLS)
    edges = np.linspace(0, side, cells + 1).round().astype(int)
    places = [(row, column) for row in range(cells - covered + 1) for column in range(cells - covered + 1)]
    drops = _log_odds(model, pixels[np.newaxis], index) - np.concatenate(
        [
            _log_odds(model, _covered(pixels, edges, places[start : start + _BATCH], covered=covered), index)
            for start in range(0, len(places), _BATCH)
        ]
    )
    total, count = np.zeros((cells, cells)), np.zeros((cells, cells))
    for (row, column), drop in zip(places, drops, strict=True):
        total[row : row + covered, column : column + covered] += drop
        count[row : row + covered, column : column + covered] += 1
    grid = np.maximum(total / count, 0).astype(np.float32)
    heat: NDArray[np.float32] = np.asarray(Image.fromarray(grid).resize((side, side), Image.Resampling.BILINEAR))
    return heat / np.float32(max(float(heat.max()), 1e-12))


def _covered(
    pixels: NDArray[np.uint8], edges: NDArray[np.int64], places: list[tuple[int, int]], *, covered: int
) -> NDArray[np.uint8]:
    copies = np.repeat(pixels[np.newaxis], len(places), axis=0)
    colour = pixels.mean((0, 1)).round().astype(np.uint8)
    for copy, (row, column) in zip(copies, places, strict=True):
        copy[edges[row] : edges[row + covered], edges[column] : edges[column + covered]] = colour
    return copies


def _log_odds(model: OnnxModel, images: NDArray[np.uint8], index: int) -> NDArray[np.float64]:
    logits = model.run(images).logits.astype(np.float64)
    others = np.delete(logits, index, axis=1)
    top = others.max(1)
    odds: NDArray[np.float64] = logits[:, index] - top - np.log(np.exp(others - top[:, np.newaxis]).sum(1))
    return odds
