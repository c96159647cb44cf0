"""How good a classifier is, each headline with a 95 % interval."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bundle.manifest import Interval

Z95: Final = 1.959964  # the 97.5 % point of the standard normal distribution
_RESAMPLES: Final = 1000
_BINS: Final = 15

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Logits = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class ClassReport:
    """One class's figures; precision is None where nothing was predicted as it, recall where it has no picture."""

    label: str
    count: int
    precision: Interval | None
    recall: Interval | None
    f1: Interval


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All that `trainer evaluate` reports."""

    picture_count: int
    headlines: dict[str, Interval]  # top-1, top-5 (more than 5 classes), macro F1, log-loss, ECE
    classes: tuple[ClassReport, ...]
    confusion: tuple[tuple[int, ...], ...]  # rows: truth, columns: answer


def evaluate(probabilities: Floats, targets: Ints, labels: tuple[str, ...], *, seed: int = 0) -> Evaluation:
    """Measure probabilities (N, C), rows summing to 1, against targets (N,) in 0..C-1."""
    class_count = len(labels)
    answers = probabilities.argmax(1)
    headlines = {"top-1": wilson(int((answers == targets).sum()), len(targets))}
    if class_count > 5:
        top5 = np.argsort(-probabilities, axis=1, kind="stable")[:, :5]
        headlines["top-5"] = wilson(int((top5 == targets[:, None]).any(1).sum()), len(targets))
    measures: dict[str, Callable[[Floats, Ints], float]] = {
        "macro-F1": lambda p, t: _macro_f1(_confusion(p.argmax(1), t, class_count)),
        "log-loss": log_loss,
        "ECE": calibration_error,
    }
    headlines |= {name: bootstrap(measure, probabilities, targets, seed=seed) for name, measure in measures.items()}
    confusion = _confusion(answers, targets, class_count)
    return Evaluation(
        picture_count=len(targets),
        headlines=headlines,
        classes=_class_reports(confusion, answers, targets, labels, seed=seed),
        confusion=tuple(tuple(int(count) for count in row) for row in confusion),
    )


def wilson(hits: int, total: int) -> Interval:
    """Return a proportion with Wilson's score interval (Wilson 1927)."""
    share, z2 = hits / total, Z95**2
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = Z95 * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2)) / (1 + z2 / total)
    return Interval(value=share, low=max(0.0, min(centre - half, share)), high=min(1.0, max(centre + half, share)))


def bootstrap(measure: Callable[[Floats, Ints], float], probabilities: Floats, targets: Ints, *, seed: int) -> Interval:
    """Return a measure with its percentile bootstrap interval over pictures (Efron 1979)."""
    generator = np.random.default_rng(seed)
    value = measure(probabilities, targets)
    draws = generator.integers(0, len(targets), size=(_RESAMPLES, len(targets)))
    sample = [measure(probabilities[rows], targets[rows]) for rows in draws]
    low, high = np.percentile(sample, [2.5, 97.5])
    return _around(value, float(low), float(high))


def bootstrap_mean(values: Floats, *, seed: int) -> Interval:
    """Return the mean of one figure a picture (N,), with its percentile bootstrap interval."""
    draws = np.random.default_rng(seed).integers(0, len(values), size=(_RESAMPLES, len(values)))
    low, high = np.percentile([values[rows].mean() for rows in draws], [2.5, 97.5])
    return _around(float(values.mean()), float(low), float(high))


def log_loss(probabilities: Floats, targets: Ints) -> float:
    """Return the mean negative log-likelihood in nats."""
    return float(0.0 - np.log(np.clip(probabilities[np.arange(len(targets)), targets], 1e-12, 1)).mean())  # not -0.0


def calibration_error(probabilities: Floats, targets: Ints) -> float:
    """Return the expected calibration error, 15 equal bins (Guo et al. 2017, arXiv:1706.04599, eq. 5)."""
    confidence, hit = probabilities.max(1), probabilities.argmax(1) == targets
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    gaps = np.bincount(bins, weights=hit - confidence, minlength=_BINS)
    return float(np.abs(gaps).sum() / len(targets))


def fit_temperature(logits: Floats, targets: Ints) -> float:
    """Return the temperature in 0.05..20 that minimises log-loss, to about 0.1 %, by golden-section search."""
    low, high = math.log(0.05), math.log(20.0)
    ratio = (math.sqrt(5) - 1) / 2

    def loss(log_temperature: float) -> float:
        scaled = logits / math.exp(log_temperature)
        top = scaled.max(1)
        normaliser = top + np.log(np.exp(scaled - top[:, None]).sum(1))
        return float((normaliser - scaled[np.arange(len(targets)), targets]).mean())

    while high - low > 1e-3:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if loss(left) < loss(right) else (left, high)
    return math.exp((low + high) / 2)


def _confusion(answers: Ints, targets: Ints, class_count: int) -> Ints:
    return np.bincount(targets * class_count + answers, minlength=class_count**2).reshape(class_count, class_count)


def _macro_f1(confusion: Ints) -> float:
    return float(_class_f1(confusion)[confusion.sum(1) > 0].mean())


def _class_reports(
    confusion: Ints, answers: Ints, targets: Ints, labels: tuple[str, ...], *, seed: int
) -> tuple[ClassReport, ...]:
    class_count = len(labels)
    draws = np.random.default_rng(seed).integers(0, len(targets), size=(_RESAMPLES, len(targets)))
    samples = np.array([_class_f1(_confusion(answers[rows], targets[rows], class_count)) for rows in draws])  # (R, C)
    lows, highs = np.percentile(samples, [2.5, 97.5], axis=0)
    hits, predicted, counts, f1 = np.diag(confusion), confusion.sum(0), confusion.sum(1), _class_f1(confusion)
    return tuple(
        ClassReport(
            label=label,
            count=int(counts[index]),
            precision=wilson(int(hits[index]), int(predicted[index])) if predicted[index] else None,
            recall=wilson(int(hits[index]), int(counts[index])) if counts[index] else None,
            f1=_around(float(f1[index]), float(lows[index]), float(highs[index])),
        )
        for index, label in enumerate(labels)
    )


def _class_f1(confusion: Ints) -> Floats:
    result: Floats = 2 * np.diag(confusion) / np.maximum(confusion.sum(0) + confusion.sum(1), 1)
    return result


def _around(value: float, low: float, high: float) -> Interval:
    return Interval(value=value, low=min(low, value), high=max(high, value))
