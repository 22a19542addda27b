"""The start of the update path: velocity and acceleration of a planned fine-tune, exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from bridge.data.samples import Sample
from bridge.estimators import curvature
from bridge.estimators.batches import make_batches
from bridge.estimators.checkpoints import Accumulator, in_order, load_directions, save_directions
from bridge.estimators.curvature import Direction
from bridge.estimators.theta import Subject, differentiable
from commands.errors import UserError
from commands.progress import Progress
from commands.store import Checkpoints

Optimizer = Literal["sgd", "adamw"]


_HESSIAN_TOKENS = 96  # in a batch of the Hessian-vector product, for each row of --batch-size


@dataclass(frozen=True)
class Update:
    """The start of the update path: theta(t) = theta + t v + t^2/2 a, t = learning rate x steps."""

    velocity: Direction
    acceleration: Direction
    gradient_squared: dict[str, float]  # |g|^2 by module; |v|^2 = |g|^2 under gradient flow
    loss: float  # the fine-tuning loss at theta, mean over response tokens

    def inner(self, name: str, left: str, right: str) -> float:
        """Inner product of one module's parts of two directions ("velocity", "acceleration")."""
        return curvature.inner_product(getattr(self, left)[name], getattr(self, right)[name])


@dataclass(frozen=True)
class Start:
    """What the gradient alone says of the update path."""

    velocity: Direction
    preconditioner: Direction | None  # Adam's diagonal M, or None for the identity
    gradient_squared: dict[str, float]  # |g|^2 by module
    loss: float  # the fine-tuning loss at theta, mean over response tokens


def measure_update(
    subject: Subject,
    samples: Sequence[Sample],
    optimizer: Optimizer,
    adam_batch_size: int,
    folder: Checkpoints,
    progress: Progress,
) -> Update:
    """Velocity and acceleration of a fine-tune on the samples.

    Args:
        subject: the model and its modules.
        samples: the fine-tuning rows, tokenised.
        optimizer: "sgd" (v = -g, a = H g) or "adamw" (v = -M g, a = M H M g with Adam's diagonal M held fixed).
        adam_batch_size: rows in one of the optimiser's batches, whose gradients' squares make M.
        folder: the run's folder.
        progress: where to show the stages.

    """
    start = measure_velocity(subject, samples, optimizer, adam_batch_size, folder, progress)
    product = hessian_product(subject, samples, start.velocity, folder, progress)
    acceleration = curvature.times(-1.0, product)
    if start.preconditioner is not None:
        acceleration = curvature.times(start.preconditioner, acceleration)
    acceleration = in_order(acceleration, list(subject.modules))
    require_finite("acceleration", acceleration)
    return Update(start.velocity, acceleration, start.gradient_squared, start.loss)


def require_finite(what: str, direction: Direction) -> None:
    """Raise UserError, naming the module, unless a direction is finite."""
    for name, part in direction.items():
        if not torch.isfinite(part).all():
            raise UserError(f"expected a finite {what}, got inf or nan in {name}: use --dtype float32")


def measure_velocity(
    subject: Subject,
    samples: Sequence[Sample],
    optimizer: Optimizer,
    adam_batch_size: int,
    folder: Checkpoints,
    progress: Progress,
) -> Start:
    """Velocity of a fine-tune on the samples; arguments as of `measure_update`."""
    names = list(subject.modules)
    path = folder.checkpoint("velocity.safetensors")
    if not path.exists():
        with differentiable(subject):
            _write_velocity(subject, samples, optimizer, adam_batch_size, folder, progress)
    found, meta = load_directions(path, subject.device)
    velocity = in_order(found["velocity"], names)
    require_finite("velocity", velocity)
    scale = found.get("preconditioner")
    return Start(velocity, scale and in_order(scale, names), meta["gradient_squared"], meta["loss"])


def _write_velocity(
    subject: Subject,
    samples: Sequence[Sample],
    optimizer: Optimizer,
    adam_batch_size: int,
    folder: Checkpoints,
    progress: Progress,
) -> None:
    """Gradient of the mean token loss, and for AdamW its preconditioner; leaves velocity.safetensors."""
    weights, adam = subject.weights, optimizer == "adamw"
    size = adam_batch_size if adam else len(samples)
    groups = [subject.batches(samples[k : k + size]) for k in range(0, len(samples), size)]
    steps = [(batch, k == len(group) - 1, group) for group in groups for k, batch in enumerate(group)]
    kinds = ("total", "current", "second") if adam else ("total",)
    path = folder.checkpoint("gradient.safetensors")
    sums = Accumulator(path, lambda: {k: curvature.zeros_like(weights) for k in kinds}, subject.device)

    def body(step: int) -> float:
        batch, last, group = steps[step]
        loss = curvature.add_gradient(sums.sums["current" if adam else "total"], subject.model, weights, batch)
        if adam and last:
            tokens = sum(b.num_tokens for b in group)
            for name, current in sums.sums["current"].items():
                sums.sums["total"][name] += current
                sums.sums["second"][name] += (current / tokens) ** 2 / len(groups)
                current.zero_()
        return loss

    with progress.stage("gradient of the fine-tuning loss", len(steps), sums.done) as tick:
        sums.run(len(steps), body, tick)
    tokens = sum(batch.num_tokens for batch, _, _ in steps)
    gradient = curvature.times(1.0 / tokens, in_order(sums.sums["total"], list(weights)))
    meta = {
        "gradient_squared": {n: curvature.inner_product(g, g) for n, g in gradient.items()},
        "loss": sums.value / tokens,
    }
    found = {"velocity": curvature.times(-1.0, gradient)}
    if adam:
        found["preconditioner"] = curvature.adam_preconditioner(sums.sums["second"])
        found["velocity"] = curvature.times(found["preconditioner"], found["velocity"])
    save_directions(folder.checkpoint("velocity.safetensors"), found, meta)
    path.unlink()


def hessian_product(
    subject: Subject, samples: Sequence[Sample], direction: Direction, folder: Checkpoints, progress: Progress
) -> Direction:
    """Hessian of the mean token loss on the samples times a direction, in the modules' order."""
    weights = subject.weights
    # Twice differentiating keeps about three times what a gradient keeps.
    size, tokens = max(1, subject.batch_size // 2), _HESSIAN_TOKENS * subject.batch_size
    batches = make_batches(samples, size, subject.pad_id, subject.device, tokens)
    path = folder.checkpoint("hessian_product.safetensors")
    sums = Accumulator(path, lambda: {"product": curvature.zeros_like(weights)}, subject.device)

    def body(step: int) -> float:
        curvature.add_hessian_product(sums.sums["product"], subject.model, subject.modules, direction, batches[step])
        return 0.0

    with progress.stage("Hessian-vector product", len(batches), sums.done) as tick, differentiable(subject):
        sums.run(len(batches), body, tick)
    product = in_order(sums.sums["product"], list(weights))
    return curvature.times(1.0 / sum(b.num_tokens for b in batches), product)
