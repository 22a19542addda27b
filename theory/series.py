"""Truncated power series in one variable, exact where their coefficients are.

A series ``sum_k c_k t^k`` up to an order p is an array whose first axis runs over ``k = 0..p``; the other axes
are those of the coefficient. The dtype is either float64 or object, holding :class:`fractions.Fraction`: then
every operation here is exact, and a law for the coefficients of the utility loss can be checked with no
rounding at all. Products are Cauchy products, and everything beyond order p is dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np

Series = np.ndarray  # shape (p + 1, ...), dtype float64 or object of Fractions


def rational(values: object) -> np.ndarray:
    """An object array of Fractions, equal to ``values`` to the last bit."""
    array = np.asarray(values, dtype=object)
    return np.array([Fraction(x) for x in array.ravel()], dtype=object).reshape(array.shape)


def zeros(shape: tuple[int, ...], like: np.ndarray) -> np.ndarray:
    """Zeros of the scalars that ``like`` holds."""
    if like.dtype != object:
        return np.zeros(shape)
    array = np.empty(shape, dtype=object)
    array.fill(Fraction(0))
    return array


def constant(value: np.ndarray, order: int) -> Series:
    """The series of a constant."""
    series = zeros((order + 1, *value.shape), value)
    series[0] = value
    return series


def multiply(a: Series, b: Series) -> Series:
    """Elementwise product of two series of the same order."""
    return _cauchy(a, b, np.multiply)


def contract(a: Series, b: Series) -> Series:
    """``a @ b``: the last axis of a's coefficients against the vectors of b, shape (p + 1, n)."""
    return _cauchy(a, b, np.matmul)


def _cauchy(a: Series, b: Series, product: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Series:
    if len(a) != len(b):
        raise ValueError(f"only series of one order multiply: got orders {len(a) - 1} and {len(b) - 1}")
    terms = [sum(product(a[j], b[k - j]) for j in range(k + 1)) for k in range(len(a))]
    return np.stack([np.asarray(term) for term in terms])


def shift(a: Series) -> Series:
    """``t a(t)``."""
    return np.concatenate([a[:1] - a[:1], a[:-1]])


def exponential(a: Series) -> Series:
    """``exp(a(t))`` for ``a(0) = 0``, from ``e' = a' e``.

    Raises:
        ValueError: if ``a(0)`` is not 0, where the exponential is not rational.
    """
    if np.any(a[0] != 0):
        raise ValueError("the exponential of a series is exact only if the series starts at 0")
    e = [a[0] + 1]
    for k in range(1, len(a)):
        e.append(sum(j * a[j] * e[k - j] for j in range(1, k + 1)) / k)
    return np.stack(e)


def logarithm(a: Series) -> Series:
    """``log(a(t))`` for ``a(0) = 1``, from ``a l' = a'``.

    Raises:
        ValueError: if ``a(0)`` is not 1, where the logarithm is not rational.
    """
    if np.any(a[0] != 1):
        raise ValueError("the logarithm of a series is exact only if the series starts at 1")
    log = [a[0] - 1]
    for k in range(1, len(a)):
        log.append(a[k] - sum((j * log[j] * a[k - j] for j in range(1, k)), a[0] - a[0]) / k)
    return np.stack(log)


def reciprocal(a: Series) -> Series:
    """``1 / a(t)`` elementwise, from ``a r = 1``.

    Raises:
        ValueError: if an entry of ``a(0)`` is 0.
    """
    if np.any(a[0] == 0):
        raise ValueError("a series has a reciprocal only if it does not start at 0")
    r = [1 / a[0]]
    for k in range(1, len(a)):
        r.append(-sum(a[j] * r[k - j] for j in range(1, k + 1)) * r[0])
    return np.stack(r)


def integral_curve(field: Callable[[Series], Series], start: np.ndarray, order: int) -> Series:
    """The solution of ``theta' = field(theta)`` from ``start``, by Picard's iteration.

    Each round makes one more coefficient exact, from a curve that is one longer.

    Args:
        field: the vector field, applied to a series of points of any order.
        start: shape (n,).
        order: of the result, at least 0.
    """
    curve = constant(start, order)
    for k in range(order):
        curve[k + 1] = field(curve[: k + 1])[k] / (k + 1)
    return curve


def evaluate(a: Series, t: float) -> np.ndarray:
    """The truncated series at t, in float64."""
    return np.asarray(np.polynomial.polynomial.polyval(t, a.astype(np.float64)))
