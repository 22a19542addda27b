from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from dense_oracle import dense_quantities, random_problem

from theory.functionals import weighted_functionals
from theory.resampling import bootstrap_weights


def test_batches_do_not_change_the_functionals(monkeypatch):
    stats = random_problem(0, 12, 20).stats()
    draws = bootstrap_weights(stats.sample_weights, 50, 0)
    whole = weighted_functionals(stats, draws, 4)
    monkeypatch.setattr("theory.functionals._BATCH_BYTES", 8 * 12**2 * 7)
    parts = weighted_functionals(stats, draws, 4)
    for name, values in whole.items():
        assert values.shape == (50,)
        assert np.array_equal(values, parts[name]), name


@pytest.mark.parametrize(
    ("limit", "batches"), [(8 * 9**2 * 7, [7, 7, 6]), (8 * 9**2 * 7 - 1, [6, 6, 6, 2]), (1, [1] * 20)]
)
def test_only_held_samples_are_decomposed_in_batches_of_limited_size(monkeypatch, limit, batches):
    stats = random_problem(0, 12, 20).stats()
    draws = np.zeros((20, 12))
    draws[:, 3:] = 1 / 9  # nine of the twelve samples are held
    shapes, decompose = [], np.linalg.eigh

    def eigh(matrices):
        shapes.append(matrices.shape)
        return decompose(matrices)

    monkeypatch.setattr("theory.functionals._BATCH_BYTES", limit)
    monkeypatch.setattr("numpy.linalg.eigh", eigh)
    weighted_functionals(stats, draws, 4)
    assert shapes == [(count, 9, 9) for count in batches]


def test_a_weighting_is_the_statistics_of_the_samples_that_it_holds():
    """To the last bit, since the samples held keep their order."""
    problem = random_problem(6, 60, 80, weighted=True)
    held = np.flatnonzero(np.arange(60) % 3)
    weights = np.where(np.arange(60) % 3, problem.w, 0.0)
    weights /= weights.sum()
    found = weighted_functionals(problem.stats(), weights[None], 5)
    only = weighted_functionals(problem.stats().select(held), weights[None, held], 5)
    expected = dense_quantities(dataclasses.replace(problem, weights=weights), 5)
    for name in ("sharpness", "tail", "overlap", "coupling", "effective_rank"):
        assert found[name] == only[name], name
        assert found[name][0] == pytest.approx(expected[name], rel=1e-9), name
