"""How well simple classifiers do on given features: repeated stratified cross-validation with intervals.

Folds keep duplicates and groups together. Knows no pictures and no networks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.neighbors import KNeighborsClassifier

from trainer.errors import DataError
from trainer.features import Features
from trainer.metrics import Ints

REPEATS: Final = 3
FOLDS: Final = 5
L2_CHOICES: Final = (1e-1, 1e-2, 1e-3)
NEIGHBOURS: Final = 5
SHARES: Final = (0.25, 0.5)  # of the learning curve; the whole is the probe itself


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean accuracy over folds; with 95 % confidence within `margin` of it."""

    accuracy: float
    margin: float

    def __str__(self) -> str:
        return f"{100 * self.accuracy:.1f} ± {100 * self.margin:.1f} %"


@dataclass(frozen=True, kw_only=True)
class CrossValidated:
    """What the features are good for."""

    probe: Estimate
    neighbours: Estimate
    curve: dict[float, Estimate]  # the probe by share of the training pictures


def cross_validate(features: Features, targets: Ints, clusters: Sequence[str], *, seed: int = 0) -> CrossValidated:
    """Measure linear probe, k-NN and learning curve on features (N, F), targets (N,); raises DataError.

    The probe's strength of regularisation is the best on the first repeat's folds.
    """
    scaled = (features - features.mean(0)) / max(1e-6, float(np.sqrt(features.var(0).mean())))
    parts = [part for repeat in range(REPEATS) for part in _folds(targets, clusters, seed=seed + repeat)]
    folds = len(parts) // REPEATS

    def probe(l2: float, train: Ints, held_out: Ints) -> float:
        model = LogisticRegression(C=1 / (l2 * len(train)), max_iter=1000).fit(scaled[train], targets[train])
        return float(model.score(scaled[held_out], targets[held_out]))

    l2 = max(L2_CHOICES, key=lambda choice: np.mean([probe(choice, *part) for part in parts[:folds]]))
    curve: dict[float, list[float]] = {share: [] for share in SHARES}
    whole, near = [], []
    for number, (train, held_out) in enumerate(parts):
        whole.append(probe(l2, train, held_out))
        neighbours = KNeighborsClassifier(min(NEIGHBOURS, len(train)), metric="cosine")
        near.append(float(neighbours.fit(features[train], targets[train]).score(features[held_out], targets[held_out])))
        for share, found in curve.items():
            found.append(probe(l2, thinned(train, targets, share=share, seed=number), held_out))
    return CrossValidated(
        probe=estimate(whole, folds=folds),
        neighbours=estimate(near, folds=folds),
        curve={share: estimate(found, folds=folds) for share, found in curve.items()},
    )


def estimate(accuracies: Sequence[float], *, folds: int) -> Estimate:
    """Return mean and margin of repeated cross-validation.

    Corrected resampled t (Nadeau and Bengio 2003, "Inference for the generalization error", section 3): folds share
    training pictures, so that the variance is multiplied by 1/n + test/train, with test/train = 1/(folds - 1).
    """
    count = len(accuracies)
    variance = float(np.var(accuracies, ddof=1)) * (1 / count + 1 / (folds - 1))
    return Estimate(
        accuracy=float(np.mean(accuracies)), margin=float(stats.t.ppf(0.975, count - 1)) * math.sqrt(variance)
    )


def thinned(rows: Ints, targets: Ints, *, share: float, seed: int) -> Ints:
    """Return a seeded share of the rows of each class, at least one of each."""
    generator = np.random.default_rng(seed)
    kept = []
    for label in np.unique(targets[rows]):
        own = rows[targets[rows] == label]
        kept.append(generator.permutation(own)[: max(1, round(share * len(own)))])
    return np.sort(np.concatenate(kept))


def _folds(targets: Ints, clusters: Sequence[str], *, seed: int) -> list[tuple[Ints, Ints]]:
    fewest = min(
        len({cluster for cluster, at in zip(clusters, targets, strict=True) if at == c}) for c in np.unique(targets)
    )
    if fewest < 2:
        raise DataError("a class has only one picture besides its duplicates, wanted at least 2; add some")
    splitter = StratifiedGroupKFold(min(FOLDS, fewest), shuffle=True, random_state=seed)
    return [(train, held_out) for train, held_out in splitter.split(targets, targets, groups=clusters)]
