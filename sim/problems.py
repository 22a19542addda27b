"""A skill, a base point and a fine-tuning loss together: what the commands run on."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from commands.errors import UserError
from sim import losses
from sim.networks import TrainedNetwork, trained_perceptron, trained_transformer
from sim.skills import Function, GaussianSkill, Skill, SoftmaxSkill, random_softmax

_TAIL_GRADIENT = 0.5  # of the dialled loss along the tail direction, beside 1 along the main one


@dataclass(frozen=True, eq=False)
class Problem:
    """What moves, and on what.

    Attributes:
        skill: the skill, with its base point.
        loss: the fine-tuning loss.
        rank: d.
        note: what the case is, in one line.
    """

    skill: Skill
    loss: Function
    rank: int
    note: str


@dataclass(frozen=True)
class Dials:
    """The dialled problem in n dimensions.

    In orthonormal coordinates x, y, z (and n - 3 more that nothing depends on), turned at random in R^n: skill
    ``N((x + beta y^2/2, sqrt(tail/lambda) z), 1/lambda)``, loss ``-y + b x y + epsilon x - c z`` with
    ``b = gamma / sqrt(lambda)`` and c = 1/2 if there is a tail. Then ``F = diag(lambda, 0, tail)``, the overlap is
    epsilon, the coupling gamma, the leak ``sqrt(lambda epsilon^2 + tail c^2)``, and without a leak the onset
    coefficient is ``|gamma - sqrt(lambda) beta|``.

    Attributes:
        sharpness: lambda.
        overlap: epsilon.
        coupling: gamma.
        curvature: beta, of the model.
        tail: the eigenvalue after the first.
        dimension: n.
    """

    sharpness: float = 4.0
    overlap: float = 0.0
    coupling: float = 3.0
    curvature: float = 0.0
    tail: float = 0.0
    dimension: int = 12

    def check(self) -> None:
        """Raise UserError, naming the dial, unless a problem has these dials."""
        for field in fields(self):
            if not abs(getattr(self, field.name)) < 1e100:
                raise UserError(f"--{field.name} must be a finite number, got {getattr(self, field.name)}")
        if self.sharpness <= 0:
            raise UserError(f"--sharpness (lambda) must be positive, got {self.sharpness}")
        for name in ("overlap", "coupling", "tail"):
            if getattr(self, name) < 0:
                raise UserError(f"--{name} must be at least 0, got {getattr(self, name)}")
        if self.tail >= self.sharpness:
            raise UserError(f"--tail must be below --sharpness, {self.sharpness}, got {self.tail}")
        if self.dimension < 3:
            raise UserError(f"--dimension must be at least 3, got {self.dimension}")


def dialled(dials: Dials, seed: int, note: str) -> Problem:
    """The problem with these dials.

    Raises:
        UserError: for impossible dials.
    """
    dials.check()
    rng = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(dials.dimension, 3, generator=rng, dtype=torch.float64)).Q.T  # (3, n)
    base = torch.randn(dials.dimension, generator=rng, dtype=torch.float64)
    b = dials.coupling / dials.sharpness**0.5
    c = _TAIL_GRADIENT if dials.tail > 0 else 0.0
    tail = (dials.tail / dials.sharpness) ** 0.5

    def mean(theta: Tensor) -> Tensor:
        x, y, z = turn @ (theta - base)
        return torch.stack([x + dials.curvature * y * y / 2, tail * z])

    def loss(theta: Tensor) -> Tensor:
        x, y, z = turn @ (theta - base)
        return -y + b * x * y + dials.overlap * x - c * z

    return Problem(GaussianSkill(mean, dials.sharpness, base), loss, 1, note)


def radius_skill(sharpness: float = 1.0) -> GaussianSkill:
    """``N(|theta|, 1/lambda)`` at (1, 0)."""
    base = torch.tensor([1.0, 0.0], dtype=torch.float64)
    return GaussianSkill(lambda theta: theta.norm()[None], sharpness, base)


def circle(sharpness: float = 1.0) -> Problem:
    """The counterexample to Corollary 6.3: the flow stays on the level set of the skill."""
    return Problem(radius_skill(sharpness), losses.minus_angle, 1, "skill N(|theta|, 1/lambda), loss minus the angle")


def softmax(dimension: int, prompts: int, outcomes: int, kernel: int, seed: int, rank: int | None = None) -> Problem:
    """A random softmax skill and a random smooth loss with ``F g = 0``, if the kernel is not 0.

    Raises:
        ValueError: if a size is impossible.
        UserError: if the rank is.
    """
    skill = random_softmax(dimension, prompts, outcomes, kernel, seed)
    full = fisher_rank(skill)
    if rank is not None and not 1 <= rank <= full:
        raise UserError(f"--rank must lie in 1..{full}, the rank of this skill's Fisher matrix, got {rank}")
    loss = losses.random_smooth(skill.base, kernel, seed + 1)
    return Problem(skill, loss, rank or full, f"{prompts} prompts, {outcomes} outcomes, {dimension} parameters")


def fisher_rank(skill: SoftmaxSkill) -> int:
    """The rank of the Fisher matrix at the base point, at most X (K - 1)."""
    return int(torch.linalg.matrix_rank(skill.fisher_factor(skill.base)))


def perceptron(seed: int, overlap: float = 0.0) -> Problem:
    """A trained classifier under the loss of a second task, whose gradient is given the overlap asked for."""
    return _network(trained_perceptron(seed), overlap, "MLP classifier")


def transformer(seed: int, overlap: float = 0.0) -> Problem:
    """A trained transformer under the loss of a second task, whose gradient is given the overlap asked for."""
    return _network(trained_transformer(seed), overlap, "causal transformer")


def _network(trained: TrainedNetwork, overlap: float, name: str) -> Problem:
    rank = fisher_rank(trained.skill)
    loss = losses.with_overlap(trained.loss, trained.skill, rank, overlap)
    return Problem(
        trained.skill, loss, rank, f"{name}, {trained.skill.dimension:,} parameters, fine-tuned on a second task"
    )
