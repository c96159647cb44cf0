"""The linear probe: logistic regression on features computed once. The first stage of LP-FT.

LP-FT (Kumar et al. 2022, arXiv:2202.10054): a head that already fits keeps fine-tuning from distorting the features.
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

L2_GRID: Final = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A linear head (C, F), (C,) with its validation scores."""

    weight: Tensor
    bias: Tensor
    l2: float
    accuracy: float
    log_loss: float


def fit_probe(
    features: Tensor, targets: Tensor, val_features: Tensor, val_targets: Tensor, *, class_weights: Tensor | None
) -> Probe:
    """Fit one head for every L2 strength, keep the one with the least log-loss on validation.

    features (N, F) float32, targets (N,) int64 in 0..C-1. Features are centred and brought to unit scale for the fit,
    and both are folded into the head. One scale for all of them: with a scale each, features that hardly vary on these
    pictures get weights in the hundreds, and the first steps of fine-tuning explode (5,000 digits: loss 36).
    """
    mean = features.mean(0)
    std = features.var(0).mean().sqrt().clamp_min(1e-6)
    inputs, val_inputs = (features - mean) / std, (val_features - mean) / std
    class_count = int(torch.cat([targets, val_targets]).max()) + 1
    weight = torch.zeros(class_count, features.shape[1])
    bias = torch.zeros(class_count)
    candidates = []
    for l2 in L2_GRID:  # from strong to weak: each start is the last solution
        weight, bias = _solve(inputs, targets, weight, bias, l2=l2, class_weights=class_weights)
        logits = val_inputs @ weight.T + bias
        folded = weight / std
        candidates.append(
            Probe(
                weight=folded,
                bias=bias - folded @ mean,
                l2=l2,
                accuracy=float((logits.argmax(1) == val_targets).double().mean()),
                log_loss=float(F.cross_entropy(logits, val_targets)),
            )
        )
    return min(candidates, key=lambda probe: probe.log_loss)


def _solve(
    inputs: Tensor, targets: Tensor, weight: Tensor, bias: Tensor, *, l2: float, class_weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    weight, bias = weight.clone().requires_grad_(True), bias.clone().requires_grad_(True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(inputs @ weight.T + bias, targets, weight=class_weights)
        loss = loss + l2 * weight.square().sum() / 2
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()
