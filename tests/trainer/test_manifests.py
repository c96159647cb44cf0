"""CSV manifests and groups."""

from pathlib import Path

import pytest

from trainer import manifests
from trainer.data import SIDES, Dataset, load_dataset, load_labelled
from trainer.errors import ConfigError, DataError
from trainer.manifests import read_manifest

from .pictures import make_folder

SHARES = {"seed": 0, "val_share": 0.25, "test_share": 0.25, "max_bad": 0.05}


def write_csv(folder: Path, header: str, *lines: str) -> Path:
    """Write folder/list.csv."""
    (folder / "list.csv").write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return folder / "list.csv"


def sides_of_groups(dataset: Dataset) -> list[set[str]]:
    """Return the sides of every group."""
    found: dict[str, set[str]] = {}
    for side in SIDES:
        for picture in dataset.sides[side]:
            found.setdefault(picture.group, set()).add(side)
    return list(found.values())


def test_csv_gives_the_split_of_the_folder(tmp_path: Path) -> None:
    """The same files, listed, fall on the same sides."""
    make_folder(tmp_path, count=8)
    files = sorted(tmp_path.rglob("*.png"))
    listed = write_csv(tmp_path, "path,label", *(f"{p.relative_to(tmp_path)},{p.parent.name}" for p in files))
    by_folder, by_csv = load_dataset(tmp_path, **SHARES), load_dataset(listed, **SHARES)
    for side in SIDES:
        assert {item.path for item in by_folder.sides[side]} == {item.path for item in by_csv.sides[side]}


def test_csv_names_sides(tmp_path: Path) -> None:
    """In any order of columns, with the usual names for sides."""
    make_folder(tmp_path, count=3)
    lines = [
        f"{side},{label}/{n:02d}.png,{label}" for label in ("blue", "red") for n, side in enumerate(("train", "Valid"))
    ]
    dataset = load_dataset(write_csv(tmp_path, "split,path,label", *lines), **SHARES)
    assert [len(dataset.sides[side]) for side in SIDES] == [2, 2, 0]
    assert dataset.is_given
    assert len(load_labelled(tmp_path / "list.csv", ("blue", "green", "red"), max_bad=0)) == 4


@pytest.mark.parametrize(
    ("header", "lines", "message"),
    [
        ("path,class", ["a.png,a"], "line 1: found the header 'path,class'"),
        ("path,label,colour", ["a.png,a,b"], "line 1: found the header"),
        ("path,label,label", ["a.png,a,b"], "line 1: found the header"),
        ("", [], "line 1: found the header ''"),
        ("path,label", [], "no pictures"),
        ("path,label", ["a.png,a", "b.png"], "line 3: found 1 cells, wanted 2"),
        ("path,label", ["a.png,a", "", "a.png,b"], "line 4: 'a.png' stands in line 2 too"),
        ("path,label", ["a.png,"], "line 2: found a label of 0 characters"),
        ("path,label", [",a"], "line 2: found the path ''"),
        ("path,label", ["a\0.png,a"], "list.csv line 2"),
        ("path,label,split", ["a.png,a,holdout"], "line 2: found split 'holdout'"),
        ("path,label,split", ["a.png,a,train", "b.png,a,"], "line 3: found split ''"),
        ("path,label,split", ["a.png,a,train"], "no row with split val"),
        ("path,label", ['"a.png,a'], "list.csv line 2"),
    ],
)
def test_wrong_csv_is_refused_by_line(tmp_path: Path, header: str, lines: list[str], message: str) -> None:
    """Nothing is guessed."""
    with pytest.raises(DataError) as caught:
        read_manifest(write_csv(tmp_path, header, *lines))
    assert message in str(caught.value)


def test_csv_in_another_encoding_is_refused(tmp_path: Path) -> None:
    """A mark at the beginning of UTF-8 is no harm."""
    (tmp_path / "latin.csv").write_bytes("path,label\na.png,Käfer\n".encode("latin-1"))
    with pytest.raises(DataError, match="is not UTF-8"):
        read_manifest(tmp_path / "latin.csv")
    (tmp_path / "marked.csv").write_bytes("\ufeffpath,label\na.png,Käfer\n".encode())
    assert read_manifest(tmp_path / "marked.csv")[0].label == "Käfer"


def test_large_csv_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cap holds before it is parsed."""
    monkeypatch.setattr(manifests, "MAX_CSV_BYTES", 20)
    with pytest.raises(DataError, match="more than 20 bytes"):
        read_manifest(write_csv(tmp_path, "path,label", "a.png,a", "b.png,b"))


def test_listed_file_that_is_not_there_is_unreadable(tmp_path: Path) -> None:
    """With its reason, as any other."""
    make_folder(tmp_path, count=3)
    lines = [f"{label}/{n:02d}.png,{label}" for label in ("blue", "red") for n in range(3)]
    dataset = load_dataset(write_csv(tmp_path, "path,label", *lines, "lost.png,red"), **{**SHARES, "max_bad": 1})
    assert [(item.path.name, item.reason) for item in dataset.bad] == [("lost.png", "no such file")]


@pytest.mark.parametrize("seed", range(3))
def test_groups_stay_on_one_side(tmp_path: Path, seed: int) -> None:
    """Named by a column or by the path, also across classes."""
    make_folder(tmp_path, count=20)
    options = {**SHARES, "seed": seed}
    by_path = load_dataset(tmp_path, group_by=r"/\d(\d)\.png$", **options)
    lines = [f"{p.relative_to(tmp_path)},{p.parent.name},{p.stem[1]}" for p in sorted(tmp_path.rglob("*.png"))]
    by_column = load_dataset(write_csv(tmp_path, "path,label,group", *lines), **options)
    for dataset in (by_path, by_column):
        sides = sides_of_groups(dataset)
        assert len(sides) == 10
        assert all(len(side) == 1 for side in sides)
        assert set.union(*sides) == set(SIDES)


@pytest.mark.parametrize(
    ("pattern", "error", "message"),
    [
        ("(", ConfigError, "wanted a regular expression"),
        ("abc", ConfigError, "wanted parentheses"),
        (r"patient(\d+)", DataError, "matches no path, such as"),
    ],
)
def test_useless_group_pattern_is_refused(tmp_path: Path, pattern: str, error: type[Exception], message: str) -> None:
    """Silently grouping nothing would be worse."""
    with pytest.raises(error, match=message):
        load_dataset(make_folder(tmp_path, count=4), group_by=pattern, **SHARES)
