"""Corrections of labels, as a CSV that a person edits: `fixes.csv`. Applied in memory; no picture is moved or changed.

THE ONE RULE: `suggested_label` is what happens to the picture. Another class: it is relabelled. `-` or nothing: it is
dropped. The same as `label`, or no row at all: it stays as it is.
"""

import csv
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trainer.errors import DataError
from trainer.manifests import read_rows

DROP: Final = "-"
RULE: Final = "suggested_label is what happens: another class relabels, - or nothing drops, the same label keeps"
_COLUMNS: Final = ("path", "label", "suggested_label", "confidence", "reason")


@dataclass(frozen=True, kw_only=True)
class Fix:
    """One row."""

    path: Path
    label: str  # as the data has it
    suggested_label: str
    confidence: float | None = None  # out-of-fold probability of the answer, 0..1
    reason: str = ""

    @property
    def drops(self) -> bool:
        """Whether the picture is left out."""
        return self.changes and self.suggested_label in ("", DROP)

    @property
    def changes(self) -> bool:
        """Whether anything happens."""
        return self.suggested_label != self.label


@dataclass(frozen=True, kw_only=True)
class Fixes:
    """A file of them, with its place in the record."""

    source: Path
    sha256: str
    rows: tuple[Fix, ...]

    def describe(self) -> str:
        """Return one line for the record."""
        dropped = sum(row.drops for row in self.rows)
        relabelled = sum(row.changes for row in self.rows) - dropped
        return f"{relabelled} relabelled, {dropped} dropped by fixes with sha256 {self.sha256}"


def read_fixes(path: Path) -> Fixes:
    """Read fixes.csv; raises DataError that names the line."""
    rows: dict[Path, Fix] = {}
    for line, row in read_rows(path, required=_COLUMNS[:3], optional=_COLUMNS[3:]):
        try:
            confidence = float(row["confidence"]) if row.get("confidence") else None
        except ValueError as error:
            raise DataError(f"{path} line {line}: found confidence {row['confidence'][:40]!r}, wanted 0..1") from error
        if not row["path"] or "\0" in row["path"]:
            raise DataError(f"{path} line {line}: found the path {row['path']!r}, wanted that of a picture")
        place = (path.parent / row["path"]).resolve()
        if place in rows:
            raise DataError(f"{path} line {line}: {row['path']!r} has a row already; keep one")
        rows[place] = Fix(
            path=place,
            label=row["label"],
            suggested_label=row["suggested_label"].strip(),
            confidence=confidence,
            reason=row.get("reason", ""),
        )
    return Fixes(source=path, sha256=hashlib.sha256(path.read_bytes()).hexdigest(), rows=tuple(rows.values()))


def write_fixes(path: Path, rows: Iterable[Fix]) -> None:
    """Write fixes.csv with absolute paths."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        for row in rows:
            confidence = "" if row.confidence is None else f"{row.confidence:.4f}"
            writer.writerow((row.path, row.label, row.suggested_label, confidence, row.reason))


def fixed_labels(files: Sequence[tuple[Path, str]], fixes: Fixes) -> list[str | None]:
    """Return the label of every (path, label) after the fixes, None where it is dropped.

    Raises DataError for a row that names no file here, another label than the file has, or a class that is none.
    """
    places = {path.resolve(): index for index, (path, _) in enumerate(files)}
    labels: list[str | None] = [label for _, label in files]
    known = {label for _, label in files}
    for row in fixes.rows:
        where = f"{fixes.source}: {row.path}"
        if row.path not in places:
            raise DataError(f"{where} is not in the data; was it moved? delete the row, or write the file's place now")
        index = places[row.path]
        if labels[index] != row.label:
            raise DataError(f"{where} has label {labels[index]!r} in the data, {row.label!r} in the row; correct it")
        if not row.drops and row.suggested_label not in known:
            raise DataError(
                f"{where}: found class {row.suggested_label!r}, wanted one of {sorted(filter(None, known))[:20]}"
            )
        if row.changes:
            labels[index] = None if row.drops else row.suggested_label
    return labels
