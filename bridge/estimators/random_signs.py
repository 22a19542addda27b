"""The paper's estimate of the products of scores and changes, by random signs, module by module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
from commands.runs import kept, numbered
from commands.store import Checkpoints, read_arrays, write_arrays

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
    order, size = list(blocks), blocks_at_once(subject, batches)
    files = dict(zip(order, numbered(folder, order, "signs-{}.npz"), strict=True))
    records: dict[str, list[taps.BlockRecord]] = {}  # of the blocks that are recorded at once, until each is projected

    def project(block: str) -> dict[str, np.ndarray]:
        if block not in records:
            start = order.index(block) // size * size
            missing = [name for name in order[start : start + size] if not files[name].exists()]
            records.update(taps.record(subject.model, missing, batches).records)
        found = project_block(
            subject.model,
            block,
            {name: subject.modules[name] for name in blocks[block]},
            records.pop(block),
            batches,
            list(directions.values()),
            dim,
            seed,
            subject.chunk_bytes,
        )
        return _as_arrays(found)

    own: dict[str, np.ndarray] = {}
    scores, deltas = np.zeros((len(samples), dim)), np.zeros((len(directions), dim))
    stage = "projection with random signs"
    paths = list(files.values())
    for _, arrays in kept(order, project, paths, stage, progress, write=write_arrays, read=read_arrays):
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
