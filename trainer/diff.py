"""Which pictures change their answer between two bundles: what to look at before the newer one is rolled out.

Both answer through ONNX Runtime with their own preprocessing and temperature, as they would in production.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from bundle.manifest import Interval
from bundle.repository import Bundle, load_bundle
from bundle.scores import Ranked, rank
from trainer.answers import Answers, answer
from trainer.compare import mcnemar
from trainer.errors import ConfigError
from trainer.metrics import wilson

Kind = Literal["broken", "fixed", "changed"]
KINDS: Final[tuple[Kind, ...]] = ("broken", "fixed", "changed")  # in the order a person wants to see them


@dataclass(frozen=True, kw_only=True)
class Change:
    """One picture that two bundles answer differently."""

    path: Path
    truth: str
    before: Ranked
    after: Ranked

    @property
    def kind(self) -> Kind:
        """Whether a right answer was lost or won, or both are wrong in their own way."""
        if self.before.label == self.truth:
            return "broken"
        return "fixed" if self.after.label == self.truth else "changed"


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Two bundles on the same pictures."""

    before: Path  # the bundles' folders: two exports may share name and version
    after: Path
    data: Path
    picture_count: int
    accuracy_before: Interval
    accuracy_after: Interval
    p_value: float  # of an accuracy difference like this or larger where there is none: exact McNemar
    changes: tuple[Change, ...]  # broken first, within a kind the surest new answer first

    def of_kind(self, kind: Kind) -> tuple[Change, ...]:
        """Return the changes of one kind."""
        return tuple(change for change in self.changes if change.kind == kind)


def compare(before: Path, after: Path, data: Path) -> Difference:
    """Ask two bundles about the same labelled pictures; raises BundleError, DataError, ConfigError for other labels."""
    old, new = load_bundle(before), load_bundle(after)
    _check_labels(old, new)
    first, second = (answer(folder, data, variant="auto") for folder in (before, after))  # as a server would
    rows = [
        Change(path=picture.path, truth=picture.label, before=was, after=now)
        for picture, was, now in zip(first.pictures, _ranked(first), _ranked(second), strict=True)
    ]
    changes = [row for row in rows if row.before.label != row.after.label]
    changes.sort(key=lambda change: (KINDS.index(change.kind), -change.after.score, str(change.path)))
    broken, fixed = (sum(change.kind == kind for change in changes) for kind in ("broken", "fixed"))
    return Difference(
        before=before,
        after=after,
        data=data,
        picture_count=len(rows),
        accuracy_before=wilson(sum(row.before.label == row.truth for row in rows), len(rows)),
        accuracy_after=wilson(sum(row.after.label == row.truth for row in rows), len(rows)),
        p_value=mcnemar(broken, fixed),
        changes=tuple(changes),
    )


def _check_labels(old: Bundle, new: Bundle) -> None:
    here, there = (set(bundle.manifest.contract.labels) for bundle in (old, new))  # the order may differ
    if here != there:
        names = sorted(here ^ there)
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        raise ConfigError(
            f"{old.folder} and {new.folder} know different labels: {shown} in one alone; "
            "compare bundles of the same labels"
        )


def _ranked(answers: Answers) -> list[Ranked]:
    return [rank(row, answers.labels, top_k=1)[0] for row in answers.scores]
