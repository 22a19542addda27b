"""Update fields: what a fine-tuning method does to the parameters, as a velocity at every point.

A field moves a state, from which the parameters are read; for all but LoRA the state is the parameters. Velocity
and acceleration of the path theta(t) at the base point come from nested forward-mode differentiation, and from the
closed forms of the subclasses where there are any.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad, jvp

from sim.skills import Function


class Derivatives(NamedTuple):
    """Derivatives of the path theta(t) at 0, each of shape (n,)."""

    velocity: Tensor
    acceleration: Tensor
    jerk: Tensor


class Field(ABC):
    """An autonomous vector field on states."""

    @abstractmethod
    def __call__(self, state: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
        """The velocity of the state; it works under vmap and forward-mode differentiation."""

    def start(self, base: Float[Tensor, " n"]) -> Float[Tensor, " m"]:
        """The state at which the parameters are theta*."""
        return base

    def parameters(self, state: Float[Tensor, " m"]) -> Float[Tensor, " n"]:
        """The parameters that a state stands for."""
        return state

    def frozen(self, state: Float[Tensor, " m"]) -> Field:
        """The field whose projector, if it tracks one, stays that of ``state``."""
        return self

    def derivatives(self, base: Float[Tensor, " n"]) -> Derivatives:
        """Velocity, acceleration and jerk of the path at theta*, each the last one differentiated along the field."""

        def along(function: Function) -> Function:
            return lambda state: jvp(function, (state,), (self(state),))[1]

        velocity = along(self.parameters)
        acceleration = along(velocity)
        state = self.start(base)
        return Derivatives(velocity(state), acceleration(state), along(acceleration)(state))

    def closed_form(self, base: Float[Tensor, " n"]) -> tuple[Tensor, Tensor] | None:
        """Velocity and acceleration at theta* by a formula, or None where there is none."""
        return None


def hessian_product(loss: Function, theta: Tensor, vector: Tensor) -> Tensor:
    """``Hess L(theta) u``, forward over reverse."""
    return jvp(grad(loss), (theta,), (vector,))[1]


@dataclass(frozen=True, eq=False)
class GradientFlow(Field):
    """``v = -g``, ``a = H g`` (section 5.1)."""

    loss: Function

    def __call__(self, state: Tensor) -> Tensor:
        """``-g``."""
        return -grad(self.loss)(state)

    def closed_form(self, base: Tensor) -> tuple[Tensor, Tensor]:
        """``-g, H g``."""
        g = grad(self.loss)(base)
        return -g, hessian_product(self.loss, base, g)


@dataclass(frozen=True, eq=False)
class Preconditioned(Field):
    """``v = -M g`` with a constant M (a diagonal as a vector, or a matrix), ``a = M H M g``."""

    loss: Function
    preconditioner: Tensor

    def __post_init__(self) -> None:
        """Validate."""
        shape = tuple(self.preconditioner.shape)
        if len(shape) != 1 and not (len(shape) == 2 and shape[0] == shape[1]):
            raise ValueError(f"the preconditioner must be a vector or a square matrix, got shape {shape}")

    def _apply(self, vector: Tensor) -> Tensor:
        m = self.preconditioner
        return m * vector if m.ndim == 1 else m @ vector

    def __call__(self, state: Tensor) -> Tensor:
        """``-M g``."""
        return -self._apply(grad(self.loss)(state))

    def closed_form(self, base: Tensor) -> tuple[Tensor, Tensor]:
        """``-M g, M H M g``."""
        step = self._apply(grad(self.loss)(base))
        return -step, self._apply(hessian_product(self.loss, base, step))


@dataclass(frozen=True, eq=False)
class WeightDecay(Field):
    """``v = -(g + c theta)``: gradient flow of ``L + c |theta|^2 / 2``, ``a = (H + c)(g + c theta)``."""

    loss: Function
    decay: float

    def __call__(self, state: Tensor) -> Tensor:
        """``-(g + c theta)``."""
        return -grad(self.loss)(state) - self.decay * state

    def closed_form(self, base: Tensor) -> tuple[Tensor, Tensor]:
        """``-u, H u + c u`` with ``u = g + c theta``."""
        u = grad(self.loss)(base) + self.decay * base
        return -u, hessian_product(self.loss, base, u) + self.decay * u


@dataclass(frozen=True, eq=False)
class SignDescent(Field):
    """``v = -g / (|g| + epsilon)`` in each coordinate: the first step of Adam, and signSGD as epsilon -> 0."""

    loss: Function
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        """Validate."""
        if not self.epsilon >= 0:
            raise ValueError(f"epsilon must be at least 0, got {self.epsilon}")

    def __call__(self, state: Tensor) -> Tensor:
        """``-g / (|g| + epsilon)``."""
        g = grad(self.loss)(state)
        return -g / (g.abs() + self.epsilon)

    def closed_form(self, base: Tensor) -> tuple[Tensor, Tensor]:
        """``v``, and ``a = -e (H v) / (|g| + e)^2``, which vanishes with e where ``g != 0``."""
        g = grad(self.loss)(base)
        size = g.abs() + self.epsilon
        return -g / size, -self.epsilon * hessian_product(self.loss, base, -g / size) / size.square()


@dataclass(frozen=True, eq=False)
class LowRank(Field):
    """LoRA: ``W = W0 + c B A`` with ``B(0) = 0``, gradient flow on the factors.

    The state is A (r, q) and B (p, r), flattened and joined; the parameters are W (p, q), flattened. With
    ``Pi = A0^T A0`` and ``G`` the gradient in W: ``W'(0) = -c^2 G Pi``, ``W''(0) = c^4 Hess[G Pi] Pi``.

    Attributes:
        loss: of the flattened W.
        base: flattened W0.
        first: A0, shape (r, q).
        scaling: c = alpha / r.

    Raises:
        ValueError: if A0 is no matrix whose columns are those of a W0.
    """

    loss: Function
    base: Tensor
    first: Tensor
    scaling: float = 1.0

    def __post_init__(self) -> None:
        """Validate."""
        if self.first.ndim != 2 or len(self.base) % self.first.shape[1]:
            shape = tuple(self.first.shape)
            raise ValueError(f"expected A0 of shape (r, q) with q dividing {len(self.base)}, got {shape}")

    def __call__(self, state: Tensor) -> Tensor:
        """Minus the gradient in the factors."""
        return -grad(lambda s: self.loss(self.parameters(s)))(state)

    def start(self, base: Tensor) -> Tensor:
        """A0 and zeros, for the one base point that the field knows.

        Raises:
            ValueError: for another base point.
        """
        if not torch.equal(base, self.base):
            raise ValueError("a LoRA field starts from its own W0 only, got another base point")
        rows = len(self.base) // self.first.shape[1]
        zeros = torch.zeros(rows * len(self.first), dtype=self.base.dtype)
        return torch.cat([self.first.flatten(), zeros])

    def parameters(self, state: Tensor) -> Tensor:
        """``W0 + c B A``, flattened."""
        rank, columns = self.first.shape
        a = state[: rank * columns].reshape(rank, columns)
        b = state[rank * columns :].reshape(-1, rank)
        return self.base + self.scaling * (b @ a).flatten()

    def closed_form(self, base: Tensor) -> tuple[Tensor, Tensor]:
        """``-c^2 G Pi, c^4 Hess[G Pi] Pi``."""

        def projected(vector: Tensor) -> Tensor:
            matrix = vector.reshape(-1, self.first.shape[1])
            return self.scaling**2 * (matrix @ self.first.T @ self.first).flatten()

        step = projected(grad(self.loss)(self.base))
        return -step, projected(hessian_product(self.loss, self.base, step))
