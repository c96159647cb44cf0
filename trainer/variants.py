"""What the manifest says of each ONNX variant: golden answers, their tolerances elsewhere, accuracy, latency.

All through the bundle as a server opens it; torch is not asked here, the proof does that.
"""

import os
from dataclasses import replace
from functools import partial
from typing import Final

import numpy as np

from bundle.golden import answers
from bundle.manifest import Variant
from bundle.preprocess import load_input
from bundle.repository import Bundle
from bundle.runtime import Choice, open_model
from bundle.scores import probabilities
from trainer.data import Picture
from trainer.int8_trials import load_images
from trainer.latency import interleaved_medians_ms
from trainer.metrics import Logits, wilson
from trainer.proof import MAX_DIFFERENCE, MAX_LOGIT_DIFFERENCE
from trainer.quantize import kernel_deviation

GOLDEN_TOLERANCE: Final = 10 * MAX_DIFFERENCE  # other CPUs round otherwise
GOLDEN_LOGIT_TOLERANCE: Final = MAX_LOGIT_DIFFERENCE  # in units of the largest golden logit or 1
INT8_TOLERANCE_MARGIN: Final = 3.0  # times what integer kernels and floats differ by here; saturation is far outside
INT8_LEAST_TOLERANCE: Final = 0.02  # of a probability; of a logit in units of the largest golden one or 1
_DEVIATION_FILES: Final = 64


def measure(bundle: Bundle, variant: Variant, held_out: tuple[Picture, ...]) -> Variant:
    """Return a variant with its golden answers, the tolerances that they must meet elsewhere, and its accuracy."""
    contract = bundle.manifest.contract
    logits = answers(open_model(bundle, precision=variant.precision), bundle.golden_pictures(), contract.preprocess)
    found = bundle_logits(bundle, held_out, precision=variant.precision)
    hits = sum(contract.labels[int(row.argmax())] == item.label for row, item in zip(found, held_out, strict=True))
    largest = max(1.0, float(np.abs(logits).max()))
    tolerance, logit_tolerance = GOLDEN_TOLERANCE, GOLDEN_LOGIT_TOLERANCE * largest
    if variant.precision == "int8":
        tolerance, logit_tolerance = _int8_tolerances(bundle, variant, held_out[:_DEVIATION_FILES], largest=largest)
    return replace(
        variant,
        golden_logits=tuple(tuple(float(value) for value in row) for row in logits),
        tolerance=tolerance,
        logit_tolerance=logit_tolerance,
        accuracy=wilson(hits, len(held_out)),
    )


def _int8_tolerances(
    bundle: Bundle, variant: Variant, pictures: tuple[Picture, ...], *, largest: float
) -> tuple[float, float]:
    """Return tolerances of a probability and of a logit, from how far integer kernels and floats are apart here."""
    contract = bundle.manifest.contract
    here, there = kernel_deviation(bundle.folder / variant.file, load_images(pictures, contract))
    apart = np.abs(
        probabilities(here, temperature=contract.temperature) - probabilities(there, temperature=contract.temperature)
    )
    return (
        min(1.0, max(INT8_LEAST_TOLERANCE, INT8_TOLERANCE_MARGIN * float(apart.max()))),
        max(INT8_LEAST_TOLERANCE * largest, INT8_TOLERANCE_MARGIN * float(np.abs(here - there).max())),
    )


def with_latencies(bundle: Bundle, variants: tuple[Variant, ...]) -> tuple[Variant, ...]:
    """Return variants with the time of one picture on one thread, taken in turns."""
    side = bundle.manifest.contract.preprocess.crop_px
    picture = np.zeros((1, side, side, 3), np.uint8)
    models = [open_model(bundle, precision=variant.precision) for variant in variants]
    times = interleaved_medians_ms([partial(model.run, picture) for model in models])
    return tuple(replace(variant, latency_ms=time) for variant, time in zip(variants, times, strict=True))


def bundle_logits(bundle: Bundle, pictures: tuple[Picture, ...], *, precision: Choice = "fp32") -> Logits:
    """Return logits (N, C) of files through the serving preprocessing and ONNX Runtime."""
    contract = bundle.manifest.contract
    model = open_model(bundle, precision=precision, intra_op_threads=len(os.sched_getaffinity(0)))
    rows = [model.run(load_input(item.path.read_bytes(), contract.preprocess)[np.newaxis]) for item in pictures]
    return np.concatenate(rows)
