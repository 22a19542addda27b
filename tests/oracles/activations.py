"""Naive transcriptions for activation subspaces: one prompt at a time, dense singular value decompositions, loops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


def prompt_states(model: Any, ids: Sequence[int]) -> np.ndarray:
    """(layers, D) of the last of the ids, without padding, by transformers' own output_hidden_states.

    The last one is behind the model's last norm.
    """
    with torch.no_grad():
        found = model(input_ids=torch.tensor([list(ids)]), output_hidden_states=True).hidden_states
    return np.stack([layer[0, len(ids) - 1].numpy() for layer in found])


def tiny_transformer_states(model: Any, ids: Sequence[int]) -> np.ndarray:
    """The same of `TinyTransformer`, block after block; the last one is before the last norm."""
    with torch.no_grad():
        hidden = model.embed_tokens(torch.tensor([list(ids)]))
        mask = torch.ones(1, len(ids), len(ids), dtype=torch.bool).tril()
        out = [hidden[0, -1].numpy()]
        for block in model.layers:
            hidden = block(hidden, mask=mask)
            out.append(hidden[0, -1].numpy())
    return np.stack(out)


def subspace(states: np.ndarray, energy: float, centred: bool) -> np.ndarray:
    """(k, D): the fewest right singular vectors whose squared singular values hold the share of all."""
    rows = np.asarray(states, dtype=np.float64)
    if centred:
        rows = rows - rows.mean(axis=0)
    _, values, vectors = np.linalg.svd(rows / np.abs(rows).max(), full_matrices=False)
    total = sum(value**2 for value in values)
    kept, k = 0.0, 0
    while kept < energy * total * (1 - 1e-13):
        kept += values[k] ** 2
        k += 1
    return vectors[:k]


def overlap(a: np.ndarray, b: np.ndarray, energy: float, centred: bool) -> float:
    """Mode subspace overlap of two sets of states, a sum over pairs of directions."""
    first, second = subspace(a, energy, centred), subspace(b, energy, centred)
    total = sum(float(u @ v) ** 2 for u in first for v in second)
    return total / min(len(first), len(second))


def chance(a: np.ndarray, b: np.ndarray, energy: float, centred: bool) -> float:
    """What random subspaces of the same ranks overlap on average."""
    ranks = [len(subspace(states, energy, centred)) for states in (a, b)]
    return max(ranks) / a.shape[1]
