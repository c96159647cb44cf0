"""Label errors: found, written down, applied in memory."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from trainer import checkpoint, runs, train
from trainer.answers import answer
from trainer.clean import clean, judge, out_of_fold
from trainer.config import FitConfig
from trainer.data import Picture, load_dataset
from trainer.errors import DataError
from trainer.fixes import Fix, read_fixes, write_fixes

from .pictures import make_folder

LABELS = ("a", "b", "c")
SHARES = {"seed": 0, "val_share": 0.25, "test_share": 0.0, "max_bad": 0.0}
CONFIG = FitConfig(backbone="resnet18", weights="none", image_size=32, epochs=0, threads=1)


def test_flipped_labels_are_found_and_their_repair_raises_accuracy() -> None:
    """Of 10 % flipped labels among overlapping classes, 80 % are found with 80 % of the findings right."""
    generator = np.random.default_rng(0)
    truth = np.repeat(np.arange(3), 120)
    centres = generator.normal(size=(3, 20)) * 0.9
    features = (centres[truth] + generator.normal(size=(360, 20))).astype(np.float32)
    flipped = generator.choice(360, 36, replace=False)
    given = truth.copy()
    given[flipped] = (given[flipped] + generator.integers(1, 3, 36)) % 3
    pictures = tuple(Picture(path=Path(f"{n}.png"), label=LABELS[given[n]], sha256=str(n)) for n in range(360))
    clusters = [str(n) for n in range(360)]
    fixes = judge(pictures, out_of_fold(features, given, clusters, seed=0), given, labels=LABELS)
    found = {int(fix.path.stem): LABELS.index(fix.suggested_label) for fix in fixes if fix.changes}
    hits = sum(found.get(int(n)) == truth[n] for n in flipped)
    assert hits >= 0.8 * 36
    assert hits >= 0.8 * len(found)
    repaired = given.copy()
    for number, label in found.items():
        repaired[number] = label
    assert (repaired != truth).sum() < 0.5 * (given != truth).sum()
    kept = [fix for fix in fixes if not fix.changes]
    assert kept
    assert all(fix.reason.startswith("hard: taken for") for fix in kept)


def test_copies_do_not_vouch_for_each_other() -> None:
    """Five copies under one wrong label: in different folds, each would teach the others' label."""
    generator = np.random.default_rng(1)
    targets = np.repeat(np.arange(2), 40)
    features = (np.eye(2, 64)[targets] * 2 + generator.normal(size=(80, 64))).astype(np.float32)
    features[1:5] = features[0]
    targets[:5] = 1
    together = out_of_fold(features, targets, ["same"] * 5 + [str(n) for n in range(5, 80)], seed=0)
    apart = out_of_fold(features, targets, [str(n) for n in range(80)], seed=0)
    assert together[:5].argmax(1).tolist() == [0] * 5
    assert apart[:5].argmax(1).tolist() == [1] * 5


@pytest.fixture(scope="module")
def flipped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[Path]]:
    """Return a folder with one picture in ten in the wrong class folder, and which ones."""
    root = make_folder(tmp_path_factory.mktemp("data"), count=30)
    moved = set()
    labels = ("blue", "green", "red")
    for index, label in enumerate(labels):
        for number in (3, 11, 23):
            place = root / labels[(index + 1) % 3] / f"was-{label}-{number}.png"
            moved.add((root / label / f"{number:02d}.png").rename(place))
    return root, moved


@pytest.fixture(scope="module")
def run(flipped: tuple[Path, set[Path]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    train.fit(runs.begin(flipped[0], folder, CONFIG))
    return folder


def contents(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_run_is_cleaned_and_fitted_again(flipped: tuple[Path, set[Path]], run: Path, tmp_path: Path) -> None:
    """Moved pictures are suggested, applying them raises accuracy, the record says so, and no file changes."""
    root, moved = flipped
    before = contents(root)
    cleaned = clean(run, tmp_path / "fixes.csv")
    suggested = {fix.path for fix in cleaned.fixes if fix.changes}
    assert len(suggested & moved) >= 8
    assert len(suggested - moved) <= 2
    repaired = tmp_path / "repaired"
    train.fit(runs.begin(root, repaired, replace(CONFIG, apply=tmp_path / "fixes.csv")))
    truth = make_folder(tmp_path / "truth", count=30)
    losses = [runs.evaluate_target(folder, truth).headlines["log-loss"].value for folder in (run, repaired)]
    held_out = [
        (found.scores.argmax(1) == found.targets).mean() for found in (answer(run, None), answer(repaired, None))
    ]
    assert losses[1] < losses[0]
    assert held_out[1] > held_out[0]
    record = checkpoint.read_run(repaired).provenance.fixes
    assert record is not None
    assert record.startswith(f"{len(suggested)} relabelled, 0 dropped by fixes with sha256")
    assert contents(root) == before
    again = clean(repaired, tmp_path / "again.csv")
    assert suggested <= {fix.path for fix in again.fixes if fix.changes}  # one file is all that the next fit needs
    load_dataset(root, fixes=tmp_path / "again.csv", **SHARES)


def test_edited_file_is_not_overwritten(run: Path, tmp_path: Path) -> None:
    """A person's work is kept."""
    (tmp_path / "fixes.csv").write_text("mine")
    with pytest.raises(DataError, match="perhaps edited"):
        clean(run, tmp_path / "fixes.csv")
    assert (tmp_path / "fixes.csv").read_text() == "mine"


def test_the_rule_of_a_row(tmp_path: Path) -> None:
    """Another class relabels, `-` and nothing drop, the same label and no row keep."""
    root = make_folder(tmp_path / "data", count=5)
    rows = {"00": "red", "01": "-", "02": "", "03": "blue"}
    fixes = [Fix(path=root / "blue" / f"{name}.png", label="blue", suggested_label=to) for name, to in rows.items()]
    write_fixes(tmp_path / "fixes.csv", fixes)
    dataset = load_dataset(root, fixes=tmp_path / "fixes.csv", **SHARES)
    pictures = [item for side in dataset.sides.values() for item in side]
    assert Counter(item.label for item in pictures) == {"blue": 2, "green": 5, "red": 6}
    assert {item.path.stem for item in pictures if item.path.parent.name == "blue"} == {"00", "03", "04"}
    assert dataset.fixes is not None
    assert dataset.fixes.startswith("1 relabelled, 2 dropped")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("blue/00.png,red,green", "has label 'blue' in the data, 'red' in the row"),
        ("blue/00.png,blue,purple", "found class 'purple', wanted one of"),
        ("blue/99.png,blue,red", "is not in the data"),
        ("blue/00.png,blue,red\nblue/00.png,blue,red", "line 3: 'blue/00.png' has a row already"),
        ("blue/00.png,blue", "line 2: found 2 cells, wanted 3"),
    ],
)
def test_row_that_does_not_fit_is_refused(tmp_path: Path, row: str, message: str) -> None:
    """A fix for other data, or a slip of the pen, stops the fit."""
    root = make_folder(tmp_path, count=4)
    (root / "fixes.csv").write_text(f"path,label,suggested_label\n{row}\n")
    with pytest.raises(DataError) as caught:
        load_dataset(root, fixes=root / "fixes.csv", **SHARES)
    assert message in str(caught.value)


def test_fixes_are_read_as_written(tmp_path: Path) -> None:
    """Whatever is in the names."""
    fix = Fix(path=(tmp_path / 'a,"b\n.png').resolve(), label="ä", suggested_label="-", confidence=0.25, reason="x,y")
    write_fixes(tmp_path / "fixes.csv", [fix])
    assert read_fixes(tmp_path / "fixes.csv").rows == (fix,)
