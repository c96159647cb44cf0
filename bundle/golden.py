"""Golden pictures: held-out files that travel with a bundle, and the answers they got at export.

Replayed wherever a bundle is opened to be used, through that machine's own decode, preprocessing and session.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np

from bundle.errors import GoldenError, ImageError
from bundle.preprocess import PreprocessSpec, load_input
from bundle.repository import Bundle
from bundle.runtime import CUDA_MEMORY_MB, Choice, OnnxModel, Output, Provider, joined, open_model
from bundle.scores import probabilities


def answers(model: OnnxModel, pictures: Iterable[bytes], spec: PreprocessSpec, *, together: int = 1) -> Output:
    """Return logits (G, C) and similarities (G,) of encoded pictures, so many in a run. Raises ImageError."""
    rows = (load_input(data, spec) for data in pictures)
    runs = iter(lambda: list(islice(rows, together)), [])
    return joined([model.run(np.stack(run)) for run in runs])


@dataclass(frozen=True, kw_only=True)
class Proved:
    """An open model that has replayed its golden pictures."""

    model: OnnxModel
    difference: float  # the largest of a golden probability
    refused: str = ""  # why the variant that "auto" preferred did not prove itself here


def open_proved(
    bundle: Bundle,
    *,
    precision: Choice = "auto",
    provider: Provider = "cpu",
    intra_op_threads: int = 1,
    cuda_memory_mb: int = CUDA_MEMORY_MB,
) -> Proved:
    """Open a variant and replay its golden pictures; where "auto" chose one that fails on this machine, fp32 instead.

    Integer kernels differ between CPUs more than floats do. A variant asked for by name fails closed with GoldenError;
    so does any file that is not what was exported, with BundleError.
    """
    opened = partial(
        open_model, bundle, provider=provider, intra_op_threads=intra_op_threads, cuda_memory_mb=cuda_memory_mb
    )
    model = opened(precision=precision)
    try:
        return Proved(model=model, difference=replay(model))
    except GoldenError as error:
        if precision != "auto" or model.variant.precision == "fp32":
            raise
        refused = str(error)
    model = opened(precision="fp32")
    return Proved(model=model, difference=replay(model), refused=refused)


def replay_together(model: OnnxModel, size: int) -> None:
    """Run golden pictures of a bundle in one batch of that size, again from the first where there are fewer.

    Each must be answered as it is alone. Raises what `replay` does.
    """
    count = len(model.bundle.manifest.golden)
    _check(model, [number * count // size if size < count else number % count for number in range(size)], together=size)


def replay(model: OnnxModel) -> float:
    """Replay a bundle's golden pictures, one at a time; return the largest difference of a probability.

    Raises GoldenError where a picture cannot be read, gets another best label, or strays beyond one of the variant's
    tolerances; BundleError where a golden file is not the one that was exported.
    """
    return _check(model, range(len(model.bundle.manifest.golden)), together=1)


def _check(model: OnnxModel, places: Sequence[int], *, together: int) -> float:
    bundle, contract, variant = model.bundle, model.bundle.manifest.contract, model.variant
    source = f"{bundle.folder} ({variant.precision}{f', {together} together' if together > 1 else ''})"
    pictures = [bundle.manifest.golden[place] for place in places]
    try:
        output = answers(model, map(bundle.golden_picture, pictures), contract.preprocess, together=together)
    except ImageError as error:
        raise GoldenError(f"{source}: a golden picture cannot be read: {error}") from error
    wanted_logits = np.asarray([variant.golden_logits[place] for place in places], dtype=np.float32)
    found = probabilities(output.logits, temperature=contract.temperature)
    wanted = probabilities(wanted_logits, temperature=contract.temperature)
    differences = np.abs(found - wanted).max(axis=1)
    logit_differences = np.abs(output.logits - wanted_logits).max(axis=1)
    wanted_similarity = np.asarray([variant.golden_similarity[place] for place in places])
    likeness_differences = np.abs(output.similarity - wanted_similarity)
    columns = (differences, logit_differences, likeness_differences, found, wanted)
    for picture, difference, logit_difference, likeness_difference, here, there in zip(pictures, *columns, strict=True):
        same_label = here.argmax() == there.argmax()
        within = difference <= variant.tolerance and logit_difference <= variant.logit_tolerance
        is_alike = likeness_difference <= variant.similarity_tolerance
        if not (same_label and within and is_alike):  # written so that NaN fails
            raise GoldenError(
                f"{source}: golden picture {picture.file} answers {contract.labels[int(here.argmax())]!r} "
                f"({here.max():.4f}), at export {contract.labels[int(there.argmax())]!r} ({there.max():.4f}): "
                f"difference {difference:.2g}, tolerance {variant.tolerance:.2g}; "
                f"of logits {logit_difference:.2g}, tolerance {variant.logit_tolerance:.2g}; "
                f"of similarity {likeness_difference:.2g}, tolerance {variant.similarity_tolerance:.2g}; "
                "export the bundle again"
            )
    return float(differences.max())
