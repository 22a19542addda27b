"""Fisher spectra from Gram matrices: eigenvalues, ranks, subspaces and how subspaces overlap.

With sample weights w, let ``A = diag(sqrt w) K diag(sqrt w)`` and ``A W_k = lambda_k W_k``. Then the lambda_k
are the eigenvalues of ``F = sum_i w_i s_i s_i^T`` (up to zeros) and
``u_k = sum_i sqrt(w_i) W_ik s_i / sqrt(lambda_k)`` its unit eigenvectors, so that for any vector b
``u_k . b = sum_i W_ik sqrt(w_i) (s_i . b) / sqrt(lambda_k)``: the method of snapshots (Sirovich 1987).

Eigenvalues at or below ``N * eps * lambda_1`` are rounding: they are set to exactly zero, and their
eigenvectors belong to no projector, so nothing divides by them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from theory.resampling import half_weights
from theory.statistics import Scalar, ScoreStatistics

EPS = float(np.finfo(np.float64).eps)
_NEGATIVE_TOLERANCE = 1e-3  # of lambda_1: beyond this a symmetric matrix is no Gram matrix, however rounded


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Eigenvalues of F and eigenvectors of the weighted Gram matrix.

    Attributes:
        eigenvalues: (N,) descending, non-negative.
        vectors: (N, N), column k is ``W_k``.
        sqrt_weights: (N,) square roots of the sample weights.
    """

    eigenvalues: Float[np.ndarray, " N"]
    vectors: Float[np.ndarray, "N N"]
    sqrt_weights: Float[np.ndarray, " N"]

    @property
    def numerical_rank(self) -> int:
        """How many eigenvalues are above rounding."""
        return numerical_rank(self.eigenvalues)

    def gap(self, d: int) -> float:
        """``lambda_d - lambda_{d+1}``, with ``lambda_{N+1} = 0``; where it is 0 the top-d space is ambiguous.

        Raises:
            ValueError: if d is not in 1..N.
        """
        check_rank(d, len(self.eigenvalues))
        return float(self.eigenvalues[d - 1] - self.eigenvalues[d : d + 1].sum())

    def basis(self, d: int) -> Float[np.ndarray, "N k"]:
        """Coefficients c of the top eigenvectors in the scores, ``u_k = sum_i c_ik s_i``.

        There are min(d, numerical rank) columns. With ``beta_i = s_i . b``, ``c.T @ beta`` is ``u_k . b``.

        Raises:
            ValueError: if d is not in 1..N.
        """
        check_rank(d, len(self.eigenvalues))
        k = min(d, self.numerical_rank)
        return self.sqrt_weights[:, None] * self.vectors[:, :k] / np.sqrt(self.eigenvalues[:k])


def spectrum(stats: ScoreStatistics) -> Spectrum:
    """The spectrum of ``F = sum_i w_i s_i s_i^T``.

    Raises:
        ValueError: if the Gram matrix has an eigenvalue that is negative beyond rounding.
    """
    return gram_spectrum(stats.gram, stats.sample_weights)


def gram_spectrum(gram: Float[np.ndarray, "N N"], weights: Float[np.ndarray, " N"]) -> Spectrum:
    """The spectrum of ``sum_i w_i s_i s_i^T`` from the inner products of the s_i alone.

    Raises:
        ValueError: as :func:`spectrum` does.
    """
    root = np.sqrt(weights)
    ascending, vectors = np.linalg.eigh(root[:, None] * gram * root)
    if ascending[0] < -_NEGATIVE_TOLERANCE * np.abs(ascending).max():
        raise ValueError(
            f"gram is not a matrix of inner products: it has the negative eigenvalue {ascending[0]:.3g} "
            f"beside {ascending[-1]:.3g}"
        )
    return Spectrum(without_rounding(ascending[::-1], len(gram)), vectors[:, ::-1], root)


def without_rounding(eigenvalues: Float[np.ndarray, "*R m"], count: int) -> Float[np.ndarray, "*R m"]:
    """Descending eigenvalues with those at or below ``count * eps * lambda_1`` set to zero."""
    threshold = count * EPS * np.maximum(eigenvalues[..., :1], 0.0)
    return np.where(eigenvalues > threshold, eigenvalues, 0.0)


def check_rank(d: int, num_samples: int) -> None:
    """Refuse a rank that N samples cannot have.

    Raises:
        ValueError: if d is not in 1..N.
    """
    if not 1 <= d <= num_samples:
        raise ValueError(
            f"the rank must lie in 1..{num_samples}, since {num_samples} samples span at most as many "
            f"directions; got {d}"
        )


def numerical_rank(eigenvalues: Float[np.ndarray, " N"]) -> int:
    """The number of eigenvalues above ``N * eps * lambda_1``."""
    return int(np.count_nonzero(without_rounding(np.sort(eigenvalues)[::-1], len(eigenvalues))))


def rank_by_energy(eigenvalues: Float[np.ndarray, " N"], energy: Scalar) -> int:
    """The smallest d >= 1 whose top-d eigenvalues hold at least the share ``energy`` of the trace.

    Shares are compared up to rounding (N eps), so that energy 0.9 of ten equal eigenvalues is 9, and energy 1
    is the number of eigenvalues that matter in double precision. Of a zero spectrum the answer is 1.

    Raises:
        ValueError: if ``energy`` is not in (0, 1], or there is no eigenvalue.
    """
    if not 0 < energy <= 1:
        raise ValueError(f"the energy is a share of the trace and must lie in (0, 1], got {energy}")
    if len(eigenvalues) == 0:
        raise ValueError("expected at least one eigenvalue, got none")
    cumulative = np.cumsum(np.sort(eigenvalues)[::-1])
    slack = 1 - len(eigenvalues) * EPS
    return int(np.argmax(cumulative >= energy * cumulative[-1] * slack)) + 1


def effective_rank(eigenvalues: Float[np.ndarray, " N"]) -> float:
    """Participation ratio ``(sum lambda)^2 / sum lambda^2``: between 1 and N, and 0 for a zero spectrum."""
    return float(participation_ratio(eigenvalues))


def participation_ratio(eigenvalues: Float[np.ndarray, "*R N"]) -> Float[np.ndarray, "*R"]:
    """:func:`effective_rank` of each spectrum along the last axis."""
    top = np.max(np.abs(eigenvalues), axis=-1, keepdims=True, initial=0.0)
    shares = eigenvalues / np.where(top > 0, top, 1.0)  # no overflow, no underflow
    squares = np.sum(shares**2, axis=-1)
    return np.asarray(np.sum(shares, axis=-1) ** 2 / np.maximum(squares, 1.0))  # at least 1 if not 0


def mean_score_share(stats: ScoreStatistics) -> float:
    """``|E s|^2 / tr F``, between 0 and 1 (0 for zero scores).

    At an optimum of the skill's own loss (Assumption 1) the mean score vanishes in the population; N
    independent samples then still show a share of about 1/N.
    """
    return float(mean_score_shares(stats.gram, stats.sample_weights[None])[0])


def mean_score_shares(gram: Float[np.ndarray, "N N"], weights: Float[np.ndarray, "R N"]) -> Float[np.ndarray, " R"]:
    """:func:`mean_score_share` for each row of sample weights."""
    trace = weights @ gram.diagonal()
    mean_squared = np.sum((weights @ gram) * weights, axis=1)
    return np.clip(mean_squared / np.where(trace > 0, trace, 1.0), 0.0, 1.0)


def principal_cosines(
    stats_a: ScoreStatistics, stats_b: ScoreStatistics, cross: Float[np.ndarray, "A B"], d: int
) -> Float[np.ndarray, " k"]:
    """Cosines of the principal angles between the top-d eigenspaces of two Fisher matrices, descending.

    The singular values of ``U_a^T U_b`` (Bjorck and Golub 1973). Directions beyond the numerical rank of
    either side belong to no eigenspace, so there are k = min(d, rank_a, rank_b) cosines.

    Args:
        stats_a: statistics of N_a samples.
        stats_b: statistics of N_b samples, in the same parameters.
        cross: (N_a, N_b), ``s^a_i . s^b_j``.
        d: the rank, in 1..min(N_a, N_b).

    Raises:
        ValueError: if a shape or the rank does not fit, or the statistics are of different parameters.
    """
    inner = _subspace_inner_products(stats_a, stats_b, cross, d)
    return np.minimum(np.linalg.svd(inner, compute_uv=False), 1.0)


def principal_angles(
    stats_a: ScoreStatistics, stats_b: ScoreStatistics, cross: Float[np.ndarray, "A B"], d: int
) -> Float[np.ndarray, " k"]:
    """Principal angles in radians, ascending; see :func:`principal_cosines`.

    They come from the cosines, so angles below about 1e-8 are rounding.
    """
    return np.arccos(principal_cosines(stats_a, stats_b, cross, d))


def mode_subspace_overlap(
    stats_a: ScoreStatistics, stats_b: ScoreStatistics, cross: Float[np.ndarray, "A B"], d: int
) -> float:
    """Mode subspace overlap ``|U_a^T U_b|_F^2 / min(k_a, k_b)`` of the top-d eigenspaces, in [0, 1].

    As in "Safety Subspaces are Not Distinct", with k = min(d, numerical rank) on each side; 0 if a side has
    no direction at all. Of two random d-dimensional subspaces of R^n its mean is d/n. Arguments and errors
    as :func:`principal_cosines`.
    """
    return _overlap(_subspace_inner_products(stats_a, stats_b, cross, d))


def _subspace_inner_products(
    stats_a: ScoreStatistics, stats_b: ScoreStatistics, cross: Float[np.ndarray, "A B"], d: int
) -> Float[np.ndarray, "ka kb"]:
    """``U_a^T U_b``, checked."""
    shape = (stats_a.num_samples, stats_b.num_samples)
    if cross.shape != shape:
        raise ValueError(f"the cross-gram must have shape {shape}, samples of a by samples of b, got {cross.shape}")
    if not np.isfinite(cross).all():
        raise ValueError("the cross-gram holds numbers that are not finite")
    if stats_a.dimension != stats_b.dimension:
        raise ValueError(
            f"subspaces of different parameters do not compare: got dimensions {stats_a.dimension} and "
            f"{stats_b.dimension}"
        )
    return spectrum(stats_a).basis(d).T @ cross @ spectrum(stats_b).basis(d)


def _overlap(inner: Float[np.ndarray, "ka kb"]) -> float:
    return float(min(1.0, np.sum(inner**2) / min(inner.shape))) if inner.size else 0.0


@dataclass(frozen=True)
class SplitHalf:
    """Averages over random halves of the samples.

    Attributes:
        overlap: mode subspace overlap of the two halves' top eigenspaces.
        overlap_random: the mean of the same number for random subspaces of the same ranks: d/n, or less
            where a half has fewer than d directions.
        effective_rank: effective rank of a half; near that of all samples if it has saturated.
    """

    overlap: float
    overlap_random: float
    effective_rank: float


def split_half(
    stats: ScoreStatistics,
    d: int,
    splits: int = 10,
    seed: int = 0,
    groups: Int[np.ndarray, " M"] | None = None,
) -> SplitHalf | None:
    """How stable the top eigenspace is, by comparing random halves of the samples.

    Args:
        stats: statistics of N samples.
        d: the rank, in 1..N; a half of lower numerical rank takes part with all its directions.
        splits: number of random splits to average over.
        seed: of the splits.
        groups: group number of each sample; a group is never split.

    Returns:
        The averages, or None if there are fewer than two samples (or groups) to split.

    Raises:
        ValueError: if the rank, ``splits`` or ``groups`` does not fit.
    """
    check_rank(d, stats.num_samples)
    halves = half_weights(stats.sample_weights, splits, seed, groups)
    if halves is None:
        return None
    rows: list[tuple[float, float, float]] = []
    for first, second in halves.swapaxes(0, 1):
        (i, basis_i, rank_i), (j, basis_j, rank_j) = _half(stats, first, d), _half(stats, second, d)
        inner = basis_i.T @ stats.gram[np.ix_(i, j)] @ basis_j
        random_overlap = max(inner.shape) / stats.dimension if inner.size else 0.0
        rows.append((_overlap(inner), random_overlap, (rank_i + rank_j) / 2))
    return SplitHalf(*(float(x) for x in np.mean(rows, axis=0)))


def _half(
    stats: ScoreStatistics, weights: Float[np.ndarray, " N"], d: int
) -> tuple[Int[np.ndarray, " M"], Float[np.ndarray, "M k"], float]:
    """The samples held, the coefficients of their top eigenvectors, and their effective rank."""
    held = np.flatnonzero(weights)
    found = gram_spectrum(stats.gram[np.ix_(held, held)], weights[held])
    return held, found.basis(min(d, len(held))), effective_rank(found.eigenvalues)


def split_half_overlap(
    stats: ScoreStatistics,
    d: int,
    splits: int = 10,
    seed: int = 0,
    groups: Int[np.ndarray, " M"] | None = None,
) -> float | None:
    """Mode subspace overlap of the top-d eigenspaces of random halves; see :func:`split_half`."""
    halves = split_half(stats, d, splits, seed, groups)
    return None if halves is None else halves.overlap


def projector(matrix: Float[np.ndarray, "m n"], d: int) -> Float[np.ndarray, "n n"]:
    """Orthogonal projector on the top-d eigenspace of a symmetric matrix, by dense decomposition.

    Where ``lambda_d = lambda_{d+1}`` the eigenspace is ambiguous and this is one choice of it. Only the lower
    triangle is read.

    Raises:
        ValueError: if the matrix is not square or d is not in 1..n.
    """
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"a projector needs a square symmetric matrix, got shape {matrix.shape}")
    if not 1 <= d <= len(matrix):
        raise ValueError(f"the rank of the projector must lie in 1..{len(matrix)}, the size of the matrix; got {d}")
    top = np.linalg.eigh(matrix)[1][:, -d:]
    return top @ top.T


def davis_kahan_bound(perturbation: Scalar, gap: Scalar) -> float:
    """``2 e / gap``: how far the projector on the top eigenspace can move (Davis and Kahan 1970).

    Lemma B.2 of "The Geometry of Alignment Collapse": if ``|B - A| = e`` in the operator norm and A has the
    gap ``lambda_d - lambda_{d+1}``, then the top-d projectors satisfy ``|P_B - P_A| <= 2 e / gap``, whatever
    is chosen as P_B where B has no gap.

    Args:
        perturbation: e, not negative.
        gap: positive.

    Raises:
        ValueError: if the perturbation is negative or the gap is not positive.
    """
    _check_perturbation(perturbation, gap)
    return float(2 * perturbation / gap)


def sharp_davis_kahan_bound(perturbation: Scalar, gap: Scalar) -> float:
    """``sin(arcsin(2 e / gap) / 2)`` for ``e < gap/2`` and 1 beyond: the best bound from e and the gap alone.

    The sin 2 theta theorem of Davis and Kahan (1970, section 8); attained by 2 x 2 matrices. For small e it
    is ``e / gap``, half of :func:`davis_kahan_bound`; arguments and errors are the same.
    """
    _check_perturbation(perturbation, gap)
    sine = 2 * perturbation / gap
    return math.sin(math.asin(sine) / 2) if sine < 1 else 1.0


def _check_perturbation(perturbation: Scalar, gap: Scalar) -> None:
    if not perturbation >= 0:
        raise ValueError(f"the perturbation is a norm and must not be negative, got {perturbation}")
    if not gap > 0:
        raise ValueError(f"subspaces without a gap have no bound: the gap must be positive, got {gap}")
