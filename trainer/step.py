"""One step of fine-tuning: mix, forward, loss, backward, update."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.augment import mix, resolve
from trainer.errors import TrainerError
from trainer.optim import loss_of
from trainer.pictures import derive_seed
from trainer.session import Session


def take_step(
    session: Session,
    optimizer: torch.optim.Optimizer,
    *,
    images: Tensor,
    targets: Tensor,
    class_weights: Tensor | None,
    factor: float,
    batch_count: int | None = None,
) -> float:
    """Move the weights by one batch at `factor` of the peak rates; return its mean loss.

    images uint8 (N, H, W, 3), targets int64 (N,): this process's share of a batch of `batch_count` pictures; None where
    it is all of it. Raises TrainerError where the loss is no number.
    """
    config, device, world = session.run.config, session.device, session.world
    for group in optimizer.param_groups:
        group.setdefault("peak_lr", group["lr"])
        group["lr"] = group["peak_lr"] * factor
    planes = session.model.normalise(images.to(device.name, non_blocking=True))
    rows = F.one_hot(targets.to(device.name), len(session.run.labels)).float()
    planes, rows = mix(planes, rows, resolve(config))
    batch_count = len(rows) if batch_count is None else batch_count
    own_count = len(world.share(range(batch_count)))
    planes, rows = planes[-own_count:], rows[-own_count:]  # a neighbour was only there to be mixed in
    if world.rank:
        torch.manual_seed(derive_seed(int(torch.initial_seed()), world.rank))  # dropout: other units on other pictures
    weights = None if class_weights is None else class_weights.to(device.name)
    is_full = batch_count == config.batch_size
    network = session.compiled if session.compiled is not None and is_full else session.trained
    optimizer.zero_grad()
    total = 0.0
    for part_planes, part_rows in parts(planes, rows, count=config.accumulate):
        with device.autocast():
            logits = network(part_planes)
        share = len(part_rows) / len(rows) * world.weight(batch_count)
        loss = loss_of(logits.float(), part_rows, config, weights) * share
        mean_loss = world.mean(float(loss.detach()))
        if not math.isfinite(mean_loss):
            raise TrainerError(f"the loss became {mean_loss}; lower --lr (now {config.lr:g}) and fit again")
        loss.backward()  # type: ignore[no-untyped-call]
        total += mean_loss
    if config.clip_norm:
        nn.utils.clip_grad_norm_(session.model.parameters(), config.clip_norm)
    optimizer.step()
    return total


def parts(planes: Tensor, rows: Tensor, *, count: int) -> list[tuple[Tensor, Tensor]]:
    """Cut a batch into at most `count` parts of two pictures or more: BatchNorm cannot learn from one."""
    pieces = max(1, min(count, len(rows) // 2))
    return list(zip(planes.tensor_split(pieces), rows.tensor_split(pieces), strict=True))
