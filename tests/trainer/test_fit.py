"""Training for real, small: it learns, and a killed run ends with the same bits as one that was not."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from trainer import checkpoint, runs, train
from trainer.cli import app
from trainer.config import FitConfig
from trainer.errors import CheckpointError

from .pictures import make_folder

OPTIONS = ["--backbone", "resnet18", "--weights", "none", "--image-size", "32", "--epochs", "3", "--batch-size", "4"]
OPTIONS += ["--augment", "strong", "--checkpoint-every", "1", "--threads", "1"]


def start_fit(data: Path, out: Path, *more: str) -> "subprocess.Popen[bytes]":
    """Start a fit in a process of its own."""
    command = [sys.executable, "-m", "trainer", "fit", str(data), "--out", str(out), *OPTIONS, *more]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def final_weights(run: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of the last checkpoint: weights, running average and optimizer."""
    return load_file(run / json.loads((run / "last.json").read_text())["weights"])


def wait_for_step(run: Path, process: "subprocess.Popen[bytes]", *, epoch: int, step: int) -> None:
    """Return once the run's last checkpoint stands at or after a step."""
    while process.poll() is None:
        if (run / "last.json").exists():
            state = json.loads((run / "last.json").read_text())
            if (state["epoch"], state["step"]) >= (epoch, step):
                return


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_stopped_run_resumes_bit_exactly(tmp_path: Path, number: signal.Signals) -> None:
    """A run stopped in mid-epoch and resumed has every bit of the uninterrupted one."""
    data = make_folder(tmp_path / "data")
    assert start_fit(data, tmp_path / "whole").wait() == 0
    stopped = start_fit(data, tmp_path / "stopped")
    wait_for_step(tmp_path / "stopped", stopped, epoch=1, step=2)
    os.kill(stopped.pid, number)
    assert stopped.wait() != 0
    state, _ = checkpoint.load(tmp_path / "stopped", "last")
    assert (1, 2) <= (state.epoch, state.step) < (3, 0)
    assert start_fit(data, tmp_path / "stopped", "--resume").wait() == 0
    whole, resumed = final_weights(tmp_path / "whole"), final_weights(tmp_path / "stopped")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert (tmp_path / "whole/history.jsonl").read_text() == (tmp_path / "stopped/history.jsonl").read_text()


def test_fine_tuning_beats_a_probe_on_random_features(tmp_path: Path) -> None:
    """Both scores are reported, the better one is kept, and the kept weights give that score again."""
    data = make_folder(tmp_path / "data")
    config = FitConfig(
        backbone="resnet18", weights="none", image_size=32, epochs=4, batch_size=4, lr=1e-3, body_lr_factor=1.0
    )
    outcome = train.fit(runs.begin(data, tmp_path / "run", config))
    assert outcome.fine_tuned is not None
    best = max(outcome.probe.accuracy, outcome.fine_tuned.accuracy)
    state, _ = checkpoint.load(tmp_path / "run", "best")
    assert state.best is not None
    assert state.best.accuracy == best >= 0.6
    evaluation = runs.evaluate_target(tmp_path / "run", data)
    assert evaluation.picture_count == 6


def test_training_from_scratch_begins_near_chance(tmp_path: Path) -> None:
    """The probe's head, fitted to features that nothing has scaled, would begin with a loss of millions."""
    data, run = make_folder(tmp_path / "data", count=10), tmp_path / "run"
    config = FitConfig(backbone="mobilenet_v3_small", weights="none", image_size=32, epochs=1, batch_size=8, threads=1)
    train.fit(runs.begin(data, run, config))
    assert checkpoint.read_history(run)[0]["loss"] < 2 * math.log(3)


def test_second_fit_into_a_run_is_refused(tmp_path: Path) -> None:
    """A finished run is never overwritten."""
    data = make_folder(tmp_path / "data")
    (tmp_path / "run").mkdir()
    for name in ("run.json", "last.json"):
        (tmp_path / "run" / name).write_text("{}")
    with pytest.raises(CheckpointError, match="holds a run already"):
        runs.begin(data, tmp_path / "run", FitConfig(weights="none"))


def test_a_fit_that_ended_before_its_first_checkpoint_is_begun_anew(tmp_path: Path) -> None:
    """As after Ctrl-C in the probe, or a device that is not there: it can be neither resumed nor in anybody's way."""
    data, run = make_folder(tmp_path / "data"), tmp_path / "run"
    config = FitConfig(backbone="mobilenet_v3_small", weights="none", image_size=32, threads=1)
    runs.begin(data, run, config)
    (run / checkpoint.APPLIED_FIXES).write_text("of the fit before")
    runs.begin(data, run, dataclasses.replace(config, seed=7))
    assert not (run / checkpoint.APPLIED_FIXES).exists()
    assert json.loads((run / "run.json").read_text())["config"]["seed"] == 7


def test_help_lists_every_setting() -> None:
    """Each field of the configuration is an option with a help text."""
    text = CliRunner().invoke(app, ["fit", "--help"], env={"COLUMNS": "200"}).output
    for name in FitConfig.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in text
