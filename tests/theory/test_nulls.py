from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from dense_oracle import dense_quantities, random_problem

from theory.aic import estimate
from theory.spectra import split_half
from theory.statistics import ScoreStatistics


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


@pytest.mark.parametrize("scale", [1e-80, 1e-3, 1e80])
def test_nulls_do_not_depend_on_the_unit_of_the_scores(scale):
    """Scores of 1e80 have squared norms of 1e160, whose squares overflow."""
    problem = random_problem(4, 6, 9, weighted=True)
    scaled = dataclasses.replace(problem, scores=scale * problem.scores, curvature=None)
    nulls, base = (estimate(p.stats(), 2, resamples=0).nulls for p in (scaled, problem))
    unit = {"leak_random": scale, "coupling_random": scale}
    for name, value in base.items():
        assert nulls[name] == pytest.approx(unit.get(name, 1.0) * value, rel=1e-10), name


def test_samples_without_weight_change_no_null():
    problem = random_problem(3, 7, 9)
    held = [0, 2, 3, 6]
    weights = np.bincount(held, minlength=7) / 4
    padded = estimate(dataclasses.replace(problem, weights=weights).stats(), 2, resamples=0).nulls
    assert padded == pytest.approx(estimate(problem.stats().select(held), 2, resamples=0).nulls, rel=1e-12)
