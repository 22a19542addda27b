from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from theory.pilot_forecast import forecasts

S = np.cumsum(np.linspace(1e-4, 0.5e-4, 12))


@pytest.mark.parametrize("exponent", [0.7, 1.0, 1.6, 2.0])
def test_a_power_law_is_forecast_exactly(exponent: float) -> None:
    found = forecasts(S, 5 * S**exponent, 0.01)
    law = found["power law"]
    assert law.value == pytest.approx(5 * 0.01**exponent, rel=1e-10)
    assert law.exponent == pytest.approx(exponent, rel=1e-10)
    assert law.num_points == 6
    assert law.low == pytest.approx(law.value, rel=1e-6)
    assert law.high == pytest.approx(law.value, rel=1e-6)


def test_references_scale_the_last_point() -> None:
    found = forecasts(S, S**1.5, 4 * S[-1])
    last = S[-1] ** 1.5
    assert found["quadratic"].value == pytest.approx(16 * last)
    assert found["proportional"].value == pytest.approx(4 * last)
    assert found["last"].value == pytest.approx(last)
    assert found["last"].low is None


def test_the_fit_and_its_interval_are_those_of_linear_regression() -> None:
    rng = np.random.default_rng(3)
    u = S**1.3 * np.exp(0.1 * rng.normal(size=S.size))
    x, y = np.log(S[6:]), np.log(u[6:])
    fit = stats.linregress(x, y)
    at = math.log(0.01)
    residual = y - fit.intercept - fit.slope * x
    variance = residual @ residual / 4 * (1 + 1 / 6 + (at - x.mean()) ** 2 / np.sum((x - x.mean()) ** 2))
    centre, width = fit.intercept + fit.slope * at, stats.t(4).ppf(0.975) * math.sqrt(variance)
    law = forecasts(S, u, 0.01)["power law"]
    assert math.log(law.value) == pytest.approx(centre, rel=1e-10)
    assert math.log(law.low) == pytest.approx(centre - width, rel=1e-10)
    assert math.log(law.high) == pytest.approx(centre + width, rel=1e-10)


def test_the_interval_holds_what_it_says() -> None:
    """Of noisy power laws 95 % end inside, up to four standard errors of the count."""
    rng = np.random.default_rng(0)
    inside, tries = 0, 800
    for _ in range(tries):
        u = S**1.3 * np.exp(0.2 * rng.normal(size=S.size))
        law = forecasts(S, u, 0.003)["power law"]
        inside += law.low <= 0.003**1.3 * math.exp(0.2 * rng.normal()) <= law.high
    assert abs(inside / tries - 0.95) < 4 * math.sqrt(0.95 * 0.05 / tries)


def test_too_few_points_have_no_fit() -> None:
    assert set(forecasts(S[:2], S[:2], 0.01)) == {"quadratic", "proportional", "last"}
    assert "power law" in forecasts(S[:3], S[:3], 0.01)


def test_a_loss_of_zero_has_no_logarithm() -> None:
    u = S.copy()
    u[-1] = 0.0
    found = forecasts(S, u, 0.01)
    assert "power law" not in found
    assert found["quadratic"].value == 0


def test_an_exponent_beyond_the_range_of_a_double_is_held_inside() -> None:
    law = forecasts(np.array([1.0, 1.001, 1.002]), np.array([1e-30, 1.0, 1e30]), 1e9)["power law"]
    assert math.isfinite(law.value)
    assert math.isfinite(law.high)


@pytest.mark.parametrize(
    ("accumulated", "losses", "target"),
    [
        (np.array([]), np.array([]), 1.0),
        (S, S[:-1], 1.0),
        (S[::-1].copy(), S, 1.0),
        (S, S, S[-1] / 2),
        (np.array([0.0, 1.0]), np.ones(2), 2.0),
    ],
)
def test_what_is_no_pilot_is_refused(accumulated: np.ndarray, losses: np.ndarray, target: float) -> None:
    with pytest.raises(ValueError, match=r"accumulated|pilot point"):
        forecasts(accumulated, losses, target)
