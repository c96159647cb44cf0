"""Labelled pictures by side: read a data set, split it where it is not, and say before any training what is wrong.

A data set is a split folder (`train/ val/ [test/]`, each with class folders), one folder of class folders, or a CSV
(`trainer.manifests`). What is not split is split here: stratified by class, seeded, and stable, because a picture's
side depends only on its content and the seed. Equal files, near duplicates and groups stay on one side.
Files are read, never moved or changed.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from trainer.errors import DataError
from trainer.fixes import fixed_labels, read_fixes
from trainer.layouts import WANTED, Layout, group_by_path, list_labelled, read_layout
from trainer.layouts import is_split as is_split
from trainer.looks import Look
from trainer.scan import BadFile as BadFile
from trainer.scan import Picture as Picture
from trainer.scan import scan
from trainer.split import SIDES as SIDES
from trainer.split import Side as Side
from trainer.split import assign_sides


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Pictures by side, their labels sorted once, and the files that were left out."""

    root: Path
    labels: tuple[str, ...]
    sides: dict[Side, tuple[Picture, ...]]
    bad: tuple[BadFile, ...]
    split: str  # how the sides came about, for the record
    is_given: bool = True  # whether the data set itself says which side a picture is on
    fixes: str | None = None  # what was relabelled and dropped, for the record
    looks: dict[str, Look] = field(default_factory=dict)  # by sha256
    near: tuple[tuple[str, str], ...] = ()  # sha256s of near duplicates

    def fingerprint(self, side: Side = "train") -> str:
        """Return one sha256 over the labels and contents of a side, whatever the order or the file names."""
        lines = sorted(f"{picture.label}\0{picture.sha256}" for picture in self.sides[side])
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def held_out(self) -> Side:
        """Return the side that training never saw, or validation where there is no such side."""
        return "test" if self.sides["test"] else "val"


def load_dataset(
    root: Path,
    *,
    seed: int,
    val_share: float,
    test_share: float,
    max_bad: float,
    labels: tuple[str, ...] | None = None,
    group_by: str = "",
    fixes: Path | None = None,
) -> Dataset:
    """Read, check and split a data set; raises DataError with what to do about it.

    `labels`, where given, are those of a trained model: the data may lack some of them but have no others. `group_by`
    is a regular expression for the group in a file's path, `fixes` a CSV of corrected labels (`trainer.fixes`).
    """
    layout = read_layout(root)
    layout, record = _fixed(layout, fixes)
    if group_by:
        layout = replace(layout, files=group_by_path(root, layout.files, group_by))
    found = scan(layout.files)
    _check_bad(root, found.bad, total=len(layout.files), max_bad=max_bad)
    if layout.given_split:
        sides = {
            side: tuple(picture for at, picture in zip(found.sides, found.pictures, strict=True) if at == side)
            for side in SIDES
        }
    else:
        if labels is None:
            _check_splittable(root, found.pictures, test_share=test_share)
        sides = split_pictures(found.pictures, seed=seed, val_share=val_share, test_share=test_share)
    made = f"stratified by content, seed {seed}, val {val_share:g}, test {test_share:g}"
    dataset = Dataset(
        root=root,
        labels=_labels(sides, labels, root),
        sides=sides,
        bad=tuple(found.bad),
        split=layout.given_split or made + (f", groups by {group_by}" if group_by else ""),
        is_given=layout.given_split is not None,
        fixes=record,
        looks=found.looks,
        near=found.near,
    )
    if labels is None:
        _check_classes(dataset)
    return dataset


def load_labelled(root: Path, labels: tuple[str, ...], *, max_bad: float) -> tuple[Picture, ...]:
    """Return all pictures of one folder of class folders, or of a CSV, to evaluate a model with these labels."""
    files = list_labelled(root)
    found = scan(files)
    _check_bad(root, found.bad, total=len(files), max_bad=max_bad)
    _labels({"test": tuple(found.pictures)}, labels, root)
    return tuple(found.pictures)


def split_pictures(
    pictures: Iterable[Picture], *, seed: int, val_share: float, test_share: float
) -> dict[Side, tuple[Picture, ...]]:
    """Split class by class as far as clusters allow; adding a file moves hardly any other."""
    items = sorted(pictures, key=lambda item: str(item.path))
    at = assign_sides(
        [item.label for item in items],
        [item.cluster or item.sha256 for item in items],
        seed=seed,
        val_share=val_share,
        test_share=test_share,
    )
    return {side: tuple(item for item, where in zip(items, at, strict=True) if where == side) for side in SIDES}


def _fixed(layout: Layout, fixes: Path | None) -> tuple[Layout, str | None]:
    """Return the layout with corrected labels, without what they drop, and one line for the record."""
    if fixes is None:
        return layout, None
    applied = read_fixes(fixes)
    labels = fixed_labels([(item.path, item.label) for item in layout.files], applied)
    files = [replace(item, label=label) for item, label in zip(layout.files, labels, strict=True) if label is not None]
    return replace(layout, files=tuple(files)), applied.describe()


def _labels(sides: dict[Side, tuple[Picture, ...]], known: tuple[str, ...] | None, root: Path) -> tuple[str, ...]:
    found = sorted({picture.label for pictures in sides.values() for picture in pictures})
    if known is None:
        return tuple(found)
    strangers = [label for label in found if label not in known]
    if strangers:
        raise DataError(
            f"{root}: found classes {strangers[:5]} that the model does not know, wanted some of {list(known[:20])}"
        )
    return known


def _check_bad(root: Path, bad: list[BadFile], *, total: int, max_bad: float) -> None:
    if total == len(bad):
        raise DataError(f"{root}: found no readable picture, {WANTED}" + _listing(bad))
    if len(bad) > max_bad * total:
        raise DataError(
            f"{root}: {len(bad)} of {total} files are unreadable, more than --max-bad {max_bad:g}; "
            "repair or remove them, or raise --max-bad" + _listing(bad)
        )


def _listing(bad: list[BadFile]) -> str:
    lines = [f"\n  {item.path}: {item.reason}" for item in bad[:10]]
    return "".join(lines) + (f"\n  … and {len(bad) - 10} more" if len(bad) > 10 else "")


def _check_splittable(root: Path, pictures: list[Picture], *, test_share: float) -> None:
    wanted = 3 if test_share > 0 else 2
    distinct = Counter(label for label, _ in {(picture.label, picture.cluster) for picture in pictures})
    for label, count in sorted(distinct.items()):
        if count < wanted:
            raise DataError(
                f"{root}: class {label!r} has {count} different picture(s) (duplicates and groups count once), "
                f"need at least {wanted} to split"
            )


def _check_classes(dataset: Dataset) -> None:
    if len(dataset.labels) < 2:
        raise DataError(f"{dataset.root}: found classes {list(dataset.labels)}, wanted at least two")
    for side, pictures in dataset.sides.items():
        missing = [label for label in dataset.labels if label not in {picture.label for picture in pictures}]
        if missing and (pictures or side != "test"):
            raise DataError(
                f"{dataset.root}: {side} has no readable picture of {missing[:5]}; add some, or drop the class"
            )
