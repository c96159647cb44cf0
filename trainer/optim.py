"""Losses, parameter groups, schedule and weight averaging of fine-tuning."""

import math
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.classifier import Classifier
from trainer.config import FitConfig

BATCHNORM_MOMENTUM: Final = 0.1


def loss_of(logits: Tensor, targets: Tensor, config: FitConfig, class_weights: Tensor | None) -> Tensor:
    """Return the mean loss of logits (N, C) against target rows (N, C) that sum to 1.

    Focal loss: Lin et al. 2017 (arXiv:1708.02002), eq. 4, with its sum over soft targets.
    """
    if config.loss == "cross-entropy":
        return F.cross_entropy(logits, targets, weight=class_weights, label_smoothing=config.label_smoothing)
    log_p = F.log_softmax(logits, dim=1)
    terms = -targets * (1 - log_p.exp()) ** config.focal_gamma * log_p  # (N, C)
    if class_weights is not None:
        terms = terms * class_weights
    return terms.sum(1).mean()


def inverse_frequency(indices: list[int], class_count: int) -> Tensor:
    """Return class weights (C,) proportional to 1 / count, whose mean over the pictures is 1."""
    counts = torch.bincount(torch.tensor(indices), minlength=class_count).clamp_min(1).float()
    return len(indices) / (class_count * counts)


def make_optimizer(model: Classifier, config: FitConfig) -> torch.optim.Optimizer:
    """Return AdamW or SGD over head and body, biases and norms without weight decay."""
    head = set(model.head.parameters())
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        groups.setdefault((parameter in head, parameter.ndim > 1), []).append(parameter)
    settings = [
        {
            "params": parameters,
            "lr": config.lr * (1.0 if is_head else config.body_lr_factor),
            "weight_decay": config.weight_decay if has_decay else 0.0,
        }
        for (is_head, has_decay), parameters in groups.items()
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(settings, lr=config.lr, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(settings, lr=config.lr)


def lr_factor(step: int, *, total_steps: int, warmup: float) -> float:
    """Return the share of the peak rate at a step: linear warm-up, then half a cosine to 0."""
    warmup_steps = max(1, round(total_steps * warmup)) if warmup > 0 else 0
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


@torch.no_grad()
def update_average(average: dict[str, Tensor], model: nn.Module, *, decay: float, step: int) -> None:
    """Move an exponential moving average of a state dict towards the model, in place.

    The decay grows with the step, min(decay, (1 + step) / (10 + step)), so that a short run is not stuck at its start.
    """
    weight = 1 - min(decay, (1 + step) / (10 + step))
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            average[name].lerp_(value, weight)
        else:
            average[name].copy_(value)


def set_batchnorm(model: nn.Module, *, frozen: bool) -> None:
    """Put the model in training mode; frozen BatchNorm layers keep using their running statistics.

    Trained ones follow the batches with torch's own momentum of 0.1: networks that came from TensorFlow carry 0.01,
    with which a fine-tuning of a few hundred steps ends on the statistics of the pretraining pictures.
    """
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = BATCHNORM_MOMENTUM
            module.train(not frozen)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return an optimizer's moments and counts as `index/name`, for a checkpoint."""
    return {
        f"{index}/{name}": torch.as_tensor(value)
        for index, entry in optimizer.state_dict()["state"].items()
        for name, value in entry.items()
        if value is not None
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave; rates and groups stay the optimizer's own."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split("/")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
