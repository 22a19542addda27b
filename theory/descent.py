"""Gradient descent in finite steps: how much of the flow's acceleration it has at each time.

K steps with learning rates eta_k move a quadratic loss's parameters by ``-T g + (T^2 - sum eta_k^2)/2 H g`` up to
third order, T the sum of the rates: the acceleration of gradient flow times ``1 - sum eta_k^2 / T^2``, which is
``1 - 1/K`` for equal rates. One step has no acceleration at all. The same holds with any constant linear map in
front of the gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from theory.statistics import Scalar


@dataclass(frozen=True, eq=False)
class Schedule:
    """Steps that end at given times.

    Attributes:
        times: (G,) increasing.
        rates: (K,) learning rate of each step.
        ends: (G,) how many steps are done at each time.
    """

    times: Float[np.ndarray, " G"]
    rates: Float[np.ndarray, " K"]
    ends: Int[np.ndarray, " G"]

    def shares(self) -> Float[np.ndarray, " G"]:
        """``1 - sum eta_k^2 / T^2`` at each time: the share of the flow's acceleration that the steps have."""
        squares = np.cumsum(self.rates**2)[self.ends - 1]
        return np.where(self.ends == 1, 0.0, 1 - squares / self.times**2)


def steps_to(times: Float[np.ndarray, " G"], largest: Scalar) -> Schedule:
    """The fewest steps that end at each of the times with no learning rate above ``largest``.

    Between two times all steps are equal.

    Raises:
        ValueError: unless the times are positive and increasing, and ``largest`` is positive.
    """
    gaps = np.diff(times, prepend=0.0)
    if times.size == 0 or not ((gaps > 0).all() and np.isfinite(times).all() and largest > 0):
        raise ValueError("the times must be positive and increasing, and the largest learning rate positive")
    # 1e-9: a gap of exactly three rates is three steps, whatever its rounding
    counts = [max(1, math.ceil(gap / largest * (1 - 1e-9))) for gap in gaps.tolist()]
    rates = np.repeat(gaps / counts, counts)
    return Schedule(times, rates, np.cumsum(counts))
