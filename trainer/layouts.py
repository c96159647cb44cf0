"""List the labelled files of a data set: split folders, one folder of class folders, or a CSV. Opens no picture."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from trainer.errors import ConfigError, DataError
from trainer.manifests import SIDE_NAMES, Listed, read_manifest
from trainer.split import SIDES, Side

WANTED: Final = "wanted train/ and val/, one folder a class, or a CSV with columns path,label[,split][,group]"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a data set lists, and where its sides come from; None where it has none."""

    files: tuple[Listed, ...]
    given_split: str | None


def read_layout(root: Path) -> Layout:
    """List the files of a folder or CSV; raises DataError."""
    if root.is_file():
        listed = read_manifest(root)
        return Layout(files=tuple(listed), given_split=f"{root.name}, column split" if listed[0].side else None)
    if not root.is_dir():
        raise DataError(f"{root}: found neither folder nor file, {WANTED}")
    folders = _split_folders(root)
    if not folders:
        return Layout(files=tuple(_walk(root, side=None)), given_split=None)
    files = [item for side, folder in folders.items() for item in _walk(folder, side=side)]
    return Layout(files=tuple(files), given_split="folders " + ", ".join(path.name for path in folders.values()))


def list_labelled(root: Path) -> tuple[Listed, ...]:
    """List all files of one folder of class folders, or of a CSV, whatever sides it names; raises DataError."""
    if root.is_file():
        return tuple(read_manifest(root))
    if not root.is_dir():
        raise DataError(f"{root}: found neither folder nor file, wanted one folder a class, or a CSV")
    return tuple(_walk(root, side=None))


def is_split(root: Path) -> bool:
    """Say whether a data set names its own sides."""
    if root.is_file():
        return read_manifest(root)[0].side is not None
    return bool(root.is_dir() and _split_folders(root))


def group_by_path(root: Path, files: Iterable[Listed], pattern: str) -> tuple[Listed, ...]:
    """Put every file into the group that the pattern's first parentheses find in its path below `root`.

    A file without a match is in no group. Raises ConfigError for a pattern that cannot work, DataError where nothing
    matches or the CSV has groups already.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"--group-by {pattern!r}: {error}; wanted a regular expression") from error
    if not expression.groups:
        raise ConfigError(f"--group-by {pattern!r}: wanted parentheses around the part that names a group")
    folder = root if root.is_dir() else root.parent
    grouped = []
    for item in files:
        if item.group:
            raise DataError(f"{root}: has a column group already; drop it, or --group-by")
        name = item.path.relative_to(folder) if item.path.is_relative_to(folder) else item.path
        match = expression.search(name.as_posix())
        grouped.append(replace(item, group=match[1] or "" if match else ""))
    if not any(item.group for item in grouped):
        raise DataError(f"{root}: --group-by {pattern!r} matches no path, such as {name.as_posix()!r}; change it")
    return tuple(grouped)


def _split_folders(root: Path) -> dict[Side, Path]:
    named: dict[Side, Path] = {}
    for path in sorted(root.iterdir()):
        side = SIDE_NAMES.get(path.name.lower())
        if side and path.is_dir() and any(child.is_dir() for child in path.iterdir()):
            named[side] = path
    if not named:
        return {}
    if "train" in named and "val" in named:
        return {side: named[side] for side in SIDES if side in named}
    missing = " and ".join(f"{side}/" for side in ("train", "val") if side not in named)
    raise DataError(f"{root}: found {', '.join(path.name + '/' for path in named.values())} but no {missing}; add it")


def _walk(folder: Path, *, side: Side | None) -> list[Listed]:
    listed: list[Listed] = []
    for class_folder in sorted(folder.iterdir()):
        if class_folder.is_dir() and not class_folder.name.startswith("."):
            files = sorted(path for path in class_folder.rglob("*") if path.is_file() and not _is_hidden(path))
            if not files:
                raise DataError(f"{class_folder}: class {class_folder.name!r} is empty; add pictures or remove it")
            listed += [Listed(path=path, label=class_folder.name, side=side) for path in files]
    return listed


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(".") or path.name in ("Thumbs.db", "desktop.ini")
