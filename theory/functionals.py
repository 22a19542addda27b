"""The AIC quantities as functionals of the sample weights, evaluated on many weightings at once.

A bootstrap resample repeats some samples and omits about a third of them. As a weighting it needs an
eigendecomposition only over the samples that it holds, and all resamples go into batched calls.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from theory.spectra import check_rank, mean_score_shares, participation_ratio, without_rounding
from theory.statistics import ScoreStatistics

_BATCH_BYTES = 32 * 2**20  # of the Gram matrices decomposed in one call


def weighted_functionals(
    stats: ScoreStatistics, weights: Float[np.ndarray, "R N"], rank: int
) -> dict[str, Float[np.ndarray, " R"]]:
    """Sharpness, tail, overlap, coupling, leak, effective rank and mean score share for each weighting.

    With curvature also the onset coefficient and the crossover (NaN where leak and onset coefficient are both
    zero). Definitions as in :class:`theory.aic.Estimate`.

    Args:
        stats: statistics of N samples; their own weights are not used.
        weights: R rows of sample weights, each summing to 1.
        rank: d, in 1..N.

    Raises:
        ValueError: if the rank does not fit.
    """
    check_rank(rank, stats.num_samples)
    held = weights > 0
    width = int(held.sum(axis=1).max())
    # The same width for every batch, so that results do not depend on how rows fall into batches.
    support = np.argsort(~held, kind="stable")[:, :width]
    step = max(1, _BATCH_BYTES // (8 * width**2))
    batches = [
        _spectral(stats, weights[i : i + step], support[i : i + step], rank) for i in range(0, len(weights), step)
    ]
    found = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    found["leak"] = np.sqrt(weights @ stats.velocity**2)
    found["mean_score_share"] = mean_score_shares(stats.gram, weights)
    if stats.curvature is not None:
        found["onset_coefficient"] = np.sqrt(weights @ stats.second_derivative**2)
        found["crossover"] = _crossovers(found["leak"], found["onset_coefficient"])
    return found


def _spectral(
    stats: ScoreStatistics,
    weights: Float[np.ndarray, "R N"],
    support: Int[np.ndarray, "R m"],
    rank: int,
) -> dict[str, Float[np.ndarray, " R"]]:
    """The functionals that need eigenvalues; ``support`` lists the samples with weight, then padding."""
    root = np.sqrt(np.take_along_axis(weights, support, axis=1))
    held_gram = stats.gram[support[:, :, None], support[:, None, :]]
    ascending, vectors = np.linalg.eigh(root[:, :, None] * held_gram * root[:, None, :])
    eigenvalues = without_rounding(ascending[:, ::-1], stats.num_samples)
    top, basis = eigenvalues[:, :rank], vectors[:, :, ::-1][:, :, :rank]
    in_range = top > 0
    along_v = np.einsum("rm,rmk->rk", root * stats.velocity[support], basis)  # sqrt(lambda_k) u_k . v
    along_a = np.einsum("rm,rmk->rk", root * stats.acceleration[support], basis)
    projected_v = np.divide(along_v**2, top, out=np.zeros_like(top), where=in_range)
    return {
        "sharpness": eigenvalues[:, rank - 1 : rank].sum(axis=1),  # 0 where fewer than d samples are held
        "tail": eigenvalues[:, rank:].sum(axis=1),
        "overlap": np.sqrt(projected_v.sum(axis=1)),
        "coupling": np.sqrt(np.sum(along_a**2 * in_range, axis=1)),
        "effective_rank": participation_ratio(eigenvalues),
    }


def _crossovers(leak: Float[np.ndarray, " R"], onset: Float[np.ndarray, " R"]) -> Float[np.ndarray, " R"]:
    """``2 leak / onset`` as in :func:`theory.onset.crossover`, with NaN for None."""
    undefined = np.where(leak > 0, np.inf, np.nan)
    return np.divide(2 * leak, onset, out=undefined, where=onset > 0)
