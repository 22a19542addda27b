"""The dense projector and the two bounds on how far it moves."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import subspace_angles

from theory.spectra import davis_kahan_bound, projector, sharp_davis_kahan_bound


def symmetric(rng: np.random.Generator, n: int) -> np.ndarray:
    matrix = rng.standard_normal((n, n))
    return matrix + matrix.T


def test_the_projector_is_that_of_the_largest_eigenvalues() -> None:
    matrix = np.diag([1.0, 5.0, -7.0, 3.0])
    np.testing.assert_allclose(projector(matrix, 1), np.diag([0.0, 1.0, 0.0, 0.0]), atol=1e-15)
    np.testing.assert_allclose(projector(matrix, 2), np.diag([0.0, 1.0, 0.0, 1.0]), atol=1e-15)
    np.testing.assert_allclose(projector(matrix, 4), np.eye(4), atol=1e-15)


@given(st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_the_projector_splits_the_matrix(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix = symmetric(rng, n)
    d = int(rng.integers(1, n + 1))
    p = projector(matrix, d)
    np.testing.assert_allclose(p @ p, p, atol=1e-13)
    np.testing.assert_allclose(p @ matrix, matrix @ p, atol=1e-12)
    assert np.trace(p) == pytest.approx(d)
    assert np.trace(p @ matrix) == pytest.approx(np.sort(np.linalg.eigvalsh(matrix))[::-1][:d].sum(), abs=1e-12)


@pytest.mark.parametrize("d", [0, 4, -1])
def test_a_rank_that_the_matrix_cannot_have_is_refused(d: int) -> None:
    with pytest.raises(ValueError, match=rf"must lie in 1\.\.3, the size of the matrix; got {d}$"):
        projector(np.eye(3), d)


def test_a_matrix_that_is_not_square_is_refused() -> None:
    with pytest.raises(ValueError, match=r"square symmetric matrix, got shape \(2, 3\)"):
        projector(np.ones((2, 3)), 1)


def test_the_bounds_have_their_closed_forms() -> None:
    assert davis_kahan_bound(0.3, 2.0) == 0.3
    assert davis_kahan_bound(3, 2) == 3.0
    assert davis_kahan_bound(0.0, 2.0) == 0.0
    assert sharp_davis_kahan_bound(0.3, 1.0) == pytest.approx(1 / math.sqrt(10), rel=1e-15)  # arcsin(3/5) / 2
    assert sharp_davis_kahan_bound(0.6, 2.0) == pytest.approx(1 / math.sqrt(10), rel=1e-15)
    assert sharp_davis_kahan_bound(0.5 - 1e-12, 1.0) == pytest.approx(math.sqrt(0.5), rel=1e-5)
    assert sharp_davis_kahan_bound(0.5, 1.0) == 1.0
    assert sharp_davis_kahan_bound(7.0, 1.0) == 1.0
    assert sharp_davis_kahan_bound(1e-9, 1.0) == pytest.approx(1e-9, rel=1e-15)


@pytest.mark.parametrize("bound", [davis_kahan_bound, sharp_davis_kahan_bound])
def test_impossible_arguments_are_refused(bound: object) -> None:
    assert callable(bound)
    for perturbation in (-1e-9, math.nan):
        with pytest.raises(ValueError, match="norm and must not be negative"):
            bound(perturbation, 1.0)
    for gap in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="the gap must be positive"):
            bound(0.1, gap)


def test_only_the_edge_attains_the_constant_two() -> None:
    matrix = np.diag([0.5, -0.5])
    moved = projector(matrix - (1 + 1e-9) * matrix, 1) - projector(matrix, 1)
    assert np.linalg.norm(moved, 2) == pytest.approx(1.0)
    assert davis_kahan_bound(0.5 * (1 + 1e-9), 1.0) == pytest.approx(1 + 1e-9, rel=1e-15)


@given(st.floats(1e-3, 0.499))
def test_the_sharp_bound_is_the_largest_turn_in_the_plane(size: float) -> None:
    matrix = np.diag([0.5, -0.5])
    angles = np.linspace(0, np.pi, 400)
    changes = size * np.moveaxis(np.array([[np.cos(angles), np.sin(angles)], [np.sin(angles), -np.cos(angles)]]), 2, 0)
    turns = np.abs(np.linalg.eigh(matrix + changes)[1][:, 1, 1])  # sines of the angles from (1, 0)
    bound = sharp_davis_kahan_bound(size, 1.0)
    assert turns.max() <= bound * (1 + 1e-12)
    assert turns.max() >= bound * (1 - 1e-2)


@given(st.integers(2, 6), st.floats(-3, 1), st.integers(0, 2**32 - 1))
def test_no_random_pair_exceeds_the_bounds(n: int, exponent: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix, change = symmetric(rng, n), symmetric(rng, n)
    d = int(rng.integers(1, n))
    values, vectors = np.linalg.eigh(matrix)
    gap = values[-d] - values[-d - 1]
    change *= 10**exponent * gap / np.linalg.norm(change, 2)
    after = np.linalg.eigh(matrix + change)[1]
    sine = math.sin(subspace_angles(vectors[:, -d:], after[:, -d:]).max())
    size = float(np.linalg.norm(change, 2))
    assert sine <= sharp_davis_kahan_bound(size, gap) + 1e-9
    assert sharp_davis_kahan_bound(size, gap) <= davis_kahan_bound(size, gap)
    distance = np.linalg.norm(projector(matrix + change, d) - projector(matrix, d), 2)
    assert distance == pytest.approx(sine, abs=1e-7)
