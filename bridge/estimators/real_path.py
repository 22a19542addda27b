"""Small real steps of gradient descent from a model's weights, and what a change at the rounding level does.

The position is kept in float64 (the displacement from the base, or LoRA's factors), and the model is evaluated at
the base plus the displacement, rounded once to its dtype. In float32 itself a step of a small learning rate is near
or below the spacing of the weights, and its rounding would add up over the steps; a float64 model would need no such
care but costs twice the time. The base is put back from a copy, never by subtraction: theta + h - h is not theta.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from bridge.estimators import curvature
from bridge.estimators.batches import Batch, log_probabilities, response_logits
from bridge.estimators.checkpoints import Accumulator
from bridge.estimators.curvature import Direction
from bridge.estimators.theta import Subject, differentiable
from bridge.estimators.update_maps import LowRank, UpdateMap
from commands.errors import UserError

MOVES_PER_ULP = 1 / 12
"""Share of the weights that one spacing up or down moves with the variance of rounding, spacing^2 / 12."""


class RealPath(ABC):
    """Gradient descent with a loss that is the mean over all response tokens of the batches.

    After every call the base's weights are in place, but for `place`.
    """

    def __init__(self, subject: Subject, batches: Sequence[Batch], path: Path) -> None:
        """`batches`: the fine-tuning rows; `path`: the checkpoint of the position."""
        self.subject, self.batches = subject, batches
        self.base = {name: weight.detach().clone() for name, weight in subject.weights.items()}
        self._tokens = sum(batch.num_tokens for batch in batches)
        self._sums = Accumulator(path, self._start, subject.device)

    @property
    def done(self) -> int:
        """Steps done so far."""
        return self._sums.done

    @abstractmethod
    def _start(self) -> dict[str, Direction]:
        """The position at the base."""

    @abstractmethod
    def _displacement(self, name: str) -> Tensor:
        """theta - base of one module, float64."""

    @abstractmethod
    def _move(self, gradient: Direction, rate: float) -> None:
        """One step; the base's weights are in place."""

    def walk(self, rates: Sequence[float], count: int, tick: Callable[[], None]) -> None:
        """Take the steps not yet done among the first `count`; the position is saved at the end, and now and then.

        Raises:
            UserError: if the loss or the gradient is not finite.

        """

        def body(step: int) -> float:
            self.place()
            try:
                gradient = self._gradient()
            finally:
                self.restore()
            self._move(gradient, rates[step])
            return 0.0

        self._sums.run(count, body, tick)

    @torch.no_grad()
    def place(self) -> None:
        """Set the model's weights to the current position."""
        for name, weight in self.subject.weights.items():
            weight.copy_(self.base[name].double() + self._displacement(name))

    @torch.no_grad()
    def restore(self) -> None:
        """Put the base's own bits back."""
        for name, weight in self.subject.weights.items():
            weight.copy_(self.base[name])

    @torch.no_grad()
    def loss(self) -> float:
        """The fine-tuning loss at the current position."""
        self.place()
        try:
            total = sum(
                float(-log_probabilities(response_logits(self.subject.model, batch), batch).double().sum())
                for batch in self.batches
            )
        finally:
            self.restore()
        return total / self._tokens

    @torch.no_grad()
    def distance(self) -> float:
        """Euclidean norm of the displacement."""
        squares = [curvature.inner_product(d, d) for d in map(self._displacement, self.base)]
        return float(sum(squares)) ** 0.5

    def _gradient(self) -> Direction:
        weights = self.subject.weights
        total = curvature.zeros_like(weights)
        with differentiable(self.subject):
            for batch in self.batches:
                curvature.add_gradient(total, self.subject.model, weights, batch)
        for name, part in total.items():
            part /= self._tokens
            if not torch.isfinite(part).all():
                raise UserError(
                    f"the gradient became inf or nan in {name} at step {self.done + 1}: lower --learning-rate or --at"
                )
        return total


class FullPath(RealPath):
    """theta <- theta - eta N g(theta), every selected weight moving."""

    def __init__(self, subject: Subject, batches: Sequence[Batch], path: Path, update: UpdateMap) -> None:
        """`update`: N."""
        self.update = update
        super().__init__(subject, batches, path)

    def _start(self) -> dict[str, Direction]:
        return {"displacement": {name: torch.zeros_like(w, dtype=torch.float64) for name, w in self.base.items()}}

    def _displacement(self, name: str) -> Tensor:
        return self._sums.sums["displacement"][name]

    def _move(self, gradient: Direction, rate: float) -> None:
        for name, part in self.update.apply(gradient).items():
            self._sums.sums["displacement"][name].add_(part.double(), alpha=-rate)


class LoraPath(RealPath):
    """Gradient descent on LoRA's factors, W = W_0 + c B A from B = 0 (the roles swap for weights stored (in, out))."""

    def __init__(self, subject: Subject, batches: Sequence[Batch], path: Path, start: LowRank) -> None:
        """`start`: A at the start, and c."""
        self.start = start
        super().__init__(subject, batches, path)

    def _start(self) -> dict[str, Direction]:
        a = {name: factor.clone() for name, factor in self.start.factors.items()}
        b = {}
        for name, weight in self.base.items():
            outputs = weight.shape[1] if self.start.transposed[name] else weight.shape[0]
            b[name] = torch.zeros(outputs, len(a[name]), dtype=torch.float64, device=weight.device)
        return {"a": a, "b": b}

    def _displacement(self, name: str) -> Tensor:
        product = self.start.scale * (self._sums.sums["b"][name] @ self._sums.sums["a"][name])
        return product.T if self.start.transposed[name] else product

    def _move(self, gradient: Direction, rate: float) -> None:
        for name, part in gradient.items():
            g = (part.T if self.start.transposed[name] else part).double()
            a, b = self._sums.sums["a"][name], self._sums.sums["b"][name]
            along_a, along_b = b.T @ g, g @ a.T
            a.add_(along_a, alpha=-rate * self.start.scale)
            b.add_(along_b, alpha=-rate * self.start.scale)


def rounding_move(weights: Mapping[str, Tensor], base: Mapping[str, Tensor], seed: int) -> None:
    """Move one weight in twelve to a neighbouring number of its dtype, up or down at random.

    That is the variance of rounding the weights once (spacing^2 / 12), and what a displacement of the path does to
    them besides its own.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in weights.items():
            draw = torch.rand(weight.shape, generator=generator).to(weight.device)
            ends = torch.where(draw < MOVES_PER_ULP / 2, -torch.inf, torch.inf).to(weight.dtype)
            weight.copy_(torch.where(draw < MOVES_PER_ULP, torch.nextafter(base[name], ends), base[name]))
