"""Batches of tokenised samples on a device, and the logits and log-probabilities of their response tokens."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bridge.data.samples import Sample, collate
from commands.progress import Progress
from commands.runs import Arrays, arrays_of
from commands.store import Checkpoints


@dataclass(frozen=True)
class Batch:
    """Right-padded samples. Response token r sits in row `row[r]` and is predicted at `keep[column[r]]`."""

    indices: tuple[int, ...]  # which samples, in the caller's numbering
    input_ids: Tensor  # (B, T)
    attention_mask: Tensor  # (B, T), 1 on tokens
    keep: Tensor  # (K,) positions whose logits predict some response token of the batch
    row: Tensor  # (R,)
    column: Tensor  # (R,)
    target: Tensor  # (R,) the response tokens themselves

    @property
    def num_tokens(self) -> int:
        """Number of response tokens R."""
        return int(self.target.numel())


def make_batches(
    samples: Sequence[Sample],
    batch_size: int,
    pad_id: int,
    device: torch.device | str,
    max_tokens: int | None = None,
) -> list[Batch]:
    """Cut samples into batches of similar length (longest first), always the same for the same samples.

    A batch holds at most batch_size samples, and at most max_tokens tokens (padding included) unless it is of one.
    """
    order = sorted(range(len(samples)), key=lambda i: (-len(samples[i].input_ids), i))
    groups: list[list[int]] = []
    while order:
        longest = len(samples[order[0]].input_ids)
        size = batch_size if max_tokens is None else max(1, min(batch_size, max_tokens // longest))
        groups.append(order[:size])
        order = order[size:]
    return [_batch(samples, group, pad_id, device) for group in groups]


def _batch(samples: Sequence[Sample], indices: Sequence[int], pad_id: int, device: torch.device | str) -> Batch:
    arrays = collate([samples[i] for i in indices], pad_id)
    ids, attended, response = (torch.from_numpy(arrays[k]) for k in ("input_ids", "attention_mask", "response_mask"))
    row_of, position = response.nonzero(as_tuple=True)
    keep, column = torch.unique(position - 1, return_inverse=True)
    tensors = (ids, attended, keep, row_of, column, ids[row_of, position])
    return Batch(tuple(indices), *(t.to(device) for t in tensors))


def response_logits(model: torch.nn.Module, batch: Batch, weights: Mapping[str, Tensor] | None = None) -> Tensor:
    """Logits (R, vocabulary) at the positions that predict the batch's response tokens.

    `weights` by parameter name stand in for the model's own, for this call alone.
    """
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "use_cache": False}
    keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
    inputs |= {"logits_to_keep": batch.keep} if keeps else {}
    answer = model(**inputs) if weights is None else torch.func.functional_call(model, dict(weights), (), inputs)
    chosen = (answer.logits if keeps else answer.logits[:, batch.keep])[batch.row, batch.column]
    # Sums over tokens and vocabulary are made in float32 at least, whatever the weights' dtype.
    return chosen.to(torch.promote_types(chosen.dtype, torch.float32))


def log_probabilities(logits: Tensor, batch: Batch) -> Tensor:
    """log pi of each response token, (R,), written so that it can be differentiated twice."""
    chosen = logits.gather(1, batch.target[:, None])[:, 0]
    return chosen - torch.logsumexp(logits, dim=1)


def sum_by_row(values: Tensor, batch: Batch) -> Tensor:
    """Sums over the response tokens of each row: (R,) -> (B,)."""
    out = torch.zeros(len(batch.indices), dtype=values.dtype, device=values.device)
    return out.index_add(0, batch.row, values)


def in_sample_order(parts: Sequence[Mapping[str, np.ndarray]], batches: Sequence[Batch]) -> dict[str, np.ndarray]:
    """Arrays of all batches, one value a sample, joined in the samples' order; one part a batch or a few."""
    order = np.argsort([i for batch in batches for i in batch.indices])
    return {key: np.concatenate([part[key] for part in parts])[order] for key in parts[0]}


def by_batch(
    batches: Sequence[Batch],
    compute: Callable[[Batch], Arrays],
    folder: Checkpoints,
    stage: str,
    progress: Progress,
    pattern: str,
) -> Arrays:
    """Arrays of one value a sample, in the samples' order; each batch is computed once (`commands.runs.kept`)."""
    parts = arrays_of(range(len(batches)), lambda number: compute(batches[number]), folder, stage, progress, pattern)
    return in_sample_order(list(parts.values()), batches)
