from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from theory.null_model import (
    CHERNOFF_CONSTANT,
    Enrichment,
    OverlapLaw,
    concentration_bound,
    concentration_exponent,
)

ENERGIES = np.array([0.0, 1e-6, 0.01, 0.2, 0.5, 0.9, 1.0])


@pytest.mark.parametrize(("n", "d"), [(2, 1), (5, 2), (40, 39), (4096, 10), (10**9, 100)])
def test_law_is_scipys_beta(n, d):
    law, beta = OverlapLaw(n, d), stats.beta(d / 2, (n - d) / 2)
    x = np.concatenate([ENERGIES, d / n * np.array([0.5, 1.0, 1.3])])
    np.testing.assert_allclose(law.cdf(x), beta.cdf(x), rtol=1e-10)
    np.testing.assert_allclose(law.sf(x), beta.sf(x), rtol=1e-10)
    p = np.array([0.0, 1e-9, 0.3, 0.5, 1 - 1e-6, 1.0])
    np.testing.assert_allclose(law.quantile(p), beta.ppf(p), rtol=1e-10)
    assert law.mean == pytest.approx(beta.mean(), rel=1e-14)
    assert law.variance == pytest.approx(beta.var(), rel=1e-12)


def test_closed_forms():
    x = np.array([0.1, 0.5, 0.8])
    np.testing.assert_allclose(OverlapLaw(2, 1).cdf(x), 2 / np.pi * np.arcsin(np.sqrt(x)), rtol=1e-14)
    np.testing.assert_allclose(OverlapLaw(4, 2).cdf(x), x, rtol=1e-14)  # Archimedes, one dimension up
    np.testing.assert_allclose(OverlapLaw(12, 2).sf(x), (1 - x) ** 5, rtol=1e-13)
    # a tail far below the smallest step of 1 - cdf
    assert OverlapLaw(2002, 2).sf(0.5) == pytest.approx(0.5**1000, rel=1e-12)


def test_many_dimensions_give_a_chi_square():
    x = np.array([0.5, 3.0, 10.0])
    np.testing.assert_allclose(OverlapLaw(10**10, 3).sf(x / 1e10), stats.chi2(3).sf(x), rtol=1e-8)


def test_law_of_sampled_directions():
    rng = np.random.default_rng(0)
    g = rng.standard_normal((20_000, 7))
    g /= np.linalg.norm(g, axis=1, keepdims=True)
    basis = np.linalg.qr(rng.standard_normal((7, 3)))[0]
    energies = np.sum((g @ basis) ** 2, axis=1)
    law = OverlapLaw(7, 3)
    assert stats.kstest(energies, law.cdf).pvalue > 1e-3
    assert abs(energies.mean() - law.mean) < 5 * math.sqrt(law.variance / 20_000)
    assert abs(energies.var() / law.variance - 1) < 0.05


def test_the_whole_space_catches_everything():
    law = OverlapLaw(5, 5)
    np.testing.assert_array_equal(law.cdf(np.array([-1.0, 0.5, 1.0, 2.0])), [0, 0, 1, 1])
    np.testing.assert_array_equal(law.sf(np.array([-1.0, 0.5, 1.0, 2.0])), [1, 1, 1, 0])
    np.testing.assert_array_equal(law.quantile(np.array([0.0, 0.5])), [1, 1])
    assert (law.mean, law.variance, law.deviation_probability(0.1)) == (1, 0, 0)
    assert law.enrichment(1.0) == Enrichment(1.0, 1.0, 1.0)
    assert law.chernoff_exponent(1.0) == 0
    assert law.chernoff_exponent(0.5) == pytest.approx(2.5 * math.log(2), rel=1e-15)


def test_outside_the_unit_interval():
    law = OverlapLaw(6, 2)
    np.testing.assert_array_equal(law.cdf(np.array([-0.1, 1.1])), [0, 1])
    np.testing.assert_array_equal(law.sf(np.array([-0.1, 1.1])), [1, 0])
    np.testing.assert_array_equal(law.chernoff_exponent(np.array([-0.1, 0.0, 1.0, 1.1])), np.inf)


def test_deviation_probability_is_both_tails():
    beta = stats.beta(5, 45)
    expected = beta.cdf(0.1 * 0.6) + beta.sf(0.1 * 1.4)
    law = OverlapLaw(100, 10)
    assert law.deviation_probability(0.4) == pytest.approx(expected, rel=1e-12)
    assert law.deviation_probability(0) == 1
    assert law.deviation_probability(1) == pytest.approx(beta.sf(0.2), rel=1e-12)
    assert OverlapLaw(100, 60).deviation_probability(1) == 0


@pytest.mark.parametrize(("n", "d"), [(3, 1), (10, 4), (1000, 30)])
def test_chernoff_exponent_is_the_bound_of_dasgupta_and_gupta(n, d):
    law = OverlapLaw(n, d)
    for beta in (0.2, 0.7, 1.3, 2.0):
        bound = beta ** (d / 2) * (1 + (1 - beta) * d / (n - d)) ** ((n - d) / 2)
        assert math.exp(-law.chernoff_exponent(beta * d / n)) == pytest.approx(bound, rel=1e-12)
        exact = law.cdf(beta * d / n) if beta < 1 else law.sf(beta * d / n)
        assert exact < bound < math.exp(d / 2 * (1 - beta + math.log(beta))) * (1 + 1e-12)
    assert law.chernoff_exponent(d / n) == pytest.approx(0, abs=1e-15)


def test_concentration_bound_and_how_near_it_is():
    ratios = [
        OverlapLaw(n, d).deviation_probability(eps) / (2 * math.exp(-CHERNOFF_CONSTANT * eps**2 * d))
        for d in (1, 2, 5, 10, 50, 200, 500)
        for n in (d, 2 * d, 10 * d, 10**6)
        for eps in (0.001, 0.01, 0.1, 0.3, 0.6, 0.9, 0.99)
    ]
    assert 0.49 < max(ratios) < 0.5
    assert concentration_exponent(500, 0.5) == pytest.approx(125 * 0.15342640972, rel=1e-9)
    assert concentration_bound(500, 0.5) == pytest.approx(2 * math.exp(-125 * 0.15342640972), rel=1e-9)
    assert concentration_bound(4, 0.999) == 1.0  # no information up to d = 4
    assert concentration_bound(5, 0.999) < 1.0
    assert concentration_bound(1, 0.5) == 1.0


def test_no_larger_constant_would_do():
    exponent = -math.log(OverlapLaw(4 * 10**9, 4000).deviation_probability(1 - 1e-9))
    assert CHERNOFF_CONSTANT * 4000 - math.log(2) < exponent < 1.01 * CHERNOFF_CONSTANT * 4000 - math.log(2)


def test_quantiles_of_tiny_probabilities():
    law = OverlapLaw(28, 4)  # P(energy <= x) = 1 - (1 - x)^12 (1 + 12 x) = 78 x^2 + O(x^3)
    p = np.array([0.0, 1e-300, 4e-238, 1e-200, 1e-100, 1e-30])
    np.testing.assert_allclose(law.quantile(p), np.sqrt(p / 78), rtol=1e-13)
    for n, d in ((11, 8), (1008, 8), (10**6, 6)):  # the logarithm of B(a, b) loses digits as b grows
        p = 10.0 ** np.arange(-300, -100, 20)
        np.testing.assert_allclose(OverlapLaw(n, d).cdf(OverlapLaw(n, d).quantile(p)), p, rtol=1e-9)


@given(st.integers(1, 10**6), st.floats(0, 1), st.floats(0, 1))
def test_tails_add_to_one_and_quantiles_invert(n, share, p):
    law = OverlapLaw(n, max(1, round(share * n)))
    x = law.quantile(p)
    assert 0 <= x <= 1
    assert law.cdf(x) + law.sf(x) == pytest.approx(1 if law.rank < n else 2, rel=1e-9)
    if law.rank < n and 1e-9 < x < 1 - 1e-9:
        assert law.cdf(x) == pytest.approx(p, rel=1e-6, abs=1e-12)


def test_enrichment_over_chance():
    found = OverlapLaw(4096, 10).enrichment(0.02)
    assert found.ratio == pytest.approx(8.192, rel=1e-14)
    assert found.p_value == pytest.approx(stats.beta(5, 2043).sf(0.02), rel=1e-10)
    assert found.p_value_low == pytest.approx(1 - found.p_value, rel=1e-12)
    assert OverlapLaw(4096, 10).enrichment(0).p_value == 1


@pytest.mark.parametrize(("n", "d"), [(5, 0), (5, 6), (0, 0), (5, -1)])
def test_refuses_impossible_ranks(n, d):
    with pytest.raises(ValueError, match=rf"rank in 1\.\.{n}, got {d}"):
        OverlapLaw(n, d)


def test_refuses_what_is_no_energy_probability_or_deviation():
    law = OverlapLaw(5, 2)
    for function in (law.cdf, law.sf, law.chernoff_exponent):
        with pytest.raises(ValueError, match=r"^an energy must be a number, got NaN$"):
            function(np.array([0.5, np.nan]))
    for energy in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"lies in \[0, 1\], got"):
            law.enrichment(energy)
    for p in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"probabilities in \[0, 1\], got"):
            law.quantile(p)
    for eps in (-0.1, math.nan):
        with pytest.raises(ValueError, match="cannot be negative, got"):
            law.deviation_probability(eps)
    for eps in (0, 1, math.nan):
        with pytest.raises(ValueError, match=r"relative deviations in \(0, 1\), got"):
            concentration_exponent(5, eps)
        with pytest.raises(ValueError, match=r"relative deviations in \(0, 1\), got"):
            concentration_bound(5, eps)
    with pytest.raises(ValueError, match="must be positive, got 0"):
        concentration_bound(0, 0.5)
