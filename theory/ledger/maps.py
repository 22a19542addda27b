"""Smooth maps with their derivatives: what means, logits and fine-tuning losses are made of.

Every map is written in the displacement ``D = theta - theta*`` and vanishes at ``D = 0``. A loss is a map with
one output.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import Any, Protocol, runtime_checkable

import numpy as np

from theory.series import Series, contract, zeros


@runtime_checkable
class SmoothMap(Protocol):
    """A map from R^n to R^m with two derivatives, zero at the base point."""

    @property
    def origin(self) -> np.ndarray:
        """The displacement 0 in the map's own scalars, shape (n,)."""
        ...

    def value(self, displacement: np.ndarray) -> np.ndarray:
        """Shape (m,)."""
        ...

    def jacobian(self, displacement: np.ndarray) -> np.ndarray:
        """Shape (m, n)."""
        ...

    def hessian(self, displacement: np.ndarray) -> np.ndarray:
        """Shape (m, n, n)."""
        ...


@dataclass(frozen=True, eq=False)
class PolynomialMap:
    """``f(D) = A D + Q[D, D]/2 + C[D, D, D]/6``, over float64 or Fractions.

    Attributes:
        linear: A, shape (m, n).
        quadratic: Q, shape (m, n, n), symmetric in the last two axes.
        cubic: C, shape (m, n, n, n), symmetric in the last three.
    """

    linear: np.ndarray
    quadratic: np.ndarray
    cubic: np.ndarray

    @property
    def origin(self) -> np.ndarray:
        """Shape (n,)."""
        return zeros(self.linear.shape[1:], self.linear)

    def value(self, displacement: np.ndarray) -> np.ndarray:
        """Shape (m,)."""
        d = displacement
        return (self.linear + (self.quadratic + self.cubic @ d / 3) @ d / 2) @ d

    def jacobian(self, displacement: np.ndarray) -> np.ndarray:
        """Shape (m, n)."""
        d = displacement
        return self.linear + (self.quadratic + self.cubic @ d / 2) @ d

    def hessian(self, displacement: np.ndarray) -> np.ndarray:
        """Shape (m, n, n)."""
        return self.quadratic + self.cubic @ displacement

    def scaled(self, factor: Any) -> PolynomialMap:
        """The map times a number of its own scalars."""
        return PolynomialMap(self.linear * factor, self.quadratic * factor, self.cubic * factor)

    def in_floats(self) -> PolynomialMap:
        """The map in float64."""
        return PolynomialMap(*(part.astype(float) for part in (self.linear, self.quadratic, self.cubic)))

    def value_along(self, curve: Series) -> Series:
        """The map along a curve with coefficients (p + 1, n): shape (p + 1, m)."""
        return contract(self._slope(curve, 3), curve)

    def jacobian_along(self, curve: Series) -> Series:
        """The Jacobian along a curve with coefficients (p + 1, n): shape (p + 1, m, n)."""
        return self._slope(curve, 2)

    def _slope(self, curve: Series, degree: int) -> Series:
        """``A + (Q + C[D]/degree)[D]/(degree - 1)`` along a curve."""
        bend = np.stack([self.cubic @ point for point in curve]) / degree
        bend[0] += self.quadratic
        slope = contract(bend, curve) / (degree - 1)
        slope[0] += self.linear
        return slope


@dataclass(frozen=True)
class Radius:
    """``f = |theta| - radius`` around ``theta* = (radius, 0)`` in the plane, times ``factor``."""

    radius: float = 1.0
    factor: float = 1.0

    @property
    def origin(self) -> np.ndarray:
        """Shape (2,)."""
        return np.zeros(2)

    def value(self, displacement: np.ndarray) -> np.ndarray:
        """Shape (1,), without cancellation near the circle."""
        x, y = displacement
        r = np.hypot(self.radius + x, y)
        return np.array([self.factor * (x * (2 * self.radius + x) + y * y) / (r + self.radius)])

    def jacobian(self, displacement: np.ndarray) -> np.ndarray:
        """Shape (1, 2)."""
        theta = displacement + np.array([self.radius, 0.0])
        return self.factor * (theta / np.linalg.norm(theta))[None]

    def hessian(self, displacement: np.ndarray) -> np.ndarray:
        """Shape (1, 2, 2)."""
        theta = displacement + np.array([self.radius, 0.0])
        r = np.linalg.norm(theta)
        return self.factor * (np.eye(2) - np.outer(theta, theta) / r**2)[None] / r


@dataclass(frozen=True)
class NegativeAngle:
    """The circle's loss: ``f = -angle(theta)`` around ``theta* = (1, 0)``, constant along rays."""

    @property
    def origin(self) -> np.ndarray:
        """Shape (2,)."""
        return np.zeros(2)

    def value(self, displacement: np.ndarray) -> np.ndarray:
        """Shape (1,), in radians."""
        return np.array([-np.arctan2(displacement[1], 1.0 + displacement[0])])

    def jacobian(self, displacement: np.ndarray) -> np.ndarray:
        """Shape (1, 2)."""
        x, y = 1.0 + displacement[0], displacement[1]
        return np.array([[y, -x]]) / (x * x + y * y)

    def hessian(self, displacement: np.ndarray) -> np.ndarray:
        """Shape (1, 2, 2)."""
        x, y = 1.0 + displacement[0], displacement[1]
        return np.array([[[-2 * x * y, x * x - y * y], [x * x - y * y, 2 * x * y]]]) / (x * x + y * y) ** 2


def polynomial(
    linear: np.ndarray, quadratic: np.ndarray | None = None, cubic: np.ndarray | None = None
) -> PolynomialMap:
    """A polynomial map from the coefficients that it has.

    Raises:
        ValueError: if the shapes do not fit together.
    """
    m, n = linear.shape
    q = zeros((m, n, n), linear) if quadratic is None else quadratic
    c = zeros((m, n, n, n), linear) if cubic is None else cubic
    if q.shape != (m, n, n) or c.shape != (m, n, n, n):
        raise ValueError(f"expected coefficients of shape ({m}, {n}, {n}, ...), got {q.shape} and {c.shape}")
    return PolynomialMap(linear, q, c)


def symmetric(tensor: np.ndarray, axes: int) -> np.ndarray:
    """The mean of a tensor over all permutations of its last ``axes`` axes."""
    lead = tensor.ndim - axes
    orders = list(permutations(range(lead, tensor.ndim)))
    return np.asarray(sum(tensor.transpose(*range(lead), *order) for order in orders)) / len(orders)
