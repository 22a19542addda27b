"""The paper's estimate of the overlap scores of a run, module by module, beside the exact ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from bridge.data.samples import Sample
from bridge.estimators import taps
from bridge.estimators.rademacher import Projection, project_block
from bridge.estimators.scores import Parts, blocks_at_once
from bridge.estimators.theta import Subject
from bridge.models import blocks as models_blocks
from commands.progress import Progress
from commands.store import Checkpoints, read_arrays, write_arrays
from theory.random_projection import projected_score
from theory.statistics import ScoreStatistics

_TOGETHER = "/together"  # in a checkpoint: the block's part of one projection of all parameters


def projected_products(
    subject: Subject,
    samples: Sequence[Sample],
    directions: Mapping[str, Parts],
    dim: int,
    seed: int,
    folder: Checkpoints,
    progress: Progress,
) -> tuple[dict[str, Float[np.ndarray, "D N"]], Float[np.ndarray, "D N"]]:
    """Estimates of the products s_i . dW by projection to `dim` random signs.

    Args:
        subject: the model and its modules.
        samples: N tokenised samples.
        directions: D changes by name.
        dim: dimensions of the projection.
        seed: of the signs.
        folder: the run's folder, which keeps finished blocks.
        progress: where to show the stage.

    Returns:
        by module, the products with that module's own projection; and the products of one projection of all modules.

    """
    batches = subject.batches(samples)
    blocks = models_blocks.group_by_block(list(subject.modules))
    files = {block: folder.checkpoint(f"signs-{k}.npz") for k, block in enumerate(blocks)}
    size, order = blocks_at_once(subject, batches), list(blocks)
    with progress.stage("projection with random signs", len(blocks), sum(f.exists() for f in files.values())) as tick:
        for start in range(0, len(order), size):
            missing = [block for block in order[start : start + size] if not files[block].exists()]
            if not missing:
                continue
            tape = taps.record(subject.model, missing, batches)
            for block in missing:
                modules = {name: subject.modules[name] for name in blocks[block]}
                records = tape.records.pop(block)
                found = project_block(
                    subject.model, block, modules, records, batches, list(directions.values()), dim, seed,
                    subject.chunk_bytes,
                )  # fmt: skip
                write_arrays(files[block], _as_arrays(found))
                tick()
    own: dict[str, np.ndarray] = {}
    scores, deltas = np.zeros((len(samples), dim)), np.zeros((len(directions), dim))
    for file in files.values():
        arrays = read_arrays(file)
        scores += arrays.pop(f"scores{_TOGETHER}")
        deltas += arrays.pop(f"deltas{_TOGETHER}")
        own |= arrays
    return {name: own[name] for name in subject.modules}, deltas @ scores.T


def _as_arrays(found: Mapping[str, Projection]) -> dict[str, np.ndarray]:
    arrays = {name: projection.products.cpu().numpy() for name, projection in found.items()}
    first, *rest = found.values()
    together = sum(rest, start=first)
    sums: dict[str, torch.Tensor] = {"scores": together.scores, "deltas": together.deltas}
    return arrays | {f"{name}{_TOGETHER}": tensor.cpu().numpy() for name, tensor in sums.items()}


def comparison(
    modules: Mapping[str, ScoreStatistics],
    own: Mapping[str, Float[np.ndarray, " N"]],
    together: Float[np.ndarray, " N"],
    dim: int,
) -> dict[str, Any]:
    """The estimate of one change's score beside the exact one, what it is on average, and its floor.

    Args:
        modules: exact statistics by module, with the change as velocity.
        own: products by module, each with its own projection (the paper's).
        together: products of one projection of all modules.
        dim: dimensions of the projection.

    """
    every = list(modules.values())
    return {
        "dim": dim,
        "joint": _beside(every, sum(own.values(), np.zeros(len(together))), dim),
        "joint_one_projection": _beside(every, together, dim, shared=True),
        "blocks": {name: _beside([stats], own[name], dim) for name, stats in modules.items()},
    }


def _beside(
    blocks: Sequence[ScoreStatistics], products: Float[np.ndarray, " N"], dim: int, shared: bool = False
) -> dict[str, float]:
    return {"estimate": float(np.mean(products**2)), **asdict(projected_score(blocks, dim, shared=shared))}
