"""Deal pictures out to training, validation and test. Knows labels and clusters, no files.

A cluster (equal files, near duplicates, a group that the user names) is never divided. Sides are stratified as far as
that allows, seeded, and stable: a cluster's place in the order depends on its key and the seed alone.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Final, Literal

Side = Literal["train", "val", "test"]
SIDES: Final[tuple[Side, ...]] = ("train", "val", "test")
_HELD_OUT: Final[tuple[Side, ...]] = ("val", "test")


def assign_sides(
    labels: Sequence[str], clusters: Sequence[str], *, seed: int, val_share: float, test_share: float
) -> list[Side]:
    """Return the side of every picture, given its label and its cluster's key.

    Every class with enough clusters gives at least one to validation (and one to the test, unless its share is 0) and
    keeps one for training; a class that shares all its clusters with others may not manage it.
    """
    dealer = _Dealer(labels, clusters, shares={"val": val_share, "test": test_share})
    order = sorted(dealer.contents, key=lambda key: hashlib.sha256(f"{seed}/{key}".encode()).digest())
    for key in order:
        for side in _HELD_OUT:
            if dealer.brings_nearer(key, side) and dealer.can_spare(key, side):
                dealer.give(key, side)
                break
    for side in _HELD_OUT:
        for label in sorted(set(labels)):
            dealer.give_one(label, side, order)
    return [dealer.sides[key] for key in clusters]


class _Dealer:
    """What every held-out side still wants of every class, and what training would have left."""

    def __init__(self, labels: Sequence[str], clusters: Sequence[str], *, shares: dict[Side, float]) -> None:
        self.contents: dict[str, Counter[str]] = {}
        for label, key in zip(labels, clusters, strict=True):
            self.contents.setdefault(key, Counter())[label] += 1
        self.sides: dict[str, Side] = dict.fromkeys(self.contents, "train")
        counts = Counter(labels)
        self._wanted = {
            side: {label: _share(count, share) for label, count in counts.items()} for side, share in shares.items()
        }
        self._given: dict[Side, Counter[str]] = {side: Counter() for side in _HELD_OUT}
        self._in_train = Counter(label for content in self.contents.values() for label in content)  # in clusters

    def brings_nearer(self, key: str, side: Side) -> bool:
        """Say whether the side's class counts come nearer to what it wants."""
        content, given, wanted = self.contents[key], self._given[side], self._wanted[side]
        missing = {label: wanted[label] - given[label] for label in content}
        return sum(abs(missing[label]) - abs(missing[label] - count) for label, count in content.items()) > 0

    def can_spare(self, key: str, side: Side) -> bool:
        """Say whether every class keeps a cluster for training, and one for the other side while that has none."""
        for label in self.contents[key]:
            kept = 1 + sum(
                self._wanted[other][label] > 0 and not self._given[other][label] for other in _HELD_OUT if other != side
            )
            if self._in_train[label] - 1 < kept:
                return False
        return True

    def give(self, key: str, side: Side) -> None:
        """Move a cluster from training to a side."""
        self.sides[key] = side
        self._given[side] += self.contents[key]
        self._in_train.subtract(self.contents[key].keys())

    def give_one(self, label: str, side: Side, order: list[str]) -> None:
        """Give a side its first cluster of a class, the smallest that can be spared, where it has none."""
        if not self._wanted[side][label] or self._given[side][label]:
            return
        spare = [
            key
            for key in order
            if self.sides[key] == "train" and label in self.contents[key] and self.can_spare(key, side)
        ]
        if spare:
            self.give(min(spare, key=lambda key: self.contents[key].total()), side)


def _share(count: int, share: float) -> int:
    return min(max(1, round(count * share)), count - 1) if share > 0 and count > 1 else 0
