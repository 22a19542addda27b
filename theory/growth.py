"""Effective rank against the number of samples: what a spectrum from N samples can say about low rank.

N samples show at most N directions, so a decaying spectrum alone says nothing. A Fisher matrix of low rank shows an
effective rank that stops growing with N; a full one shows an effective rank near N whatever N is. Unequal norms and a
common mean score also hold the effective rank down, so the same is taken of scores of unit norm without their mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from theory.nulls import centred_normalised_effective_rank
from theory.spectra import effective_rank, spectrum
from theory.statistics import ScoreStatistics

_SUBSETS_STREAM = 3  # a random stream apart from those of the bootstrap, the splits and the shuffles


@dataclass(frozen=True)
class Growth:
    """Means over random subsets of a number of samples.

    Attributes:
        count: samples in a subset (of whole groups; the mean over subsets where groups differ in size).
        effective_rank: of the scores.
        orthogonal: of orthogonal scores with the same norms: what the norms alone allow.
        centred_normalised: of the scores scaled to unit norm, without their mean: at most count - 1.
    """

    count: float
    effective_rank: float
    orthogonal: float
    centred_normalised: float


def effective_rank_growth(
    stats: ScoreStatistics, sizes: tuple[int, ...], subsets: int, seed: int, groups: Int[np.ndarray, " M"] | None = None
) -> list[Growth]:
    """Effective ranks of random subsets of the samples.

    Args:
        stats: statistics of N samples.
        sizes: numbers of groups in a subset, each in 1..number of groups.
        subsets: random subsets of each size; of all groups there is one.
        seed: of the subsets.
        groups: group number of each sample; None makes each sample its own group.

    Raises:
        ValueError: if a size, ``subsets`` or ``groups`` does not fit.
    """
    numbers = np.arange(stats.num_samples) if groups is None else np.asarray(groups)
    if numbers.shape != (stats.num_samples,):
        raise ValueError(f"groups must hold one number for each of the {stats.num_samples} samples, got {len(numbers)}")
    members = [np.flatnonzero(numbers == number) for number in np.unique(numbers)]
    if subsets < 1 or any(not 1 <= size <= len(members) for size in sizes):
        raise ValueError(f"expected sizes in 1..{len(members)} and at least one subset, got {sizes} and {subsets}")
    rng = np.random.default_rng([seed, _SUBSETS_STREAM])
    return [_average(stats, members, size, subsets, rng) for size in sizes]


def _average(
    stats: ScoreStatistics, members: list[np.ndarray], size: int, subsets: int, rng: np.random.Generator
) -> Growth:
    rows = []
    for _ in range(1 if size == len(members) else subsets):
        chosen = np.sort(rng.choice(len(members), size, replace=False))
        part = stats.select(np.concatenate([members[k] for k in chosen]))
        masses = part.sample_weights * part.gram.diagonal()
        rows.append(
            (
                float(part.num_samples),
                effective_rank(spectrum(part).eigenvalues),
                effective_rank(masses),
                centred_normalised_effective_rank(part),
            )
        )
    return Growth(*(float(x) for x in np.mean(rows, axis=0)))
