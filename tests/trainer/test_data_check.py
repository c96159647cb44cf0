"""What `trainer data check` finds, and what it exits with."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from trainer import cli
from trainer.cli import app
from trainer.data import load_dataset
from trainer.data_check import DataCheck, check_dataset

from .pictures import make_folder
from .test_duplicates import scene


def split_folder(root: Path) -> Path:
    """Write train/ and val/ with different scenes of two classes."""
    for offset, side in enumerate(("train", "val")):
        for number, label in enumerate(("a", "b")):
            (root / side / label).mkdir(parents=True)
            for index in range(6):
                scene(1000 * offset + 100 * number + index).save(root / side / label / f"{index}.jpg", quality=90)
    return root


def checked(root: Path) -> DataCheck:
    return check_dataset(load_dataset(root, seed=0, val_share=0.2, test_share=0.2, max_bad=1.0))


def test_clean_data_has_no_problems(tmp_path: Path) -> None:
    """Counts, sizes, formats and modes are told; exit code 0."""
    found = checked(split_folder(tmp_path))
    assert found.counts == {label: {"train": 6, "val": 6, "test": 0} for label in ("a", "b")}
    assert (found.width_px.least, found.width_px.median, found.width_px.largest) == (160, 160, 160)
    assert (found.formats, found.modes) == ({"JPEG": 24}, {"RGB": 24})
    assert (found.duplicates, found.suspects, found.problems) == ((), (), ())
    assert CliRunner().invoke(app, ["data", "check", str(tmp_path)]).exit_code == 0


def copy_exactly(root: Path) -> None:
    shutil.copy(root / "train" / "a" / "0.jpg", root / "val" / "a" / "copy.jpg")


def copy_nearly(root: Path) -> None:
    scene(0).resize((100, 100)).save(root / "val" / "a" / "copy.jpg", quality=80)


def label_twice(root: Path) -> None:
    shutil.copy(root / "train" / "a" / "0.jpg", root / "train" / "b" / "copy.jpg")


def spoil(root: Path) -> None:
    (root / "val" / "b" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut off")


@pytest.mark.parametrize(
    ("break_it", "problem"),
    [
        (copy_exactly, "1 picture(s) on two sides"),
        (copy_nearly, "1 picture(s) on two sides"),
        (label_twice, "1 picture(s) under two labels"),
        (spoil, "1 unreadable file(s)"),
    ],
)
def test_what_spoils_an_evaluation_is_a_problem(tmp_path: Path, break_it: object, problem: str) -> None:
    """It is the only one, the file is named, and the exit code is 1."""
    split_folder(tmp_path)
    assert callable(break_it)
    break_it(tmp_path)
    (found,) = checked(tmp_path).problems
    assert found.startswith(problem)
    done = CliRunner().invoke(app, ["data", "check", str(tmp_path)])
    assert done.exit_code == 1
    assert "copy.jpg" in done.stdout or "broken.jpg" in done.stdout
    assert CliRunner().invoke(app, ["data", "check", str(tmp_path), "--json"]).exit_code == 1


def test_duplicates_on_one_side_are_told_and_no_problem(tmp_path: Path) -> None:
    """Training on a picture twice spoils no figure."""
    split_folder(tmp_path)
    shutil.copy(tmp_path / "train" / "a" / "0.jpg", tmp_path / "train" / "a" / "copy.jpg")
    found = checked(tmp_path)
    assert [(item.kind, len(item.places)) for item in found.duplicates] == [("exact", 2)]
    assert found.problems == ()


def test_odd_pictures_are_suspicious(tmp_path: Path) -> None:
    """Flat, tiny, long, of few colours, alone in its format: each for its reason."""
    folder = split_folder(tmp_path) / "train" / "a"
    for number in range(200):
        scene(5000 + number).save(folder / f"more-{number}.jpg", quality=90)
    Image.new("RGB", (160, 160), "navy").save(folder / "flat.jpg")
    scene(7001, side=20).save(folder / "tiny.jpg")
    scene(7002).resize((400, 100)).save(folder / "long.jpg")
    stripes = np.zeros((160, 160, 3), np.uint8)
    stripes[:80, :40], stripes[50:, 90:] = 255, (200, 30, 30)
    Image.fromarray(stripes).save(folder / "placeholder.gif")
    reasons = {item.path.name: item.reason for item in checked(tmp_path).suspects}
    assert reasons.keys() == {"flat.jpg", "tiny.jpg", "long.jpg", "placeholder.gif"}
    assert "one flat colour" in reasons["flat.jpg"]
    assert reasons["tiny.jpg"] == "tiny: 20 x 20 pixels"
    assert reasons["long.jpg"] == "long and narrow: 400 x 100 pixels"
    assert "few colours" in reasons["placeholder.gif"]
    assert "one of 1 in GIF format among 228" in reasons["placeholder.gif"]


def test_group_on_two_sides_is_a_problem(tmp_path: Path) -> None:
    """Where the data names its own sides, as ours never does."""
    make_folder(tmp_path, count=4)
    lines = [
        f"{p.relative_to(tmp_path)},{p.parent.name},{'train' if p.stem < '02' else 'val'},{p.stem}"
        for p in sorted(tmp_path.rglob("*.png"))
    ]
    listed = tmp_path / "list.csv"
    listed.write_text("\n".join(["path,label,split,group", *lines]))
    assert checked(listed).problems == ()
    listed.write_text(listed.read_text().replace(",03\n", ",00\n"))
    assert checked(listed).problems == ("1 group(s) on two sides",)


def test_json_has_all(tmp_path: Path) -> None:
    """The same figures, for programs."""
    done = CliRunner().invoke(app, ["data", "check", str(split_folder(tmp_path)), "--json"])
    assert json.loads(done.stdout)["counts"]["a"] == {"train": 6, "val": 6, "test": 0}


def test_wrong_call_is_exit_code_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No folder, no answer: not a verdict on the data."""
    monkeypatch.setattr("sys.argv", ["trainer", "data", "check", str(tmp_path / "none")])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
