"""Projection by small products against a dense projector."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from theory.projection_coefficients import snapshot_projector
from theory.spectra import projector


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), count=st.integers(1, 9), size=st.integers(9, 20), weighted=st.booleans())
def test_against_the_dense_projector(seed: int, count: int, size: int, weighted: bool) -> None:
    draw = np.random.default_rng(seed)
    scores, b = draw.standard_normal((count, size)), draw.standard_normal(size)
    weights = draw.uniform(0.5, 2, count) if weighted else np.full(count, 1 / count)
    rank = int(draw.integers(1, count + 1))
    found = snapshot_projector(scores @ scores.T, rank, weights=weights if weighted else None)
    dense = projector(scores.T @ (weights[:, None] * scores), rank) @ b
    inner = scores @ b
    assert found.rank == found.asked == rank
    assert scores.T @ found.coefficients(inner) == pytest.approx(dense, abs=1e-7 * found.condition)
    assert scores.T @ found.matrix @ inner == pytest.approx(dense, abs=1e-7 * found.condition)
    assert found.squared_norm(inner) == pytest.approx(dense @ dense, rel=1e-6, abs=1e-9)
    assert found.remaining(inner) == pytest.approx(scores @ (b - dense), abs=1e-7 * found.condition)


def test_c_as_the_sum_over_eigenpairs_of_the_gram() -> None:
    """C = sum_k w_k w_k^T / (N lambda_k), of the top two; exact numbers: scores e_1, 2 e_2, 3 e_3."""
    found = snapshot_projector(np.diag([1.0, 4.0, 9.0]), 2)
    assert found.matrix == pytest.approx(np.diag([0, 1 / 4, 1 / 9]), abs=1e-15)
    assert found.eigenvalues == pytest.approx([3, 4 / 3, 1 / 3])
    assert found.condition == pytest.approx(9 / 4)


def test_directions_below_rounding_are_left_out() -> None:
    gram = np.diag([1.0, 1e-3, 1e-9])
    assert snapshot_projector(gram).rank == 3
    assert snapshot_projector(gram, precision=1e-7).rank == 2
    repeated = np.ones((3, 3))  # one score three times
    found = snapshot_projector(repeated, 2)
    assert (found.rank, found.asked) == (1, 2)
    assert found.coefficients(np.ones(3)) == pytest.approx(np.full(3, 1 / 3))


def test_zero_scores_have_no_direction() -> None:
    found = snapshot_projector(np.zeros((2, 2)))
    assert (found.rank, found.condition) == (0, 1.0)
    assert found.coefficients(np.zeros(2)).tolist() == [0, 0]


@pytest.mark.parametrize("rank", [0, 4])
def test_a_rank_that_the_samples_cannot_have(rank: int) -> None:
    with pytest.raises(ValueError, match="must lie in"):
        snapshot_projector(np.eye(3), rank)
