"""What is wrong with a data set, before any training: counts, duplicates, odd pictures. Changes nothing.

A problem spoils an evaluation: the same picture on two sides or under two labels, a group on two sides, a file that
cannot be read. Everything else is only worth a look.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final, Literal

from trainer.data import SIDES, BadFile, Dataset, Picture, Side
from trainer.duplicates import components, is_plain

TINY_PX: Final = 32  # of the shorter side, where the usual picture is at least twice as large
MAX_ASPECT: Final = 3.0
FEW_COLOURS: Final = 1 / 8  # of the usual picture's
PHOTO_COLOURS: Final = 256  # of 1,024 samples: where the usual picture has fewer, these are drawings or digits
RARE_FORMAT: Final = 1 / 200  # of all pictures


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a picture stands."""

    path: Path
    label: str
    side: Side


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """Files of one picture: byte for byte, or nearly."""

    kind: Literal["exact", "near"]
    places: tuple[Place, ...]

    @property
    def is_across_sides(self) -> bool:
        """Whether training has seen what another side asks."""
        return len({place.side for place in self.places}) > 1

    @property
    def is_across_labels(self) -> bool:
        """Whether one picture is said to be two things."""
        return len({place.label for place in self.places}) > 1


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """A picture that is worth a look."""

    path: Path
    reason: str


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Least, middle and largest of a figure."""

    least: int
    median: int
    largest: int


@dataclass(frozen=True, kw_only=True)
class DataCheck:
    """All that `trainer data check` reports."""

    root: Path
    split: str
    counts: dict[str, dict[Side, int]]  # by label
    imbalance: float  # largest class over smallest, in training
    width_px: Spread
    height_px: Spread
    modes: dict[str, int]
    formats: dict[str, int]
    unreadable: tuple[BadFile, ...]
    duplicates: tuple[Duplicates, ...]
    groups_across_sides: tuple[str, ...]
    suspects: tuple[Suspect, ...]
    problems: tuple[str, ...]  # what spoils an evaluation, a line each; empty: clean


def check_dataset(dataset: Dataset) -> DataCheck:
    """Look over a data set that `load_dataset` returned, with its looks."""
    pictures = [picture for side in SIDES for picture in dataset.sides[side]]
    looks = [dataset.looks[picture.sha256] for picture in pictures]
    counts: dict[str, dict[Side, int]] = {
        label: {side: sum(item.label == label for item in dataset.sides[side]) for side in SIDES}
        for label in dataset.labels
    }
    in_training = [row["train"] for row in counts.values()]
    duplicates = _duplicates(dataset)
    straddling = _groups_across_sides(dataset)
    return DataCheck(
        root=dataset.root,
        split=dataset.split,
        counts=counts,
        imbalance=max(in_training) / max(1, min(in_training)),
        width_px=_spread([look.width_px for look in looks]),
        height_px=_spread([look.height_px for look in looks]),
        modes=dict(Counter(look.mode for look in looks).most_common()),
        formats=dict(Counter(look.format for look in looks).most_common()),
        unreadable=dataset.bad,
        duplicates=duplicates,
        groups_across_sides=straddling,
        suspects=tuple(_suspects(pictures, dataset)),
        problems=tuple(_problems(dataset.bad, duplicates, straddling)),
    )


def _duplicates(dataset: Dataset) -> tuple[Duplicates, ...]:
    by_content: dict[str, list[Place]] = {}
    for side in SIDES:
        for picture in dataset.sides[side]:
            place = Place(path=picture.path, label=picture.label, side=side)
            by_content.setdefault(picture.sha256, []).append(place)
    exact = [Duplicates(kind="exact", places=tuple(places)) for places in by_content.values() if len(places) > 1]
    hashes = sorted({sha256 for pair in dataset.near for sha256 in pair})
    number = {sha256: index for index, sha256 in enumerate(hashes)}
    clusters: dict[int, list[Place]] = {}
    links = ((number[one], number[other]) for one, other in dataset.near)
    for sha256, cluster in zip(hashes, components(len(hashes), links), strict=True):
        clusters.setdefault(cluster, []).extend(by_content[sha256])
    near = [Duplicates(kind="near", places=tuple(places)) for places in clusters.values()]
    return tuple(sorted(exact + near, key=lambda item: (not item.is_across_sides, not item.is_across_labels)))


def _groups_across_sides(dataset: Dataset) -> tuple[str, ...]:
    sides: dict[str, set[Side]] = {}
    for side in SIDES:
        for picture in dataset.sides[side]:
            if picture.group:
                sides.setdefault(picture.group, set()).add(side)
    return tuple(sorted(group for group, where in sides.items() if len(where) > 1))


def _suspects(pictures: Sequence[Picture], dataset: Dataset) -> Iterable[Suspect]:
    looks = dataset.looks
    usual_px = median(min(looks[item.sha256].width_px, looks[item.sha256].height_px) for item in pictures)
    usual_colours = median(looks[item.sha256].colour_count for item in pictures)
    formats = Counter(looks[item.sha256].format for item in pictures)
    for picture in pictures:
        look = looks[picture.sha256]
        shorter, longer = sorted((look.width_px, look.height_px))
        reasons = [
            (is_plain(look), "one flat colour"),
            (shorter < TINY_PX and shorter * 2 <= usual_px, f"tiny: {look.width_px} x {look.height_px} pixels"),
            (longer >= MAX_ASPECT * shorter, f"long and narrow: {look.width_px} x {look.height_px} pixels"),
            (
                usual_colours >= PHOTO_COLOURS and look.colour_count < usual_colours * FEW_COLOURS,
                f"few colours: {look.colour_count} of 1,024 samples, usual {usual_colours:.0f}",
            ),
            (
                formats[look.format] <= RARE_FORMAT * len(pictures),
                f"one of {formats[look.format]} in {look.format} format among {len(pictures):,}",
            ),
        ]
        found = [text for is_so, text in reasons if is_so]
        if found:
            yield Suspect(path=picture.path, reason="; ".join(found))


def _problems(bad: Sequence[BadFile], duplicates: Sequence[Duplicates], straddling: Sequence[str]) -> Iterable[str]:
    found = [
        (len(bad), "unreadable file(s)"),
        (sum(item.is_across_sides for item in duplicates), "picture(s) on two sides (exact or near duplicates)"),
        (sum(item.is_across_labels for item in duplicates), "picture(s) under two labels (exact or near duplicates)"),
        (len(straddling), "group(s) on two sides"),
    ]
    return (f"{count:,} {what}" for count, what in found if count)


def _spread(values: Sequence[int]) -> Spread:
    return Spread(least=min(values), median=round(median(values)), largest=max(values))
