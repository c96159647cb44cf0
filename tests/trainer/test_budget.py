"""A time budget: what is planned from a measured pace, and that a fit keeps to it by a clock of our own."""

from dataclasses import replace
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from trainer import checkpoint, runs, train
from trainer.budget import Pace, default_epochs, growing_px, plan_freely, plan_in_time, sides
from trainer.cli import app
from trainer.config import FitConfig, parse_duration
from trainer.errors import TrainerError

from .pictures import make_folder

PACE = Pace(load_step=0.1, compute_step=0.9, validation=5.0)  # 100 steps at the full side: 105 s
TINY = FitConfig(backbone="mobilenet_v3_small", weights="none", image_size=32, batch_size=8, patience=50)


class Clock:
    """Every look at it takes a second."""

    def __init__(self, *, tick: float = 1.0) -> None:
        self.now, self.tick = 0.0, tick

    def __call__(self) -> float:
        self.now += self.tick
        return self.now


def plan(budget: float, **changes: object):
    config = replace(FitConfig(time_budget=budget), **changes)
    return plan_in_time(config, PACE, steps=100, full_px=224, elapsed=20.0)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400)])
def test_durations_have_units(text: str, seconds: float) -> None:
    """Seconds, minutes and hours."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["10", "0s", "m", "-3s", "1d", "1m30s"])
def test_other_durations_are_refused(text: str) -> None:
    """The message says what a duration looks like."""
    with pytest.raises(typer.BadParameter, match="such as 90s, 10m or 1h"):
        parse_duration(text)


def test_command_line_refuses_a_budget_without_a_unit() -> None:
    """Exit code 2 before anything is read."""
    done = CliRunner().invoke(app, ["fit", "nowhere", "--out", "nowhere", "--time-budget", "ten"])
    assert done.exit_code == 2
    assert "--time-budget" in done.output


def test_room_for_the_full_side_takes_it() -> None:
    """0.9 · (1000 − 20) s hold eight epochs of 105 s."""
    made = plan(1000.0)
    assert made.epoch_px == (224,) * 8
    assert made.planned_seconds == pytest.approx(20 + 8 * 105)


def test_little_room_takes_smaller_pictures() -> None:
    """0.9 · 300 s are two epochs at 224 px, but four at 160."""
    made = plan(320.0)
    assert made.epoch_px == (160,) * 4
    assert made.planned_seconds == pytest.approx(20 + 4 * (100 * (0.1 + 0.9 * (160 / 224) ** 2) + 5))


def test_no_room_keeps_the_probe() -> None:
    """A budget that the probe used up plans nothing more, and says so."""
    made = plan(15.0)
    assert made.epochs == 0
    assert "the probe alone" in str(made)


def test_asked_epochs_are_the_most() -> None:
    """--epochs bounds a budget, which else is bounded by 20."""
    assert plan(1e6, epochs=3).epoch_px == (224,) * 3
    assert plan(1e6).epochs == 20


def test_defaults_follow_size_and_device() -> None:
    """Few pictures are seen more often; the plan names what it rests on."""
    assert [default_epochs(count, px=224, device="cpu") for count in (100, 2400, 10_000)] == [8, 5, 3]
    assert [default_epochs(4000, px=px, device="cpu") for px in (64, 160, 288)] == [8, 5, 3]
    assert default_epochs(10_000, px=64, device="cuda") == 6
    made = plan_freely(FitConfig(), 2400, full_px=224, device="cpu")
    assert made.epoch_px == (224,) * 5
    assert "2,400 training pictures on cpu" in str(made)


def test_sides_lie_on_the_grid() -> None:
    """From the full side down to 0.55 of it; a tiny side has no smaller one."""
    assert sides(224) == [224, 192, 160, 128]
    assert sides(32) == [32]


def test_pictures_grow_to_the_full_side() -> None:
    """From the start on the grid, never smaller again, and the last third full."""
    assert growing_px(128, 224, epochs=6) == (128, 128, 160, 192, 224, 224)
    assert growing_px(None, 224, epochs=2) == (224, 224)
    assert growing_px(128, 224, epochs=1) == (224,)


def test_fit_ends_within_its_budget_plus_an_epoch(tmp_path: Path) -> None:
    """Epochs that take longer than measured end the fit early; the best weights are kept and the plan recorded."""
    session = runs.begin(make_folder(tmp_path / "data"), tmp_path / "run", replace(TINY, time_budget=60.0))
    clock, session.started = Clock(), 0.0

    class SlowAfterProbe:
        """Steps of the real epochs take longer than those that were measured."""

        def __call__(self) -> float:
            clock.tick = 3.0 if session.state.plan else 1.0
            return clock()

    session.clock = SlowAfterProbe()
    outcome = train.fit(session)
    state, _ = checkpoint.load(tmp_path / "run", "last")
    assert state.plan is not None
    assert state.plan.budget_seconds == 60.0
    assert 0 < state.epoch < state.plan.epochs
    longest = state.fine_tune_seconds / state.epoch
    assert session.used_seconds() <= 60.0 + longest
    assert (tmp_path / "run" / "best.json").exists()
    assert f"planned {state.plan.planned_seconds:.0f} s" in outcome.verdict


def test_a_budget_that_ends_before_the_probe_is_refused_at_once(tmp_path: Path) -> None:
    """After a few batches, not when the time is gone; the message says how much the probe needs."""
    config = replace(TINY, time_budget=10.0)
    session = runs.begin(make_folder(tmp_path / "data"), tmp_path / "run", config)
    session.clock, session.started = Clock(), 0.0
    session.used_before = 0.0  # reading the pictures took real time
    session.clock.tick = 4.0
    with pytest.raises(TrainerError, match="found 10 s, the linear probe alone ends after about 28; allow more"):
        train.fit(session)
    assert session.state.probe is None


def test_measuring_moves_no_weight(tmp_path: Path) -> None:
    """A fit whose budget leaves the same plan ends with the same bits as one without a budget."""
    data = make_folder(tmp_path / "data")
    weights = []
    for name, budget in (("free", None), ("timed", 1e6)):
        session = runs.begin(data, tmp_path / name, replace(TINY, epochs=2, time_budget=budget))
        train.fit(session)
        weights.append(checkpoint.load(tmp_path / name, "last")[1])
    assert all((weights[0][key] == weights[1][key]).all() for key in weights[0])
