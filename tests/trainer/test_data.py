"""Scanning and splitting a folder of pictures."""

from pathlib import Path

import pytest

from trainer.data import SIDES, Picture, load_dataset, split_pictures
from trainer.errors import DataError

from .pictures import make_folder

SHARES = {"seed": 0, "val_share": 0.2, "test_share": 0.2, "max_bad": 0.05}


def test_unsplit_folder_is_split_by_class(tmp_path: Path) -> None:
    """Every class gives its share to every side, and no picture is on two."""
    dataset = load_dataset(make_folder(tmp_path, count=10), **SHARES)
    counts = {
        side: {label: sum(item.label == label for item in dataset.sides[side]) for label in dataset.labels}
        for side in SIDES
    }
    assert counts == {
        "train": {"blue": 6, "green": 6, "red": 6},
        "val": {"blue": 2, "green": 2, "red": 2},
        "test": {"blue": 2, "green": 2, "red": 2},
    }
    paths = [item.path for side in SIDES for item in dataset.sides[side]]
    assert len(set(paths)) == len(paths) == 30


def test_split_depends_on_content_not_on_names(tmp_path: Path) -> None:
    """Renaming files leaves every picture on its side."""
    before = load_dataset(make_folder(tmp_path, count=10), **SHARES)
    for path in sorted(tmp_path.rglob("*.png")):
        path.rename(path.with_name(f"renamed-{99 - int(path.stem)}.png"))
    after = load_dataset(tmp_path, **SHARES)
    for side in SIDES:
        assert {item.sha256 for item in before.sides[side]} == {item.sha256 for item in after.sides[side]}
    assert before.fingerprint() == after.fingerprint()


def test_equal_files_stay_on_one_side() -> None:
    """A duplicate never stands in training and validation both."""
    pictures = [Picture(path=Path(f"{n}.png"), label="a", sha256=f"{n % 7}") for n in range(21)]
    sides = split_pictures(pictures, seed=3, val_share=0.3, test_share=0.3)
    shas = [{item.sha256 for item in sides[side]} for side in SIDES]
    assert len(set.union(*shas)) == sum(map(len, shas))
    assert sum(map(len, sides.values())) == 21


def test_given_split_aligns_classes_by_name(tmp_path: Path) -> None:
    """train/ and val/ share one sorted list of labels."""
    make_folder(tmp_path / "train", count=3)
    make_folder(tmp_path / "valid", count=2)
    dataset = load_dataset(tmp_path, **SHARES)
    assert dataset.labels == ("blue", "green", "red")
    assert [len(dataset.sides[side]) for side in SIDES] == [9, 6, 0]


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda root: [path.unlink() for path in (root / "train" / "red").iterdir()], "class 'red' is empty"),
        (lambda root: (root / "val" / "red").rename(root / "lost"), r"val has no readable picture of \['red'\]"),
        (lambda root: (root / "val").rename(root / "lost"), "but no val/"),
        (lambda root: [(root / "train" / "red" / f"{n}.jpg").write_bytes(b"") for n in range(5)], "5 of 20 files"),
    ],
    ids=["empty class", "class missing from val", "no val", "too many unreadable"],
)
def test_bad_folders_are_named_before_training(tmp_path: Path, break_it, message: str) -> None:
    """Each fault ends in one message that says what was found."""
    make_folder(tmp_path / "train", count=3)
    make_folder(tmp_path / "val", count=2)
    break_it(tmp_path)
    with pytest.raises(DataError, match=message):
        load_dataset(tmp_path, **SHARES)


def test_one_class_is_not_enough(tmp_path: Path) -> None:
    """A classifier needs two labels."""
    with pytest.raises(DataError, match="wanted at least two"):
        load_dataset(make_folder(tmp_path, labels=("red",)), **SHARES)


def test_class_too_small_to_split_is_named(tmp_path: Path) -> None:
    """Three sides need three different pictures."""
    make_folder(tmp_path, count=2)
    with pytest.raises(DataError, match="class 'blue' has 2 different"):
        load_dataset(tmp_path, **SHARES)


def test_unreadable_files_are_listed_and_left_alone(tmp_path: Path) -> None:
    """A bad file is reported with its reason and keeps its bytes."""
    make_folder(tmp_path, count=20)
    bad = tmp_path / "red" / "broken.jpg"
    bad.write_bytes(b"no picture")
    dataset = load_dataset(tmp_path, **SHARES)
    assert [item.path for item in dataset.bad] == [bad]
    assert "begin no picture" in dataset.bad[0].reason
    assert bad.read_bytes() == b"no picture"
