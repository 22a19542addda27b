"""Projection onto the top eigenspace of a Fisher matrix by two small products, without its basis.

Let the rows of S be the scores s_i of N samples, n numbers each, and C the (N, N) matrix of the top d eigenpairs of
their gram S S^T. Then P = S^T C S projects on the top-d eigenspace of F = sum_i w_i s_i s_i^T: P b needs the N inner
products s_i . b and one weighted sum of scores, which is one backward pass of sum_i c_i l_i. Nothing of size N x n is
ever held. It is the method of snapshots (Sirovich 1987), as in `theory.spectra`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float

from theory.spectra import EPS, check_rank, gram_spectrum
from theory.statistics import Scalar


@dataclass(frozen=True, eq=False)
class SnapshotProjector:
    """P = S^T C S of the top k directions that N scores have above rounding.

    Attributes:
        gram: (N, N), s_i . s_j.
        basis: (N, k), the unit eigenvectors u_k = sum_i basis_ik s_i.
        eigenvalues: (N,) of F, descending, not negative.
        asked: d, the directions that were wanted.
    """

    gram: Float[np.ndarray, "N N"]
    basis: Float[np.ndarray, "N k"]
    eigenvalues: Float[np.ndarray, " N"]
    asked: int

    @property
    def rank(self) -> int:
        """k: the d directions asked for, or as many as there are above rounding."""
        return self.basis.shape[1]

    @property
    def condition(self) -> float:
        """lambda_1 / lambda_k of the directions that are used: the relative error of P is about this times rounding."""
        return float(self.eigenvalues[0] / self.eigenvalues[self.rank - 1]) if self.rank else 1.0

    @cached_property
    def matrix(self) -> Float[np.ndarray, "N N"]:
        """C = sum_k W_k W_k^T / lambda_k in the scores' weighted gram; for equal weights, w_k w_k^T / (N lambda_k)."""
        return self.basis @ self.basis.T

    def coefficients(self, inner: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
        """The c of P b = sum_i c_i s_i, from the inner products s_i . b."""
        return self.basis @ (self.basis.T @ inner)

    def squared_norm(self, inner: Float[np.ndarray, " N"]) -> float:
        """|P b|^2."""
        return float(np.sum((self.basis.T @ inner) ** 2))

    def remaining(self, inner: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
        """s_i . (b - P b): what is left of the inner products after the projection."""
        return inner - self.gram @ self.coefficients(inner)


def snapshot_projector(
    gram: Float[np.ndarray, "N N"],
    rank: int | None = None,
    *,
    weights: Float[np.ndarray, " N"] | None = None,
    precision: Scalar = EPS,
) -> SnapshotProjector:
    """The projector on the top eigenspace of F = sum_i w_i s_i s_i^T.

    Directions whose eigenvalue is at or below N * precision * lambda_1 are rounding and are left out: a gram of scores
    that were computed in float32 knows nothing below about N * 1.2e-7 of its largest eigenvalue.

    Args:
        gram: s_i . s_j, symmetric.
        rank: d; None for all directions above rounding.
        weights: of the samples, positive; None for 1 / N each.
        precision: relative rounding error of the scores.

    Raises:
        ValueError: if the rank is not in 1..N, or the gram is not one.
    """
    count = len(gram)
    asked = count if rank is None else rank
    check_rank(asked, count)
    found = gram_spectrum(gram, np.full(count, 1.0 / count) if weights is None else weights)
    above = int(np.count_nonzero(found.eigenvalues > count * max(float(precision), EPS) * found.eigenvalues[0]))
    return SnapshotProjector(gram, found.basis(asked)[:, :above], found.eigenvalues, asked)
