"""Find a learning rate by ramping it up until the loss explodes. Trains a network of its own, which is thrown away.

Smith 2017, "Cyclical learning rates for training neural networks" (arXiv:1506.01186), section 3.3, with an exponential
ramp. Starts from a fresh head: from the probe's the loss has nowhere to fall, and nothing would be seen.
"""

import math
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from matplotlib.figure import Figure

from trainer import runs
from trainer.config import FitConfig
from trainer.decoded import decoded_folder
from trainer.errors import DataError, TrainerError
from trainer.optim import make_optimizer, set_batchnorm
from trainer.pictures import EpochBatches, derive_seed, training_loader
from trainer.session import Session
from trainer.step import take_step

LOWEST: Final = 1e-6
HIGHEST: Final = 1.0
SMOOTHING: Final = 0.9  # of the loss, an exponential average
EXPLODED: Final = 3.0  # times the least loss so far
FEWEST_STEPS: Final = 10


@dataclass(frozen=True, kw_only=True)
class LearningRates:
    """A ramp: rates of the head, and smoothed losses, step by step."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]

    @property
    def suggestion(self) -> float:
        """The rate at which the loss falls most steeply over the logarithm of the rate, before its least value."""
        end = max(3, int(np.argmin(self.losses)) + 1)
        slopes = np.gradient(np.array(self.losses[:end]), np.log(np.array(self.rates[:end])))
        return self.rates[int(np.argmin(slopes))]


def find_rates(data: Path, config: FitConfig, *, steps: int) -> LearningRates:
    """Ramp the rate over so many steps on the training side; raises DataError where the loss explodes at once."""
    with tempfile.TemporaryDirectory() as scratch, decoded_folder(Path(scratch)) as decoded:
        session = runs.begin(data, Path(scratch) / "run", replace(config, lr=HIGHEST, balanced_sampling=False))
        session.decoded = decoded
        rates, losses = _ramp(session, steps=steps)
    if len(losses) < FEWEST_STEPS:
        raise DataError(f"{data}: the loss exploded after {len(losses)} steps; is the data labelled at random?")
    return LearningRates(rates=tuple(rates), losses=tuple(losses))


def plot(found: LearningRates, path: Path) -> None:
    """Write the curve with its suggestion: SVG or PNG, as the file's name says."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.semilogx(found.rates, found.losses)
    axes.axvline(found.suggestion, color="tab:orange", linestyle="--", label=f"suggestion {found.suggestion:.1e}")
    axes.set(xlabel="learning rate of the head", ylabel="training loss, smoothed")
    axes.legend()
    figure.savefig(path, format="png" if path.suffix.lower() == ".png" else "svg")


def _ramp(session: Session, *, steps: int) -> tuple[list[float], list[float]]:
    config, indices = session.run.config, session.indices("train")
    pictures = session.training_pictures()
    optimizer = make_optimizer(session.model.classifier, config)
    set_batchnorm(session.model, frozen=config.has_frozen_batchnorm)
    rates: list[float] = []
    losses: list[float] = []
    average, epoch = 0.0, 0
    while len(rates) < steps:
        batches = EpochBatches(indices=tuple(indices), batch_size=config.batch_size, seed=config.seed, epoch=epoch)
        for images, targets in training_loader(pictures, batches, workers=config.workers, pin=False):
            step = len(rates)
            rate = LOWEST * (HIGHEST / LOWEST) ** (step / max(1, steps - 1))
            torch.manual_seed(derive_seed(config.seed, step))
            try:
                loss = take_step(
                    session, optimizer, images=images, targets=targets, class_weights=None, factor=rate / HIGHEST
                )
            except TrainerError:  # no number any more
                return rates, losses
            average = SMOOTHING * average + (1 - SMOOTHING) * loss
            smoothed = average / (1 - SMOOTHING ** (step + 1))
            if losses and (smoothed > EXPLODED * min(losses) or not math.isfinite(smoothed)):
                return rates, losses
            rates.append(rate)
            losses.append(smoothed)
            if len(rates) == steps:
                break
        epoch += 1
    return rates, losses
