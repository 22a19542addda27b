"""Fine-tuning losses: with dials, in closed form, and random."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.func import grad

from sim.skills import Function, Polynomial, Skill

_ROUNDING = 1e-13  # of a gradient's norm: a smaller overlap is none


def minus_angle(theta: Tensor) -> Tensor:
    """Minus the polar angle in the plane: from (1, 0) the flow runs along the unit circle at unit speed."""
    return -torch.atan2(theta[1], theta[0])


def straight(theta: Tensor) -> Tensor:
    """``-y``: no curvature at all."""
    return -theta[1]


def tight(beta: float) -> Function:
    """``-y + beta (x - 1) y``: with the radius as the skill's mean, the bound of Theorem Q is reached for beta >= 1."""
    return lambda theta: -theta[1] + beta * (theta[0] - 1) * theta[1]


def random_smooth(base: Tensor, kernel: int, seed: int, waves: int = 8) -> Function:
    """A random quadratic plus cosines, smooth to all orders, with a gradient of norm 1 at the base point.

    Args:
        base: theta*, shape (n,).
        kernel: the gradient there lives on the last so many coordinates (on all, for 0).
        seed: of the coefficients.
        waves: cosines; each is flat to second order at the base point, so that it only adds higher derivatives.

    Raises:
        ValueError: if the kernel is not in 0..n.
    """
    if not 0 <= kernel <= len(base):
        raise ValueError(f"the kernel must lie in 0..{len(base)}, got {kernel}")
    rng = torch.Generator().manual_seed(seed)
    n = len(base)
    g = torch.randn(n, generator=rng, dtype=base.dtype)
    if kernel:
        g[: n - kernel] = 0
    square = torch.randn(n, n, generator=rng, dtype=base.dtype) / n**0.5
    quadratic = Polynomial(base, g / g.norm(), (square + square.T) / 2)
    directions = torch.randn(waves, n, generator=rng, dtype=base.dtype) / n**0.5

    def loss(theta: Tensor) -> Tensor:
        phase = directions @ (theta - base)
        return quadratic(theta) + (phase.cos() - 1 + phase.square() / 2).sum() + (phase.sin() - phase).sum()

    return loss


def with_overlap(loss: Function, skill: Skill, rank: int, overlap: float) -> Function:
    """The loss plus a linear term, so that its gradient at theta* has the overlap ``|P g|`` that is asked for.

    Hessian and higher derivatives are those of the loss. At overlap 0 with d the rank of F, the leak vanishes.

    Args:
        loss: a loss with ``P g != 0``, unless the overlap is 0.
        skill: whose sensitive directions P projects on.
        rank: d.
        overlap: epsilon, at least 0.

    Raises:
        ValueError: if the overlap is negative, or cannot be had from a gradient with none.
    """
    if not 0 <= overlap < math.inf:
        raise ValueError(f"the overlap is a norm, finite and not negative, got {overlap}")
    directions = skill.top_directions(skill.base, rank)
    gradient = grad(loss)(skill.base)
    seen = directions.T @ gradient
    size = float(seen.norm())
    if overlap > 0 and size <= _ROUNDING * gradient.norm():
        raise ValueError("the gradient has no overlap that could be scaled; give the loss one, or ask for 0")
    shift = directions @ seen * (overlap / size - 1 if size > 0 else 0.0)
    return lambda theta: loss(theta) + shift @ (theta - skill.base)
