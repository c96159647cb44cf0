"""When may a model with rounded numbers stand for the one it was made from? The rule of INT8 and fp16.

Not the rule of fp32 runtimes, which must agree within 1e-4: eight bits move every probability, and sixteen many. What
counts is that held-out pictures are still answered right: at most half a point may be lost. Below 200 pictures that is
less than one picture, and a single near tie would decide. There one picture may be lost on balance if the mean
calibrated probability of the true label, an accuracy that every picture has a part in, falls by no more than half a
point either.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trainer.metrics import Floats, Ints, wilson

MAX_ACCURACY_DROP: Final = 0.005
MIN_AGREEMENT: Final = 0.9  # a floor against broken graphs: among 1,000 classes about 5 % of answers change places

Logits = NDArray[np.float32]
Similarity = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """How a model's answers compare with the reference's on the same labelled pictures."""

    hits: int
    picture_count: int
    agreement: float  # share of pictures with the same best label
    mean_difference: float  # of a probability: decides between candidates with equal hits
    objection: str  # why it must not stand for the reference; empty where it may


def compare(
    reference: Floats, found: Floats, targets: Ints, *, labels: tuple[str, ...], spare_pictures: int = 0
) -> Likeness:
    """Compare probabilities (N, C) of a model with the reference's, given targets (N,).

    `spare_pictures` may be lost beyond the rule: near ties fall either way in batches of another size.
    """
    return Likeness(
        hits=int((found.argmax(1) == targets).sum()),
        picture_count=len(targets),
        agreement=float((found.argmax(1) == reference.argmax(1)).mean()),
        mean_difference=float(np.abs(found - reference).mean()),
        objection=_objection(reference, found, targets, labels=labels, spare_pictures=spare_pictures),
    )


def verdict_objection(reference: Similarity, found: Similarity, *, unknown_below: float) -> str:
    """Return why a model's "unknown" verdicts must not stand for the reference's, given both similarities (N,).

    One picture may change its verdict however few there are. The same threshold serves both: Lite0 on ants and bees in
    INT8, chosen on fp32's similarities, gives 351 of 352 pictures fp32's verdict and finds as many others (95 %).
    """
    stays = (reference < unknown_below) == (found < unknown_below)
    if (~stays).sum() > max(1, (1 - MIN_AGREEMENT) * len(stays)):
        return f"only {stays.mean():.1%} of pictures stay known or unknown, wanted {MIN_AGREEMENT:.0%}"
    return ""


def _objection(reference: Floats, found: Floats, targets: Ints, *, labels: tuple[str, ...], spare_pictures: int) -> str:
    if not np.isfinite(found).all():
        return "probabilities that are no numbers"
    was_right, is_right = reference.argmax(1) == targets, found.argmax(1) == targets
    lost = int(was_right.sum()) - int(is_right.sum())
    rows = np.arange(len(targets))
    expected_drop = float((reference[rows, targets] - found[rows, targets]).mean())
    allowed = max(MAX_ACCURACY_DROP * len(targets), float(expected_drop <= MAX_ACCURACY_DROP))
    if lost > allowed + spare_pictures:
        return f"loses {100 * lost / len(targets):.2f} points, {lost} of {len(targets)} pictures"
    for index, label in enumerate(labels):
        members = targets == index
        if not members.any():
            continue
        low = wilson(int(was_right[members].sum()), int(members.sum())).low
        share = float(is_right[members].mean())
        if share < low:
            return f"class {label[:64]!r} falls to {share:.3f}, below its interval's {low:.3f}"
    agreement = float((found.argmax(1) == reference.argmax(1)).mean())
    if agreement < MIN_AGREEMENT:
        return f"only {agreement:.1%} of answers stay the same, wanted {MIN_AGREEMENT:.0%}"
    return ""
