"""The measurement in stages: direction of the update, scores on the skill's samples, motion of the policy.

Each stage keeps checkpoints in the run folder, so that a killed run goes on where it stopped and gives the
same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bridge import curvature, output_space, taps
from bridge.batches import Batch, in_sample_order, make_batches
from bridge.checkpoints import Accumulator, in_order, load_directions, save_directions
from bridge.curvature import Direction
from bridge.data import Sample
from commands.errors import UserError
from commands.progress import Progress
from commands.store import Checkpoints, read_arrays, write_arrays
from theory.statistics import FisherKind, ScoreStatistics

if TYPE_CHECKING:
    from bridge.models import LoadedModel

Optimizer = Literal["sgd", "adamw"]

_HESSIAN_TOKENS = 96  # in a batch of the Hessian-vector product, for each row of --batch-size


@dataclass(frozen=True)
class Subject:
    """A model, the linear modules whose weights are theta, and how to compute on them."""

    model: torch.nn.Module
    modules: dict[str, torch.nn.Module]
    pad_id: int
    batch_size: int
    memory_bytes: int

    @property
    def weights(self) -> dict[str, Tensor]:
        """The selected weight matrices by module name."""
        return {name: module.get_parameter("weight") for name, module in self.modules.items()}

    @property
    def device(self) -> torch.device:
        """Where the selected weights are."""
        return next(iter(self.weights.values())).device

    @property
    def chunk_bytes(self) -> int:
        """How much of one module's scores may stand in memory at once."""
        # Small pieces stay near a CPU's caches, and in memory that its allocator keeps; a GPU wants large ones.
        return min(self.memory_bytes // 8, 2**25 if self.device.type == "cpu" else 2**30)

    def batches(self, samples: Sequence[Sample]) -> list[Batch]:
        """The samples in batches on the device."""
        return make_batches(samples, self.batch_size, self.pad_id, self.device)


def subject_of(loaded: LoadedModel, modules: str | None, batch_size: int, memory: float) -> Subject:
    """The subject that a command's options ask for.

    Args:
        loaded: the model.
        modules: regular expression for the linear modules that make up theta; None for all of the blocks.
        batch_size: samples computed at a time.
        memory: what scores may take, in GiB.

    Raises:
        UserError: no linear module matches, or the model has none that can be used.

    """
    return Subject(
        model=loaded.model,
        modules=taps.select_modules(loaded.model, modules),
        pad_id=int(loaded.tokenizer.pad_token_id),
        batch_size=batch_size,
        memory_bytes=int(memory * 2**30),
    )


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


# ------------------------------------------------------------------------------------- velocity, acceleration


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


@contextmanager
def differentiable(subject: Subject) -> Iterator[None]:
    """Within the context the selected weights take gradients."""
    weights = subject.weights.values()
    for weight in weights:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(False)


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


# ------------------------------------------------------------------------------------------------ scores


Parts = Callable[[str], taps.Part | None]
"""A vector by module: its part of each, or None where it does not move it."""


def measure_products(
    subject: Subject,
    samples: Sequence[Sample],
    directions: Mapping[str, Parts],
    folder: Checkpoints,
    progress: Progress,
) -> dict[str, dict[str, np.ndarray]]:
    """Inner products of the samples' scores with each other and with some vectors, module by module.

    Args:
        subject: the model and its modules.
        samples: N tokenised samples.
        directions: vectors by name ("gram" is taken).
        folder: the run's folder, which keeps finished blocks.
        progress: where to show the stage.

    Returns:
        by module name, "gram" (N, N) and for every vector its name (N,), in float64.

    """
    batches = subject.batches(samples)
    blocks = taps.group_by_block(list(subject.modules))
    files = {block: folder.checkpoint(f"scores-{k}.npz") for k, block in enumerate(blocks)}
    size, order = blocks_at_once(subject, batches), list(blocks)
    ranges = [order[k : k + size] for k in range(0, len(order), size)]
    done = sum(file.exists() for file in files.values())
    with progress.stage("scores on the skill", 2 * len(blocks), 2 * done) as tick:
        for names in ranges:
            missing = [block for block in names if not files[block].exists()]
            if not missing:
                continue
            tape = taps.record(subject.model, missing, batches)
            for block in missing:
                tick()
                found: dict[str, taps.ModuleScores] = {}
                for part in modules_at_once(subject, blocks[block], batches):
                    found |= taps.contract_block(
                        subject.model,
                        block,
                        {name: subject.modules[name] for name in part},
                        tape.records[block],
                        batches,
                        list(directions.values()),
                        subject.chunk_bytes,
                    )
                del tape.records[block]
                write_arrays(files[block], _as_arrays(found, list(directions)))
                tick()
    kinds = ("gram", *directions)
    out: dict[str, dict[str, np.ndarray]] = {}
    for block, names in blocks.items():
        arrays = read_arrays(files[block])
        out |= {name: {kind: arrays[f"{name}/{kind}"] for kind in kinds} for name in names}
    return out


def measure_scores(
    subject: Subject,
    samples: Sequence[Sample],
    update: Update,
    fisher: FisherKind,
    folder: Checkpoints,
    progress: Progress,
) -> dict[str, ScoreStatistics]:
    """Score statistics of every module on the skill's samples, by module name."""
    directions: dict[str, Parts] = {"velocity": update.velocity.get, "acceleration": update.acceleration.get}
    labels = tuple(sample.id for sample in samples)
    return {
        name: ScoreStatistics(
            gram=arrays["gram"],
            velocity=arrays["velocity"],
            acceleration=arrays["acceleration"],
            velocity_squared=update.inner(name, "velocity", "velocity"),
            acceleration_squared=update.inner(name, "acceleration", "acceleration"),
            velocity_dot_acceleration=update.inner(name, "velocity", "acceleration"),
            dimension=subject.weights[name].numel(),
            fisher=fisher,
            labels=labels,
        )
        for name, arrays in measure_products(subject, samples, directions, folder, progress).items()
    }


def _as_arrays(found: dict[str, taps.ModuleScores], names: Sequence[str]) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for module, scores in found.items():
        tensors = {"gram": scores.gram, **dict(zip(names, scores.inner, strict=True))}
        arrays |= {f"{module}/{kind}": tensor.cpu().numpy() for kind, tensor in tensors.items()}
    return arrays


def blocks_at_once(subject: Subject, batches: Sequence[Batch]) -> int:
    """How many blocks' inputs and output gradients fit in half the memory that the user allows."""
    width = getattr(getattr(subject.model, "config", None), "hidden_size", None)
    widest = width or max(max(weight.shape) for weight in subject.weights.values())
    itemsize = next(iter(subject.weights.values())).element_size()
    tokens = sum(batch.input_ids.numel() for batch in batches)
    return max(1, subject.memory_bytes // 2 // (2 * tokens * widest * itemsize))


def modules_at_once(subject: Subject, names: Sequence[str], batches: Sequence[Batch]) -> list[list[str]]:
    """The block's modules in groups whose inputs and output gradients fit in half the memory that the user allows."""
    tokens = sum(batch.input_ids.numel() for batch in batches)
    groups: list[list[str]] = []
    room = 0
    for name in names:
        weight = subject.weights[name]
        needed = tokens * sum(weight.shape) * weight.element_size()
        if not groups or needed > room:
            groups.append([])
            room = subject.memory_bytes // 2
        groups[-1].append(name)
        room -= needed
    return groups


# ------------------------------------------------------------------------------------------ output space


def measure_output_space(
    subject: Subject,
    samples: Sequence[Sample],
    update: Update,
    times: Float[np.ndarray, " T"],
    folder: Checkpoints,
    progress: Progress,
) -> output_space.TokenMoments:
    """Derivatives of the policy along the path on the skill's samples, in the samples' order."""
    batches = subject.batches(samples)
    files = [folder.checkpoint(f"output-{k}.npz") for k in range(len(batches))]
    done = sum(file.exists() for file in files)
    with progress.stage("motion of the policy", len(batches), done) as tick:
        for batch, file in zip(batches, files, strict=True):
            if not file.exists():
                moments = output_space.token_moments(
                    subject.model, subject.modules, update.velocity, update.acceleration, batch, times
                )
                write_arrays(file, moments.to_arrays())
                tick()
    if not all(np.isfinite(values).all() for file in files for values in read_arrays(file).values()):
        raise UserError("expected finite derivatives of the logits along the path, got inf or nan: use --dtype float32")
    return output_space.TokenMoments(**in_sample_order([read_arrays(file) for file in files], batches))
