"""Defences as update fields: projections out of the sensitive directions, and a trust region in the policy."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad, jvp

from sim.fields import Derivatives, Field, hessian_product
from sim.skills import Function, Skill

_JERK_STEP = 1e-5  # of the central difference, where rounding and curvature both cost about 1e-10
_NO_GAP = 1e-12  # of the largest eigenvalue


@dataclass(frozen=True, eq=False)
class StaticProjection(Field):
    """``v = -(I - P) g`` with P fixed, ``a = (I - P) H (I - P) g``.

    Attributes:
        loss: the fine-tuning loss.
        directions: orthonormal columns that span the range of P, shape (n, d).
    """

    loss: Function
    directions: Tensor

    def __post_init__(self) -> None:
        """Validate."""
        columns = self.directions
        if columns.ndim != 2 or not (columns.T @ columns - torch.eye(columns.shape[1])).abs().max() < 1e-9:
            raise ValueError(f"the directions must be orthonormal columns (n, d), got shape {tuple(columns.shape)}")

    def __call__(self, state: Tensor) -> Tensor:
        """``-(I - P) g``."""
        return -_outside(self.directions, grad(self.loss)(state))

    def closed_form(self, base: Tensor) -> tuple[Tensor, Tensor]:
        """``-(I - P) g, (I - P) H (I - P) g``."""
        step = _outside(self.directions, grad(self.loss)(base))
        return -step, _outside(self.directions, hessian_product(self.loss, base, step))


def _outside(directions: Tensor, vector: Tensor) -> Tensor:
    """``(I - P) w``."""
    return vector - directions @ (directions.T @ vector)


@dataclass(frozen=True, eq=False)
class TrackedProjection(Field):
    """``v = -(I - P(theta)) g(theta)``: the projector follows the parameters.

    Where the rank of F is d along the path, the utility loss is identically 0: ``F v = 0`` leaves every
    probability where it is.

    Attributes:
        loss: the fine-tuning loss.
        skill: whose sensitive directions are removed.
        rank: d.
    """

    loss: Function
    skill: Skill
    rank: int

    def __call__(self, state: Tensor) -> Tensor:
        """``-(I - P(theta)) g``."""
        return -_outside(self.skill.top_directions(state, self.rank), grad(self.loss)(state))

    def frozen(self, state: Tensor) -> StaticProjection:
        """The static projection with the directions of ``state``."""
        return StaticProjection(self.loss, self.skill.top_directions(state, self.rank))

    def derivatives(self, base: Tensor) -> Derivatives:
        """As of any field; the jerk by central differences, for the projector has no forward-mode derivative."""
        velocity, acceleration = self.closed_form(base)
        if not velocity.any():  # the path stays where it is
            return Derivatives(velocity, torch.zeros_like(base), torch.zeros_like(base))
        step = _JERK_STEP / velocity.norm()
        before, after = (self.closed_form(base + sign * step * velocity)[1] for sign in (-1, 1))
        return Derivatives(velocity, acceleration, (after - before) / (2 * step))

    def closed_form(self, base: Tensor) -> tuple[Tensor, Tensor]:
        """``v`` and ``a = Dv[v] = DP[v] g - (I - P) H v``.

        Raises:
            ValueError: where eigenvalues d and d + 1 of F agree, for the projector has no derivative there.
        """
        g = grad(self.loss)(base)
        static = self.frozen(base)
        velocity = static(base)
        turned = _projector_derivative(self.skill, base, self.rank, velocity, g)
        return velocity, turned - _outside(static.directions, hessian_product(self.loss, base, velocity))


def _moved_factor(skill: Skill, theta: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """R and its derivative along a direction, so that ``DF = R'^T R + R^T R'``."""
    factor, moved = jvp(skill.fisher_factor, (theta,), (direction,))[:2]
    return factor, moved


def _projector_derivative(skill: Skill, theta: Tensor, rank: int, direction: Tensor, vector: Tensor) -> Tensor:
    """``DP(theta)[u] w`` for the top-d projector, by first-order perturbation of ``F = R^T R``.

    ``DP = sum_{k <= d} S_k DF u_k u_k^T + transpose`` with ``S_k = (lambda_k - F)^{-1} (I - P)``; directions outside
    the rows of R have eigenvalue 0.
    """
    factor, moved = _moved_factor(skill, theta, direction)
    _, singular, vh = torch.linalg.svd(factor, full_matrices=False)
    top, rest = vh[:rank], vh[rank:]
    padded = torch.cat([singular.square(), singular.new_zeros(1)])  # beyond the rows of R, eigenvalue 0
    if rank < len(theta) and not padded[rank - 1] - padded[rank] > _NO_GAP * padded[0]:
        raise ValueError(f"the projector of rank {rank} turns abruptly here: the next eigenvalue of F is the same")

    def changed(columns: Tensor) -> Tensor:  # DF applied to columns
        return moved.T @ (factor @ columns) + factor.T @ (moved @ columns)

    gaps = singular[:rank, None].square() - singular[rank:].square()

    def resolvent(columns: Tensor) -> Tensor:  # S_k on column k
        outside = columns - vh.T @ (vh @ columns)
        return outside / singular[:rank].square() + rest.T @ ((rest @ columns) / gaps.T)

    change = changed(top.T)
    return resolvent(change) @ (top @ vector) + top.T @ (resolvent(vector[:, None].expand(-1, rank)) * change).sum(
        dim=0
    )


@dataclass(frozen=True, eq=False)
class TrustRegion(Field):
    """``v = -(I + mu F(theta))^{-1} g``: the step ``min_u g.u + |u|^2/2 + mu u^T F u / 2``, its KL made dear.

    The Lagrangian form of a trust region in the policy (natural gradient with damping 1/mu); it tends to the tracked
    projection on the range of F as mu grows. ``a = -(I + mu F)^{-1} (H v + mu DF[v] v)``.

    Attributes:
        loss: the fine-tuning loss.
        skill: whose policy is to stay.
        strength: mu, at least 0.
    """

    loss: Function
    skill: Skill
    strength: float

    def __post_init__(self) -> None:
        """Validate."""
        if not 0 <= self.strength < math.inf:
            raise ValueError(f"the strength mu must be at least 0 and finite, got {self.strength}")

    def _solve(self, factor: Tensor, vector: Tensor) -> Tensor:
        """``(I + mu R^T R)^{-1} w``, by the r x r system of Woodbury's identity.

        Not by ``torch.linalg.solve``, whose forward-mode derivatives are wrong from the second on.
        """
        small = torch.eye(len(factor), dtype=factor.dtype) + self.strength * factor @ factor.T
        inner = torch.cholesky_solve((factor @ vector)[:, None], torch.linalg.cholesky(small))[:, 0]
        return vector - self.strength * factor.T @ inner

    def __call__(self, state: Tensor) -> Tensor:
        """``-(I + mu F)^{-1} g``."""
        return -self._solve(self.skill.fisher_factor(state), grad(self.loss)(state))

    def closed_form(self, base: Tensor) -> tuple[Tensor, Tensor]:
        """``v`` and ``a``, from differentiating ``(I + mu F) v = -g``."""
        velocity = self(base)
        factor, moved = _moved_factor(self.skill, base, velocity)
        turned = moved.T @ (factor @ velocity) + factor.T @ (moved @ velocity)
        pull = hessian_product(self.loss, base, velocity) + self.strength * turned
        return velocity, -self._solve(factor, pull)
