from __future__ import annotations

import dataclasses
import math

import mpmath
import numpy as np
import pytest
from dense_oracle import SoftmaxCurve, fisher, random_problem
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import linregress

from theory.onset import (
    correlation,
    crossover,
    finite_time_bounds,
    fit_exponent,
    leak,
    local_slope,
    onset_coefficient,
    phi,
    predicted_loss,
    quartic_window,
    utility_loss,
)


def relative_error(d):
    with mpmath.workdps(200):  # expm1(x) - x cancels about 140 digits at the smallest x tested
        x = mpmath.mpf(d)
        return float(abs(mpmath.mpf(float(phi(d))) / (mpmath.expm1(x) - x) - 1))


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_phi_is_accurate_everywhere(sign):
    sizes = np.concatenate([np.logspace(-12, np.log10(20), 400), np.linspace(0.05, 2, 500), [100, 700]])
    assert max(relative_error(sign * d) for d in sizes) < 5e-16


@given(st.floats(-50, 50).filter(lambda d: abs(d) > 1e-140))
def test_phi_property(d):
    assert phi(d) > 0
    assert relative_error(d) < 5e-16


def test_phi_at_special_points():
    assert phi(0.0) == 0
    assert phi(1) == pytest.approx(math.e - 2, rel=1e-15)
    assert phi(np.inf) == np.inf
    assert phi(-np.inf) == np.inf
    assert phi(1000.0) == np.inf
    assert np.isnan(phi(np.nan))
    assert phi(np.zeros((2, 3))).shape == (2, 3)
    single = np.array([1e-3, 0.3, -2.0], dtype=np.float32)
    np.testing.assert_array_equal(phi(single), phi(single.astype(np.float64)))


def test_utility_loss_is_the_kl_divergence():
    rng = np.random.default_rng(0)
    for _ in range(20):
        p, q = rng.dirichlet(np.ones(6), size=2)
        expected = np.sum(p * np.log(p / q))
        assert utility_loss(np.log(q / p), p) == pytest.approx(expected, rel=1e-12)
    assert utility_loss(np.array([0.5, -0.5])) == pytest.approx((phi(0.5) + phi(-0.5)) / 2, rel=1e-15)


def test_utility_loss_keeps_its_accuracy_where_the_naive_mean_has_lost_it():
    with mpmath.workdps(60):
        p = [mpmath.mpf(1) / 4, mpmath.mpf(3) / 4]
        shift = mpmath.mpf(10) ** -10  # logit of the first outcome moves by 1e-10
        total = p[0] * mpmath.exp(shift) + p[1]
        d = [shift - mpmath.log(total), -mpmath.log(total)]
        truth = float(-(p[0] * d[0] + p[1] * d[1]))
        changes = np.array([float(x) for x in d])
    weights = np.array([0.25, 0.75])
    assert utility_loss(changes, weights) == pytest.approx(truth, rel=1e-9)
    assert abs(-(weights @ changes) / truth - 1) > 1e-8


def test_utility_loss_refuses_what_is_no_mean():
    with pytest.raises(ValueError, match=r"^the utility loss is a mean over samples"):
        utility_loss(np.zeros(0))
    with pytest.raises(ValueError, match="one weight for each of the 2"):
        utility_loss(np.zeros(2), np.ones(3) / 3)


@pytest.mark.parametrize("weighted", [False, True])
def test_coefficients_against_dense_matrices(weighted):
    problem = random_problem(3, 9, 5, weighted=weighted)
    stats = problem.stats()
    second = problem.scores @ problem.a + problem.curvature
    assert leak(stats) == pytest.approx(np.sqrt(problem.v @ fisher(problem) @ problem.v), rel=1e-12)
    assert onset_coefficient(stats) == pytest.approx(np.sqrt(sum(problem.w * second**2)), rel=1e-12)
    moment = sum(problem.w * (problem.scores @ problem.v) * second)
    assert correlation(stats) == pytest.approx(moment / leak(stats) / onset_coefficient(stats), rel=1e-12)


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_correlation_of_parallel_derivatives_is_one(sign):
    for seed in range(20):
        problem = random_problem(seed, 7, 5, weighted=True)
        problem.a = sign * seed * problem.v
        stats = dataclasses.replace(problem, curvature=sign * (problem.scores @ problem.v)).stats()
        found = correlation(stats)
        assert abs(found) <= 1
        assert found == pytest.approx(sign, rel=1e-14)


def test_coefficients_without_curvature_or_motion():
    problem = random_problem(3, 4, 5)
    with pytest.raises(ValueError, match="with_curvature"):
        onset_coefficient(problem.stats().with_curvature(None))
    with pytest.raises(ValueError, match="with_curvature"):
        predicted_loss(problem.stats().with_curvature(None), np.array([0.1]))
    problem.scores *= 0
    still = problem.stats()
    assert leak(still) == 0
    assert correlation(still) is None


def test_crossover_and_its_degenerate_cases():
    assert crossover(3.0, 2.0) == 3.0
    assert crossover(0.0, 2.0) == 0
    assert crossover(1.0, 0.0) == math.inf
    assert crossover(0, 0) is None
    for bad in ((-1.0, 1.0), (1.0, math.nan)):
        with pytest.raises(ValueError, match="not negative"):
            crossover(*bad)


def test_predicted_loss_is_the_sum_of_its_parts():
    stats = random_problem(6, 7, 4, weighted=True).stats()
    t = np.array([0.0, 1e-3, 0.3, 2.0])
    predicted = predicted_loss(stats, t)
    np.testing.assert_array_equal(predicted.t, t)
    for i, time in enumerate(t):
        d = time * stats.velocity + time**2 / 2 * stats.second_derivative
        assert predicted.utility_loss[i] == pytest.approx(sum(stats.weights * d**2) / 2, rel=1e-12)
    parts = predicted.leak_part + predicted.cross_part + predicted.quartic_part
    np.testing.assert_allclose(parts, predicted.utility_loss, rtol=1e-12)
    turn = np.array([crossover(leak(stats), onset_coefficient(stats))])
    at_turn = predicted_loss(stats, turn)
    np.testing.assert_allclose(at_turn.leak_part, at_turn.quartic_part, rtol=1e-12)
    for bad in (-1.0, np.nan):
        with pytest.raises(ValueError, match=r"^the times must be finite"):
            predicted_loss(stats, np.array([bad]))


@pytest.mark.parametrize("seed", range(5))
def test_prediction_of_a_softmax_path_has_the_stated_order(seed):
    curve = SoftmaxCurve(seed)
    errors = []
    for t in (1e-2, 5e-3, 2.5e-3, 1.25e-3):
        truth = utility_loss(curve.log_probability_changes(t), curve.weights)
        errors.append(abs(truth - predicted_loss(curve.stats(), np.array([t])).utility_loss[0]))
    slopes = np.diff(np.log(errors)) / np.log(0.5)
    assert slopes[-1] == pytest.approx(3, abs=0.1)  # leak fixed: |error| ~ C t^3
    # the curve itself is t^2 leak^2 / 2 to leading order, so the test sees something of order t^2
    assert truth / (leak(curve.stats()) ** 2 * t**2 / 2) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("nu", [0.0, 1.0])
def test_prediction_is_uniform_in_the_leak(seed, nu):
    """With leak = nu t -> 0 the loss is of order t^4 and the error must be of order t^5."""
    curve = SoftmaxCurve(seed, n=20)  # 20 parameters, 9 independent scores: a kernel exists
    stats = curve.stats()
    scores = curve._centred(curve.linear).reshape(-1, 20)
    along = scores.T @ np.linalg.pinv(scores.T) @ curve.v
    inside = curve.v - along
    errors, losses = [], []
    for t in (4e-3, 2e-3, 1e-3):
        curve.v = inside + nu * t * along
        stats = curve.stats()
        losses.append(utility_loss(curve.log_probability_changes(t), curve.weights))
        errors.append(abs(losses[-1] - predicted_loss(stats, np.array([t])).utility_loss[0]))
    assert np.log2(losses[-2] / losses[-1]) == pytest.approx(4, abs=0.1)
    assert np.log2(errors[-2] / errors[-1]) == pytest.approx(5, abs=0.25)
    if nu == 0:
        assert leak(stats) < 1e-12
        assert losses[-1] / 1e-12 == pytest.approx(onset_coefficient(stats) ** 2 / 8, rel=0.05)


def test_finite_time_bounds_hold_on_softmax_curves_and_are_tight():
    ratios_low, ratios_high = [], []
    for seed in range(40):
        curve = SoftmaxCurve(seed, n=20)
        if seed % 2:  # half of the curves start in the kernel, where the lower bound says something
            scores = curve._centred(curve.linear).reshape(-1, 20)
            curve.v = curve.v - scores.T @ np.linalg.pinv(scores.T) @ curve.v
        stats = curve.stats()
        first, second = leak(stats), onset_coefficient(stats)
        for t in np.logspace(-4, 0, 9):
            grid = np.linspace(0, t, 60)
            third = max(np.sqrt(curve.weights @ curve.third_derivative(x) ** 2) for x in grid)
            d = curve.log_probability_changes(t)
            bounds = finite_time_bounds(
                t, first, second, third * 1.001, float(max(0, -d.min())), float(max(0, d.max()))
            )
            loss = math.sqrt(2 * utility_loss(d, curve.weights))
            assert bounds.lower <= loss * (1 + 1e-9)
            assert loss <= bounds.upper * (1 + 1e-9)
            ratios_high.append(loss / bounds.upper)
            if bounds.lower > 0:
                ratios_low.append(loss / bounds.lower)
    assert len(ratios_low) > 30
    assert min(ratios_low) < 1.01
    assert max(ratios_high) > 0.99


def test_the_oracle_third_derivative_is_the_third_derivative():
    curve, h = SoftmaxCurve(1), 1e-3
    d = {k: curve.log_probability_changes(k * h) for k in (-2, -1, 1, 2)}
    differences = (d[2] - 2 * d[1] + 2 * d[-1] - d[-2]) / (2 * h**3)
    np.testing.assert_allclose(differences, curve.third_derivative(0.0), rtol=1e-3, atol=1e-3)
    stats = curve.stats()
    np.testing.assert_allclose((d[1] - d[-1]) / (2 * h), stats.velocity, atol=1e-4)
    np.testing.assert_allclose((d[1] + d[-1]) / h**2, stats.second_derivative, atol=1e-3)


def test_finite_time_bounds_formula():
    bounds = finite_time_bounds(np.array([0.1, 0.2]), 0.01, 4.0, 3.0, np.array([1.5, 4.0]), 0.5)
    main, rest = 4 * 0.1**2 / 2, 0.01 * 0.1 + 3 * 0.1**3 / 6
    assert bounds.lower[0] == pytest.approx(math.sqrt(0.5) * (main - rest), rel=1e-14)
    assert bounds.upper[0] == pytest.approx(math.exp(0.25) * (main + rest), rel=1e-14)
    assert bounds.lower[1] == 0  # a drop above 3 leaves no lower bound
    assert finite_time_bounds(0.1, 1.0, 1.0, 0.0, 0.0, 0.0).lower == 0  # and neither does a large leak
    single = [np.array([x], dtype=np.float32) for x in (0.1, 3.0, 0.7, 0.6)]
    for dtype in (np.float32, np.float64):
        t, third, drop, rise = (x.astype(dtype) for x in single)
        assert finite_time_bounds(t, 0.01, 4.0, third, drop, rise) == finite_time_bounds(
            float(t[0]), 0.01, 4.0, float(third[0]), float(drop[0]), float(rise[0])
        )


@pytest.mark.parametrize("name", ["t", "leak", "onset", "third", "drop", "rise"])
@pytest.mark.parametrize("bad", [-1.0, math.nan])
def test_finite_time_bounds_refuse_negative_arguments(name, bad):
    arguments = dict.fromkeys(("t", "leak", "onset", "third", "drop", "rise"), 1.0)
    with pytest.raises(ValueError, match=rf"^{name} must be a number that is not negative"):
        finite_time_bounds(**(arguments | {name: bad}))


def test_local_slope():
    t = np.array([1.0, 1.5, 4.0, 5.0, 9.0])
    np.testing.assert_allclose(local_slope(t, 7 * t**3.5), 3.5, rtol=1e-12)
    dead = local_slope(t, np.array([0.0, 1.0, 2.0, 3.0, 4.0]))
    assert np.isnan(dead[:2]).all()
    assert np.isfinite(dead[2:]).all()
    for bad in (np.array([0.0, 1.0]), np.array([2.0, 1.0]), np.array([1.0, 1.0])):
        with pytest.raises(ValueError, match=r"^the times must be positive and strictly increasing"):
            local_slope(bad, np.ones(2))
    for times, losses in ((1, 1), (3, 2)):
        with pytest.raises(ValueError, match="two or more"):
            local_slope(np.arange(1.0, times + 1), np.ones(losses))


@pytest.mark.parametrize("seed", range(4))
def test_slope_is_three_at_the_crossover(seed):
    stats = random_problem(seed, 30, 6).stats()
    turn = crossover(leak(stats), onset_coefficient(stats))
    t = turn * np.exp(np.linspace(-0.01, 0.01, 3))
    assert local_slope(t, predicted_loss(stats, t).utility_loss)[1] == pytest.approx(3, abs=1e-4)
    early, late = turn * np.array([1e-6, 1.1e-6]), turn * np.array([1e6, 1.1e6])
    assert local_slope(early, predicted_loss(stats, early).utility_loss)[0] == pytest.approx(2, abs=1e-4)
    assert local_slope(late, predicted_loss(stats, late).utility_loss)[0] == pytest.approx(4, abs=1e-4)


def test_fit_exponent_agrees_with_scipy():
    rng = np.random.default_rng(0)
    t = np.logspace(-3, 0, 30)
    u = 2.5 * t**4 * np.exp(0.1 * rng.normal(size=30))
    u[12] = 0.0  # a loss that vanished is no point of a power law
    used = (t >= 0.01) & (t <= 0.5) & (u > 0)
    expected = linregress(np.log(t[used]), np.log(u[used]))
    fit = fit_exponent(t, u, (0.01, 0.5))
    assert fit.exponent == pytest.approx(expected.slope, rel=1e-12)
    assert fit.prefactor == pytest.approx(np.exp(expected.intercept), rel=1e-12)
    assert fit.standard_error == pytest.approx(expected.stderr, rel=1e-10)
    assert fit.num_points == used.sum()
    pair = fit_exponent(np.array([1.0, 2.0]), np.array([3.0, 12.0]), (1.0, 2.0))
    assert pair.exponent == pytest.approx(2, rel=1e-14)
    assert pair.prefactor == pytest.approx(3, rel=1e-14)
    assert math.isnan(pair.standard_error)
    triple = fit_exponent(t[:3], u[:3], (0.0, 1.0))  # one degree of freedom is enough for an error
    assert triple.standard_error == pytest.approx(linregress(np.log(t[:3]), np.log(u[:3])).stderr, rel=1e-10)
    message = r"^an exponent .* inside the window \[0\.9, 1\], got 1; the times run from 0\.001 to 1$"
    with pytest.raises(ValueError, match=message):
        fit_exponent(t, u, (0.9, 1.0))


def test_quartic_window_formula_and_degenerate_cases():
    assert quartic_window(0.001, 4.0, -0.5) == pytest.approx((0.01, 4.8), rel=1e-14)
    assert quartic_window(0, 2, 0) == (0.0, math.inf)
    assert quartic_window(0.0, 0.0, 1.0) == (math.inf, 0.0)
    for name, arguments in (("leak", (-1, 1, 1)), ("onset", (1, -1, 1)), ("fifth", (0, 1, math.nan))):
        with pytest.raises(ValueError, match=rf"^{name} must be a number"):
            quartic_window(*arguments)


@pytest.mark.parametrize("seed", range(4))
def test_slope_is_four_inside_the_quartic_window(seed):
    curve = SoftmaxCurve(seed, n=20)
    scores = curve._centred(curve.linear).reshape(-1, 20)
    along = scores.T @ np.linalg.pinv(scores.T) @ curve.v
    curve.v = curve.v - (1 - 1e-5) * along  # a small leak remains
    stats = curve.stats()
    fifth = stats.expectation(stats.second_derivative * curve.third_derivative(0.0))
    low, high = quartic_window(leak(stats), onset_coefficient(stats), fifth)
    assert low < high
    # beyond a tenth of a nat the expansion itself ends, whatever the fifth-order term says
    high = min(high, math.sqrt(0.1 / np.abs(stats.second_derivative).max()))
    t = np.exp(np.linspace(math.log(low), math.log(high), 30))
    u = np.array([utility_loss(curve.log_probability_changes(x), curve.weights) for x in t])
    slopes = local_slope(t, u)
    assert slopes.min() > 3.8
    assert slopes.max() < 4.2
