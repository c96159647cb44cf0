"""Read every labelled file once: its content, its look, and which pictures belong on one side of a split."""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from trainer.duplicates import components, near_pairs
from trainer.looks import Look, ReadFile, read_file
from trainer.manifests import Listed
from trainer.split import Side


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One readable, labelled file."""

    path: Path
    label: str
    sha256: str
    group: str = ""  # where the user names groups
    cluster: str = ""  # key of the pictures that belong on one side: equal, near duplicates, one group


@dataclass(frozen=True, kw_only=True)
class BadFile:
    """A file in a class folder or a CSV that is no readable picture."""

    path: Path
    reason: str


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What reading all files has shown; `sides` and `pictures` go together."""

    sides: list[Side | None]
    pictures: list[Picture]
    bad: list[BadFile]
    looks: dict[str, Look]
    near: tuple[tuple[str, str], ...]


def scan(files: Sequence[Listed]) -> Scan:
    """Read every file once, and find out which pictures belong together."""
    with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
        results = list(pool.map(read_file, (item.path for item in files)))
    read = [(item, found) for item, found in zip(files, results, strict=True) if isinstance(found, ReadFile)]
    pictures = [
        Picture(path=item.path, label=item.label, sha256=found.sha256, group=item.group) for item, found in read
    ]
    looks = {found.sha256: found.look for _, found in read}
    hashes = list(looks)
    near = tuple((hashes[first], hashes[second]) for first, second in near_pairs(list(looks.values())))
    return Scan(
        sides=[item.side for item, _ in read],
        pictures=_clustered(pictures, near),
        bad=[
            BadFile(path=item.path, reason=found)
            for item, found in zip(files, results, strict=True)
            if isinstance(found, str)
        ],
        looks=looks,
        near=near,
    )


def _clustered(pictures: list[Picture], near: Iterable[tuple[str, str]]) -> list[Picture]:
    """Return the pictures with the key of their cluster: its least sha256, so that names and order play no part."""
    hashes = sorted({picture.sha256 for picture in pictures})
    place = {sha256: index for index, sha256 in enumerate(hashes)}
    first_of_group: dict[str, int] = {}
    links = [(place[one], place[other]) for one, other in near]
    links += [
        (first_of_group.setdefault(picture.group, place[picture.sha256]), place[picture.sha256])
        for picture in pictures
        if picture.group
    ]
    numbers = components(len(hashes), links)
    key: dict[int, str] = {}
    for sha256, number in zip(hashes, numbers, strict=True):
        key.setdefault(number, sha256)
    return [replace(picture, cluster=key[numbers[place[picture.sha256]]]) for picture in pictures]
