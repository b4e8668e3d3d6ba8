"""Calibration: probabilities are fitted back to how often they are right; ranks are counted as defined."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinbert.tasks.calibration import auroc, calibration_error, fit, log_odds


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize(("slope", "offset"), [(1.0, 0.0), (0.3, -1.0), (2.5, 1.5)])
def test_a_known_distortion_is_found(slope: float, offset: float) -> None:
    random = np.random.default_rng(0)
    said = random.normal(0, 3, 40_000)
    truth = random.random(40_000) < sigmoid(slope * said + offset)
    found = fit(said, truth.tolist())
    assert found == pytest.approx((slope, offset), rel=0.05, abs=0.05)
    after = sigmoid(found[0] * said + found[1])
    assert calibration_error(after, truth.tolist()) < 0.01
    if slope != 1.0:
        assert calibration_error(sigmoid(said), truth.tolist()) > 0.05


def test_odds_that_are_never_wrong_stay_finite() -> None:
    odds = np.array([-30.0, -20.0, -3.0, 4.0, 30.0])
    slope, offset = fit(odds, [False, False, False, True, True])
    assert math.isfinite(slope)
    assert math.isfinite(offset)
    assert slope > 0
    assert fit([-3.0, 3.0, -2.0, 2.0], [True, False, True, False])[0] < 0  # worse than guessing


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=30))
def test_auroc_counts_pairs(cases: list[tuple[int, bool]]) -> None:
    scores, truth = [float(s) for s, _ in cases], [t for _, t in cases]
    pairs = [(a, b) for a, t in cases if t for b, u in cases if not u]
    found = auroc(scores, truth)
    if not pairs:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(sum((a > b) + (a == b) / 2 for a, b in pairs) / len(pairs))


def test_log_odds_are_bounded() -> None:
    np.testing.assert_allclose(log_odds([0.5, 0.9]), [0, math.log(9)])
    assert log_odds([0.0, 1.0]).tolist() == [-700.0, 700.0]
