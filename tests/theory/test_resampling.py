from __future__ import annotations

import numpy as np
import pytest

from theory.resampling import bootstrap_weights, half_weights, percentile_interval


def test_groups_stay_together():
    groups = np.array([5, 5, 1, 1, 1, 9])
    w = np.array([0.1, 0.2, 0.1, 0.2, 0.1, 0.3])
    halves = half_weights(w, 20, 0, groups)
    for first, second in zip(*halves, strict=True):
        for group in (1, 5, 9):
            sides = {bool(first[i] > 0) for i in np.flatnonzero(groups == group)}
            assert len(sides) == 1
        held = first > 0
        assert not np.any(held & (second > 0))
        np.testing.assert_allclose(first[held], w[held] / w[held].sum(), rtol=1e-14)
        np.testing.assert_allclose(second[~held], w[~held] / w[~held].sum(), rtol=1e-14)
    draws = bootstrap_weights(w, 50, 0, groups)
    multiplicity = draws / w
    for group in (1, 5, 9):
        columns = multiplicity[:, groups == group]
        np.testing.assert_allclose(columns, np.repeat(columns[:, :1], columns.shape[1], axis=1), rtol=1e-12)
    np.testing.assert_allclose(draws.sum(axis=1), 1, rtol=1e-14)


def test_halves_are_uniform_among_the_equal_splits():
    w = np.array([0.1, 0.2, 0.3, 0.25, 0.15])
    first, second = half_weights(w, 6000, 0)
    held = first > 0
    assert np.all(held.sum(axis=1) == 2)  # the odd group goes to the second half
    assert np.array_equal(second > 0, ~held)
    # 10 pairs of 5, each in a tenth of the splits; the standard error is 0.004
    shares = held.T.astype(float) @ held / 6000
    np.testing.assert_allclose(shares, np.where(np.eye(5), 0.4, 0.1), atol=0.025)
    assert np.array_equal(first, half_weights(w, 6000, 0)[0])
    assert not np.array_equal(first, half_weights(w, 6000, 1)[0])


def test_two_samples_are_split_into_one_and_one():
    first, second = half_weights(np.array([0.3, 0.0, 0.7]), 40, 0)
    assert {tuple(row) for row in first} == {(1.0, 0.0, 0.0), (0.0, 0.0, 1.0)}
    np.testing.assert_array_equal(first + second, np.broadcast_to([1.0, 0.0, 1.0], (40, 3)))


def test_bootstrap_draws_are_multinomial_counts():
    n = 6
    draws = bootstrap_weights(np.full(n, 1 / n), 20000, 1)
    counts = draws * n
    np.testing.assert_allclose(counts, np.rint(counts), atol=1e-12)
    # multinomial(n, 1/n): mean 1, variance 1 - 1/n, covariance -1/n; 20000 draws give about 1 percent
    np.testing.assert_allclose(counts.mean(axis=0), 1, atol=0.04)
    np.testing.assert_allclose(np.cov(counts.T), np.eye(n) - 1 / n, atol=0.05)
    assert np.array_equal(draws, bootstrap_weights(np.full(n, 1 / n), 20000, 1))
    assert not np.array_equal(draws, bootstrap_weights(np.full(n, 1 / n), 20000, 2))


def test_draws_never_rest_on_samples_without_weight():
    w = np.array([0.0, 0.5, 0.0, 0.5])
    draws = bootstrap_weights(w, 40, 0)
    assert np.all(draws[:, [0, 2]] == 0)
    np.testing.assert_allclose(draws.sum(axis=1), 1)
    assert half_weights(np.array([0.0, 1.0]), 3, 0) is None


def test_draws_refuse_what_does_not_fit():
    w = np.full(3, 1 / 3)
    with pytest.raises(ValueError, match="group number for each of the 3 samples, got 2"):
        bootstrap_weights(w, 3, 0, np.array([0, 1]))
    with pytest.raises(ValueError, match="resamples must be 0 or more"):
        bootstrap_weights(w, -1, 0)
    assert bootstrap_weights(w, 0, 0).shape == (0, 3)


def test_percentile_interval():
    values = np.random.default_rng(0).permutation(np.arange(1.0, 201.0))
    assert percentile_interval(values, 0.95) == (5.0, 196.0)  # four of 200 outside on each side
    assert percentile_interval(values[:21], 0.9) == tuple(np.sort(values[:21])[[1, -2]])
    assert percentile_interval(np.array([1.0, np.inf, np.nan, np.inf]), 0.9) == (1.0, np.inf)
    assert percentile_interval(np.array([np.nan]), 0.9) is None
    assert percentile_interval(np.array([2.0]), 0.9) == (2.0, 2.0)
    for level in (0.0, 1.0, 95.0):
        with pytest.raises(ValueError, match="confidence level"):
            percentile_interval(values, level)
