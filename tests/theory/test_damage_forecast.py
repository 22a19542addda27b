"""Forecasts of the loss at the end: exact power laws, coverage on curves that bend, and the Gaussian process itself."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import integrate

from theory import damage_forecast
from theory.damage_forecast import forecast_end


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_a_power_law_is_continued(exponent: float) -> None:
    times = np.arange(1.0, 7.0)
    found = forecast_end(times, 3 * times**exponent, 12.0)
    assert found is not None
    assert found.value == pytest.approx(3 * 12**exponent, rel=0.02)
    assert found.low < found.value < found.high
    assert found.exponent == pytest.approx(exponent, abs=0.02)
    assert found.num_points == 6


def power(times: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return times ** rng.uniform(0.5, 2)


def breaking(times: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return times**2 / (1 + (times / rng.uniform(0.02, 0.5)) ** 1.2)


def saturating(times: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return (1 - np.exp(-times / rng.uniform(0.1, 1))) ** 2


@pytest.mark.parametrize("curve", [power, breaking, saturating])
@pytest.mark.parametrize("seen", [3, 5])
def test_the_interval_covers_what_is_measured_at_the_end(
    curve: Callable[[np.ndarray, np.random.Generator], np.ndarray], seen: int
) -> None:
    """Eight measurements of a training with a linear schedule, each with 10 % of noise; the last is to be forecast."""
    rng, hits, count = np.random.default_rng(0), 0, 60
    share = np.arange(1, 9) / 8
    times = share - share**2 / 2
    for _ in range(count):
        losses = curve(times, rng) * np.exp(0.1 * rng.standard_normal(8))
        found = forecast_end(times[:seen], losses[:seen], times[-1])
        assert found is not None
        hits += found.low <= losses[-1] <= found.high
    assert hits / count >= 0.8


@pytest.mark.parametrize(
    "curve", [lambda s: 1 - np.exp(-4 * s**1.5), lambda s: s**2 / (s**2 + 0.25)], ids=["early", "late"]
)
def test_four_points_that_lie_on_a_line_by_chance_are_not_believed(curve: Callable[[np.ndarray], np.ndarray]) -> None:
    """Constant rate, 10 % of noise, and a curve that levels off after the last of the points seen."""
    rng, times, hits = np.random.default_rng(0), np.arange(1, 9) / 8, 0
    for _ in range(60):
        losses = curve(times) * np.exp(0.1 * rng.standard_normal(8))
        found = forecast_end(times[:4], losses[:4], times[-1])
        assert found is not None
        hits += found.low <= losses[-1] <= found.high
    assert hits / 60 >= 0.88


def test_the_interval_widens_with_the_distance_and_with_the_scatter() -> None:
    rng, times = np.random.default_rng(1), np.arange(1.0, 9.0)
    noise = rng.standard_normal(8)

    def width(scatter: float, target: float, level: float = 0.9) -> float:
        found = forecast_end(times, times * np.exp(scatter * noise), target, level=level)
        assert found is not None
        return float(np.log(found.high / found.low))

    assert width(0.1, 9.0) < width(0.1, 16.0) < width(0.1, 80.0)
    assert width(0.01, 16.0) < width(0.1, 16.0) < width(0.5, 16.0)
    assert width(0.1, 16.0, 0.5) < width(0.1, 16.0) < width(0.1, 16.0, 0.99)
    units = forecast_end(times * 1e-6, times * 1e3, 16e-6)
    assert units is not None
    assert units.value == pytest.approx(16e3, rel=0.02)


def test_points_that_say_nothing_are_left_out() -> None:
    times, losses = np.arange(6.0), np.array([0.0, 1.0, 2.0, np.inf, 4.0, 5.0])
    found = forecast_end(times, losses, 8.0)
    assert found is not None
    assert found.num_points == 4
    assert found.value == pytest.approx(8, rel=0.02)
    assert forecast_end(times[:3], losses[:3], 8.0) is None
    assert forecast_end(np.array([]), np.array([]), 8.0) is None
    assert forecast_end(np.ones(4), np.ones(4), 8.0) is None


def test_wrong_arguments() -> None:
    times = np.arange(1.0, 5.0)
    with pytest.raises(ValueError, match="not before the last"):
        forecast_end(times, times, 3.9)
    with pytest.raises(ValueError, match="do not decrease"):
        forecast_end(times[::-1].copy(), times, 9.0)
    with pytest.raises(ValueError, match="between 0 and 1"):
        forecast_end(times, times, 9.0, level=1.0)


def test_the_covariance_of_an_integrated_brownian_motion() -> None:
    """E[integral_0^a W * integral_0^b W] = integral_0^a integral_0^b min(s, t)."""
    for a, b in ((0.3, 1.0), (2.0, 0.7), (1.5, 1.5)):
        expected = integrate.dblquad(lambda s, t: min(s, t), 0, a, 0, b, epsabs=1e-10)[0]
        assert damage_forecast._bend(np.array([a]), np.array([b]))[0, 0] == pytest.approx(expected, rel=1e-5)


def test_the_posterior_is_that_of_a_dense_gaussian() -> None:
    """One point of the grid, by the formulas for a joint normal distribution."""
    x, y, at = np.array([0.0, 0.4, 1.1]), np.array([-0.5, 0.1, 0.4]), 1.7
    weights, means, deviations, _ = damage_forecast._posteriors(x, y, at)
    grid = [(drift, noise) for drift in damage_forecast._DRIFTS for noise in damage_forecast._NOISES]
    everywhere = np.array([*x, at])
    evidences = []
    for k, (drift, noise) in enumerate(grid):
        joint = 100 + np.outer(everywhere, everywhere) + drift**2 * damage_forecast._bend(everywhere, everywhere)
        joint += noise**2 * np.eye(4)
        seen, rest = joint[:3, :3], y - 1.5 * x
        solved = np.linalg.solve(seen, np.stack([rest, joint[:3, 3]], axis=1))
        assert means[k] == pytest.approx(1.5 * at + joint[3, :3] @ solved[:, 0], rel=1e-6)
        assert deviations[k] ** 2 == pytest.approx(joint[3, 3] - joint[3, :3] @ solved[:, 1], rel=1e-4)
        evidences.append(-rest @ solved[:, 0] / 2 - np.linalg.slogdet(seen)[1] / 2)
    likelihoods = np.exp(np.array(evidences) - max(evidences))
    assert weights == pytest.approx(likelihoods / likelihoods.sum(), rel=1e-6)
