"""Plan fine-tuning: how many epochs, and on pictures of which size, so that it ends in time. Trains nothing.

A plan is one training side in pixels for each epoch. Smaller pictures cost a quarter for half the side, and a network
that is trained on somewhat smaller ones than it is used on loses nothing (Touvron et al. 2019, arXiv:1906.06423:
training at 160 fits a test at 224). Validation and the exported model keep the full side whatever the plan.
"""

from dataclasses import dataclass
from typing import Final

from trainer.config import FitConfig

FEWEST_EPOCHS: Final = 4  # below, smaller pictures are the better use of the time
MOST_EPOCHS: Final = 20
SMALLEST_SHARE: Final = 0.55  # of the full side: 128 of 224
GRID_PX: Final = 32  # the stride of nearly every network
PLANNED_SHARE: Final = 0.9  # of what is left of a budget: epochs vary, and the report comes after


@dataclass(frozen=True, kw_only=True)
class Pace:
    """What was measured before planning, in seconds at the full side."""

    load_step: float  # decode and augment one batch
    compute_step: float  # forward, backward, update
    validation: float  # once over the validation side

    def epoch(self, steps: int, *, px: int, full_px: int) -> float:
        """Return the seconds of an epoch on pictures of another side: convolutions go with its square."""
        return steps * (self.load_step + self.compute_step * (px / full_px) ** 2) + self.validation


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What fine-tuning will do."""

    epoch_px: tuple[int, ...]  # side of the training pictures, epoch by epoch
    reason: str
    budget_seconds: float | None = None  # for the whole fit
    planned_seconds: float | None = None  # of the whole fit, where it was measured

    @property
    def epochs(self) -> int:
        """How many epochs at most."""
        return len(self.epoch_px)

    def verdict(self, used_seconds: float, *, epochs: int) -> str:
        """Say how a plan with a budget turned out; empty without a budget."""
        if self.budget_seconds is None or self.planned_seconds is None:
            return ""
        return (
            f"time: planned {self.planned_seconds:.0f} s with {self.epochs} epochs, used {used_seconds:.0f} s "
            f"with {epochs}, of {self.budget_seconds:.0f} s"
        )

    def __str__(self) -> str:
        if not self.epoch_px:
            return f"plan: the probe alone; {self.reason}"
        sides = dict.fromkeys(self.epoch_px)
        time = "" if self.planned_seconds is None else f", {self.planned_seconds:.0f} s in all"
        return f"plan: {self.epochs} epochs at {', '.join(map(str, sides))} px{time}; {self.reason}"


def default_epochs(picture_count: int, *, px: int, device: str) -> int:
    """Return so many epochs that a CPU sees about 12,000 pictures and a GPU 60,000, within 3..8 and 5..12.

    On a CPU of 224 px; of others as many as take the same time.
    """
    if device == "cuda":
        return min(12, max(5, 60_000 // picture_count))
    return min(8, max(3, int(12_000 * (224 / px) ** 2) // picture_count))


def plan_freely(config: FitConfig, picture_count: int, *, full_px: int, device: str) -> Plan:
    """Plan without a budget: the epochs that were asked for, else those of data size and device."""
    asked = config.epochs is not None
    epochs = config.epochs if config.epochs is not None else default_epochs(picture_count, px=full_px, device=device)
    reason = "as --epochs says" if asked else f"default for {picture_count:,} training pictures on {device}"
    return Plan(epoch_px=growing_px(config.start_image_size, full_px, epochs=epochs), reason=reason)


def plan_in_time(config: FitConfig, pace: Pace, *, steps: int, full_px: int, elapsed: float) -> Plan:
    """Plan for a budget: the largest pictures that leave time for FEWEST_EPOCHS, and as many epochs as fit.

    `steps` of an epoch; `elapsed` seconds are gone already.
    """
    budget = config.time_budget
    assert budget is not None
    room = PLANNED_SHARE * (budget - elapsed)
    most = MOST_EPOCHS if config.epochs is None else config.epochs
    wanted = min(FEWEST_EPOCHS, most)
    for px in sides(full_px):
        each = pace.epoch(steps, px=px, full_px=full_px)
        epochs = max(0, min(most, int(room / each)))
        if epochs >= wanted:
            break
    reason = f"{each:.1f} s an epoch, {max(0.0, budget - elapsed):.0f} of {budget:.0f} s left"
    return Plan(
        epoch_px=(px,) * epochs,
        reason=reason,
        budget_seconds=budget,
        planned_seconds=elapsed + epochs * each,
    )


def sides(full_px: int) -> list[int]:
    """Return the sides worth training on, the full one first, then the grid down to the smallest share."""
    below = range((full_px - 1) // GRID_PX * GRID_PX, 0, -GRID_PX)
    return [full_px, *(px for px in below if px >= SMALLEST_SHARE * full_px)]


def growing_px(start_px: int | None, full_px: int, *, epochs: int) -> tuple[int, ...]:
    """Return the side of each epoch, growing evenly from `start_px` on the grid; the last third has the full side.

    Progressive resizing: Howard 2018 (fast.ai, DAWNBench); Tan and Le 2021, arXiv:2104.00298, section 4.
    """
    if start_px is None or start_px >= full_px:
        return (full_px,) * epochs
    growing = epochs - max(1, epochs // 3)
    span = full_px - start_px
    grown = [start_px + span * epoch // max(1, growing) for epoch in range(growing)]
    return tuple(max(start_px, px // GRID_PX * GRID_PX) for px in grown) + (full_px,) * (epochs - growing)
