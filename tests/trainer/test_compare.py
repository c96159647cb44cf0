"""Paired comparison of two models."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from trainer import runs, train
from trainer.cli import app
from trainer.compare import compare, compare_scores
from trainer.config import FitConfig
from trainer.errors import DataError

from .pictures import make_folder


def scores(rights: list[bool], confidence: float = 0.9) -> np.ndarray:
    """Return two-class probabilities for target 0, right or wrong with that confidence."""
    top = np.array([confidence if right else 1 - confidence for right in rights])
    return np.stack([top, 1 - top], axis=1)


def test_mcnemar_by_hand() -> None:
    """Eight pictures only the second has right, none only the first: p = 2 / 2^8."""
    second = scores([True] * 20)
    found = compare_scores(scores([False] * 8 + [True] * 12), second, np.zeros(20, np.int64))
    assert (found.only_first_right, found.only_second_right) == (0, 8)
    assert found.accuracy.p_value == pytest.approx(2 / 2**8)
    assert found.accuracy.difference.value == pytest.approx(0.4)
    assert 0 < found.accuracy.difference.low < 0.4 < found.accuracy.difference.high
    assert found.verdict("A", "B") == "B is better (p = 0.008)"


def test_worse_second_model_is_told() -> None:
    """The better one is named, whichever it is."""
    found = compare_scores(scores([True] * 40), scores([False] * 20 + [True] * 20), np.zeros(40, np.int64))
    assert found.verdict("A", "B") == "A is better (p < 0.001)"


def test_chance_is_not_distinguishable() -> None:
    """Three against two says nothing."""
    one = scores([True] * 2 + [False] * 3 + [True] * 15)
    other = scores([False] * 2 + [True] * 3 + [True] * 15)
    found = compare_scores(one, other, np.zeros(20, np.int64))
    assert found.verdict("A", "B") == "not distinguishable with 20 pictures (p = 1.000)"


def test_equal_hits_can_differ_in_log_loss() -> None:
    """Surer where it is right, and right everywhere."""
    found = compare_scores(scores([True] * 30, 0.6), scores([True] * 30, 0.95), np.zeros(30, np.int64))
    assert found.log_loss.difference.value == pytest.approx(np.log(0.6 / 0.95))
    assert found.log_loss.p_value < 0.001
    assert found.verdict("A", "B").endswith("B has the lower log-loss (p < 0.001)")


def test_same_answers_are_no_difference() -> None:
    """Without a division by zero."""
    same = scores([True, False])
    found = compare_scores(same, same, np.zeros(2, np.int64))
    assert (found.accuracy.p_value, found.log_loss.p_value) == (1.0, 1.0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data"), count=10)


@pytest.fixture(scope="module")
def fitted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Return runs by their seed, which decides the split; 2 is 0 again with another size."""
    folder = tmp_path_factory.mktemp("runs")
    for name, seed, side in ((0, 0, 32), (1, 1, 32), (2, 0, 40)):
        config = FitConfig(
            backbone="mobilenet_v3_small", weights="none", image_size=side, epochs=0, seed=seed, threads=1
        )
        train.fit(runs.begin(data, folder / str(name), config))
    return {name: folder / str(name) for name in range(3)}


def test_runs_with_one_split_compare_on_it(fitted: dict[int, Path]) -> None:
    """The command prints both, and a verdict."""
    assert compare(fitted[0], fitted[2], None).picture_count == 6
    done = CliRunner().invoke(app, ["compare", str(fitted[0]), str(fitted[2])])
    assert done.exit_code == 0
    assert "not distinguishable with 6 pictures" in done.stdout


def test_runs_with_other_splits_need_data(fitted: dict[int, Path], tmp_path: Path) -> None:
    """Refused without; with, pictures that one of them was trained on are left out."""
    with pytest.raises(DataError, match=r"wanted the same pictures; name some: trainer compare .* DATA"):
        compare(fitted[0], fitted[1], None)
    more = make_folder(tmp_path, count=14)  # ten of each class are those of the runs: the generator starts alike
    found = compare(fitted[0], fitted[1], more)
    assert found.left_out_count + found.picture_count == 42
    assert found.picture_count >= 12


def test_a_bundle_needs_data(fitted: dict[int, Path], tmp_path: Path) -> None:
    """It knows no pictures of its own; the message says what to name."""
    (tmp_path / "bundle.json").write_text("{}")
    with pytest.raises(DataError, match="a bundle holds no pictures out by itself; name DATA too"):
        compare(next(iter(fitted.values())), tmp_path, None)


def test_pictures_of_the_training_are_no_test(fitted: dict[int, Path], data: Path, tmp_path: Path) -> None:
    """Where nothing else is left, there is no verdict."""
    seen = [line.split(",")[:2] for line in (fitted[0] / "split.csv").read_text().splitlines() if ",train," in line]
    listed = tmp_path / "seen.csv"
    listed.write_text("\n".join(["path,label", *(",".join(row) for row in seen)]))
    with pytest.raises(DataError, match="every picture was in the training"):
        compare(fitted[0], fitted[2], listed)
