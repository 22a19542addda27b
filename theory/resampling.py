"""Seeded draws over samples: bootstrap multiplicities, random halves, percentile intervals.

A draw is a row of sample weights that sums to 1, so that every weighted functional of the statistics can be
evaluated on it. Samples of one group (for instance the responses drawn at one prompt) stay together, because
they are not independent. Only groups with some weight take part, so that no draw is empty.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

_BOOTSTRAP_STREAM, _HALVES_STREAM = 0, 1  # separate random streams of one user-visible seed


def bootstrap_weights(
    weights: Float[np.ndarray, " N"],
    resamples: int,
    seed: int,
    groups: Int[np.ndarray, " M"] | None = None,
) -> Float[np.ndarray, "R N"]:
    """Sample weights of ``resamples`` bootstrap draws of groups with replacement.

    Args:
        weights: the weights of the original samples.
        resamples: R, may be 0.
        seed: of the draws; the same seed gives the same draws.
        groups: group number of each sample; None makes each sample its own group.

    Raises:
        ValueError: if ``resamples`` is negative or ``groups`` does not fit.
    """
    if resamples < 0:
        raise ValueError(f"the number of bootstrap resamples must be 0 or more, got {resamples}")
    membership = _membership(weights, groups)
    count = len(membership)
    rng = np.random.default_rng([seed, _BOOTSTRAP_STREAM])
    multiplicity = rng.multinomial(count, np.full(count, 1.0 / count), size=resamples)
    drawn = (multiplicity @ membership) * weights
    return drawn / drawn.sum(axis=1, keepdims=True)


def half_weights(
    weights: Float[np.ndarray, " N"],
    splits: int,
    seed: int,
    groups: Int[np.ndarray, " M"] | None = None,
) -> Float[np.ndarray, "2 S N"] | None:
    """Sample weights of the two halves of ``splits`` random splits of the groups.

    With an odd number of groups the second half has one more. Arguments as :func:`bootstrap_weights`.

    Returns:
        The weights of the first and of the second halves, or None if there are fewer than two groups.

    Raises:
        ValueError: if ``splits`` is not positive or ``groups`` does not fit.
    """
    if splits < 1:
        raise ValueError(f"the number of random splits must be 1 or more, got {splits}")
    membership = _membership(weights, groups)
    count = len(membership)
    if count < 2:
        return None
    rng = np.random.default_rng([seed, _HALVES_STREAM])
    order = rng.permuted(np.tile(np.arange(count), (splits, 1)), axis=1)
    first = np.zeros((splits, count), dtype=bool)
    np.put_along_axis(first, order[:, : count // 2], True, axis=1)
    drawn = (np.stack([first, ~first]) @ membership) * weights
    return drawn / drawn.sum(axis=2, keepdims=True)


def percentile_interval(values: Float[np.ndarray, " R"], level: float) -> tuple[float, float] | None:
    """The central percentile interval of bootstrap values (Efron 1979), at confidence ``level``.

    Its ends are order statistics with equally many values, a share ``(1 - level) / 2`` at most, outside on
    each side, so infinite values are allowed; undefined values (NaN) are left out, and the interval is None
    if no value is defined.

    Raises:
        ValueError: if ``level`` is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"the confidence level must lie strictly between 0 and 1, got {level}")
    defined = np.sort(values[~np.isnan(values)])
    if defined.size == 0:
        return None
    outside = int((defined.size - 1) * (1 - level) / 2 + 1e-9)  # 1e-9: 1 - 0.95 is not quite 0.05
    return float(defined[outside]), float(defined[-1 - outside])


def _membership(weights: Float[np.ndarray, " N"], groups: Int[np.ndarray, " M"] | None) -> Bool[np.ndarray, "G N"]:
    """Which sample belongs to which group, for the groups whose weight is not zero."""
    numbers = np.arange(len(weights)) if groups is None else groups
    if numbers.shape != weights.shape:
        raise ValueError(
            f"groups must hold one group number for each of the {len(weights)} samples, got {len(numbers)}"
        )
    membership = numbers == np.unique(numbers)[:, None]
    return membership[membership @ weights > 0]
