"""Curves for the ledger: polynomials in t, steps of an optimiser as series in its step size, flat directions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from math import factorial

import numpy as np

from theory.ledger.maps import PolynomialMap
from theory.ledger.scenarios import Scenario
from theory.ledger.skills import SoftmaxSkill
from theory.series import Series, constant, shift, zeros


def curve(derivatives: Sequence[np.ndarray], order: int) -> Series:
    """``theta(t) - theta*`` with the given derivatives ``theta', theta'', ...`` at 0, shape (order + 1, n)."""
    series = zeros((order + 1, *derivatives[0].shape), derivatives[0])
    for k, derivative in enumerate(derivatives, start=1):
        if k <= order:
            series[k] = derivative / factorial(k)
    return series


def steps(
    field: Callable[[Series], Series],
    start: np.ndarray,
    weights: Sequence[int | Fraction],
    order: int,
    momentum: int | Fraction = 0,
) -> Series:
    """Where an optimiser gets from ``start``, as a series in its step size eta.

    Step j is ``u <- momentum u + weights[j] field(theta)``, ``theta <- theta + eta u``, from ``u = 0``.

    Args:
        field: the direction at a series of points.
        start: shape (n,).
        weights: step sizes in units of eta.
        order: of the result.
        momentum: heavy ball's mu.
    """
    point = constant(start, order)
    update = point - point
    for weight in weights:
        update = momentum * update + weight * field(point)
        point = point + shift(update)
    return point


def sloped(scenario: Scenario) -> Scenario:
    """A scenario of random Fractions, at most 6 in size, with the last part of its gradient made positive."""
    assert isinstance(scenario.loss, PolynomialMap)
    scenario.loss.linear[0, -1] += 7
    return scenario


def flattened(skill: SoftmaxSkill, velocity: np.ndarray, acceleration: np.ndarray) -> SoftmaxSkill:
    """The skill with logits bent so that ``l'' = 0`` along ``theta' = v``, ``theta'' = a``, where ``s.v = 0``.

    The second derivative of the logits along the path, ``A a + Q[v, v]``, becomes 0 by a change of Q along v.
    """
    logits = skill.logits
    if not isinstance(logits, PolynomialMap):
        raise ValueError("only polynomial logits can be bent")
    bend = logits.linear @ acceleration + logits.quadratic @ velocity @ velocity
    direction = np.multiply.outer(velocity, velocity) / (velocity @ velocity) ** 2
    quadratic = logits.quadratic - np.multiply.outer(bend, direction)
    return replace(skill, logits=replace(logits, quadratic=quadratic))
