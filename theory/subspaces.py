"""Subspaces of weight updates: ranks, energies, expectations, overlaps of singular subspaces at all ranks at once.

After "Safety Subspaces are Not Distinct" (arXiv 2505.14185); the numbers of its equations were not checked. For an
update D_A = U S V^T of shape (M, N) and another D_T, a basis Q of k orthonormal directions of dimension m (m = M from
the left, N from the right) keeps the energy |Q^T D_T|_F^2 / |D_T|_F^2. Everything that is needed at many ranks comes
from one decomposition: the directions are ordered, their energies summed up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from theory.spectra import rank_by_energy
from theory.statistics import Scalar

ROUNDING = 1e-9
"""Relative: overlaps of float64 decompositions nearer to each other than this are equal."""


def rank_of_fraction(fraction: Scalar, rows: int, columns: int) -> int:
    """Rank k = max(1, round(fraction * min(rows, columns))) of a basis: a fraction of the smaller side.

    Halves are rounded to even, as Python rounds.

    Raises:
        ValueError: unless the fraction is in (0, 1] and both sides are at least 1.

    """
    if not 0 < fraction <= 1:
        raise ValueError(f"the fraction of the rank must lie in (0, 1], got {fraction}")
    if rows < 1 or columns < 1:
        raise ValueError(f"expected a matrix of at least one row and one column, got {rows} x {columns}")
    return max(1, round(float(fraction) * min(rows, columns)))


def isotropic_share(rank: int, dimension: int) -> float:
    """k / m: the share of an isotropic update's energy that a basis of k directions in dimension m keeps.

    It is not the fraction of min(M, N) by which k was chosen wherever m is the larger side.

    Raises:
        ValueError: unless 0 <= k <= m and m is at least 1.

    """
    if dimension < 1 or not 0 <= rank <= dimension:
        raise ValueError(f"expected a rank in 0..{dimension} of a dimension from 1, got {rank}")
    return rank / dimension


def chance_overlap(rank_a: int, rank_b: int, dimension: int) -> float:
    """max(k_a, k_b) / m: mean mode subspace overlap of two random subspaces of these ranks in dimension m.

    E |Q_a^T Q_b|_F^2 = k_a k_b / m, divided by min(k_a, k_b).

    Raises:
        ValueError: unless both ranks are in 1..m.

    """
    if not (1 <= rank_a <= dimension and 1 <= rank_b <= dimension):
        raise ValueError(f"expected ranks in 1..{dimension}, got {rank_a} and {rank_b}")
    return max(rank_a, rank_b) / dimension


def energy_shares(energies: Float[np.ndarray, " r"], total: Scalar, ranks: Sequence[int]) -> Float[np.ndarray, " F"]:
    """Share of the total energy that the first k directions hold, for every rank k; all of them where k > r.

    Args:
        energies: (r,) |q_i^T D|^2, in the order of the basis.
        total: |D|_F^2, positive, never a sum over the basis.
        ranks: k, each at least 0.

    Raises:
        ValueError: if the total is not positive or a rank is negative.

    """
    if not total > 0:
        raise ValueError(f"shares of energy need a positive total, got {total}")
    if any(k < 0 for k in ranks):
        raise ValueError(f"expected ranks from 0, got {list(ranks)}")
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(energies, dtype=np.float64))])
    return sums[np.minimum(np.asarray(ranks, dtype=np.int64), len(energies))] / float(total)


def ranks_by_energy(singular_values: Float[np.ndarray, " r"], fractions: Sequence[float]) -> Int[np.ndarray, " F"]:
    """For every energy fraction eta the smallest k whose squared singular values hold eta of the total.

    The total is that of all singular values: give all of them, never the largest only.

    Raises:
        ValueError: if a fraction is not in (0, 1], or all singular values are zero.

    """
    top = float(np.max(np.abs(singular_values), initial=0.0))
    if top == 0:
        raise ValueError("an update that is zero has no singular subspace")
    squares = (np.asarray(singular_values, dtype=np.float64) / top) ** 2
    return np.array([rank_by_energy(squares, eta) for eta in fractions], dtype=np.int64)


def overlaps_of_all_ranks(inner: Float[np.ndarray, "A B"]) -> Float[np.ndarray, "A B"]:
    """Mode subspace overlap |Q_a^T Q_b|_F^2 / min(k_a, k_b) at every pair of ranks; entry (k_a - 1, k_b - 1).

    Args:
        inner: (A, B) inner products of two ordered orthonormal bases, U_a^T U_b.

    """
    sums = np.cumsum(np.cumsum(np.asarray(inner, dtype=np.float64) ** 2, axis=0), axis=1)
    smaller = np.minimum(np.arange(1, inner.shape[0] + 1)[:, None], np.arange(1, inner.shape[1] + 1))
    return np.minimum(sums / smaller, 1.0)


def overlaps_at(
    inner: Float[np.ndarray, "A B"],
    ranks_a: Int[np.ndarray, " F"],
    ranks_b: Int[np.ndarray, " F"],
    dimension: int | None = None,
) -> Float[np.ndarray, " F"]:
    """Mode subspace overlap at chosen pairs of ranks; see :func:`overlaps_of_all_ranks`.

    Args:
        inner: (A, B) inner products of two ordered orthonormal bases.
        ranks_a: (F,) k_a.
        ranks_b: (F,) k_b.
        dimension: m of the space that both bases lie in. Where a rank is m its subspace is the whole space, which
            holds any other: the overlap is then exactly 1, whatever rounding has done to the inner products.

    Raises:
        ValueError: if a rank is not in 1..A or 1..B.

    """
    for ranks, most in ((ranks_a, inner.shape[0]), (ranks_b, inner.shape[1])):
        if len(ranks) and not (ranks.min() >= 1 and ranks.max() <= most):
            raise ValueError(f"expected ranks in 1..{most}, got {ranks.tolist()}")
    if not len(ranks_a):
        return np.zeros(0)
    found = overlaps_of_all_ranks(inner)[ranks_a - 1, ranks_b - 1]
    return np.where(np.maximum(ranks_a, ranks_b) == dimension, 1.0, found)


@dataclass(frozen=True)
class Spread:
    """What repeated draws gave.

    Attributes:
        mean: their mean.
        sd: their standard deviation (n - 1); None for one draw.
        interval: where 95 % of further draws would lie if draws are normal: mean -+ t sd sqrt(1 + 1/n) with
            Student's t of n - 1 degrees of freedom; None for one draw.
    """

    mean: float
    sd: float | None
    interval: tuple[float, float] | None


def spread(values: Float[np.ndarray, " n"], level: float = 0.95) -> Spread:
    """Mean, standard deviation and prediction interval of repeated draws.

    Raises:
        ValueError: if there is no draw.

    """
    if len(values) == 0:
        raise ValueError("expected at least one draw, got none")
    mean = float(np.mean(values))
    if len(values) == 1:
        return Spread(mean, None, None)
    from scipy.stats import t

    sd = float(np.std(values, ddof=1))
    half = float(t.ppf((1 + level) / 2, len(values) - 1)) * sd * math.sqrt(1 + 1 / len(values))
    return Spread(mean, sd, (mean - half, mean + half))


def weighted_share(shares: Float[np.ndarray, "*R T"], norms: Float[np.ndarray, " T"]) -> Float[np.ndarray, "*R"]:
    """Share of the energy of a whole that its parts' shares make: sum_t s_t |D_t|^2 / sum_t |D_t|^2.

    Norms are scaled before they are squared, so that nothing over- or underflows.

    Raises:
        ValueError: if all norms are zero.

    """
    return np.asarray(shares @ _weights(norms))


def _weights(norms: Float[np.ndarray, " T"]) -> Float[np.ndarray, " T"]:
    top = float(np.max(norms, initial=0.0))
    if not top > 0:
        raise ValueError("expected a part with energy, got none")
    squares = (norms / top) ** 2
    return squares / squares.sum()


def joint_cosine(
    cosines: Float[np.ndarray, " T"], norms_a: Float[np.ndarray, " T"], norms_b: Float[np.ndarray, " T"]
) -> float | None:
    """Cosine of two whole updates from those of their parts; None where one of them is zero.

    <A, B> / (|A| |B|) with <A, B> = sum_t cos_t |A_t| |B_t|: real, and negative where the two are anti-aligned. A
    part that is zero in one of them has any cosine: it adds nothing to <A, B>, and its norm to the other's.
    """
    tops = [float(np.max(norms, initial=0.0)) for norms in (norms_a, norms_b)]
    if min(tops) == 0:
        return None
    a, b = norms_a / tops[0], norms_b / tops[1]
    return float(np.sum(cosines * a * b) / math.sqrt(np.sum(a**2) * np.sum(b**2)))


def permutation_p_value(observed: Scalar, permuted: Float[np.ndarray, " n"], rounding: float = ROUNDING) -> float:
    """(1 + #{permuted >= observed}) / (1 + n), one-sided: never 0, so never more certain than n draws allow.

    Args:
        observed: the number without a permutation.
        permuted: (n,) the same number after each.
        rounding: relative to the observed number: what is smaller by no more than that counts as equal.
    """
    least = observed - rounding * abs(float(observed))
    return float((1 + np.count_nonzero(permuted >= least)) / (1 + len(permuted)))
