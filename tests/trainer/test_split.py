"""Dealing clusters out to sides."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from trainer.split import SIDES, assign_sides

PICTURES = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 12).map(str)), min_size=1, max_size=60)
SHARES = st.floats(0, 0.5)


@given(PICTURES, SHARES, SHARES, st.integers(0, 5))
def test_cluster_is_never_divided(pictures: list[tuple[str, str]], val: float, test: float, seed: int) -> None:
    """Whatever the labels, the clusters and the shares; and every picture has a side."""
    labels, clusters = [label for label, _ in pictures], [cluster for _, cluster in pictures]
    sides = assign_sides(labels, clusters, seed=seed, val_share=val, test_share=test)
    assert len(sides) == len(pictures)
    assert len(set(zip(clusters, sides, strict=True))) == len(set(clusters))


@given(PICTURES, SHARES, SHARES, st.integers(0, 5))
def test_no_class_leaves_training(pictures: list[tuple[str, str]], val: float, test: float, seed: int) -> None:
    """A class's last cluster stays where it can be learned from."""
    labels, clusters = [label for label, _ in pictures], [cluster for _, cluster in pictures]
    sides = assign_sides(labels, clusters, seed=seed, val_share=val, test_share=test)
    in_training = {label for label, side in zip(labels, sides, strict=True) if side == "train"}
    assert in_training == set(labels)


@given(st.lists(st.integers(1, 9), min_size=3, max_size=12), st.floats(0.05, 0.3), st.integers(0, 5))
def test_every_side_has_a_class_of_three_clusters(sizes: list[int], share: float, seed: int) -> None:
    """However unequal they are."""
    clusters = [str(number) for number, size in enumerate(sizes) for _ in range(size)]
    sides = assign_sides(["a"] * len(clusters), clusters, seed=seed, val_share=share, test_share=share)
    assert set(sides) == set(SIDES)


def test_shares_are_met_where_clusters_allow() -> None:
    """100 pictures in clusters of 5: 20 to validation, 20 to the test, in each of two classes."""
    labels = ["a"] * 100 + ["b"] * 100
    clusters = [f"{label}{number // 5}" for number, label in enumerate(labels)]
    sides = assign_sides(labels, clusters, seed=1, val_share=0.2, test_share=0.2)
    counts = Counter(zip(labels, sides, strict=True))
    assert {counts[label, "val"] for label in "ab"} == {20} == {counts[label, "test"] for label in "ab"}


def test_new_cluster_moves_no_other_far() -> None:
    """A picture that is added changes the side of at most two of 200."""
    keys = [str(number) for number in range(200)]
    shares = {"seed": 0, "val_share": 0.15, "test_share": 0.15}
    before = assign_sides(["a"] * 200, keys, **shares)
    after = assign_sides(["a"] * 201, [*keys, "new"], **shares)
    assert sum(old != new for old, new in zip(before, after, strict=False)) <= 2
