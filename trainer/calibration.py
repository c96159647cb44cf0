"""What a score means: the temperature's effect, thresholds for a stated precision, and when a picture is unknown."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bundle.manifest import Interval
from bundle.scores import probabilities
from trainer.metrics import Floats, Ints, Logits, bootstrap, calibration_error, log_loss, wilson
from trainer.proof import MAX_SIMILARITY_DIFFERENCE

KNOWN_SHARE: Final = 0.95  # of the validation pictures, at least so many of which reach the "unknown" threshold


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Log-loss and ECE of the same pictures at temperature 1 and at the model's own."""

    temperature: float
    fitted_on: str  # which pictures the temperature was chosen on
    before: dict[str, Interval]
    after: dict[str, Interval]


@dataclass(frozen=True, kw_only=True)
class ClassThreshold:
    """The least score from which a class's answers have a stated precision; None where no score does."""

    label: str
    threshold: float | None
    precision: Interval | None  # of the answers that are kept
    recall: Interval | None  # share of the class's pictures that they are


def compare_temperature(logits: Logits, targets: Ints, *, temperature: float, fitted_on: str) -> Calibration:
    """Measure logits (N, C) against targets (N,) before and after division by the temperature."""

    def measures(scores: Floats) -> dict[str, Interval]:
        return {
            "log-loss": bootstrap(log_loss, scores, targets, seed=0),
            "ECE": bootstrap(calibration_error, scores, targets, seed=0),
        }

    return Calibration(
        temperature=temperature,
        fitted_on=fitted_on,
        before=measures(probabilities(logits, temperature=1.0)),
        after=measures(probabilities(logits, temperature=temperature)),
    )


def unknown_threshold(similarities: NDArray[np.float32]) -> float:
    """Return the largest similarity that 95 % of known pictures reach, given theirs (N,), less what runtimes differ by.

    Ants and bees against 199 ImageNet pictures of other things: it finds 95 % of them, AUROC 0.987. The largest
    probability (Hendrycks & Gimpel 2017, arXiv:1610.02136) and the energy score (Liu et al. 2020, arXiv:2010.03759)
    find 43 %, AUROC 0.923.
    """
    place = int((1 - KNOWN_SHARE) * len(similarities))  # so many of them may be below
    return max(-1.0, float(np.sort(similarities)[place]) - MAX_SIMILARITY_DIFFERENCE)


def precision_thresholds(
    scores: Floats, targets: Ints, labels: tuple[str, ...], *, precision: float
) -> tuple[ClassThreshold, ...]:
    """Return for every class the least top score at and above which its answers are right that often, (N, C) and (N,).

    Chosen and measured on the same pictures: with few of them look at the intervals.
    """
    answers, top = scores.argmax(1), scores.max(1)
    return tuple(
        _class_threshold(
            top[answers == index],
            targets[answers == index] == index,
            label=label,
            count=int((targets == index).sum()),
            precision=precision,
        )
        for index, label in enumerate(labels)
    )


def _class_threshold(
    scores: Floats, is_right: np.ndarray[tuple[int], np.dtype[np.bool_]], *, label: str, count: int, precision: float
) -> ClassThreshold:
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(is_right[order])
    reached = hits / np.arange(1, len(order) + 1) >= precision
    reached[:-1] &= scores[order][:-1] > scores[order][1:]  # equal scores stay together
    places = np.flatnonzero(reached)
    if not len(places) or not count:
        return ClassThreshold(label=label, threshold=None, precision=None, recall=None)
    last = int(places[-1])
    return ClassThreshold(
        label=label,
        threshold=float(scores[order][last]),
        precision=wilson(int(hits[last]), last + 1),
        recall=wilson(int(hits[last]), count),
    )
