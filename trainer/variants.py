"""What the manifest says of each ONNX variant: golden answers, their tolerances elsewhere, accuracy, latency.

All through the bundle as a server opens it; torch is not asked here, the proof does that.
"""

import os
from dataclasses import replace
from functools import partial
from typing import Final

import numpy as np

from bundle.golden import answers
from bundle.manifest import Precision, Variant
from bundle.preprocess import load_input
from bundle.repository import Bundle
from bundle.runtime import Choice, Output, joined, open_model
from bundle.scores import probabilities
from trainer.data import Picture
from trainer.half import rehearsal_deviation
from trainer.int8_trials import load_images
from trainer.latency import interleaved_medians_ms
from trainer.metrics import wilson
from trainer.proof import MAX_DIFFERENCE, MAX_LOGIT_DIFFERENCE, MAX_SIMILARITY_DIFFERENCE
from trainer.quantize import kernel_deviation

GOLDEN_TOLERANCE: Final = 10 * MAX_DIFFERENCE  # other CPUs round otherwise
GOLDEN_SIMILARITY_TOLERANCE: Final = 10 * MAX_SIMILARITY_DIFFERENCE
GOLDEN_LOGIT_TOLERANCE: Final = MAX_LOGIT_DIFFERENCE  # in units of the largest golden logit or 1
ROUNDED_TOLERANCE_MARGIN: Final = 3.0  # times what two ways to round differ by here; saturation is far outside
ROUNDED_LEAST_TOLERANCE: Final = (
    0.02  # of a probability or similarity; of a logit in units of the largest golden one or 1
)
_DEVIATION_FILES: Final = 64


def measure(bundle: Bundle, variant: Variant, held_out: tuple[Picture, ...]) -> Variant:
    """Return a variant with its golden answers, the tolerances that they must meet elsewhere, and its accuracy."""
    contract = bundle.manifest.contract
    golden = answers(open_model(bundle, precision=variant.precision), bundle.golden_pictures(), contract.preprocess)
    found = bundle_output(bundle, held_out, precision=variant.precision).logits
    hits = sum(contract.labels[int(row.argmax())] == item.label for row, item in zip(found, held_out, strict=True))
    largest = max(1.0, float(np.abs(golden.logits).max()))
    tolerances = GOLDEN_TOLERANCE, GOLDEN_LOGIT_TOLERANCE * largest, GOLDEN_SIMILARITY_TOLERANCE
    if variant.precision != "fp32":
        tolerances = _rounded_tolerances(bundle, variant, held_out[:_DEVIATION_FILES], largest=largest)
    tolerance, logit_tolerance, similarity_tolerance = tolerances
    return replace(
        variant,
        golden_logits=tuple(tuple(float(value) for value in row) for row in golden.logits),
        golden_similarity=tuple(float(value) for value in golden.similarity),
        tolerance=tolerance,
        logit_tolerance=logit_tolerance,
        similarity_tolerance=similarity_tolerance,
        accuracy=wilson(hits, len(held_out)),
    )


def _rounded_tolerances(
    bundle: Bundle, variant: Variant, pictures: tuple[Picture, ...], *, largest: float
) -> tuple[float, float, float]:
    """Return tolerances of probability, logit and similarity: from how far integer kernels and floats are apart here,
    or float16's weights on this CPU and its whole arithmetic.
    """
    contract = bundle.manifest.contract
    deviation = kernel_deviation if variant.precision == "int8" else rehearsal_deviation
    here, there = deviation(bundle.folder / variant.file, load_images(pictures, contract))
    scores, other_scores = (probabilities(one.logits, temperature=contract.temperature) for one in (here, there))
    pairs = ((scores, other_scores), (here.logits, there.logits), (here.similarity, there.similarity))
    apart, logits_apart, likeness_apart = (
        ROUNDED_TOLERANCE_MARGIN * float(np.abs(one - other).max()) for one, other in pairs
    )
    return (
        min(1.0, max(ROUNDED_LEAST_TOLERANCE, apart)),
        max(ROUNDED_LEAST_TOLERANCE * largest, logits_apart),
        min(1.0, max(ROUNDED_LEAST_TOLERANCE, likeness_apart)),
    )


def with_latencies(bundle: Bundle, variants: tuple[Variant, ...]) -> tuple[Variant, ...]:
    """Return variants with the time of one picture on one thread, taken in turns; none for fp16, which is for GPUs."""
    side = bundle.manifest.contract.preprocess.crop_px
    picture = np.zeros((1, side, side, 3), np.uint8)
    timed: list[Precision] = [variant.precision for variant in variants if variant.precision != "fp16"]
    models = [open_model(bundle, precision=precision) for precision in timed]
    times = interleaved_medians_ms([partial(model.run, picture) for model in models])
    latencies = dict(zip(timed, times, strict=True))
    return tuple(replace(variant, latency_ms=latencies.get(variant.precision)) for variant in variants)


def bundle_output(bundle: Bundle, pictures: tuple[Picture, ...], *, precision: Choice = "fp32") -> Output:
    """Return logits (N, C) and similarities (N,) of files through the serving preprocessing and ONNX Runtime."""
    contract = bundle.manifest.contract
    model = open_model(bundle, precision=precision, intra_op_threads=len(os.sched_getaffinity(0)))
    return joined([model.run(load_input(item.path.read_bytes(), contract.preprocess)[np.newaxis]) for item in pictures])
