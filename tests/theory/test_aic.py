from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from dense_oracle import Problem, dense_quantities, fisher, random_problem
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ortho_group

from theory.aic import Estimate, aic_verdict, estimate, estimate_many, expansion_window, regime
from theory.functionals import weighted_functionals
from theory.resampling import bootstrap_weights
from theory.spectra import split_half
from theory.statistics import ScoreStatistics

SPECTRAL = {"sharpness", "tail", "overlap", "coupling", "leak", "effective_rank", "mean_score_share"}
ALONG = {"onset_coefficient", "crossover"}


def assert_matches(found, problem, d, rtol=1e-9):
    expected = dense_quantities(problem, d)
    scale = expected["eigenvalues"][0]
    for name, value in expected.items():
        tolerance = 1e-12 * (scale if name in {"eigenvalues", "sharpness", "tail"} else 1)
        np.testing.assert_allclose(getattr(found, name), value, rtol=rtol, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("n_samples", "n_params"), [(8, 15), (15, 8), (1, 3), (5, 1), (6, 6)])
def test_estimate_against_dense_matrices(n_samples, n_params, weighted):
    problem = random_problem(11, n_samples, n_params, weighted=weighted)
    for d in range(1, min(n_samples, n_params) + 1):
        found = estimate(problem.stats(fisher="sampled"), d, resamples=0)
        assert_matches(found, problem, d)
        assert (found.rank, found.num_samples, found.dimension) == (d, n_samples, n_params)
        assert found.fisher == "sampled"
        assert len(found.eigenvalues) == n_samples
        following = found.eigenvalues[d] if d < n_samples else 0
        assert found.gap == pytest.approx(found.eigenvalues[d - 1] - following, abs=1e-12)


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), n_samples=st.integers(2, 7), n_params=st.integers(2, 7))
def test_estimate_invariances(seed, n_samples, n_params):
    problem = random_problem(seed, n_samples, n_params)
    d = 1 + seed % min(n_samples, n_params)
    rotation = ortho_group.rvs(n_params, random_state=seed)
    rotated = Problem(problem.scores @ rotation, problem.v @ rotation, problem.a @ rotation, problem.curvature, None)
    order = np.random.default_rng(seed).permutation(n_samples)
    twice = [*range(n_samples), *range(n_samples)]
    base = dense_quantities(problem, d)
    gap = base["sharpness"] - (base["eigenvalues"][d] if d < n_samples else 0)
    rtol = 1e-11 * base["eigenvalues"][0] / max(gap, 1e-6)  # Davis-Kahan: projectors move with error / gap
    for stats in (rotated.stats(), problem.stats().select(order), problem.stats().select(twice)):
        found = estimate(stats, d, resamples=0, splits=1)
        found = dataclasses.replace(found, eigenvalues=found.eigenvalues[:n_samples])
        assert_matches(found, problem, d, rtol=max(1e-8, rtol))


@pytest.mark.parametrize("weighted", [False, True])
def test_selection_and_weighting_agree(weighted):
    problem = random_problem(2, 6, 9, weighted=weighted)
    picked = [0, 0, 2, 5, 5, 5]
    selected = estimate(problem.stats().select(picked), 2, resamples=0)
    counts = np.bincount(picked, minlength=6) * problem.w
    reweighted = dataclasses.replace(problem.stats(), weights=counts / counts.sum())
    other = estimate(reweighted, 2, resamples=0)
    for name in (*SPECTRAL, *ALONG, "correlation", "gap"):
        assert getattr(selected, name) == pytest.approx(getattr(other, name), rel=1e-9), name
    np.testing.assert_allclose(selected.eigenvalues, other.eigenvalues, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
def test_intervals_are_those_of_a_naive_bootstrap(weighted, grouped):
    problem = random_problem(5, 9, 20, weighted=weighted)
    groups = np.array([0, 0, 0, 1, 1, 4, 4, 9, 9]) if grouped else None
    found = estimate(problem.stats(), 3, groups=groups, resamples=60, level=0.8, seed=4)
    draws = bootstrap_weights(problem.w, 60, 4, groups)
    rows = []
    for w in draws:
        again = dense_quantities(dataclasses.replace(problem, weights=w), 3)
        present = np.flatnonzero(w)
        if len(present) < 3:  # the projector keeps only directions that exist
            again = dense_quantities(dataclasses.replace(problem, weights=w), len(present))
            again["sharpness"] = again["tail"] = 0.0
        rows.append(again)
    assert set(found.intervals) == SPECTRAL | ALONG == set(found.bootstrap_bias)
    for name, (low, high) in found.intervals.items():
        values = np.sort([row[name] for row in rows])
        outside = 5  # floor(59 * 0.1)
        expected = (values[outside], values[-1 - outside])
        np.testing.assert_allclose((low, high), expected, rtol=1e-8, atol=1e-10, err_msg=name)
        bias = np.mean(values) - getattr(found, name)
        assert found.bootstrap_bias[name] == pytest.approx(bias, rel=1e-7, abs=1e-10), name


def test_batches_do_not_change_the_functionals(monkeypatch):
    stats = random_problem(0, 12, 20).stats()
    draws = bootstrap_weights(stats.sample_weights, 50, 0)
    whole = weighted_functionals(stats, draws, 4)
    monkeypatch.setattr("theory.functionals._BATCH_BYTES", 8 * 12**2 * 7)
    parts = weighted_functionals(stats, draws, 4)
    for name, values in whole.items():
        assert values.shape == (50,)
        assert np.array_equal(values, parts[name]), name


def test_groups_of_copies_count_once():
    """Repeating every sample three times and grouping the copies changes nothing, not even the intervals."""
    stats = random_problem(8, 7, 12).stats()
    once = estimate(stats, 2, resamples=100)
    copies = stats.select(np.repeat(np.arange(7), 3))
    grouped = estimate(copies, 2, groups=np.repeat(np.arange(7), 3), resamples=100)
    for name, ends in once.intervals.items():
        assert grouped.intervals[name] == pytest.approx(ends, rel=1e-8), name
    assert grouped.split_half_overlap == pytest.approx(once.split_half_overlap, rel=1e-8)
    ungrouped = estimate(copies, 2, resamples=100)
    assert np.diff(ungrouped.intervals["leak"]) < 0.8 * np.diff(grouped.intervals["leak"])


def test_intervals_cover_the_population_value():
    """Standard normal s.v and l'': the leak and the onset coefficient are 1; 95 % intervals, 80 samples."""
    covered = {"leak": 0, "onset_coefficient": 0, "crossover": 0}
    truth = {"leak": 1.0, "onset_coefficient": 1.0, "crossover": 2.0}
    repeats = 150
    for seed in range(repeats):
        rng = np.random.default_rng(seed)
        scores, e = rng.normal(size=(80, 4)), np.eye(4)
        stats = ScoreStatistics.from_scores(scores, e[0], e[1], fisher="sampled", curvature=np.zeros(80))
        found = estimate(stats, 1, resamples=200, splits=1, seed=seed)
        for name, value in truth.items():
            low, high = found.intervals[name]
            covered[name] += low <= value <= high
    # binomial(150, 0.93): below 0.86 or above 0.99 with probability < 1e-3 each
    for name, count in covered.items():
        assert 0.86 <= count / repeats <= 0.99, (name, count)


def test_same_seed_same_answer_and_threads_do_not_matter():
    blocks = [random_problem(seed, 10, 6 + seed).stats() for seed in range(5)]
    one = estimate_many(blocks, [1, 2, 3, 4, 5], resamples=40, threads=1, seed=3)
    two = estimate_many(blocks, [1, 2, 3, 4, 5], resamples=40, threads=2, seed=3)
    assert [e.as_dict() for e in one] == [e.as_dict() for e in two]
    for d, (block, found) in enumerate(zip(blocks, one, strict=True), start=1):
        assert estimate(block, d, resamples=40, seed=3).as_dict() == found.as_dict()
        assert estimate(block, d, resamples=40, seed=4).intervals != found.intervals
    assert estimate_many([], 3) == []


def test_blocks_of_different_samples_are_refused():
    blocks = [random_problem(0, 5, 4).stats(), random_problem(0, 6, 4).stats()]
    with pytest.raises(ValueError, match="same samples"):
        estimate_many(blocks, 1)
    with pytest.raises(ValueError, match="one rank for each of the 2"):
        estimate_many(blocks, [1])


def test_a_single_sample():
    found = estimate(random_problem(1, 1, 5).stats(), 1, resamples=20)
    assert found.mean_score_share == pytest.approx(1, rel=1e-15)
    assert found.effective_rank == 1
    assert found.tail == 0
    assert found.split_half_overlap is None
    assert found.nulls["split_half_overlap_random"] is None
    assert found.nulls["effective_rank_half"] is None
    assert found.nulls["effective_rank_centred_normalised"] == 0
    for name, (low, high) in found.intervals.items():
        assert low == high == getattr(found, name), name


def test_zero_scores():
    problem = Problem(np.zeros((4, 3)), np.ones(3), np.ones(3), np.zeros(4), None)
    found = estimate(problem.stats(), 2, resamples=10)
    for name in SPECTRAL | {"gap", "numerical_rank", "onset_coefficient", "split_half_overlap"}:
        assert getattr(found, name) == 0, name
    assert found.crossover is None
    assert found.correlation is None
    assert "crossover" not in found.intervals  # 0/0 in every resample: there is no interval
    assert found.intervals["leak"] == (0, 0)
    assert all(value == 0 for value in found.nulls.values())


def test_a_leak_without_onset_never_crosses_over():
    problem = random_problem(1, 4, 3)
    problem.curvature = -(problem.scores @ problem.a)
    found = estimate(problem.stats(), 1, resamples=10)
    assert found.onset_coefficient == 0
    assert found.crossover == math.inf
    assert found.intervals["crossover"] == (math.inf, math.inf)
    assert "crossover" not in found.bootstrap_bias
    plain = found.as_dict()
    assert plain["crossover"] is None
    assert plain["intervals"]["crossover"] == [None, None]
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain


def test_without_curvature_the_onset_is_unknown():
    problem = random_problem(1, 6, 8)
    problem.curvature = None
    found = estimate(problem.stats(), 2, resamples=10)
    assert (found.onset_coefficient, found.crossover, found.correlation) == (None, None, None)
    assert set(found.intervals) == SPECTRAL


def test_rank_beyond_the_numerical_rank_projects_on_the_range():
    problem = random_problem(3, 8, 20, rank=3)
    found = estimate(problem.stats(), 6, resamples=0)
    assert found.numerical_rank == 3
    assert found.sharpness == found.tail == 0
    exact = estimate(problem.stats(), 3, resamples=0)
    assert found.overlap == exact.overlap
    assert found.coupling == exact.coupling
    assert found.nulls["overlap_random"] == exact.nulls["overlap_random"]
    basis = np.linalg.svd(problem.scores)[2][:3]
    assert found.overlap == pytest.approx(np.linalg.norm(basis @ problem.v), rel=1e-10)
    assert sum(found.eigenvalues) == pytest.approx(np.trace(fisher(problem)), rel=1e-12)


def test_equal_eigenvalues_show_as_a_vanishing_gap():
    found = estimate(ScoreStatistics.from_scores(np.eye(4), np.ones(4), np.ones(4)), 2, resamples=0)
    assert found.gap == pytest.approx(0, abs=1e-16)
    assert found.sharpness == pytest.approx(0.25, rel=1e-14)
    assert found.tail == pytest.approx(0.5, rel=1e-14)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, r"1\.\.5.*got 0"),
        ({"rank": 6}, r"1\.\.5.*got 6"),
        ({"resamples": -1}, "resamples"),
        ({"level": 1.0}, "level"),
        ({"splits": 0}, "splits"),
        ({"groups": np.zeros(4, dtype=int)}, "each of the 5 samples, got 4"),
    ],
)
def test_estimate_refuses_what_does_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        estimate(random_problem(0, 5, 7).stats(), **({"rank": 2} | options))


@pytest.mark.parametrize("d", [1, 3])
def test_random_direction_nulls_are_exact_means(d):
    """The mean over an isotropic direction of a quadratic form is its mean over any orthonormal basis."""
    problem = random_problem(7, 6, 10, weighted=True)
    nulls = estimate(problem.stats(), d, resamples=0).nulls
    squares = {"overlap": [], "coupling": [], "leak": []}
    for e in np.eye(10):
        along = dataclasses.replace(problem, v=e * np.linalg.norm(problem.v), a=e * np.linalg.norm(problem.a))
        for name in squares:
            squares[name].append(dense_quantities(along, d)[name] ** 2)
    for name, values in squares.items():
        assert nulls[name + "_random"] == pytest.approx(np.sqrt(np.mean(values)), rel=1e-9), name
    assert nulls["split_half_overlap_random"] == pytest.approx(d / 10, rel=1e-12)


def test_effective_rank_nulls_against_dense_matrices():
    problem = random_problem(9, 6, 10, weighted=True)
    stats, w = problem.stats(), problem.w
    nulls = estimate(stats, 2, resamples=0, splits=7, seed=5).nulls

    def dense_rank(rows, weights):
        f = (rows.T * weights) @ rows
        return np.trace(f) ** 2 / np.trace(f @ f)

    norms = np.linalg.norm(problem.scores, axis=1)
    orthogonal = np.diag(norms)
    assert nulls["effective_rank_random_directions"] == pytest.approx(dense_rank(orthogonal, w), rel=1e-12)
    directions = problem.scores / norms[:, None]
    centred = directions - w @ directions
    assert nulls["effective_rank_centred_normalised"] == pytest.approx(dense_rank(centred, w), rel=1e-10)
    signs_mean = sum(w**2 * norms**2) / sum(w * norms**2)  # E |sum w_i (+-) s_i|^2 / tr F
    assert nulls["mean_score_share_random"] == pytest.approx(signs_mean, rel=1e-12)
    assert nulls["effective_rank_half"] == split_half(stats, 2, 7, 5).effective_rank


def test_norm_shuffling_averages_over_permutations():
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(4, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    norms = np.array([1.0, 2.0, 3.0, 10.0])

    def rank_of(order):
        f = (directions * norms[order][:, None]).T @ (directions * norms[order][:, None])
        return np.trace(f) ** 2 / np.trace(f @ f)

    stats = ScoreStatistics.from_scores(directions * norms[:, None], np.ones(3), np.ones(3))
    shuffled = [estimate(stats, 1, resamples=0, seed=s).nulls["effective_rank_norm_shuffled"] for s in range(60)]
    orders = [np.array(o) for o in np.ndindex(4, 4, 4, 4) if sorted(o) == [0, 1, 2, 3]]
    every = np.array([rank_of(o) for o in orders])
    # 60 means of 20 draws each: standard error of the grand mean
    assert np.mean(shuffled) == pytest.approx(every.mean(), abs=4 * every.std() / np.sqrt(1200))
    assert every.min() <= min(shuffled)
    assert max(shuffled) <= every.max()


def test_norm_shuffling_of_orthogonal_or_equal_scores_and_zero_scores():
    norms = np.array([1.0, 2.0, 0.0, 5.0])
    orthogonal = ScoreStatistics.from_scores(np.diag(norms), np.ones(4), np.ones(4))
    nulls = estimate(orthogonal, 1, resamples=0).nulls
    expected = np.sum(norms**2) ** 2 / np.sum(norms**4)
    assert nulls["effective_rank_norm_shuffled"] == pytest.approx(expected, rel=1e-12)
    assert nulls["effective_rank_random_directions"] == pytest.approx(expected, rel=1e-12)
    # three orthogonal unit vectors without their mean: two equal eigenvalues
    assert nulls["effective_rank_centred_normalised"] == pytest.approx(2, rel=1e-12)
    same = estimate(ScoreStatistics.from_scores(np.ones((5, 3)), np.ones(3), np.ones(3)), 1, resamples=0)
    assert same.nulls["effective_rank_norm_shuffled"] == pytest.approx(1, rel=1e-12)
    assert same.nulls["effective_rank_centred_normalised"] == 0


def test_half_samples_show_whether_the_effective_rank_saturates():
    rng = np.random.default_rng(0)
    low = rng.normal(size=(80, 3)) @ rng.normal(size=(3, 500))
    full = rng.normal(size=(80, 500))
    for rows, ratio in ((low, 1.0), (full, 2.0)):
        stats = ScoreStatistics.from_scores(rows, np.ones(500), np.ones(500))
        found = estimate(stats, 1, resamples=0)
        assert found.effective_rank / found.nulls["effective_rank_half"] == pytest.approx(ratio, rel=0.15)


@pytest.mark.parametrize(
    ("leak", "onset", "horizon", "window", "expected"),
    [
        (3.0, 2.0, 0.9, 10.0, "first-order"),  # t_c = 3
        (3.0, 2.0, 1.1, 10.0, "mixed"),
        (3.0, 2.0, 8.9, 10.0, "mixed"),
        (3.0, 2.0, 9.1, 10.0, "second-order"),
        (3.0, 2.0, 10.1, 10.0, "outside"),
        (0.0, 2.0, 0.1, 10.0, "second-order"),
        (3.0, 0.0, 5.0, 10.0, "first-order"),
        (0, 0, 5, math.inf, "mixed"),
        (0, 0, 5, 1, "outside"),
    ],
)
def test_regime(leak, onset, horizon, window, expected):
    assert regime(leak, onset, horizon, window) == expected


def test_regime_refuses_times_that_are_none():
    for bad in ((1.0, 1.0, -1.0, 1.0), (1.0, 1.0, 1.0, math.nan), (-1.0, 1.0, 1.0, 1.0)):
        with pytest.raises(ValueError, match="not negative"):
            regime(*bad)


def test_expansion_window():
    problem = random_problem(4, 6, 5)
    stats = problem.stats()
    found = estimate(stats, 1, resamples=0)
    t = expansion_window(stats)
    slow = problem.stats().with_curvature(1e6 * problem.curvature)
    nat = expansion_window(slow)
    onset = estimate(slow, 1, resamples=0).onset_coefficient
    assert found.leak * nat + onset * nat**2 / 2 == pytest.approx(1, rel=1e-12)
    turn = found.velocity_norm / found.acceleration_norm
    assert t <= turn * (1 + 1e-12)
    problem.scores *= 1e-9
    problem.curvature *= 1e-9
    assert expansion_window(problem.stats()) == pytest.approx(turn, rel=1e-12)
    still = Problem(np.zeros((2, 3)), np.zeros(3), np.zeros(3), np.zeros(2), None).stats()
    assert expansion_window(still) == math.inf
    with pytest.raises(ValueError, match="with_curvature"):
        expansion_window(stats.with_curvature(None))


def axis_problem():
    """F = diag(4, 1, 0.25) / 3, v along the second axis, a along the first."""
    scores = np.diag([2.0, 1.0, 0.5])
    return Problem(scores, np.array([0.0, 0.3, 0]), np.array([2.0, 0, 0]), None, None)


@pytest.mark.parametrize(
    ("thresholds", "expected"),
    [
        ({"sharpness": 1.3, "coupling": 2.3, "overlap": 0.42}, (True, True, True, True)),
        ({"sharpness": 1.4, "coupling": 2.3, "overlap": 0.42}, (False, True, True, True)),
        ({"sharpness": 1.3, "coupling": 2.3, "overlap": 0.41}, (True, False, True, True)),
        ({"sharpness": 1.3, "coupling": 2.4, "overlap": 0.42}, (True, True, True, False)),
    ],
)
def test_verdict_of_each_condition(thresholds, expected):
    stats = axis_problem().stats()
    verdict = aic_verdict(stats, d=1, **thresholds)
    assert tuple(c.holds for c in verdict.conditions) == expected
    assert tuple(c.number for c in verdict.conditions) == (1, 1, 2, 3)
    assert tuple(c.name for c in verdict.conditions) == ("sharpness", "tail", "overlap", "coupling")
    values = tuple(c.value for c in verdict.conditions)
    assert values == pytest.approx((4 / 3, 1.25 / 3, 0.0, math.sqrt(16 / 3)), rel=1e-12, abs=1e-15)
    assert verdict.holds == all(expected)
    assert verdict.condition(1) == (expected[0] and expected[1])
    assert verdict.condition(3) == expected[3]
    from_estimate = aic_verdict(estimate(stats, 1, resamples=0), d=1, **thresholds)
    assert from_estimate == verdict
    assert json.loads(json.dumps(verdict.as_dict()))["conditions"][0]["relation"] == ">="


def test_verdict_sees_the_overlap_of_a_larger_rank():
    verdict = aic_verdict(axis_problem().stats(), d=2, sharpness=0.1, coupling=0.1, overlap=0.29)
    assert verdict.conditions[2].value == pytest.approx(0.3, rel=1e-12)
    assert verdict.condition(1)
    assert not verdict.condition(2)
    assert not verdict.holds


def test_verdict_refuses_what_it_cannot_judge():
    stats = axis_problem().stats()
    thresholds = {"sharpness": 1.0, "coupling": 1.0, "overlap": 1.0}
    with pytest.raises(ValueError, match="rank 2, not 1"):
        aic_verdict(estimate(stats, 2, resamples=0), d=1, **thresholds)
    with pytest.raises(ValueError, match=r"1\.\.3"):
        aic_verdict(stats, d=4, **thresholds)
    with pytest.raises(ValueError, match="threshold overlap"):
        aic_verdict(stats, d=1, **(thresholds | {"overlap": math.nan}))
    with pytest.raises(ValueError, match="conditions 1, 2 and 3"):
        aic_verdict(stats, d=1, **thresholds).condition(4)


def test_estimate_as_dict_is_json_and_complete():
    found = estimate(random_problem(0, 6, 9).stats(), 2, resamples=10)
    plain = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert set(plain) == {field.name for field in dataclasses.fields(Estimate)}
    assert plain["eigenvalues"] == found.eigenvalues
    assert plain["intervals"]["leak"] == list(found.intervals["leak"])
