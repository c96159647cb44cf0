"""A candidate for INT8 and what is measured of it: answers on labelled pictures, latency on one thread, size."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bundle.contract import IMAGES, Contract
from bundle.manifest import Candidate
from bundle.preprocess import load_input
from bundle.runtime import Output, joined, open_session, run_session
from bundle.scores import probabilities
from trainer.agreement import Likeness, compare, verdict_objection
from trainer.data import Picture
from trainer.metrics import Ints, wilson
from trainer.quantize import Recipe

MIN_SPEEDUP: Final = 1.1  # at batch 1 and at batch 8: less is not worth another set of answers
EQUAL_SPEED: Final = 1.05  # what two timings of one model differ by
_TIMED_BATCHES: Final = (1, 8)
_EVALUATION_BATCH: Final = 16

Images = NDArray[np.uint8]  # (N, H, W, 3)
Measure = Callable[[Sequence[Callable[[], object]]], list[float]]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One candidate with its answers; the latencies in ms, at batch 1 and 8, follow."""

    name: str
    path: Path
    likeness: Likeness
    recipe: Recipe | None = None
    latencies_ms: tuple[float, ...] = ()
    speedups: tuple[float, ...] = ()  # over fp32 in the same rounds: other rounds found the machine otherwise busy
    objection: str = ""

    def candidate(self, verdict: str = "") -> Candidate:
        """Return the line of the table."""
        return Candidate(
            name=self.name,
            accuracy=wilson(self.likeness.hits, self.likeness.picture_count),
            agreement=self.likeness.agreement,
            latency_ms=self.latencies_ms[0],
            latency_batch8_ms=self.latencies_ms[1],
            size_bytes=self.path.stat().st_size,
            verdict=verdict or self.objection or "good, another is faster or closer to fp32",
        )


class Examination:
    """Labelled pictures with fp32's answers; candidates are compared with those."""

    def __init__(self, pictures: tuple[Picture, ...], graph: Path, *, contract: Contract) -> None:
        self._contract = contract
        self._images = load_images(pictures, contract)
        self.targets: Ints = np.array([contract.labels.index(item.label) for item in pictures], dtype=np.int64)
        self._wanted = answer(graph, self._images)
        self.reference = Trial(name="fp32", path=graph, likeness=self._compare(self._wanted))

    def likeness(self, path: Path) -> Likeness:
        """Compare a file's answers with fp32's."""
        return self._compare(answer(path, self._images))

    def _compare(self, found: Output) -> Likeness:
        contract, wanted = self._contract, self._wanted
        there, here = (probabilities(one.logits, temperature=contract.temperature) for one in (wanted, found))
        likeness = compare(there, here, self.targets, labels=contract.labels)
        verdicts = verdict_objection(wanted.similarity, found.similarity, unknown_below=contract.unknown_below)
        return replace(likeness, objection=likeness.objection or verdicts)


def load_images(pictures: Sequence[Picture], contract: Contract) -> Images:
    """Return pictures as model input, uint8 (N, H, W, 3), through the serving preprocessing."""
    return np.stack([load_input(item.path.read_bytes(), contract.preprocess) for item in pictures])


def answer(path: Path, images: Images) -> Output:
    """Return logits (N, C) and similarities (N,) of an ONNX file, on all cores."""
    session = open_session(path.read_bytes(), path, intra_op_threads=len(os.sched_getaffinity(0)))
    starts = range(0, len(images), _EVALUATION_BATCH)
    return joined([run_session(session, images[start : start + _EVALUATION_BATCH]) for start in starts])


def time_trials(trials: Sequence[Trial], measure: Measure) -> list[Trial]:
    """Add latencies on one thread to trials, and the objection where one is not faster than the first, fp32."""
    sessions = [open_session(trial.path.read_bytes(), trial.path, intra_op_threads=1) for trial in trials]
    shape = tuple(sessions[0].get_inputs()[0].shape[1:])
    columns = []
    for size in _TIMED_BATCHES:
        feed = {IMAGES.name: np.random.default_rng(0).integers(0, 256, (size, *shape), np.uint8)}
        columns.append(measure([partial(session.run, None, feed) for session in sessions]))
    latencies = list(zip(*columns, strict=True))
    timed = []
    for trial, row in zip(trials, latencies, strict=True):
        speedups = tuple(whole / own for whole, own in zip(latencies[0], row, strict=True))
        slow = [
            f"{speedup:.2f} times fp32's speed at batch {size}, wanted {MIN_SPEEDUP:g}"
            for speedup, size in zip(speedups, _TIMED_BATCHES, strict=True)
            if speedup < MIN_SPEEDUP
        ]
        objection = "; ".join(filter(None, (trial.likeness.objection, *slow[:1])))
        timed.append(replace(trial, latencies_ms=row, speedups=speedups, objection=objection))
    return timed


def preferred(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials without objection: equally fast ones first, the most often right of them, then the closest."""
    good = [trial for trial in trials if not trial.objection]
    if not good:
        return []
    fastest = max(trial.speedups[0] for trial in good)
    return sorted(
        good,
        key=lambda trial: (
            EQUAL_SPEED * trial.speedups[0] < fastest,
            -trial.likeness.hits,
            trial.likeness.mean_difference,
        ),
    )
