"""Is one model better than another? A paired test on the same pictures, since both err on the same hard ones.

Accuracy: McNemar's exact test on the pictures that only one has right (McNemar 1947). Log-loss: sign-flip permutation
test of the mean difference. Both two-sided; intervals of the differences are bootstrapped over pictures.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bundle.manifest import Interval
from trainer.answers import Answers, answer
from trainer.errors import DataError
from trainer.metrics import Floats, bootstrap_mean, wilson

SIGNIFICANCE: Final = 0.05
_PERMUTATIONS: Final = 9999


@dataclass(frozen=True, kw_only=True)
class PairedMeasure:
    """One measure of both models on the same pictures."""

    name: str
    first: Interval
    second: Interval
    difference: Interval  # second less first
    p_value: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All that `trainer compare` reports."""

    picture_count: int
    left_out_count: int  # pictures that one of the two was trained on
    only_first_right: int
    only_second_right: int
    accuracy: PairedMeasure
    log_loss: PairedMeasure

    def verdict(self, first: str, second: str) -> str:
        """Return the outcome in words."""
        accuracy, log_loss = self.accuracy, self.log_loss
        if accuracy.p_value < SIGNIFICANCE:
            return f"{second if accuracy.difference.value > 0 else first} is better (p {p_value(accuracy.p_value)})"
        text = f"not distinguishable with {self.picture_count:,} pictures (p {p_value(accuracy.p_value)})"
        if log_loss.p_value < SIGNIFICANCE:
            surer = second if log_loss.difference.value < 0 else first
            text += f"; {surer} has the lower log-loss (p {p_value(log_loss.p_value)})"
        return text


def compare(first: Path, second: Path, data: Path | None) -> Comparison:
    """Compare two runs on the held-out pictures they share, or two runs or bundles on a data set.

    Pictures that one of them was trained on are left out. Raises DataError where the two cannot be compared.
    """
    one, other = answer(first, data), answer(second, data)
    if one.labels != other.labels:
        raise DataError(
            f"{first} knows {list(one.labels[:5])}, {second} {list(other.labels[:5])}; wanted the same labels"
        )
    one, other = _aligned(one, other, names=(str(first), str(second)), is_free=data is not None)
    seen = one.trained_on | other.trained_on
    fair = np.array([picture.sha256 not in seen for picture in one.pictures])
    if not fair.any():
        raise DataError(f"every picture was in the training of {first} or {second}; name DATA that neither has seen")
    return compare_scores(one.scores[fair], other.scores[fair], one.targets[fair], left_out_count=int((~fair).sum()))


def compare_scores(first: Floats, second: Floats, targets: NDArray[np.int64], *, left_out_count: int = 0) -> Comparison:
    """Compare probabilities (N, C) of two models for targets (N,)."""
    count = len(targets)
    rights = [scores.argmax(1) == targets for scores in (first, second)]
    losses = [-np.log(np.clip(scores[np.arange(count), targets], 1e-12, 1)) for scores in (first, second)]
    only = [int((rights[0] & ~rights[1]).sum()), int((rights[1] & ~rights[0]).sum())]
    return Comparison(
        picture_count=count,
        left_out_count=left_out_count,
        only_first_right=only[0],
        only_second_right=only[1],
        accuracy=PairedMeasure(
            name="accuracy",
            first=wilson(int(rights[0].sum()), count),
            second=wilson(int(rights[1].sum()), count),
            difference=bootstrap_mean(rights[1].astype(np.float64) - rights[0], seed=0),
            p_value=mcnemar(*only),
        ),
        log_loss=PairedMeasure(
            name="log-loss",
            first=bootstrap_mean(losses[0], seed=0),
            second=bootstrap_mean(losses[1], seed=0),
            difference=bootstrap_mean(losses[1] - losses[0], seed=0),
            p_value=_permutation_p(losses[1] - losses[0]),
        ),
    )


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the exact two-sided p of McNemar's test for the pictures that one of two models alone has right."""
    from scipy.stats import binomtest  # takes 0.4 s to import: what prints other tables should not

    total = only_first + only_second
    return float(binomtest(only_first, total).pvalue) if total else 1.0


def _permutation_p(differences: Floats) -> float:
    from scipy.stats import permutation_test  # as above

    if not differences.any():
        return 1.0

    def mean(rows: Floats, axis: int) -> Floats:
        result: Floats = rows.mean(axis=axis)
        return result

    outcome = permutation_test(
        (differences,), mean, permutation_type="samples", n_resamples=_PERMUTATIONS, batch=256, rng=0
    )
    return float(outcome.pvalue)


def _aligned(one: Answers, other: Answers, *, names: tuple[str, str], is_free: bool) -> tuple[Answers, Answers]:
    """Return both answers in the order of their pictures' content; raises DataError unless these are the same."""
    sorted_both = [answers.sorted_by_content() for answers in (one, other)]
    keys = [[(picture.sha256, picture.label) for picture in answers.pictures] for answers in sorted_both]
    if keys[0] != keys[1]:
        shared = len(set(keys[0]) & set(keys[1]))
        advice = "name another DATA" if is_free else f"name some: trainer compare {names[0]} {names[1]} DATA"
        raise DataError(
            f"{names[0]} holds out {len(keys[0])} pictures, {names[1]} {len(keys[1])}, of which {shared} are the "
            f"same; wanted the same pictures; {advice}"
        )
    return sorted_both[0], sorted_both[1]


def p_value(value: float) -> str:
    """Return a p-value with its sign of relation, as in `= 0.012`."""
    return f"= {value:.3f}" if value >= 0.001 else "< 0.001"
