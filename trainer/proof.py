"""The export proof: the same real files through torch, its exports and ONNX Runtime, answer by answer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from bundle.contract import Contract
from bundle.preprocess import PreprocessSpec, load_input
from bundle.repository import Bundle
from bundle.runtime import Output, joined, open_model
from bundle.scores import probabilities
from trainer.agreement import compare, verdict_objection
from trainer.data import Picture
from trainer.errors import ParityError
from trainer.similarity import Recognising
from trainer.twins import Forward, open_twin

MAX_DIFFERENCE: Final = 1e-4  # of a probability, fp32
MAX_SIMILARITY_DIFFERENCE: Final = 1e-4
MAX_LOGIT_DIFFERENCE: Final = 1e-3  # of a logit, in units of the largest one or 1: saturated probabilities hide a skew
BATCH_SIZES: Final = (1, 2, 7, 64)
_SHOWN: Final = 10
_ROUNDED: Final = ("onnxruntime int8", "onnxruntime fp16")  # judged by their answers, not by each probability

Runner = Callable[[NDArray[np.uint8]], Output]


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How one runtime compares with torch on the same files."""

    runtime: str
    picture_count: int
    equal_top1: int
    max_difference: float  # of a probability


def prove(
    bundle: Bundle, reference: Recognising, files: tuple[Picture, ...], *, labels: tuple[str, ...], spec: PreprocessSpec
) -> list[Parity]:
    """Compare every runtime of a bundle with torch on real files, in batches of several sizes.

    `labels` and `spec` are those of the run: a bundle that names its answers or prepares pictures otherwise fails.
    Raises ParityError with a table of offenders, BundleError where a file is not what its manifest says.
    """
    contract = bundle.manifest.contract
    if contract.labels != labels:  # also where no picture of the proof happens to get the label that differs
        raise ParityError(f"the bundle disagrees with torch on labels: {contract.labels[:20]}, the run {labels[:20]}")
    if contract.preprocess != spec:
        raise ParityError(f"the bundle disagrees with torch on preprocess: {contract.preprocess}, the run {spec}")
    count = len(files)
    files = tuple(files[turn % count] for turn in range(max(count, sum(BATCH_SIZES))))  # each batch size has its turn
    images = np.stack([load_input(item.path.read_bytes(), contract.preprocess) for item in files])
    wanted = _in_batches(_torch_runner(reference.eval()), images)
    results = []
    for name, run in _runners(bundle).items():
        comparison = Comparison(_in_batches(run, images), wanted, temperature=contract.temperature)
        if name in _ROUNDED:
            _check_rounded(name, comparison, contract=contract, files=files[:count])
        else:
            _check(name, comparison, labels=labels, files=files)
        results.append(
            Parity(
                runtime=name,
                picture_count=count,
                equal_top1=int((comparison.found.argmax(1) == comparison.wanted.argmax(1))[:count].sum()),
                max_difference=float(comparison.differences.max()),
            )
        )
    return results


class Comparison:
    """N answers of a runtime beside torch's: probabilities, and how far they are apart, (N,) each."""

    def __init__(self, found: Output, wanted: Output, *, temperature: float) -> None:
        self.found = probabilities(found.logits, temperature=temperature)
        self.wanted = probabilities(wanted.logits, temperature=temperature)
        self.differences = np.abs(self.found - self.wanted).max(1)
        largest = max(1.0, float(np.abs(wanted.logits).max()))
        self.logit_differences = np.abs(found.logits - wanted.logits).max(1) / largest
        self.similarities = wanted.similarity, found.similarity
        self.similarity_differences = np.abs(found.similarity - wanted.similarity)


def _runners(bundle: Bundle) -> dict[str, Runner]:
    runners: dict[str, Runner] = {}
    for variant in bundle.manifest.variants:
        runners[f"onnxruntime {variant.precision}"] = open_model(bundle, precision=variant.precision).run
    for twin in bundle.manifest.twins:
        if twin.runtime == "portable":
            continue  # takes pictures of any size: `portable.prove_portable`
        runners[twin.runtime] = _torch_runner(open_twin(bundle, twin))
    return runners


def _torch_runner(module: Forward) -> Runner:
    def run(images: NDArray[np.uint8]) -> Output:
        with torch.inference_mode():
            logits, similarity = module(torch.from_numpy(images))
        return Output(logits.numpy(), similarity.numpy())

    return run


def _in_batches(run: Runner, images: NDArray[np.uint8]) -> Output:
    """Run all pictures once, in batches that take each of BATCH_SIZES in turn."""
    rows, start, turn = [], 0, 0
    while start < len(images):
        size = BATCH_SIZES[turn % len(BATCH_SIZES)]
        rows.append(run(images[start : start + size]))
        start, turn = start + size, turn + 1
    return joined(rows)


def _check_rounded(runtime: str, comparison: Comparison, *, contract: Contract, files: tuple[Picture, ...]) -> None:
    targets = np.array([contract.labels.index(item.label) for item in files])
    own = slice(len(files))  # not those that only fill a batch
    likeness = compare(comparison.wanted[own], comparison.found[own], targets, labels=contract.labels, spare_pictures=1)
    there, here = (similarity[own] for similarity in comparison.similarities)
    objection = likeness.objection or verdict_objection(there, here, unknown_below=contract.unknown_below)
    if objection:
        raise ParityError(f"{runtime} is not as right as torch: {objection}; nothing was written")


def _check(
    runtime: str,
    comparison: Comparison,
    *,
    labels: tuple[str, ...],
    files: tuple[Picture, ...],
) -> None:
    lines = []
    distances = (comparison.differences, comparison.logit_differences, comparison.similarity_differences)
    columns = (comparison.found, comparison.wanted, *distances)
    for item, here, there, difference, logit_difference, similarity_difference in zip(files, *columns, strict=True):
        answer, truth = labels[int(here.argmax())], labels[int(there.argmax())]
        within = difference <= MAX_DIFFERENCE and logit_difference <= MAX_LOGIT_DIFFERENCE
        is_alike = similarity_difference <= MAX_SIMILARITY_DIFFERENCE
        if answer != truth or not (within and is_alike):  # written so that NaN fails
            lines.append(
                f"  {item.path.name}  torch {truth} {there.max():.5f}  {runtime} {answer} {here.max():.5f}  "
                f"off {difference:.1e}, of logits {logit_difference:.1e}, of similarity {similarity_difference:.1e}"
            )
    if lines:
        shown = "\n".join(lines[:_SHOWN]) + (f"\n  … and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else "")
        raise ParityError(
            f"{runtime} disagrees with torch on {len(lines)} of {len(files)} pictures "
            f"(wanted equal labels, probabilities within {MAX_DIFFERENCE:g}, logits within {MAX_LOGIT_DIFFERENCE:g} "
            f"of the largest, similarities within {MAX_SIMILARITY_DIFFERENCE:g}); nothing was written\n{shown}"
        )
