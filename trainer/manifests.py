"""Read a CSV that lists labelled pictures: `path,label[,split][,group]`, paths relative to the CSV's own folder.

`split` says train, val or test for every row, or is absent and the pictures are split here; pictures of one `group`
(a patient, a film, a place) then stay on one side. Nothing but the CSV is opened.
"""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trainer.errors import DataError
from trainer.split import Side

MAX_CSV_BYTES: Final = 64 * 2**20
MAX_LABEL_CHARACTERS: Final = 1024  # what a bundle's manifest takes
SIDE_NAMES: Final[dict[str, Side]] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
_REQUIRED: Final = ("path", "label")
_OPTIONAL: Final = ("split", "group")


@dataclass(frozen=True, kw_only=True)
class Listed:
    """One file that is said to be a picture of a label."""

    path: Path
    label: str
    side: Side | None = None  # where the data folder or the CSV says it
    group: str = ""  # pictures of one stay on one side; empty: in none


def read_manifest(path: Path) -> list[Listed]:
    """Return the rows of a manifest; raises DataError that names the line."""
    listed: list[Listed] = []
    lines: dict[Path, int] = {}
    for line, row in read_rows(path, required=_REQUIRED, optional=_OPTIONAL):
        item = _listed(path, line, row)
        if item.path in lines:
            raise DataError(f"{path} line {line}: {row['path']!r} stands in line {lines[item.path]} too; keep one")
        lines[item.path] = line
        listed.append(item)
    if not listed:
        raise DataError(f"{path}: found a header and no pictures; add a line for each")
    sides = {item.side for item in listed}
    missing = [side for side in ("train", "val") if side not in sides]
    if None not in sides and missing:
        raise DataError(f"{path}: found no row with split {' or '.join(missing)}; add some, or drop the column")
    return listed


def read_rows(
    path: Path, *, required: tuple[str, ...], optional: tuple[str, ...]
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line number, cells by column) of a UTF-8 CSV with exactly these columns in any order; raises DataError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CSV_BYTES + 1)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; wanted a CSV with columns {','.join(required)}") from error
    if len(data) > MAX_CSV_BYTES:
        raise DataError(f"{path}: more than {MAX_CSV_BYTES:,} bytes; divide it")
    try:
        reader = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
        header = next(reader, [])
        _check_header(path, header, required=required, optional=optional)
        for cells in reader:
            if not cells:
                continue  # an empty line
            if len(cells) != len(header):
                raise DataError(f"{path} line {reader.line_num}: found {len(cells)} cells, wanted {len(header)}")
            yield reader.line_num, dict(zip(header, cells, strict=True))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start:,} is not UTF-8; save it as UTF-8") from error
    except csv.Error as error:
        raise DataError(f"{path} line {reader.line_num}: {error}; wanted comma-separated values") from error


def _check_header(path: Path, header: list[str], *, required: tuple[str, ...], optional: tuple[str, ...]) -> None:
    wrong = [name for name in header if name not in required + optional]
    missing = [name for name in required if name not in header]
    if wrong or missing or len(set(header)) != len(header):
        wanted = ",".join(required) + "".join(f"[,{name}]" for name in optional)
        raise DataError(f"{path} line 1: found the header {','.join(header)[:200]!r}, wanted {wanted}")


def _listed(path: Path, line: int, row: dict[str, str]) -> Listed:
    where = f"{path} line {line}"
    if not row["path"] or "\0" in row["path"]:
        raise DataError(f"{where}: found the path {row['path']!r}, wanted that of a picture")
    if not 1 <= len(row["label"]) <= MAX_LABEL_CHARACTERS:
        raise DataError(
            f"{where}: found a label of {len(row['label'])} characters, wanted 1 to {MAX_LABEL_CHARACTERS:,}"
        )
    side: Side | None = None
    if "split" in row:
        side = SIDE_NAMES.get(row["split"].lower())
        if side is None:
            raise DataError(f"{where}: found split {row['split'][:40]!r}, wanted train, val or test")
    return Listed(path=path.parent / row["path"], label=row["label"], side=side, group=row.get("group", ""))
