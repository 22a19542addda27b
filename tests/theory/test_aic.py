from __future__ import annotations

import dataclasses
import json
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from dense_oracle import Problem, dense_quantities, fisher, random_problem
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ortho_group

from theory.aic import Estimate, aic_verdict, estimate, estimate_many, expansion_window, regime
from theory.resampling import bootstrap_weights
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


@pytest.mark.slow
def test_intervals_cover_the_population_value():
    """Standard normal s.v and l'': the leak and the onset coefficient are 1; 95 % intervals, 80 samples."""
    covered = {"leak": 0, "onset_coefficient": 0, "crossover": 0}
    truth = {"leak": 1.0, "onset_coefficient": 1.0, "crossover": 2.0}
    repeats = 100
    for seed in range(repeats):
        rng = np.random.default_rng(seed)
        scores, e = rng.normal(size=(80, 4)), np.eye(4)
        stats = ScoreStatistics.from_scores(scores, e[0], e[1], fisher="sampled", curvature=np.zeros(80))
        found = estimate(stats, 1, resamples=100, splits=1, seed=seed)
        for name, value in truth.items():
            low, high = found.intervals[name]
            covered[name] += low <= value <= high
    # binomial(100, 0.93): below 0.84 or above 0.99 with probability 1e-3 each
    for name, count in covered.items():
        assert 0.84 <= count / repeats <= 0.99, (name, count)


def test_same_seed_same_answer_and_threads_do_not_matter():
    blocks = [random_problem(seed, 10, 6 + seed).stats() for seed in range(5)]
    one = estimate_many(blocks, [1, 2, 3, 4, 5], resamples=40, threads=1, seed=3)
    two = estimate_many(blocks, [1, 2, 3, 4, 5], resamples=40, threads=2, seed=3)
    assert [e.as_dict() for e in one] == [e.as_dict() for e in two]
    for d, (block, found) in enumerate(zip(blocks, one, strict=True), start=1):
        assert estimate(block, d, resamples=40, seed=3).as_dict() == found.as_dict()
        assert estimate(block, d, resamples=40, seed=4).intervals != found.intervals
    assert estimate_many([], 3) == []


def test_threads_are_as_many_as_asked_for(monkeypatch):
    pools = []

    class Pool(ThreadPoolExecutor):
        def __init__(self, workers):
            pools.append(workers)
            super().__init__(workers)

    monkeypatch.setattr("theory.aic.ThreadPoolExecutor", Pool)
    blocks = [random_problem(seed, 5, 6).stats() for seed in range(3)]
    estimate_many(blocks, 1, resamples=0)
    estimate_many(blocks, 1, resamples=0, threads=3)
    assert pools == [2, 3]
    estimate_many(blocks, 1, resamples=0, threads=1)
    estimate(blocks[0], 1, resamples=0)
    assert pools == [2, 3]  # one at a time needs no thread


def test_defaults_are_those_documented():
    stats = random_problem(0, 7, 9).stats()
    spelled_out = estimate(stats, 2, groups=None, resamples=200, level=0.95, splits=10, seed=0)
    assert estimate(stats, 2) == spelled_out
    assert estimate_many([stats, stats], 2) == [spelled_out, spelled_out]


def test_blocks_of_different_samples_are_refused():
    blocks = [random_problem(0, 5, 4).stats(), random_problem(0, 6, 4).stats()]
    with pytest.raises(ValueError, match=r"^blocks share resamples, so they must have the same samples"):
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


@pytest.mark.parametrize(
    ("leak", "onset", "horizon", "window", "expected"),
    [
        (3.0, 2.0, 0.9, 10.0, "first-order"),  # t_c = 3
        (3.0, 2.0, 1.0, 10.0, "mixed"),  # the ends of a range belong to it
        (3.0, 2.0, 9.0, 10.0, "mixed"),
        (3.0, 2.0, 9.1, 9.1, "second-order"),
        (3.0, 2.0, 0, 0, "first-order"),
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
    for name, bad in (
        ("horizon", (1.0, 1.0, -1.0, 1.0)),
        ("window", (1.0, 1.0, 1.0, math.nan)),
        ("leak", (-1.0, 1.0, 1.0, 1.0)),
    ):
        with pytest.raises(ValueError, match=rf"^{name} must be a .* not negative"):
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
    # one score along v alone: leak 0.1, onset coefficient 0.5, and 0.1 t + 0.25 t^2 = 1 at t = 1.81...
    lone = Problem(np.array([[1.0, 0.0]]), np.array([0.1, 0.0]), np.zeros(2), np.array([0.5]), None).stats()
    assert expansion_window(lone) == pytest.approx((math.sqrt(1.01) - 0.1) / 0.5, rel=1e-14)
    assert expansion_window(lone.with_curvature(np.zeros(1))) == pytest.approx(10, rel=1e-14)
    deaf = Problem(np.zeros((2, 3)), np.array([2.0, 0, 0]), np.array([0, 0.5, 0]), np.zeros(2), None).stats()
    assert expansion_window(deaf) == 4.0  # |v| / |a|
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
    relations = [(c["relation"], c["threshold"]) for c in json.loads(json.dumps(verdict.as_dict()))["conditions"]]
    limits = [thresholds[name] for name in ("sharpness", "overlap", "overlap", "coupling")]
    assert relations == list(zip((">=", "<=", "<=", ">="), limits, strict=True))


def test_a_value_at_its_threshold_meets_the_condition():
    found = estimate(random_problem(0, 5, 7).stats(), 2, resamples=0)
    at = {"d": 2, "sharpness": found.sharpness, "coupling": found.coupling}
    for overlap in (found.tail, found.overlap):
        verdict = aic_verdict(found, overlap=overlap, **at)
        assert verdict.condition(1) == (found.tail <= overlap)
        assert verdict.condition(2) == (found.overlap <= overlap)
        assert verdict.condition(3)
    nothing = estimate(ScoreStatistics.from_scores(np.zeros((2, 3)), np.ones(3), np.ones(3)), 1, resamples=0)
    assert aic_verdict(nothing, d=1, sharpness=0, coupling=0, overlap=0).holds


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
    for name in thresholds:
        with pytest.raises(ValueError, match=f"threshold {name} must"):
            aic_verdict(stats, d=1, **(thresholds | {name: math.nan}))
    with pytest.raises(ValueError, match="conditions 1, 2 and 3"):
        aic_verdict(stats, d=1, **thresholds).condition(4)


def test_estimate_as_dict_is_json_and_complete():
    found = estimate(random_problem(0, 6, 9).stats(), 2, resamples=10)
    plain = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert set(plain) == {field.name for field in dataclasses.fields(Estimate)}
    assert plain["eigenvalues"] == found.eigenvalues
    assert plain["intervals"]["leak"] == list(found.intervals["leak"])
