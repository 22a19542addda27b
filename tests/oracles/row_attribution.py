"""A set's rows and its leak, naively: dense scores, dense F, every subset moved anew."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


class DenseRows:
    """R rows with dense scores (R, n) and token counts, a diagonal M (n,), and the skill's dense scores (N, n)."""

    def __init__(self, skill: Tensor, rows: Tensor, tokens: Sequence[int], scale: Tensor) -> None:
        self.skill, self.rows, self.tokens, self.scale = skill, rows, list(tokens), scale
        self.fisher = skill.T @ skill / len(skill)

    def velocity(self, kept: Sequence[int], tokens: int | None = None) -> Tensor:
        """v of a subset of the rows: descent of its mean token loss, M held; `tokens` in place of its own T."""
        total = sum(self.tokens[r] for r in kept) if tokens is None else tokens
        loss_gradient = -sum(self.rows[r] for r in kept) / total
        return -self.scale * loss_gradient

    def leak_squared(self, v: Tensor) -> float:
        return float(v @ self.fisher @ v)

    def part(self, row: int) -> Tensor:
        """v_r, the row's part of the whole set's v."""
        return self.scale * self.rows[row] / sum(self.tokens)

    def loss_at_progress(self, kept: Sequence[int], equal: str, progress: float) -> float:
        """t^2/2 v^T F v at the t that makes the progress."""
        v = self.velocity(kept)
        descent = float(v @ (v / self.scale))  # g^T M g
        t = progress / float(v.norm()) if equal == "norm" else progress / descent
        return t**2 / 2 * self.leak_squared(v)
