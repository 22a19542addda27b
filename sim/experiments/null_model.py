"""Random fine-tuning directions: the energy a subspace catches of them, and the utility they cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from commands.progress import Progress
from theory.null_model import OverlapLaw, concentration_bound, concentration_exponent

TAILS = (0.0, 0.01, 1.0)  # of the Fisher matrix, beside d eigenvalues 1; the last is F = I
DEVIATIONS = tuple(round(0.05 * k, 2) for k in range(1, 20))  # eps of the tail probabilities
PROBABILITIES = (0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999)
STEP = 0.1  # eta
_CHUNK = 1 << 22  # normal numbers held at once
_SHOWN = 200  # points of a drawn distribution


def compute(
    pairs: Sequence[tuple[int, int]],
    draws: int,
    rank: int,
    dimensions: Sequence[int],
    loss_draws: int,
    eps: float,
    seed: int,
    progress: Progress,
) -> dict[str, Any]:
    """Energies of random directions for each pair (n, d), then utility losses for each n; the command's result.

    Args:
        pairs: dimension and rank of the random subspaces.
        draws: random directions for each.
        rank: d of the utility losses.
        dimensions: n of the utility losses, at least d.
        loss_draws: random directions for each.
        eps: relative deviation that Theorem 4.1 (2) allows.
        seed: of subspaces and directions.
        progress: where the stages are shown.
    """
    with progress.stage("overlap", len(pairs)) as tick:
        overlap = []
        for i, (n, d) in enumerate(pairs):
            overlap.append(measure_overlap(n, d, draws, np.random.default_rng([seed, 0, i])))
            tick()
    with progress.stage("utility loss", len(dimensions)) as tick:
        cost = []
        for i, n in enumerate(dimensions):
            energies = random_energies(n, rank, loss_draws, np.random.default_rng([seed, 1, i]))
            cost += [measure_cost(energies, n, rank, tail, eps) for tail in TAILS]
            tick()
    return {"schema_version": 1, "step": STEP, "eps": eps, "overlap": overlap, "utility_loss": cost}


def random_energies(dimension: int, rank: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """``|P g|^2`` of random unit vectors g, P the projector on one random subspace; shape (draws,)."""
    basis = np.linalg.qr(rng.standard_normal((dimension, rank)))[0]
    rows = max(1, _CHUNK // dimension)
    found = []
    for start in range(0, draws, rows):
        g = rng.standard_normal((min(rows, draws - start), dimension))
        found.append(np.sum((g @ basis) ** 2, axis=1) / np.sum(g**2, axis=1))
    return np.concatenate(found)


def measure_overlap(dimension: int, rank: int, draws: int, rng: np.random.Generator) -> dict[str, Any]:
    """The energies of random directions against the exact law and against Lemma A.3's bound."""
    from scipy.stats import kstwo

    law = OverlapLaw(dimension, rank)
    energies = np.sort(random_energies(dimension, rank, draws, rng))
    cdf = law.cdf(energies)
    grid = np.arange(draws + 1) / draws
    distance = float(max((grid[1:] - cdf).max(), (cdf - grid[:-1]).max()))
    deviation = np.abs(energies / law.mean - 1)
    shown = np.unique(np.linspace(0, draws - 1, _SHOWN).round().astype(int))
    return {
        "dimension": dimension,
        "rank": rank,
        "draws": draws,
        "mean": float(energies.mean()),
        "predicted_mean": law.mean,
        "standard_deviation": float(energies.std()),
        "predicted_standard_deviation": math.sqrt(law.variance),
        "ks_distance": distance,
        "ks_p_value": float(kstwo.sf(distance, draws)),
        "quantiles": {
            "probability": list(PROBABILITIES),
            "measured": np.quantile(energies, PROBABILITIES).tolist(),
            "predicted": law.quantile(np.array(PROBABILITIES)).tolist(),
        },
        "deviations": {
            "eps": list(DEVIATIONS),
            "measured": [float(np.mean(deviation >= eps)) for eps in DEVIATIONS],
            "exact": [law.deviation_probability(eps) for eps in DEVIATIONS],
            "chernoff": [concentration_bound(rank, eps) for eps in DEVIATIONS],
        },
        "curve": {
            "energy": energies[shown].tolist(),
            "measured": ((shown + 0.5) / draws).tolist(),
            "exact": cdf[shown].tolist(),
        },
    }


def measure_cost(energies: np.ndarray, dimension: int, rank: int, tail: float, eps: float) -> dict[str, Any]:
    """Utility losses of the skill ``N(A theta, I)``, ``F = A^T A = P + tail (I - P)``, at ``theta* - eta g``.

    The policy is Gaussian and its mean linear: the utility loss ``|A eta g|^2 / 2`` is exact. The claims hold with
    probability ``1 - exp(-c eps^2 d)`` (Theorem 4.1 (2)): as printed, ``eta^2 (d/n) (1 + eps)``; as equation (9) has
    it, ``eta^2/2 ((1 + eps) d/n + tail)``.
    """
    losses = STEP**2 / 2 * (energies + tail * (1 - energies))
    share = (1 + eps) * rank / dimension
    claim, corrected = STEP**2 * share, STEP**2 / 2 * (share + tail)
    mean = STEP**2 / 2 * (rank + tail * (dimension - rank)) / dimension
    return {
        "dimension": dimension,
        "rank": rank,
        "tail": tail,
        "draws": len(energies),
        "mean": float(losses.mean()),
        "predicted_mean": mean,
        "standard_error": float(losses.std() / math.sqrt(len(losses))),
        "least": float(losses.min()),
        "largest": float(losses.max()),
        "claim": claim,
        "corrected": corrected,
        "above_claim": float(np.mean(losses > claim)),
        "above_corrected": float(np.mean(losses > corrected)),
        "allowed": math.exp(-concentration_exponent(rank, eps)),
    }
