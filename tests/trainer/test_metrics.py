"""Metrics against values computed by hand."""

import numpy as np
import pytest

from trainer.metrics import calibration_error, evaluate, fit_temperature, log_loss, wilson


def test_wilson_matches_the_textbook() -> None:
    """8 of 10: Wilson's interval is 0.490 to 0.943."""
    interval = wilson(8, 10)
    assert (interval.value, interval.low, interval.high) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)


def test_figures_of_a_hand_made_case() -> None:
    """Three of four right; one a answered as b."""
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.3, 0.7]])
    targets = np.array([0, 0, 1, 1])
    result = evaluate(probabilities, targets, ("a", "b"))
    assert result.headlines["top-1"].value == 0.75
    assert result.confusion == ((1, 1), (0, 2))
    assert (result.classes[0].precision, result.classes[0].recall) == (wilson(1, 1), wilson(1, 2))
    assert result.classes[1].f1.value == pytest.approx(0.8)
    assert result.headlines["macro-F1"].value == pytest.approx((2 / 3 + 0.8) / 2)
    assert "top-5" not in result.headlines
    assert log_loss(probabilities, targets) == pytest.approx(-np.log([0.9, 0.4, 0.8, 0.7]).mean())


def test_sure_and_right_is_calibrated() -> None:
    """Confidence 1 with every answer right has no calibration error; all wrong has 1."""
    sure = np.array([[1.0, 0.0]] * 4)
    assert calibration_error(sure, np.zeros(4, np.int64)) == 0
    assert calibration_error(sure, np.ones(4, np.int64)) == 1


def test_temperature_undoes_overconfidence() -> None:
    """Logits three times too large get a temperature of three times the calibrated one."""
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(2000, 3))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    targets = np.array([generator.choice(3, p=row) for row in p])
    assert fit_temperature(3 * logits, targets) / fit_temperature(logits, targets) == pytest.approx(3, rel=0.01)
