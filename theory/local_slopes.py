"""Readings of a measured curve beside a predicted one: where it follows which power law, and where they part."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from theory.onset import local_slope
from theory.statistics import Scalar

LAWS: Mapping[str, tuple[float, float]] = {"quadratic": (2.0, 0.2), "quartic": (4.0, 0.3)}
"""Exponent of each law, and how far a local exponent may be from it."""
NEITHER = "neither"
READ_WITHIN = 0.05
"""Largest share of a measured loss that rounding may make of it, for its ratio and exponent to be read."""


@dataclass(frozen=True)
class Stretch:
    """Neighbouring times at which the local exponent is of one kind.

    Attributes:
        kind: a name of :data:`LAWS`, or :data:`NEITHER`.
        start: first time.
        end: last time.
        lowest: smallest exponent there.
        highest: largest exponent there.
    """

    kind: str
    start: float
    end: float
    lowest: float
    highest: float


def kind_of(exponent: Scalar) -> str:
    """The law whose exponent a local exponent is near."""
    near = float(exponent)
    return next((name for name, (law, width) in LAWS.items() if abs(near - law) <= width), NEITHER)


def readable(losses: Float[np.ndarray, " G"], floor: Scalar) -> Bool[np.ndarray, " G"]:
    """Which losses u rounding, which alone makes f, changes by no more than READ_WITHIN of them.

    Both are half the mean square of a change of log-probabilities. Of the sum of two changes it lies between
    (sqrt(u) - sqrt(f))^2 and (sqrt(u) + sqrt(f))^2: 2 sqrt(f / u) + f / u at most, as a share of u.
    """
    share = np.divide(floor, losses, out=np.full_like(losses, np.inf), where=losses > 0)
    return np.asarray(2 * np.sqrt(share) + share <= READ_WITHIN)


def readable_exponents(
    times: Float[np.ndarray, " G"], losses: Float[np.ndarray, " G"], read: Bool[np.ndarray, " G"]
) -> Float[np.ndarray, " G"]:
    """Local exponents from the readable points alone; NaN at the others, and where fewer than two can be read."""
    found = np.full(len(times), np.nan)
    if np.count_nonzero(read) > 1:
        found[read] = local_slope(times[read], losses[read])
    return found


def stretches(t: Float[np.ndarray, " T"], exponents: Float[np.ndarray, " T"]) -> list[Stretch]:
    """Maximal runs of times whose exponents are of one kind; undefined exponents (NaN) end a run and are in none."""
    found: list[list[int]] = []
    for k in range(len(exponents)):
        exponent = float(exponents[k])
        if math.isnan(exponent):
            continue
        joined = found and found[-1][-1] == k - 1 and kind_of(exponents[k - 1]) == kind_of(exponent)
        if joined:
            found[-1].append(k)
        else:
            found.append([k])
    return [
        Stretch(
            kind_of(exponents[run[0]]),
            float(t[run[0]]),
            float(t[run[-1]]),
            float(exponents[run].min()),
            float(exponents[run].max()),
        )
        for run in found
    ]


def first_departure(
    t: Float[np.ndarray, " T"],
    measured: Float[np.ndarray, " T"],
    predicted: Float[np.ndarray, " T"],
    factor: Scalar,
) -> float | None:
    """The first time from which on two positive curves differ by more than a factor, or None without such a time.

    A time whose curves differ by more while those of a later one do not is none: noise, or curves that cross. Before
    the first time that counts the logarithm of the ratio is interpolated linearly in log t; where the curves differ by
    more at all times, the very first is the answer.

    Raises:
        ValueError: if the factor is not above 1, or the times are not positive and increasing.
    """
    if not factor > 1:
        raise ValueError(f"the factor must be above 1, got {factor}")
    if t.size == 0 or not (t[0] > 0 and (np.diff(t) > 0).all()):
        raise ValueError("the times must be positive and strictly increasing, so that their logarithms exist")
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = np.log(measured) - np.log(predicted)
    limit = math.log(factor)
    outside = ~(np.abs(apart) <= limit)  # a ratio that is no number is outside too
    if not outside[-1]:
        return None
    k = len(outside) - int(np.argmin(outside[::-1])) if not outside.all() else 0
    if k == 0 or not math.isfinite(apart[k]):
        return float(t[k])
    target = math.copysign(limit, apart[k])
    share = (target - apart[k - 1]) / (apart[k] - apart[k - 1])
    return float(t[k - 1] * (t[k] / t[k - 1]) ** share)
