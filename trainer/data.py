"""Find labelled pictures in a folder, split them, and say before any training what is wrong with them.

A folder is either split (`train/ val/ [test/]`, each with class folders) or one folder of class folders, which is
split here: stratified by class, seeded, and stable, because a file's side depends only on its bytes and the seed.
Files are read, never moved or changed.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from bundle.errors import ImageError
from bundle.preprocess import decode
from trainer.errors import DataError

Side = Literal["train", "val", "test"]
SIDES: Final[tuple[Side, ...]] = ("train", "val", "test")
_VALIDATION_NAMES: Final = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
_CHECK_PX: Final = 32  # decode as small as the format allows: this only asks whether the file can be read


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One readable, labelled file."""

    path: Path
    label: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class BadFile:
    """A file in a class folder that is no readable picture."""

    path: Path
    reason: str


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Pictures by side, their labels sorted once, and the files that were left out."""

    root: Path
    labels: tuple[str, ...]
    sides: dict[Side, tuple[Picture, ...]]
    bad: tuple[BadFile, ...]
    split: str  # how the sides came about, for the record

    def fingerprint(self, side: Side = "train") -> str:
        """Return one sha256 over the labels and contents of a side, whatever the order or the file names."""
        lines = sorted(f"{picture.label}\0{picture.sha256}" for picture in self.sides[side])
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def held_out(self) -> Side:
        """Return the side that training never saw, or validation where there is no such side."""
        return "test" if self.sides["test"] else "val"


def load_dataset(
    root: Path, *, seed: int, val_share: float, test_share: float, max_bad: float, labels: tuple[str, ...] | None = None
) -> Dataset:
    """Scan, check and split a data folder; raises DataError with what to do about it.

    `labels`, where given, are those of a trained model: the folder may lack some of them but have no others.
    """
    if not root.is_dir():
        raise DataError(f"{root}: found no folder, wanted train/ and val/, or one folder a class")
    folders = _split_folders(root)
    if folders:
        found, bad = _scan(folders)
        sides: dict[Side, tuple[Picture, ...]] = {side: tuple(found.get(side, ())) for side in SIDES}
        split = "folders " + ", ".join(path.name for path in folders.values())
    else:
        found, bad = _scan({"train": root})
        sides = split_pictures(found["train"], seed=seed, val_share=val_share, test_share=test_share)
        split = f"stratified by content, seed {seed}, val {val_share:g}, test {test_share:g}"
    _check_bad(root, bad, total=len(bad) + sum(map(len, sides.values())), max_bad=max_bad)
    if not folders and labels is None:
        _check_splittable(root, found["train"], test_share=test_share)
    dataset = Dataset(root=root, labels=_labels(sides, labels, root), sides=sides, bad=tuple(bad), split=split)
    if labels is None:
        _check_classes(dataset)
    return dataset


def load_labelled(root: Path, labels: tuple[str, ...], *, max_bad: float) -> tuple[Picture, ...]:
    """Return all pictures of one folder of class folders, to evaluate a model with these labels."""
    if not root.is_dir():
        raise DataError(f"{root}: found no folder, wanted one folder a class")
    found, bad = _scan({"test": root})
    _check_bad(root, bad, total=len(bad) + len(found["test"]), max_bad=max_bad)
    _labels({"test": tuple(found["test"])}, labels, root)
    return tuple(found["test"])


def is_split(root: Path) -> bool:
    """Say whether a folder holds train/ and val/ rather than classes."""
    return bool(root.is_dir() and _split_folders(root))


def split_pictures(
    pictures: Iterable[Picture], *, seed: int, val_share: float, test_share: float
) -> dict[Side, tuple[Picture, ...]]:
    """Split class by class; equal files stay on one side, and adding a file moves hardly any other.

    Every class gives at least one picture to validation (and to the test, unless its share is 0), never its last.
    """
    sides: dict[Side, list[Picture]] = {side: [] for side in SIDES}
    by_label: dict[str, list[Picture]] = {}
    for picture in pictures:
        by_label.setdefault(picture.label, []).append(picture)
    for label in sorted(by_label):
        groups: dict[str, list[Picture]] = {}
        for picture in by_label[label]:
            groups.setdefault(picture.sha256, []).append(picture)
        order = sorted(groups, key=lambda sha: hashlib.sha256(f"{seed}/{sha}".encode()).digest())
        val = _share(len(order), val_share)
        test = _share(len(order) - 1, test_share)
        cuts: dict[Side, list[str]] = {
            "val": order[:val],
            "test": order[val : val + test],
            "train": order[val + test :],
        }
        for side, shas in cuts.items():
            sides[side] += [picture for sha in shas for picture in groups[sha]]
    return {side: tuple(sorted(members, key=lambda item: str(item.path))) for side, members in sides.items()}


def _share(count: int, share: float) -> int:
    return min(max(1, round(count * share)), count - 1) if share > 0 and count > 1 else 0


def _split_folders(root: Path) -> dict[Side, Path]:
    named: dict[Side, Path] = {}
    for path in sorted(root.iterdir()):
        side = _VALIDATION_NAMES.get(path.name.lower())
        if side in SIDES and path.is_dir() and any(child.is_dir() for child in path.iterdir()):
            named[side] = path
    if not named:
        return {}
    if "train" in named and "val" in named:
        return {side: named[side] for side in SIDES if side in named}
    missing = " and ".join(f"{side}/" for side in ("train", "val") if side not in named)
    raise DataError(f"{root}: found {', '.join(path.name + '/' for path in named.values())} but no {missing}; add it")


def _scan(folders: dict[Side, Path]) -> tuple[dict[Side, list[Picture]], list[BadFile]]:
    """Read every file below every class folder once: hash it and try to decode it."""
    jobs: list[tuple[Side, str, Path]] = []
    for side, folder in folders.items():
        for class_folder in sorted(folder.iterdir()):
            if class_folder.is_dir() and not class_folder.name.startswith("."):
                files = sorted(path for path in class_folder.rglob("*") if path.is_file() and not _is_hidden(path))
                if not files:
                    raise DataError(f"{class_folder}: class {class_folder.name!r} is empty; add pictures or remove it")
                jobs += [(side, class_folder.name, path) for path in files]
    with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
        results = list(pool.map(_read, jobs))
    found: dict[Side, list[Picture]] = {side: [] for side in folders}
    bad: list[BadFile] = []
    for (side, _, _), result in zip(jobs, results, strict=True):
        if isinstance(result, BadFile):
            bad.append(result)
        else:
            found[side].append(result)
    return found, bad


def _read(job: tuple[Side, str, Path]) -> Picture | BadFile:
    _, label, path = job
    try:
        data = path.read_bytes()
        decode(data, cover_px=_CHECK_PX)
    except OSError as error:
        return BadFile(path=path, reason=str(error.strerror))
    except ImageError as error:
        return BadFile(path=path, reason=str(error))
    return Picture(path=path, label=label, sha256=hashlib.sha256(data).hexdigest())


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(".") or path.name in ("Thumbs.db", "desktop.ini")


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
        raise DataError(f"{root}: found no readable picture, wanted class folders with pictures" + _listing(bad))
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
    distinct = Counter(label for label, _ in {(picture.label, picture.sha256) for picture in pictures})
    for label, count in sorted(distinct.items()):
        if count < wanted:
            raise DataError(
                f"{root}: class {label!r} has {count} different picture(s), need at least {wanted} to split"
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
