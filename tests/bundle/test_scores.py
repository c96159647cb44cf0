"""From logits to ranked labels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bundle.scores import Ranked, is_unknown, probabilities, rank

LOGITS = arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(2, 6)), elements=st.floats(-100, 100, width=32))


def test_softmax_of_known_logits():
    """exp(0) : exp(ln 3) is 1 : 3."""
    row = np.array([[0, np.log(3)]], dtype=np.float32)
    np.testing.assert_allclose(probabilities(row, temperature=1.0), [[0.25, 0.75]], atol=1e-7)


def test_temperature_divides_the_logits():
    """ln 9 at temperature 2 is ln 3 at temperature 1."""
    row = np.array([0, np.log(9)], dtype=np.float32)
    np.testing.assert_allclose(probabilities(row, temperature=2.0), [0.25, 0.75], atol=1e-7)


def test_large_logits_do_not_overflow():
    """The largest logit is taken off before the exponential."""
    assert probabilities(np.array([3e38, -3e38], dtype=np.float32), temperature=1.0).tolist() == [1.0, 0.0]


@given(LOGITS, st.floats(0.05, 20))
def test_rows_are_probabilities(logits, temperature):
    """Every row is within 0..1 and sums to 1, in float64."""
    found = probabilities(logits, temperature=temperature)
    assert found.dtype == np.float64
    assert ((found >= 0) & (found <= 1)).all()
    np.testing.assert_allclose(found.sum(axis=-1), 1)


@given(LOGITS, st.floats(-50, 50, width=32))
def test_adding_a_constant_changes_nothing(logits, shift):
    """Softmax knows only differences."""
    shifted = probabilities((logits + np.float32(shift)).astype(np.float32), temperature=1.0)
    np.testing.assert_allclose(shifted, probabilities(logits, temperature=1.0), atol=1e-4)


@given(LOGITS, st.floats(0.05, 20))
def test_temperature_keeps_the_order(logits, temperature):
    """A label with the larger logit never scores lower."""
    for row, scores in zip(logits, probabilities(logits, temperature=temperature), strict=True):
        assert (np.diff(scores[np.argsort(row, kind="stable")]) >= 0).all()


def test_best_first_with_index_and_label():
    """An answer carries index, label and score."""
    assert rank(np.array([0.2, 0.8]), ("a", "b")) == (
        Ranked(index=1, label="b", score=0.8),
        Ranked(index=0, label="a", score=0.2),
    )


def test_ties_go_by_label_order():
    """Equal scores keep the order of the labels, whatever they are called."""
    assert [item.label for item in rank(np.array([0.3, 0.4, 0.3]), ("z", "y", "a"))] == ["y", "z", "a"]


@pytest.mark.parametrize(("top_k", "count"), [(1, 1), (2, 2), (5, 3)])
def test_top_k_is_capped_at_the_labels(top_k, count):
    """Asking for five of three labels gives three."""
    assert len(rank(np.array([0.5, 0.3, 0.2]), ("a", "b", "c"), top_k=top_k)) == count


def test_labels_below_min_score_are_left_out():
    """The limit itself stays in."""
    assert [item.label for item in rank(np.array([0.5, 0.25, 0.25]), ("a", "b", "c"), min_score=0.25)] == list("abc")
    assert [item.label for item in rank(np.array([0.5, 0.25, 0.25]), ("a", "b", "c"), min_score=0.26)] == ["a"]


@pytest.mark.parametrize(("threshold", "unknown"), [(0.75, True), (0.5, False), (0.25, False), (-1.0, False)])
def test_unknown_is_a_similarity_below_the_threshold(threshold, unknown):
    """The threshold itself is known, and below -1 is nothing."""
    assert is_unknown(np.float32(0.5), unknown_below=threshold) is unknown
