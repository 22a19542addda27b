"""Skills with an exact Fisher matrix, differentiable by torch.func.

A skill is a policy ``pi_theta(y | x)`` and a base point ``theta*``; its data are drawn from the base policy itself,
so that Assumption 1 of "The Geometry of Alignment Collapse" holds exactly. The outcomes are enumerated (for a
Gaussian policy, by quadrature nodes), with their probabilities at the base point, and every expectation is a
weighted sum. Subclasses say what the log-probabilities are and how the Fisher matrix factors; scores, statistics,
projectors and derivatives along a path are derived from that, here, once.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import jacrev, jvp, vmap

from theory import onset
from theory.statistics import ScoreStatistics

Function = Callable[[Tensor], Tensor]

_MOST_OUTPUTS = 4  # of a Gaussian mean: 3^4 nodes


class Skill(ABC):
    """A policy around its base point; N enumerated outcomes, n parameters.

    Attributes:
        base: theta*, shape (n,), float64.
    """

    base: Tensor

    @property
    @abstractmethod
    def weights(self) -> Float[Tensor, " N"]:
        """Probabilities of the outcomes under the base policy."""

    @abstractmethod
    def log_probabilities(self, theta: Float[Tensor, " n"]) -> Float[Tensor, " N"]:
        """Log-probabilities of the enumerated outcomes, up to a constant in theta."""

    @abstractmethod
    def fisher_factor(self, theta: Float[Tensor, " n"]) -> Float[Tensor, "r n"]:
        """R with ``F(theta) = R^T R``, the Fisher matrix of the policy at theta itself."""

    @abstractmethod
    def utility_losses(self, thetas: Float[Tensor, "T n"]) -> Float[np.ndarray, " T"]:
        """``KL(pi_base || pi_theta)`` at T points, in its stable form."""

    @abstractmethod
    def coordinates(self, theta: Float[Tensor, " n"]) -> Float[Tensor, " r"]:
        """Functions c, zero at the base point, with ``utility loss = E[c^2]/2`` up to the distortion."""

    @property
    @abstractmethod
    def coordinate_weights(self) -> Float[Tensor, " r"]:
        """The weights of E over the coordinates."""

    @abstractmethod
    def distortion(self, coordinates: Float[Tensor, "T r"]) -> tuple[Float[np.ndarray, " T"], Float[np.ndarray, " T"]]:
        """D and D2 of the finite-time law: ``sqrt(1 - D/3) <= sqrt(2 utility loss / E[c^2]) <= e^{D2/2}``."""

    @property
    def dimension(self) -> int:
        """n."""
        return len(self.base)

    def scores(self) -> Float[Tensor, "N n"]:
        """Gradients of the log-probabilities at the base point."""
        return jacrev(self.log_probabilities)(self.base)

    def fisher(self, theta: Float[Tensor, " n"]) -> Float[Tensor, "n n"]:
        """The Fisher matrix at theta, for small n."""
        factor = self.fisher_factor(theta)
        return factor.T @ factor

    def top_directions(self, theta: Float[Tensor, " n"], rank: int) -> Float[Tensor, "n d"]:
        """Orthonormal top-d eigenvectors of ``F(theta)``, as columns.

        Raises:
            ValueError: if the factor has fewer than d rows or columns.
        """
        factor = self.fisher_factor(theta)
        if not 1 <= rank <= min(factor.shape):
            raise ValueError(f"the rank must lie in 1..{min(factor.shape)} for this skill, got {rank}")
        return torch.linalg.svd(factor, full_matrices=False).Vh[:rank].T

    def statistics(self, velocity: Float[Tensor, " n"], acceleration: Float[Tensor, " n"]) -> ScoreStatistics:
        """Score statistics along a path with this velocity and acceleration."""
        curvature = path_derivatives(self.log_probabilities, self.base, velocity)[1]
        return ScoreStatistics.from_scores(
            self.scores().numpy(),
            velocity.numpy(),
            acceleration.numpy(),
            fisher="exact",
            curvature=curvature.numpy(),
            weights=self.weights.numpy(),
        )

    def fifth(self, velocity: Tensor, acceleration: Tensor, jerk: Tensor) -> float:
        """``E[l'' l''']``, 12 times the t^5 coefficient of the utility loss of a path without leak."""
        _, second, third = path_derivatives(self.log_probabilities, self.base, velocity, acceleration, jerk)
        return float((self.weights * second * third).sum())


def path_derivatives(
    function: Function, base: Tensor, velocity: Tensor, acceleration: Tensor | None = None, jerk: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """First three derivatives of ``function(base + t v + t^2/2 a + t^3/6 j)`` at t = 0, by nested forward mode."""
    zero = torch.zeros_like(base)
    a, j = (zero if x is None else x for x in (acceleration, jerk))

    def value(t: Tensor) -> Tensor:
        return function(base + t * (velocity + t * (a / 2 + t * j / 6)))

    def derivative(of: Function) -> Function:
        return lambda t: jvp(of, (t,), (torch.ones_like(t),))[1]

    start = torch.zeros((), dtype=base.dtype)
    first = derivative(value)
    second = derivative(first)
    return first(start), second(start), derivative(second)(start)


def _check_base(base: Tensor) -> None:
    if base.ndim != 1 or base.dtype != torch.float64:
        raise ValueError(f"the base point must be a float64 vector, got {base.dtype} of shape {tuple(base.shape)}")


@dataclass(frozen=True, eq=False)
class SoftmaxSkill(Skill):
    """Several prompts, K outcomes each, probabilities by softmax of the logits.

    Attributes:
        logits: theta to the logits, shape (X, K).
        prompts: probabilities of the prompts, shape (X,).
        base: theta*.

    Raises:
        ValueError: if the base point is no float64 vector, the prompts' probabilities do not sum to 1, or the
            logits have another shape.
    """

    logits: Function
    prompts: Tensor
    base: Tensor

    def __post_init__(self) -> None:
        """Validate."""
        _check_base(self.base)
        if self.prompts.ndim != 1 or not (self.prompts >= 0).all() or not abs(float(self.prompts.sum()) - 1) <= 1e-9:
            raise ValueError(f"the prompts need probabilities that sum to 1, got {self.prompts.tolist()}")
        shape = tuple(self.logits(self.base).shape)
        if len(shape) != 2 or shape[0] != len(self.prompts):
            raise ValueError(f"expected logits of shape ({len(self.prompts)}, K), one row a prompt, got {shape}")

    @cached_property
    def _base_log_probabilities(self) -> Tensor:
        return self.log_probabilities(self.base)

    @property
    def weights(self) -> Tensor:
        """Shape (X K,)."""
        return self._weights(self._base_log_probabilities)

    def _weights(self, log_probabilities: Tensor) -> Tensor:
        return (self.prompts[:, None] * log_probabilities.reshape(len(self.prompts), -1).exp()).flatten()

    def log_probabilities(self, theta: Tensor) -> Tensor:
        """Shape (X K,)."""
        return torch.log_softmax(self.logits(theta), dim=-1).flatten()

    def fisher_factor(self, theta: Tensor) -> Tensor:
        """Scores times the square roots of the probabilities, shape (X K, n)."""
        weights = self._weights(self.log_probabilities(theta))
        return weights.sqrt()[:, None] * jacrev(self.log_probabilities)(theta)

    def coordinates(self, theta: Tensor) -> Tensor:
        """Changes of the log-probabilities, shape (X K,)."""
        return self.log_probabilities(theta) - self._base_log_probabilities

    @property
    def coordinate_weights(self) -> Tensor:
        """Those of the outcomes."""
        return self.weights

    def distortion(self, coordinates: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """The largest drop and the largest rise of a log-probability."""
        return (-coordinates).amax(dim=1).clamp(min=0).numpy(), coordinates.amax(dim=1).clamp(min=0).numpy()

    def utility_losses(self, thetas: Tensor) -> np.ndarray:
        """Shape (T,)."""
        changes = vmap(self.coordinates, chunk_size=1024)(thetas).numpy()
        weights = self.weights.numpy()
        return np.array([onset.utility_loss(change, weights) for change in changes])


@dataclass(frozen=True, eq=False)
class GaussianSkill(Skill):
    """``N(m(theta), I / precision)`` with a smooth mean of k <= 4 outputs: utility loss in closed form.

    The outcomes are the nodes of a tensor Gauss-Hermite rule with three nodes, which is exact for the moments of
    l' and l'' up to the fifth in each output.

    Attributes:
        mean: theta to m, shape (k,).
        precision: the inverse variance.
        base: theta*.

    Raises:
        ValueError: if the base point is no float64 vector, the precision is not positive, or the mean has not 1 to 4
            outputs.
    """

    mean: Function
    precision: float
    base: Tensor

    def __post_init__(self) -> None:
        """Validate."""
        _check_base(self.base)
        if not 0 < self.precision < math.inf:
            raise ValueError(f"the precision must be positive and finite, got {self.precision}")
        shape = tuple(self.mean(self.base).shape)
        if len(shape) != 1 or not 1 <= shape[0] <= _MOST_OUTPUTS:
            raise ValueError(f"the mean must be a vector of 1 to {_MOST_OUTPUTS} outputs, got shape {shape}")

    @cached_property
    def _outputs(self) -> int:
        return len(self.mean(self.base))

    @property
    def weights(self) -> Tensor:
        """Shape (3^k,)."""
        rule = itertools.product((1 / 6, 2 / 3, 1 / 6), repeat=self._outputs)
        return torch.tensor([float(np.prod(w)) for w in rule], dtype=self.base.dtype)

    @cached_property
    def _nodes(self) -> Tensor:
        """Outcomes y, shape (3^k, k)."""
        root = 3**0.5
        noise = torch.tensor(list(itertools.product((-root, 0.0, root), repeat=self._outputs)), dtype=self.base.dtype)
        return self.mean(self.base) + noise / self.precision**0.5

    def log_probabilities(self, theta: Tensor) -> Tensor:
        """``-precision |y - m|^2 / 2`` at the nodes, shape (3^k,)."""
        return -self.precision / 2 * (self._nodes - self.mean(theta)).square().sum(dim=1)

    def fisher_factor(self, theta: Tensor) -> Tensor:
        """``sqrt(precision) Dm``, shape (k, n)."""
        return self.precision**0.5 * jacrev(self.mean)(theta)

    def coordinates(self, theta: Tensor) -> Tensor:
        """``sqrt(precision) (m - m*)``, shape (k,)."""
        return self.precision**0.5 * (self.mean(theta) - self.mean(self.base))

    @property
    def coordinate_weights(self) -> Tensor:
        """Ones: E is the sum over the outputs."""
        return torch.ones(self._outputs, dtype=self.base.dtype)

    def distortion(self, coordinates: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """None: the loss is exactly ``|c|^2 / 2``."""
        return np.zeros(len(coordinates)), np.zeros(len(coordinates))

    def utility_losses(self, thetas: Tensor) -> np.ndarray:
        """``|c|^2 / 2``, shape (T,)."""
        return (vmap(self.coordinates)(thetas).square().sum(dim=1) / 2).numpy()


@dataclass(frozen=True, eq=False)
class Polynomial:
    """``A D + Q[D, D]/2 + C[D, D, D]/6`` with ``D = theta - base``, any output shape.

    Attributes:
        base: theta*, shape (n,).
        linear: A, shape (..., n).
        quadratic: Q, shape (..., n, n), symmetric.
        cubic: C, shape (..., n, n, n), symmetric, or None.
    """

    base: Tensor
    linear: Tensor
    quadratic: Tensor
    cubic: Tensor | None = None

    def __call__(self, theta: Tensor) -> Tensor:
        """The value at theta."""
        d = theta - self.base
        quadratic = self.quadratic if self.cubic is None else self.quadratic + self.cubic @ d / 3
        return (self.linear + quadratic @ d / 2) @ d


def random_softmax(
    dimension: int, prompts: int, outcomes: int, kernel: int, seed: int, scale: float = 1.0
) -> SoftmaxSkill:
    """A softmax skill with random polynomial logits; F vanishes on the last ``kernel`` coordinates.

    Its base point is the origin. ``scale`` multiplies what theta adds to the logits.

    Raises:
        ValueError: if a count is not positive or the kernel does not fit.
    """
    if min(dimension, prompts) < 1 or outcomes < 2 or not 0 <= kernel < dimension:
        raise ValueError(
            f"expected dimension and prompts from 1, outcomes from 2 and a kernel in 0..{dimension - 1}, got "
            f"{dimension}, {prompts}, {outcomes} and {kernel}"
        )
    rng = torch.Generator().manual_seed(seed)
    shape = (prompts, outcomes, dimension)
    linear = torch.randn(shape, generator=rng, dtype=torch.float64) * scale / dimension**0.5
    linear[..., dimension - kernel :] = 0
    square = torch.randn((*shape, dimension), generator=rng, dtype=torch.float64) * scale / dimension
    base = torch.zeros(dimension, dtype=torch.float64)
    offsets = torch.randn((prompts, outcomes), generator=rng, dtype=torch.float64)
    polynomial = Polynomial(base, linear, (square + square.transpose(-1, -2)) / 2)
    weights = torch.rand(prompts, generator=rng, dtype=torch.float64) + 0.5
    return SoftmaxSkill(lambda theta: offsets + polynomial(theta), weights / weights.sum(), base)
