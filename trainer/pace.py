"""Measure how fast a session works, on a copy of its network, and plan its fine-tuning by that."""

import copy
from statistics import median
from typing import Final

import torch
from torch.nn import functional as F

from trainer.budget import Pace, Plan, plan_freely, plan_in_time
from trainer.errors import TrainerError
from trainer.network import all_features
from trainer.optim import set_batchnorm
from trainer.pictures import EpochBatches, steps_per_epoch, training_loader
from trainer.session import Session

STEPS: Final = 4  # the first one allocates and is not counted


def make_plan(session: Session, validation_seconds: float) -> Plan:
    """Return the plan of fine-tuning; measures a few steps first where there is a budget that is not used up."""
    config, full_px = session.run.config, session.run.spec.crop_px
    count = len(session.sides["train"])
    if config.time_budget is None:
        return plan_freely(config, count, full_px=full_px, device=session.device.name)
    used = session.used_seconds()
    if used >= config.time_budget:
        reason = f"{used:.0f} of {config.time_budget:.0f} s are used already"
        return Plan(epoch_px=(), reason=reason, budget_seconds=config.time_budget, planned_seconds=used)
    pace = measure_pace(session, validation_seconds)
    steps = steps_per_epoch(count, config.batch_size)
    return plan_in_time(config, pace, steps=steps, full_px=full_px, elapsed=session.used_seconds())


def check_probe(session: Session) -> None:
    """Measure a few batches where there is a budget. Raises TrainerError where it ends before the probe would.

    Nothing less than the probe is worth keeping, and it takes its time: said at once, not when that is gone.
    """
    budget = session.run.config.time_budget
    if budget is None:
        return
    loader = session.evaluation("train")
    batches, times = iter(loader), []
    for _ in range(min(STEPS, len(loader))):
        started = session.clock()
        all_features(session.model, [next(batches)], session.device)
        times.append(session.clock() - started)
    count = len(loader) + len(session.evaluation("val"))
    needed = session.used_seconds() + count * median(times[1:] or times)
    if needed > budget:
        raise TrainerError(
            f"--time-budget: found {budget:.0f} s, the linear probe alone ends after about {needed:.0f}; allow more "
            "time, or choose a smaller backbone or --image-size"
        )


def measure_pace(session: Session, validation_seconds: float) -> Pace:
    """Train a copy for a few steps at the full side; neither the session's weights nor its generators move."""
    config = session.run.config
    indices = session.indices("train")
    pictures = session.training_pictures()
    batches = EpochBatches(indices=tuple(indices), batch_size=config.batch_size, seed=config.seed, epoch=0)
    loader = iter(training_loader(pictures, batches, workers=0, pin=False))
    model = copy.deepcopy(session.model)
    set_batchnorm(model, frozen=config.has_frozen_batchnorm)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    loads, computes = [], []
    with torch.random.fork_rng(devices=[]):
        for _ in range(min(STEPS, len(batches))):
            started = session.clock()
            images, targets = next(loader)
            loaded = session.clock()
            with session.device.autocast():
                logits = model(images.to(session.device.name))
            F.cross_entropy(logits.float(), targets.to(session.device.name)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            float(logits.detach().sum())  # waits for the device
            loads.append(loaded - started)
            computes.append(session.clock() - loaded)
    counted = slice(1, None) if len(computes) > 1 else slice(None)
    return Pace(load_step=median(loads[counted]), compute_step=median(computes[counted]), validation=validation_seconds)
