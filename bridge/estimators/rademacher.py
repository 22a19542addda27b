"""The overlap score as "The Geometry of Alignment Collapse" estimates it: by projection with random signs.

Section 7.1 of the paper projects every sample's score of a module, and the module's weight change, to 4,096 dimensions
by a matrix of independent signs over sqrt(k), and multiplies there. Here for comparison with the exact scores: what it
gives on average, and how much it varies, is in :mod:`theory.random_projection`.

Signs come from a counter-based generator (Philox): the key is the seed and the module's name, the counter the row of
the weight. No two rows or modules share signs, and neither the device, nor batches, nor how many rows stand in memory
at once changes a sign.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bridge.deltas.factors import Factors
from bridge.estimators import taps
from bridge.estimators.batches import Batch
from commands.errors import UserError

_WORD = 32  # signs in one drawn integer


@dataclass(frozen=True)
class Projection:
    """Projected scores and weight changes of one module, or of several under one joint projection, in float64.

    Attributes:
        scores: (N, k), ``R s_i`` in the samples' order.
        deltas: (D, k), ``R dW`` of each change; zero where it does not move the module.
    """

    scores: Tensor
    deltas: Tensor

    @property
    def products(self) -> Tensor:
        """(D, N) estimates ``R s_i . R dW`` of ``s_i . dW``.

        Each module's own, summed over modules, estimate the joint product with one projection a module, as the paper
        does; the products of a sum of projections do it with one projection of all parameters.
        """
        return self.deltas @ self.scores.T

    def __add__(self, other: Projection) -> Projection:
        """The projection of both modules' parameters concatenated, whose sign matrices stand side by side."""
        return Projection(self.scores + other.scores, self.deltas + other.deltas)


class Signs:
    """Columns of the sign matrix of one module, without the factor ``1 / sqrt(k)``.

    Args:
        name: of the module.
        columns: of its weight.
        dim: k.
        seed: of the whole sign matrix, in 0..2^64 - 1.
        device: where the signs are wanted.

    Raises:
        UserError: if dim or seed is out of range.
    """

    def __init__(self, name: str, columns: int, dim: int, seed: int, device: torch.device) -> None:
        if dim < 1:
            raise UserError(f"--dim: expected a positive dimension to project to, got {dim}")
        if not 0 <= seed < 2**64:
            raise UserError(f"--seed: expected a seed in 0..2^64 - 1, got {seed}")
        digest = hashlib.sha256(name.encode()).digest()
        self._key = np.array([seed, int.from_bytes(digest[:8], "little")], dtype=np.uint64)
        self.dim, self._columns, self._words = dim, columns, -(-dim // _WORD)
        self._shifts = torch.arange(_WORD, dtype=torch.int32, device=device)
        self._bits = torch.empty(columns, self._words, _WORD, dtype=torch.int32, device=device)

    def row(self, index: int) -> Tensor:
        """(columns, k) signs of the parameters in one row of the weight, float32; overwritten by the next call."""
        counter = np.array([0, 0, index, 0], dtype=np.uint64)
        count = self._columns * self._words
        drawn = np.random.Philox(key=self._key, counter=counter).random_raw(-(-count // 2))
        words = torch.from_numpy(drawn.astype("<u8", copy=False).view("<i4")[:count]).to(self._bits.device)
        # One bit after another is moved to the place of a float's sign, beside the exponent of 1.0.
        torch.bitwise_left_shift(words.view(self._columns, self._words, 1), self._shifts, out=self._bits)
        self._bits.bitwise_and_(-(2**31)).bitwise_or_(0x3F800000)
        return self._bits.view(torch.float32).flatten(1)[:, : self.dim]


def project(
    chunks: Iterable[tuple[slice, Tensor]],
    deltas: Sequence[taps.Part | None],
    signs: Signs,
) -> Projection:
    """Project one module's scores and weight changes by the same signs.

    Args:
        chunks: rows of the weight and the (N, rows, columns) scores there, each row once, as
            :func:`bridge.estimators.taps.score_chunks` gives them.
        deltas: (rows, columns) each, dense or as factors; None where the change does not move the module.
        signs: of the module.
    """
    total: Tensor | None = None
    for part, scores in chunks:
        stack = torch.stack([*scores, *(_rows(delta, part, scores) for delta in deltas)])
        if total is None:
            total = torch.zeros(len(stack), signs.dim, dtype=torch.float64, device=stack.device)
        for k in range(stack.shape[1]):
            total += (stack[:, k] @ signs.row(part.start + k).to(stack.dtype)).double()
    if total is None:
        raise ValueError("expected the scores of at least one row of the weight, got none")
    scores, moved = (total / signs.dim**0.5).tensor_split([len(total) - len(deltas)])
    return Projection(scores, moved)


def _rows(delta: taps.Part | None, part: slice, like: Tensor) -> Tensor:
    """Some rows of the weight change, dense, as the scores are stored."""
    if delta is None:
        return torch.zeros_like(like[0])
    if isinstance(delta, Factors):
        return delta.left[part].to(like) @ delta.right.to(like)
    return delta[part].to(like)


def project_block(
    model: torch.nn.Module,
    block: str,
    modules: Mapping[str, torch.nn.Module],
    records: Sequence[taps.BlockRecord],
    batches: Sequence[Batch],
    deltas: Sequence[Callable[[str], taps.Part | None]],
    dim: int,
    seed: int,
    chunk_bytes: int,
) -> dict[str, Projection]:
    """Projections of each module of one recorded block; beside :func:`bridge.estimators.taps.contract_block`.

    Args:
        model: the model that was recorded.
        block: name of the block.
        modules: the selected modules inside it, by name.
        records: the block's calls, one a batch.
        batches: the batches, in the same order.
        deltas: give a module's part of a weight change, or None where it does not move it. Asked once a module.
        dim: k.
        seed: of the signs.
        chunk_bytes: how much of the scores of one module may stand in memory at once.

    Raises:
        UserError: if dim or seed is out of range.
    """
    pairs = taps.tap_block(model, block, modules, records)
    order = torch.tensor([i for batch in batches for i in batch.indices])
    out = {}
    for name, module in modules.items():
        weight = module.get_parameter("weight")
        chunks = taps.score_chunks(pairs.pop(name), module, len(order), chunk_bytes)
        signs = Signs(name, weight.shape[1], dim, seed, weight.device)
        found = project(chunks, [delta(name) for delta in deltas], signs)
        out[name] = Projection(found.scores[torch.argsort(order).to(weight.device)], found.deltas)
    return out
