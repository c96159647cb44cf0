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
    """Return AdamW or SGD over head and body, biases and norms without weight decay.

    With `layer_decay` each block below the last one learns that much slower than the next (Howard and Ruder 2018,
    arXiv:1801.06146, section 3.2; as a power of depth Clark et al. 2020, arXiv:2003.10555).
    """
    head = set(model.head.parameters())
    groups: dict[tuple[bool, float, bool], list[nn.Parameter]] = {}
    for parameter, factor in _rate_factors(model, config).items():
        groups.setdefault((parameter in head, factor, parameter.ndim > 1), []).append(parameter)
    settings = [
        {
            "params": parameters,
            "lr": config.lr * factor,
            "weight_decay": config.weight_decay if has_decay else 0.0,
        }
        for (_, factor, has_decay), parameters in groups.items()
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(settings, lr=config.lr, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(settings, lr=config.lr)


def _rate_factors(model: Classifier, config: FitConfig) -> dict[nn.Parameter, float]:
    """Return each parameter's share of the head's rate, in the network's order."""
    head = set(model.head.parameters())
    body = {name: parameter for name, parameter in model.named_parameters() if parameter not in head}
    blocks = list(dict.fromkeys(map(_block, body)))
    depth = {block: len(blocks) - 1 - index for index, block in enumerate(blocks)}  # 0: next to the head
    factors = {
        parameter: config.body_lr_factor * config.layer_decay ** depth[_block(name)] for name, parameter in body.items()
    }
    return {parameter: factors.get(parameter, 1.0) for parameter in model.parameters()}


def _block(name: str) -> str:
    """Return the block of a parameter's name: network.layer1.0.conv1.weight -> layer1.0."""
    return ".".join(name.split(".")[1:-1][:2])


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
