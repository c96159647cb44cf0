"""The learning-rate finder: the steepest place of a curve known by hand, and the command on tiny pictures."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from trainer.cli import app
from trainer.lr_find import LearningRates

from .pictures import make_folder


def test_suggestion_is_the_steepest_fall() -> None:
    """A logistic fall around 1e-3, then an explosion: the middle of the fall is suggested."""
    exponents = np.linspace(-6, 0, 61)
    losses = 1 / (1 + np.exp(4 * (exponents + 3))) + np.where(exponents > -1, 5 * (exponents + 1), 0)
    found = LearningRates(rates=tuple(10**exponents), losses=tuple(losses))
    assert found.suggestion == pytest.approx(1e-3, rel=0.3)


@pytest.mark.parametrize(("name", "begins"), [("plot.svg", b"<?xml"), ("plot.png", b"\x89PNG")])
def test_command_writes_a_plot_and_no_run(tmp_path: Path, name: str, begins: bytes) -> None:
    """The last line names the rate for the next command; nothing else is written."""
    data = make_folder(tmp_path / "data")
    words = ["lr-find", str(data), "--to", str(tmp_path / name), "--steps", "30", "--backbone", "resnet18"]
    words += ["--weights", "none", "--image-size", "32", "--batch-size", "8", "--threads", "1"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert (tmp_path / name).read_bytes().startswith(begins)
    rate = float(done.stdout.split()[-1])
    assert 1e-6 < rate < 1
    assert {path.name for path in tmp_path.iterdir()} == {"data", name}
