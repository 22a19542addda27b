"""Readings of a measured curve beside a predicted one: where it follows which power law, and where they part."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from theory.statistics import Scalar

LAWS: Mapping[str, tuple[float, float]] = {"quadratic": (2.0, 0.2), "quartic": (4.0, 0.3)}
"""Exponent of each law, and how far a local exponent may be from it."""
NEITHER = "neither"


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
    """The first time at which two positive curves differ by more than a factor, or None if they never do.

    Between two times the logarithm of the ratio is interpolated linearly in log t; where the curves differ by more at
    the very first time, that time is the answer.

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
    if not outside.any():
        return None
    k = int(np.argmax(outside))
    if k == 0 or not math.isfinite(apart[k]):
        return float(t[k])
    target = math.copysign(limit, apart[k])
    share = (target - apart[k - 1]) / (apart[k] - apart[k - 1])
    return float(t[k - 1] * (t[k] / t[k - 1]) ** share)
