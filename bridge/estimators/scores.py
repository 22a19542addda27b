"""The measurement in stages: direction of the update, scores on the skill's samples, motion of the policy.

Each stage keeps checkpoints in the run folder, so that a killed run goes on where it stopped and gives the
same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bridge.data.samples import Sample
from bridge.estimators import taps
from bridge.estimators.batches import Batch
from bridge.estimators.theta import Subject
from bridge.estimators.update import Update
from bridge.models import blocks as models_blocks
from commands.progress import Progress
from commands.store import Checkpoints, read_arrays, write_arrays
from theory.statistics import FisherKind, ScoreStatistics

if TYPE_CHECKING:
    pass


# ------------------------------------------------------------------------------------- velocity, acceleration


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
    blocks = models_blocks.group_by_block(list(subject.modules))
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
    """Number of blocks whose inputs and output gradients fit in half the memory that the user allows."""
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
