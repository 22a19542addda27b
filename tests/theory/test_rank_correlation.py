"""Rank correlations: scipy on repeated samples as the oracle, ties, clusters, and comparisons of predictors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from theory.rank_correlation import advantage, rank_correlation, weighted_kendall, weighted_spearman

VALUES = st.lists(st.integers(-3, 3), min_size=3, max_size=9)


@given(VALUES, st.data())
def test_whole_weights_repeat_observations(values: list[int], data: st.DataObject) -> None:
    size = len(values)
    lists = st.lists(st.integers(-3, 3), min_size=size, max_size=size)
    x, y = np.array(values, dtype=float), np.array(data.draw(lists), dtype=float)
    times = np.array(data.draw(st.lists(st.integers(0, 3), min_size=size, max_size=size)))
    if times.sum() == 0:
        times[0] = 1
    repeated = np.repeat(x, times), np.repeat(y, times)
    found = [measure(x, y, times[None, :].astype(float))[0] for measure in (weighted_spearman, weighted_kendall)]
    if any(len(np.unique(v)) < 2 for v in repeated):
        assert all(np.isnan(found))
    else:
        wanted = [stats.spearmanr(*repeated).statistic, stats.kendalltau(*repeated).statistic]
        assert found == pytest.approx(wanted, abs=1e-12)
        assert found == pytest.approx(
            [m(x, y, times[None, :] * 0.37)[0] for m in (weighted_spearman, weighted_kendall)], abs=1e-12
        )


@given(VALUES, st.data())
def test_strata_are_ranked_each_by_itself(values: list[int], data: st.DataObject) -> None:
    size = len(values)
    lists = st.lists(st.integers(-3, 3), min_size=size, max_size=size)
    x, y = np.array(values, dtype=float), np.array(data.draw(lists), dtype=float)
    strata = np.array(data.draw(st.lists(st.integers(0, 2), min_size=size, max_size=size)))
    times = np.array(data.draw(st.lists(st.integers(0, 3), min_size=size, max_size=size)))
    times[0] += 1
    rows = np.repeat(np.arange(size), times)
    ranks, orders = np.zeros((2, len(rows))), [0.0, 0.0, 0.0]
    for number in range(3):
        inside = strata[rows] == number
        for k, v in enumerate((x, y)):
            if inside.any():
                ranks[k, inside] = stats.rankdata(v[rows][inside]) / inside.sum()
                ranks[k, inside] -= ranks[k, inside].mean()
        for i in rows[inside]:
            for j in rows[inside]:
                a, b = np.sign(x[i] - x[j]), np.sign(y[i] - y[j])
                orders = [orders[0] + a * b, orders[1] + a * a, orders[2] + b * b]
    found = [m(x, y, times[None, :] * 0.37, strata)[0] for m in (weighted_spearman, weighted_kendall)]
    if orders[1] == 0 or orders[2] == 0:
        assert all(np.isnan(found))
    else:
        rho = (ranks[0] @ ranks[1]) / np.sqrt((ranks[0] @ ranks[0]) * (ranks[1] @ ranks[1]))
        assert found == pytest.approx([rho, orders[0] / np.sqrt(orders[1] * orders[2])], abs=1e-12)


def test_strata_of_one_size_without_ties_have_the_mean_of_their_correlations() -> None:
    rng = np.random.default_rng(2)
    x, y, strata = rng.normal(size=24), rng.normal(size=24), np.arange(24) % 3
    found = rank_correlation(x, y, np.arange(24), strata, resamples=0, seed=0)
    own = [stats.spearmanr(x[strata == k], y[strata == k]).statistic for k in range(3)]
    assert found.spearman == pytest.approx(np.mean(own), abs=1e-12)


def test_what_only_tells_strata_apart_ranks_nothing_within_them() -> None:
    rng = np.random.default_rng(0)
    clusters, strata = np.repeat(np.arange(9), 2), np.tile([0, 1], 9)
    q = rng.permutation(9)[clusters].astype(float)
    damage = (1 + 0.05 * q) * np.where(strata == 0, 10.0, 1.0)
    mark = np.where(strata == 0, 4.0, 1.0)
    assert stats.spearmanr(mark, damage).statistic > 0.8 > 0.6 > stats.spearmanr(q, damage).statistic
    within = rank_correlation(q, damage, clusters, strata, resamples=50, seed=0)
    assert (within.spearman, within.spearman_interval, within.kendall) == (1.0, pytest.approx((1.0, 1.0)), 1.0)
    assert rank_correlation(mark, damage, clusters, strata, resamples=50, seed=0).spearman is None
    noise = rng.normal(size=18)
    against = advantage(q, noise, damage, clusters, strata, resamples=50, seed=0)
    own = [stats.spearmanr(noise[strata == k], damage[strata == k]).statistic for k in range(2)]
    assert against.difference == pytest.approx(1 - abs(np.mean(own)), abs=1e-12)


@pytest.mark.parametrize(("share", "truth"), [(0.0, 0.0), (0.9, 0.867)])  # with 500 clusters: 0.867
def test_intervals_of_nine_clusters_cover(share: float, truth: float) -> None:
    clusters, strata, hits, trials = np.repeat(np.arange(9), 4), np.tile([0, 0, 1, 1], 9), 0, 100
    for trial in range(trials):
        rng = np.random.default_rng(trial)
        u = rng.normal(size=9)
        x = (share * u + np.sqrt(1 - share**2) * rng.normal(size=9))[clusters]
        y = u[clusters] + 0.3 * rng.normal(size=36)
        low, high = rank_correlation(x, y, clusters, strata, resamples=200, seed=trial).spearman_interval or (1, 1)
        hits += low <= truth <= high
    assert 0.88 < hits / trials < 1  # of nominal 95 %


def test_the_interval_is_of_resampled_clusters() -> None:
    rng = np.random.default_rng(3)
    clusters = np.repeat(np.arange(6), 3)
    x = rng.normal(size=18)
    y = x + rng.normal(size=18)
    found = rank_correlation(x, y, clusters, resamples=400, seed=5)
    assert (found.count, found.clusters) == (18, 6)
    assert found.spearman == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    assert found.kendall == pytest.approx(stats.kendalltau(x, y).statistic, abs=1e-12)
    draws = np.random.default_rng([5, 0]).multinomial(6, np.full(6, 1 / 6), size=400)  # as theory.resampling draws
    slow = []
    for counts in draws:
        rows = np.concatenate([np.flatnonzero(clusters == c) for c in range(6) for _ in range(counts[c])])
        slow.append(stats.spearmanr(x[rows], y[rows]).statistic)
    slow.sort()
    assert found.spearman_interval == pytest.approx((slow[9], slow[-10]), abs=1e-12)
    assert found.kendall_interval is not None
    assert found.kendall_interval[0] < found.kendall < found.kendall_interval[1]


def test_copies_of_a_cluster_say_nothing_new() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=8), rng.normal(size=8)
    alone = rank_correlation(x, y, np.arange(8), resamples=300, seed=1)
    copied = rank_correlation(np.repeat(x, 4), np.repeat(y, 4), np.repeat(np.arange(8), 4), resamples=300, seed=1)
    assert copied.spearman_interval == pytest.approx(alone.spearman_interval, abs=1e-12)
    taken_as_independent = rank_correlation(np.repeat(x, 4), np.repeat(y, 4), np.arange(32), resamples=300, seed=1)
    widths = [np.ptp(each.spearman_interval or (0, 0)) for each in (copied, taken_as_independent)]
    assert widths[0] > 1.5 * widths[1]


def test_constants_have_no_correlation() -> None:
    x = np.array([1.0, 2.0, 3.0, 4.0])
    found = rank_correlation(x, np.full(4, 0.1), np.arange(4), resamples=20, seed=0)
    assert found.spearman is found.kendall is found.spearman_interval is found.kendall_interval is None
    assert rank_correlation(x, x**3, np.arange(4), resamples=0, seed=0).spearman_interval is None


def test_infinite_predictions_have_a_rank() -> None:
    x = np.array([1.0, 2.0, np.inf, 3.0])
    found = rank_correlation(x, np.array([1.0, 2.0, 9.0, 3.0]), np.arange(4), resamples=50, seed=0)
    assert found.spearman == found.kendall == 1.0


def test_advantage_over_another_predictor() -> None:
    rng = np.random.default_rng(7)
    y = np.arange(30.0)
    good, noise = y + rng.normal(size=30), rng.normal(size=30)
    clusters = np.arange(30) // 3
    found = advantage(good, noise, y, clusters, resamples=400, seed=0)
    assert found.better
    assert found.interval is not None
    rho = stats.spearmanr(noise, y).statistic
    assert found.sign == (1 if rho >= 0 else -1)
    assert found.difference == pytest.approx(stats.spearmanr(good, y).statistic - abs(rho), abs=1e-12)
    assert not advantage(noise, good, y, clusters, resamples=400, seed=0).better


def test_the_other_predictor_is_read_in_its_best_direction() -> None:
    y = np.arange(12.0)
    against = advantage(y, -y, y, np.arange(12), resamples=50, seed=0)
    assert against.sign == -1
    assert [against.difference, *(against.interval or ())] == pytest.approx([0.0, 0.0, 0.0], abs=1e-12)
    assert not against.better


def test_what_cannot_be_ranked_is_refused() -> None:
    x = np.array([1.0, 2.0])
    with pytest.raises(ValueError, match="NaN"):
        rank_correlation(x, np.array([1.0, np.nan]), np.arange(2), resamples=0, seed=0)
    with pytest.raises(ValueError, match="at least one"):
        rank_correlation(x[:0], x[:0], np.arange(0), resamples=0, seed=0)
