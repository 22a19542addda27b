"""Ranks, expectations, cumulative energies and overlaps of all ranks, against closed forms and brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.oracles import subspaces as oracle
from theory.subspaces import (
    chance_overlap,
    energy_shares,
    isotropic_share,
    joint_cosine,
    overlaps_at,
    overlaps_of_all_ranks,
    permutation_p_value,
    rank_of_fraction,
    ranks_by_energy,
    spread,
    weighted_share,
)


@pytest.mark.parametrize(
    ("fraction", "rows", "columns", "rank"),
    [(0.01, 576, 1536, 6), (0.99, 1536, 576, 570), (1e-6, 8, 8, 1), (1, 3, 9, 3), (0.5, 5, 5, 2), (0.5, 7, 7, 4)],
)
def test_rank_of_a_fraction_of_the_smaller_side(fraction: float, rows: int, columns: int, rank: int) -> None:
    assert rank_of_fraction(fraction, rows, columns) == rank


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.01, float("nan")])
def test_fractions_that_cannot_be(fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction"):
        rank_of_fraction(fraction, 3, 3)


def test_an_isotropic_update_keeps_rank_over_dimension() -> None:
    """The mean over many Gaussian matrices, in units of its own standard error."""
    draw = np.random.default_rng(0)
    basis = np.linalg.qr(draw.normal(size=(12, 3)))[0]
    kept = np.array([oracle.energy_kept(draw.normal(size=(12, 4)), basis, "left") for _ in range(400)])
    assert abs(kept.mean() - isotropic_share(3, 12)) < 4 * kept.std() / 20
    assert isotropic_share(0, 5) == 0
    with pytest.raises(ValueError, match="rank"):
        isotropic_share(6, 5)


def test_random_subspaces_overlap_at_the_chance_level() -> None:
    draw = np.random.default_rng(1)
    found = []
    for _ in range(400):
        a, b = (np.linalg.qr(draw.normal(size=(10, k)))[0] for k in (2, 5))
        found.append(overlaps_of_all_ranks(a.T @ b)[-1, -1])
    assert abs(np.mean(found) - chance_overlap(2, 5, 10)) < 4 * np.std(found) / 20
    with pytest.raises(ValueError, match="ranks"):
        chance_overlap(0, 5, 10)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**31))
def test_overlaps_of_all_ranks_are_those_of_each(a: int, b: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    left, right = (np.linalg.qr(draw.normal(size=(8, k)))[0] for k in (a, b))
    found = overlaps_of_all_ranks(left.T @ right)
    for i in range(a):
        for j in range(b):
            direct = np.linalg.norm(left[:, : i + 1].T @ right[:, : j + 1]) ** 2 / min(i + 1, j + 1)
            assert found[i, j] == pytest.approx(direct, abs=1e-12)
    assert found.max() <= 1


def test_overlaps_at_chosen_ranks() -> None:
    inner = np.eye(3)
    assert overlaps_at(inner, np.array([1, 3, 3]), np.array([1, 3, 1])).tolist() == [1, 1, 1]
    assert overlaps_at(np.zeros((2, 2)), np.array([2]), np.array([1])).tolist() == [0]
    assert overlaps_at(inner, np.zeros(0, int), np.zeros(0, int)).tolist() == []
    almost = np.full((2, 2), np.sqrt(0.5)) * (1 - 1e-7)
    assert overlaps_at(almost, np.array([2, 1]), np.array([2, 1]), dimension=3).tolist() == [
        pytest.approx((1 - 1e-7) ** 2, abs=1e-15),
        pytest.approx(0.5 * (1 - 1e-7) ** 2, abs=1e-15),
    ]
    whole = overlaps_at(almost, np.array([2, 1, 1]), np.array([1, 2, 1]), dimension=2).tolist()
    assert whole[:2] == [1, 1]  # the whole space holds any other, to the last digit
    assert whole[2] < 0.6
    for ranks in ([0], [4]):
        with pytest.raises(ValueError, match=r"1\.\.3"):
            overlaps_at(inner, np.array(ranks), np.array([1]))
        with pytest.raises(ValueError, match=r"1\.\.3"):
            overlaps_at(inner, np.array([1]), np.array(ranks))


@given(st.integers(0, 2**31), st.sampled_from([1e-30, 1.0, 1e30]))
def test_ranks_by_energy_count_the_exact_total(seed: int, scale: float) -> None:
    matrix = np.random.default_rng(seed).normal(size=(6, 4)) * scale
    values = np.linalg.svd(matrix, compute_uv=False)
    energies = (0.1, 0.5, 0.9, 0.99, 1.0)
    assert ranks_by_energy(values, energies).tolist() == [oracle.rank_by_energy(matrix, eta) for eta in energies]


def test_ranks_by_energy_of_equal_values_and_of_none() -> None:
    assert ranks_by_energy(np.ones(10), (0.1, 0.5, 0.9, 1.0)).tolist() == [1, 5, 9, 10]
    with pytest.raises(ValueError, match="zero"):
        ranks_by_energy(np.zeros(3), (0.5,))


def test_shares_of_energy_stop_where_the_directions_do() -> None:
    found = energy_shares(np.array([3.0, 1.0]), 8.0, [0, 1, 2, 5])
    assert found.tolist() == [0, 0.375, 0.5, 0.5]
    with pytest.raises(ValueError, match="total"):
        energy_shares(np.ones(2), 0.0, [1])
    with pytest.raises(ValueError, match="ranks"):
        energy_shares(np.ones(2), 1.0, [-1])


def test_spread_of_draws() -> None:
    found = spread(np.array([1.0, 2.0, 3.0]))
    half = 4.302652729911275 * np.sqrt(4 / 3)  # t of two degrees of freedom
    assert found.mean == 2
    assert found.sd == pytest.approx(1)
    assert found.interval == pytest.approx((2 - half, 2 + half))
    assert spread(np.array([5.0])).interval is None
    with pytest.raises(ValueError, match="draw"):
        spread(np.zeros(0))


def test_the_interval_holds_further_draws() -> None:
    draw = np.random.default_rng(2)
    hits = 0
    for _ in range(2000):
        values = draw.normal(size=6)
        ends = spread(values[:5]).interval
        assert ends is not None
        hits += ends[0] <= values[5] <= ends[1]
    assert abs(hits / 2000 - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 2000)


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_wholes_from_parts_at_any_scale(scale: float) -> None:
    draw = np.random.default_rng(3)
    a, b = ([draw.normal(size=(3, 4)) for _ in range(4)] for _ in range(2))
    b[2] *= 0
    cosines = np.array([oracle.cosine(x, y) if y.any() else 0.0 for x, y in zip(a, b, strict=True)])
    norms = [np.array([np.linalg.norm(x) for x in parts]) * scale for parts in (a, b)]
    whole = oracle.cosine(np.concatenate(a), np.concatenate(b))
    assert joint_cosine(cosines, *norms) == pytest.approx(whole, abs=1e-12)
    shares = np.array([0.1, 0.2, 0.3, 0.4])
    weights = np.array([np.sum(x**2) for x in a])
    assert weighted_share(shares, norms[0]) == pytest.approx(shares @ weights / weights.sum(), abs=1e-12)
    assert joint_cosine(-cosines, *norms) == pytest.approx(-whole, abs=1e-12)
    assert joint_cosine(cosines, norms[0], np.zeros(4)) is None
    with pytest.raises(ValueError, match="energy"):
        weighted_share(shares, np.zeros(4))


def test_p_values_are_never_zero() -> None:
    assert permutation_p_value(1.0, np.zeros(19)) == pytest.approx(0.05)
    assert permutation_p_value(0.0, np.zeros(19)) == 1


def test_p_values_do_not_rest_on_rounding() -> None:
    """What differs by rounding is a tie, and a tie counts as no smaller, at either sign."""
    for observed in (0.5, -0.5):
        assert permutation_p_value(observed, np.full(19, observed - 1e-12)) == 1
        assert permutation_p_value(observed, np.full(19, observed - 1e-6)) == pytest.approx(0.05)
        assert permutation_p_value(observed, np.full(19, observed - 1e-6), 1e-5) == 1
