"""The constant linear map N between the gradient and the update: theta' = -N g(theta).

Gradient descent has N = 1, AdamW with its second moments held fixed N = M (diagonal), and LoRA near its start
N = c^2 (.) A^T A: with W = W_0 + c B A, c = alpha / r and B = 0, the path of gradient descent on (A, B) agrees to
second order with the flow preconditioned by A^T A, because A itself moves at second order only and B A then at third.
The path's velocity is v = -N g and its acceleration a = N H N g = -N (H v), whatever N.

Without its part in the skill's sensitive directions an update has N' = (I - P) N, static: the projector stays that of
the base. P b = S^T C S b with S the scores of N samples at the base and C the small matrix of the top-d eigenvectors
of their gram. P belongs to these N samples: an update orthogonal to their scores still moves other samples of the same
skill, and so in-sample orthogonality overstates how harmless it is.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bridge.estimators.curvature import Direction, times
from bridge.estimators.probe import Probe
from theory.projection_coefficients import SnapshotProjector


class UpdateMap(ABC):
    """N: a map of directions."""

    @abstractmethod
    def apply(self, direction: Direction) -> Direction:
        """N times a direction."""

    @abstractmethod
    def root(self, direction: Direction) -> Direction | None:
        """N^(1/2) times a direction, or None where N is not symmetric."""


class Identity(UpdateMap):
    """Gradient descent."""

    def apply(self, direction: Direction) -> Direction:
        """The direction itself."""
        return direction

    def root(self, direction: Direction) -> Direction:
        """The direction itself."""
        return direction


class Diagonal(UpdateMap):
    """AdamW's M = 1 / (sqrt(E g_b^2) + 1e-8), held fixed."""

    def __init__(self, scale: Direction) -> None:
        """`scale`: the diagonal, by module."""
        self.scale = scale

    def apply(self, direction: Direction) -> Direction:
        """M times the direction."""
        return times(self.scale, direction)

    def root(self, direction: Direction) -> Direction:
        """M^(1/2) times the direction."""
        return {name: self.scale[name].sqrt() * part for name, part in direction.items()}


class LowRank(UpdateMap):
    """LoRA at its start: c^2 G A^T A for a weight stored as (out, in), c^2 A^T A G for one stored as (in, out)."""

    def __init__(self, factors: Mapping[str, Tensor], scale: float, transposed: Mapping[str, bool]) -> None:
        """`factors`: A (r, in) by module, float64; `scale`: c; `transposed`: whether a module stores (in, out)."""
        self.factors, self.scale, self.transposed = factors, scale, transposed

    def apply(self, direction: Direction) -> Direction:
        """N times the direction, through the thin factors."""
        out = {}
        for name, part in direction.items():
            a = self.factors[name].to(part.dtype)
            moved = a.T @ (a @ part) if self.transposed[name] else (part @ a.T) @ a
            out[name] = self.scale**2 * moved
        return out

    def root(self, direction: Direction) -> Direction:
        """c (A^T A)^(1/2), from the singular vectors of A."""
        out = {}
        for name, part in direction.items():
            _, values, right = torch.linalg.svd(self.factors[name], full_matrices=False)
            values, right = values.to(part.dtype), right.to(part.dtype)
            if self.transposed[name]:
                out[name] = self.scale * (right.T @ (values[:, None] * (right @ part)))
            else:
                out[name] = self.scale * (((part @ right.T) * values) @ right)
        return out


@dataclass(frozen=True)
class Removal:
    """I - P. The base's weights must be in place when it is applied.

    probe: the model and the N samples; projector: C.
    """

    probe: Probe
    projector: SnapshotProjector

    def apply(self, direction: Direction) -> Direction:
        """(I - P) b."""
        inner = self.probe.inner(direction.get)[0]
        inside = self.probe.weighted_scores(self.projector.coefficients(inner))
        return {name: part - inside[name].to(part.dtype) for name, part in direction.items()}


class WithoutOverlap(UpdateMap):
    """(I - P) N: the update, after the optimiser, without its part in the skill's directions at the base."""

    def __init__(self, inner: UpdateMap, removal: Removal) -> None:
        """`inner`: the optimiser's own map; `removal`: I - P at the base, whose weights must be in place."""
        self.inner, self.removal = inner, removal

    def apply(self, direction: Direction) -> Direction:
        """(I - P) N times the direction."""
        return self.removal.apply(self.inner.apply(direction))

    def root(self, direction: Direction) -> Direction | None:
        """A projection is its own root; with another N in front the product is not symmetric."""
        return self.removal.apply(direction) if isinstance(self.inner, Identity) else None


def draw_factors(
    weights: Mapping[str, Tensor], transposed: Mapping[str, bool], rank: int, seed: int
) -> dict[str, Tensor]:
    """A (rank, in) of every module in float64, uniform in +-1/sqrt(in) as peft draws it, by its own stream of seeds."""
    out = {}
    for number, (name, weight) in enumerate(weights.items()):
        inputs = weight.shape[0] if transposed[name] else weight.shape[1]
        generator = torch.Generator().manual_seed(1_000_003 * seed + number)
        draw = torch.rand(rank, inputs, generator=generator, dtype=torch.float64)
        out[name] = ((2 * draw - 1) / math.sqrt(inputs)).to(weight.device)
    return out
