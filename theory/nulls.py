"""What the instability numbers would be for random directions, and what decay of the spectrum means.

N samples give a Fisher matrix of rank N at most, and unequal score norms or a common mean score make its
spectrum decay inside that rank without any low-dimensional structure. The effective ranks here separate
those causes; the expectations say how large an overlap, coupling or leak is by chance.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

from theory.spectra import EPS, SplitHalf, effective_rank
from theory.statistics import ScoreStatistics

_SHUFFLE_STREAM = 2  # a random stream apart from those of the bootstrap and the splits
_SHUFFLES = 20


def null_values(
    stats: ScoreStatistics,
    eigenvalues: Float[np.ndarray, " N"],
    directions: int,
    halves: SplitHalf | None,
    seed: int,
) -> dict[str, float | None]:
    """All reference values beside an estimate.

    For an isotropic random v (or a) of the same norm, ``E (u.v)^2 = |v|^2 / n`` for each unit u, which gives
    the root mean squares ``overlap_random``, ``leak_random`` and ``coupling_random`` exactly;
    ``split_half_overlap_random`` is the mean over pairs of random subspaces; ``mean_score_share_random`` is
    the share for scores of these norms with independent signs. The effective ranks are those of orthogonal
    scores with these norms, of these directions with the norms shuffled among them, of these directions with
    unit norms and their mean removed, and of half the samples.

    Args:
        stats: statistics of N samples.
        eigenvalues: of F, descending.
        directions: dimension of the projector's range.
        halves: averages over random halves, or None if the samples cannot be split.
        seed: of the shuffles.
    """
    n = stats.dimension
    top, trace = float(eigenvalues[:directions].sum()), float(eigenvalues.sum())
    masses = stats.sample_weights * stats.gram.diagonal()
    total = float(masses.sum())
    return {
        "overlap_random": stats.velocity_norm * math.sqrt(directions / n),
        "leak_random": stats.velocity_norm * math.sqrt(trace / n),
        "coupling_random": stats.acceleration_norm * math.sqrt(top / n),
        "split_half_overlap_random": None if halves is None else halves.overlap_random,
        "mean_score_share_random": float(stats.sample_weights @ masses) / total if total > 0 else 0.0,
        "effective_rank_random_directions": effective_rank(masses),
        "effective_rank_norm_shuffled": norm_shuffled_effective_rank(stats, seed),
        "effective_rank_centred_normalised": centred_normalised_effective_rank(stats),
        "effective_rank_half": None if halves is None else halves.effective_rank,
    }


def norm_shuffled_effective_rank(stats: ScoreStatistics, seed: int) -> float:
    """Mean effective rank over 20 permutations of the score norms among the score directions.

    Samples whose score is zero have no direction and take no part. With cosines C and masses
    ``q_i = w_i |s_pi(i)|^2`` the effective rank is ``(sum q)^2 / sum_ij q_i q_j C_ij^2``.
    """
    used = _moving(stats)
    if used.size == 0:
        return 0.0
    squared_cosines = _cosines(stats, used) ** 2
    weights = stats.sample_weights[used]
    squares = stats.gram.diagonal()[used] / stats.gram.diagonal().max()  # scale-free: no overflow
    rng = np.random.default_rng([seed, _SHUFFLE_STREAM])
    q = weights * rng.permuted(np.tile(squares, (_SHUFFLES, 1)), axis=1)
    return float(np.mean(q.sum(axis=1) ** 2 / np.sum((q @ squared_cosines) * q, axis=1)))


def centred_normalised_effective_rank(stats: ScoreStatistics) -> float:
    """Effective rank after every score is scaled to unit norm and then the mean of the unit scores removed.

    Samples whose score is zero take no part; 0 if nothing is left.
    """
    used = _moving(stats)
    cosines = _cosines(stats, used)
    w = stats.sample_weights[used] / stats.sample_weights[used].sum()
    mean = cosines @ w
    centred = cosines - mean[:, None] - mean + w @ mean
    trace = float(w @ centred.diagonal())
    if trace <= len(used) * EPS:  # all unit scores agree: only rounding is left
        return 0.0
    root = np.sqrt(w)
    return trace**2 / float(np.sum((root[:, None] * centred * root) ** 2))


def _moving(stats: ScoreStatistics) -> np.ndarray:
    """Indices of the samples with a non-zero weight and score."""
    return np.flatnonzero((stats.gram.diagonal() > 0) & (stats.sample_weights > 0))


def _cosines(stats: ScoreStatistics, used: np.ndarray) -> Float[np.ndarray, "M M"]:
    norms = np.sqrt(stats.gram.diagonal()[used])
    return stats.gram[np.ix_(used, used)] / norms[:, None] / norms
