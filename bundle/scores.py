"""From logits to ranked labels and the "unknown" verdict, the same in `trainer predict` and in the server."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """One label of an answer."""

    index: int
    label: str
    score: float  # calibrated probability, 0..1


def probabilities(logits: NDArray[np.float32], *, temperature: float) -> NDArray[np.float64]:
    """Return softmax(logits / temperature) over the last axis: (..., C) float32 -> (..., C) float64, rows sum to 1.

    Temperature scaling after Guo et al. 2017 (arXiv:1706.04599), eq. 9.
    """
    scaled = logits.astype(np.float64) / temperature
    exponentials = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    result: NDArray[np.float64] = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return result


def rank(
    row: NDArray[np.float64], labels: tuple[str, ...], *, top_k: int = 5, min_score: float = 0.0
) -> tuple[Ranked, ...]:
    """Return the top_k labels of one row of probabilities (C,), best first, ties by label order.

    top_k is capped at the number of labels; labels that score below min_score are left out.
    """
    order = (-row).argsort(kind="stable")[:top_k]
    best = zip(order.tolist(), row[order].tolist(), strict=True)
    return tuple([Ranked(index=index, label=labels[index], score=score) for index, score in best if score >= min_score])


def is_unknown(similarity: np.float32, *, unknown_below: float) -> bool:
    """Say whether a picture is unlike all that the model was trained on; the threshold is `Contract.unknown_below`.

    Asked of the picture's features, not of its scores: softmax must give its whole to the labels that there are, and is
    often sure of one in a picture of something else.
    """
    return float(similarity) < unknown_below
