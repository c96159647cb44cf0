"""Compiled training: the losses of the plain network, its checkpoints, and one line where nothing can compile."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from trainer import checkpoint, runs, train
from trainer.config import FitConfig
from trainer.errors import ConfigError
from trainer.progress import Progress

from .pictures import make_folder

# 24 training pictures in batches of 10: two full ones that are compiled, and an odd one that is not.
CONFIG = FitConfig(
    backbone="timm:test_efficientnet",
    weights="none",
    image_size=32,
    batch_size=10,
    epochs=2,
    threads=1,
    device="cpu",
    augment="strong",
    compile=True,
)
needs_compiler = pytest.mark.skipif(
    not shutil.which(os.environ.get("CXX", "g++")), reason="no C++ compiler on this machine"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pictures to train on, 6 to validate."""
    return make_folder(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def compiled_run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run of a compiled network; one graph was made, for full batches."""
    run = tmp_path_factory.mktemp("compiled") / "run"
    counters.clear()
    train.fit(runs.begin(data, run, CONFIG))
    assert counters["stats"]["unique_graphs"] == 1
    return run


@needs_compiler
def test_compiled_training_has_the_losses_of_plain_training(data: Path, compiled_run: Path, tmp_path: Path) -> None:
    """Epoch by epoch within rounding, and the tensors of a checkpoint keep their names."""
    plain_run = tmp_path / "run"
    train.fit(runs.begin(data, plain_run, replace(CONFIG, compile=False)))
    for ours, theirs in zip(checkpoint.read_history(compiled_run), checkpoint.read_history(plain_run), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)
    ours, theirs = (checkpoint.load(run, "last")[1] for run in (compiled_run, plain_run))
    assert ours.keys() == theirs.keys()


class KilledError(Exception):
    """Stands for the end of a process."""


class KilledInSecondEpoch(Progress):
    """Ends a run at its second epoch."""

    def epoch_done(self, number: int, *, loss: float, accuracy: float) -> None:
        if number == 1:
            raise KilledError


@needs_compiler
def test_compiled_run_resumes_bit_exactly(data: Path, compiled_run: Path, tmp_path: Path) -> None:
    """A run that ended in its second epoch and was resumed has every bit of the one that did not."""
    session = runs.begin(data, tmp_path / "run", CONFIG)
    session.progress = KilledInSecondEpoch()
    with pytest.raises(KilledError):
        train.fit(session)
    train.fit(runs.resume(tmp_path / "run"))
    whole, resumed = (checkpoint.load(run, "last")[1] for run in (compiled_run, tmp_path / "run"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_missing_compiler_is_told_in_one_line(data: Path, tmp_path: Path) -> None:
    """Exit code 2, what was found and what to do; no traceback."""
    options = ["--backbone", CONFIG.backbone, "--weights", "none", "--image-size", "32", "--threads", "1"]
    command = [sys.executable, "-m", "trainer", "fit", str(data), "--out", str(tmp_path / "run"), *options, "--compile"]
    no_compiler = {"CXX": str(tmp_path / "g++"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(command, env={**os.environ, **no_compiler}, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("Error: --compile:")
    assert "C++ compiler" in last
    assert "--resume" in last
    assert "Traceback" not in done.stderr


def test_compilation_within_a_time_budget_is_refused(data: Path, tmp_path: Path) -> None:
    """Before anything is written."""
    with pytest.raises(ConfigError, match="leave out --time-budget or --compile"):
        runs.begin(data, tmp_path / "run", replace(CONFIG, time_budget=60.0))
    assert not (tmp_path / "run").exists()
