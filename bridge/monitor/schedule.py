"""When a monitor measures: so often that it costs a share of the training's time and no more."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

_POINTS, _LONGEST = 8, 50
_FIRST_COST = 10.0  # of the subspaces, in measurements of the loss, until seen (SmolLM2: 11.6, with the base's)


def default_interval(max_steps: int) -> int:
    """Steps between two measurements of the utility loss: eight or more in a training, and one in 50 steps at least."""
    return max(1, min(_LONGEST, math.ceil(max_steps / _POINTS)))


@dataclass
class Clock:
    """Seconds of the monitor's own and of the training without them, over all sessions of a run."""

    own: float = 0.0
    training: float = 0.0
    _mark: float | None = None

    @contextmanager
    def stopped(self, device: torch.device) -> Iterator[None]:
        """What happens inside is the monitor's; what happened since the last time was the training's."""
        began = _now(device)
        if self._mark is not None:
            self.training += began - self._mark
        try:
            yield
        finally:
            self._mark = _now(device)
            self.own += self._mark - began

    @property
    def overhead(self) -> float | None:
        """Own seconds for each second of the training; None before its first step."""
        return self.own / self.training if self.training > 0 else None


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # what was asked for before belongs to what came before
    return time.monotonic()


@dataclass
class Schedule:
    """The steps at which the utility loss is measured, and those of them at which the subspaces are.

    every: steps between two measurements of the utility loss; the last step is always one. subspaces_every: steps
    between two of the subspaces, rounded up to one of those; 0 for none; None for as many, evenly spread, as keep the
    monitor's own seconds within `max_overhead` of the training's.
    """

    max_steps: int
    every: int
    subspaces_every: int | None
    max_overhead: float
    loss_seconds: list[float] = field(default_factory=list)
    subspaces_seconds: list[float] = field(default_factory=list)
    subspaces_done: int = 0
    last_subspaces: int = 0

    def measures(self, step: int) -> bool:
        """Whether the utility loss is measured after a step."""
        return step % self.every == 0 or step == self.max_steps

    def measures_subspaces(self, step: int, done: int, clock: Clock) -> bool:
        """Whether the subspaces are measured, too; asked before the step, `done` steps after the clock began."""
        if not self.measures(step) or self.subspaces_every == 0:
            return False
        if self.subspaces_every is not None:
            return step // self.subspaces_every > self.last_subspaces // self.subspaces_every or step == self.max_steps
        affordable = self.subspaces_done + self._affordable(step, done, clock)
        return affordable > self.subspaces_done and step * affordable >= (self.subspaces_done + 1) * self.max_steps

    def _affordable(self, step: int, done: int, clock: Clock) -> int:
        """Number of further measurements of the subspaces that fit into what is allowed for the training."""
        if done == 0 or clock.training <= 0 or not self.loss_seconds:
            return 0
        whole = clock.training / done * self.max_steps
        loss = _mean(self.loss_seconds)
        left = math.ceil((self.max_steps - step + 1) / self.every) * loss
        cost = _mean(self.subspaces_seconds) if self.subspaces_seconds else _FIRST_COST * loss
        return max(0, int((self.max_overhead * whole - clock.own - left) / max(cost, 1e-9)))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def remaining_learning_rate(scheduler: object, done: int, max_steps: int) -> float | None:
    """Sum of the learning rates of the steps that are still to come, of the first group of parameters.

    For schedules that are functions of the step (torch's LambdaLR: linear, cosine, constant and the like of
    transformers); None for others.
    """
    inner = getattr(scheduler, "scheduler", scheduler)  # accelerate wraps it
    if not isinstance(inner, torch.optim.lr_scheduler.LambdaLR):
        return None
    base, factor = inner.base_lrs[0], inner.lr_lambdas[0]
    return math.fsum(float(base * factor(step)) for step in range(done, max_steps))
