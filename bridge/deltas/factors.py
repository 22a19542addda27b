"""A change of one weight matrix as a product of two thin ones, as LoRA makes it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 1 << 24
"""Most numbers of a whole matrix that are held in float64 at once."""


def dense_inner(left: Tensor, right: Tensor) -> float:
    """Sum of the products of the entries of two tensors of one shape, in float64."""
    pairs = zip(left.flatten().split(CHUNK), right.flatten().split(CHUNK), strict=True)
    return math.fsum(float(mine.double() @ theirs.double()) for mine, theirs in pairs)


@dataclass(frozen=True)
class Factors:
    """dW = left @ right, in the layout in which the module stores its weight; every scale is folded in.

    For torch.nn.Linear with LoRA's B (out, r), A (r, in) and c = alpha / r: left = c B, right = A. GPT-2's Conv1D
    stores (in, out), so there left = A^T, right = c B^T.

    Raises ValueError unless left is (rows, r) and right (r, columns).
    """

    left: Tensor
    right: Tensor

    def __post_init__(self) -> None:
        shapes = tuple(self.left.shape), tuple(self.right.shape)
        if self.left.ndim != 2 or self.right.ndim != 2 or shapes[0][1] != shapes[1][0]:
            raise ValueError(f"expected factors (rows, r) and (r, columns), got {shapes[0]} and {shapes[1]}")

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the product."""
        return self.left.shape[0], self.right.shape[1]

    def dense(self) -> Tensor:
        """The product, (rows, columns)."""
        return self.left @ self.right

    def squared_norm(self) -> float:
        """Squared Frobenius norm, in float64: that of the product of the two triangular factors of QR.

        Unlike the trace of the product of the two Gram matrices it cannot cancel.
        """
        left = torch.linalg.qr(self.left.double(), mode="r").R
        right = torch.linalg.qr(self.right.double().T, mode="r").R
        return float((left @ right.T).square().sum())

    def inner(self, other: Factors | Tensor) -> float:
        """Frobenius inner product with a matrix or another product of the same shape, in float64.

        Neither product is formed; a matrix is taken some rows at a time.
        """
        left, right = self.left.double(), self.right.double()
        if isinstance(other, Factors):
            return float(((left.T @ other.left.double()) * (right @ other.right.double().T)).sum())
        moved = torch.zeros_like(right)
        rows = max(1, CHUNK // max(1, other.shape[1]))
        for start in range(0, len(other), rows):
            part = slice(start, start + rows)
            moved += left[part].T @ other[part].double()
        return float((moved * right).sum())
