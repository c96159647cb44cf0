"""Temperature, thresholds and the "unknown" verdict."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from bundle.scores import is_unknown, probabilities
from trainer import runs, train
from trainer.calibration import compare_temperature, precision_thresholds, unknown_threshold
from trainer.cli import app
from trainer.config import FitConfig
from trainer.metrics import bootstrap_mean, evaluate, fit_temperature

LABELS = ("a", "b")


def test_temperature_repairs_overconfidence() -> None:
    """Logits three times too large: log-loss and ECE are lower after, and each has an interval."""
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(600, 3)).astype(np.float32)
    targets = np.array([generator.choice(3, p=row) for row in probabilities(logits, temperature=1.0)])
    temperature = fit_temperature(3.0 * logits.astype(np.float64), targets)
    assert temperature == pytest.approx(3.0, rel=0.2)
    found = compare_temperature(3 * logits, targets, temperature=temperature, fitted_on="these")
    for name in ("log-loss", "ECE"):
        assert found.after[name].high < found.before[name].low
        assert found.after[name].low <= found.after[name].value <= found.after[name].high


def test_threshold_by_hand() -> None:
    """Answers "a" at .9 right, .8 right, .7 wrong, .6 right: precision 1 from .8 on, 0.75 from .6 on; no "b" at all."""
    top = np.array([0.9, 0.8, 0.7, 0.6])
    scores, targets = np.stack([top, 1 - top], axis=1), np.array([0, 0, 1, 0])
    first, second = precision_thresholds(scores, targets, LABELS, precision=1.0)
    assert first.threshold == 0.8
    assert first.precision is not None
    assert first.recall is not None
    assert (first.precision.value, first.recall.value) == (1.0, pytest.approx(2 / 3))
    assert second.threshold is None
    assert precision_thresholds(scores, targets, LABELS, precision=0.75)[0].threshold == 0.6


def test_equal_scores_are_not_parted() -> None:
    """A threshold cannot take one of two pictures with the same score."""
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.8, 0.2]])
    first, _ = precision_thresholds(scores, np.array([0, 0, 1]), LABELS, precision=1.0)
    assert first.threshold == 0.9


def test_one_known_picture_in_twenty_is_unknown() -> None:
    """The threshold is where 95 % of the known ones stand above."""
    similarities = np.linspace(0.5, 1.0, 200, dtype=np.float32)
    threshold = unknown_threshold(similarities[::-1])
    assert sum(is_unknown(similarity, unknown_below=threshold) for similarity in similarities) == 10


@pytest.mark.parametrize("similarities", [[0.9] * 40, [0.7, 0.8, 0.9]])
def test_rounding_makes_no_picture_unknown(similarities: list[float]) -> None:
    """A runtime that is off by less than the proof allows still knows the picture that the threshold was set by."""
    known = np.float32(similarities)
    assert not any(is_unknown(one - np.float32(9e-5), unknown_below=unknown_threshold(known)) for one in known)


def test_class_figures_have_intervals() -> None:
    """Precision and recall Wilson's, F1 bootstrapped; none where there is nothing to divide by."""
    scores = np.array([[0.9, 0.1, 0.0]] * 8 + [[0.1, 0.9, 0.0]] * 8)
    first, second, third = evaluate(scores, np.array([0] * 7 + [1] * 9), ("a", "b", "c")).classes
    assert first.precision is not None
    assert first.precision.low < first.precision.value == 7 / 8 < first.precision.high
    assert second.f1.value == pytest.approx(16 / 17)
    assert second.f1.low < second.f1.value < second.f1.high
    assert (third.precision, third.recall) == (None, None)


def test_mean_of_equal_figures_is_sure() -> None:
    """Its interval has no width."""
    found = bootstrap_mean(np.full(5, 0.25), seed=0)
    assert (found.low, found.value, found.high) == (0.25, 0.25, 0.25)


def coloured(folder: Path, colour: tuple[int, int, int], *, count: int, seed: int, spread: float = 30) -> Path:
    """Write noisy pictures whose colours lie around one."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = np.array(colour) + generator.normal(0, spread, 3) + generator.normal(0, 20, (40, 48, 3))
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Return data, run and bundle of a model that knows red and blue, which overlap a little."""
    root = tmp_path_factory.mktemp("known")
    coloured(root / "data" / "red", (160, 75, 100), count=80, seed=1)
    coloured(root / "data" / "blue", (100, 75, 160), count=80, seed=2)
    config = FitConfig(backbone="resnet18", weights="none", image_size=32, epochs=0, threads=1)
    train.fit(runs.begin(root / "data", root / "run", config))
    done = CliRunner().invoke(app, ["export", str(root / "run"), "--to", str(root / "models"), "--name", "m", "--onnx"])
    assert done.exit_code == 0
    assert "temperature" in done.stdout
    assert "before" in done.stdout
    return root / "data", root / "run", root / "models" / "m" / "1"


def verdicts(bundle: Path, folder: Path) -> list[bool]:
    """Return whether `trainer predict` calls each picture of a folder unknown."""
    done = CliRunner().invoke(app, ["predict", str(bundle), str(folder), "--json"])
    return [json.loads(line)["unknown"] for line in done.stdout.splitlines()]


def test_other_things_are_unknown(model: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Green pictures are, few of the known ones; both in what a person and in what a program reads."""
    data, _, bundle = model
    others = coloured(tmp_path / "green", (60, 180, 60), count=30, seed=3, spread=2)
    assert np.mean(verdicts(bundle, data)) <= 0.15
    assert np.mean(verdicts(bundle, others)) >= 0.8
    plain = CliRunner().invoke(app, ["predict", str(bundle), str(others)])
    assert plain.stdout.count("unknown, perhaps ") == sum(verdicts(bundle, others))


def test_evaluate_tells_calibration_and_thresholds(model: tuple[Path, Path, Path]) -> None:
    """For a run and for its bundle, which has the temperature of the same validation pictures."""
    data, run, bundle = model
    runner = CliRunner()
    found = [
        json.loads(runner.invoke(app, ["evaluate", str(target), str(data), "--precision", "0.9", "--json"]).stdout)
        for target in (run, bundle)
    ]
    for measured in found:
        assert measured["calibration"]["before"].keys() == {"log-loss", "ECE"}
        assert len(measured["thresholds"]) == 2
    temperatures = [measured["calibration"]["temperature"] for measured in found]
    assert temperatures[0] == pytest.approx(temperatures[1], rel=0.02)


def test_pictures_of_the_training_are_told(model: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Figures on them flatter, and evaluate says so on stderr."""
    data, run, _ = model
    copied = shutil.copytree(data, tmp_path / "copied")
    done = CliRunner().invoke(app, ["evaluate", str(run), str(copied)])
    assert "of these pictures were in the training" in done.stderr
    assert "in the training" not in CliRunner().invoke(app, ["evaluate", str(run), str(data)]).stderr
