from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from theory.descent import steps_to

GAPS = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=6)


@given(GAPS, st.floats(1e-2, 1e3))
def test_the_steps_end_at_the_times_and_none_is_too_large(gaps: list[float], largest: float) -> None:
    times = np.cumsum(gaps)
    largest = max(largest, float(times[-1]) / 1000)
    found = steps_to(times, largest)
    assert found.rates.max() <= largest * (1 + 1e-8)
    np.testing.assert_allclose(np.cumsum(found.rates)[found.ends - 1], times, rtol=1e-10)
    assert len(found.rates) == found.ends[-1]
    fewest = np.ceil(np.diff(times, prepend=0.0) / largest * (1 - 1e-8))
    assert (np.diff(found.ends, prepend=0) <= np.maximum(fewest, 1) + 1).all()


def test_equal_steps_have_one_minus_one_over_k() -> None:
    found = steps_to(np.array([0.5, 1.0, 3.0]), 0.5)
    assert found.ends.tolist() == [1, 2, 6]
    np.testing.assert_allclose(found.shares(), [0, 1 / 2, 5 / 6], atol=1e-15)


def test_three_gaps_of_a_rate_are_three_steps() -> None:
    assert steps_to(np.array([0.3]), 0.1).ends.tolist() == [3]  # 0.3 / 0.1 is above 3 in a double


@given(st.lists(st.floats(1e-3, 1.0), min_size=1, max_size=5), st.integers(0, 2**31))
def test_the_share_is_that_of_descent_on_a_quadratic_loss(gaps: list[float], seed: int) -> None:
    """Of the steps' displacement, sum_{j<k} eta_j eta_k is the coefficient of H g, exactly."""
    found = steps_to(np.cumsum(gaps), 0.4)
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(3, 3))
    hessian, gradient = 1e-6 * (root + root.T), rng.normal(size=3)
    theta, done = np.zeros(3), 0
    for t, share, end in zip(found.times, found.shares(), found.ends, strict=True):
        for rate in found.rates[done:end]:
            theta = theta - rate * (gradient + hessian @ theta)
        done = end
        second = theta + t * gradient
        size = np.linalg.norm(gradient)
        third = t**3 / 6 * np.linalg.norm(hessian, 2) ** 2 * size  # sum_{i<j<k} eta_i eta_j eta_k is at most t^3/6
        rounding = 4 * (end + 1) * np.finfo(float).eps * t * size
        np.testing.assert_allclose(second, t**2 / 2 * share * hessian @ gradient, rtol=0, atol=1.01 * third + rounding)


@pytest.mark.parametrize(
    ("times", "largest"), [([], 1.0), ([0.0, 1.0], 1.0), ([2.0, 1.0], 1.0), ([1.0], 0.0), ([np.inf], 1.0)]
)
def test_what_is_no_schedule_is_refused(times: list[float], largest: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        steps_to(np.array(times), largest)
