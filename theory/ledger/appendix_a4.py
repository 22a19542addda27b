"""Appendix A.4: low-rank gradients and the rank of a layer's Fisher matrix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from theory.ledger.claim import Claim, Example, Parameter, Slack, Verdict, at_least, worst

_RANK_TOLERANCE = 1e-10  # of the largest singular value: far above rounding, far below what the builder makes
_INTEGERS = "ranks are integers"


@dataclass(frozen=True, eq=False)
class _Layer:
    """A square linear layer seen by N samples.

    Attributes:
        weight: W, shape (d, d).
        signals: gradients with respect to the layer's output, shape (N, d).
        inputs: v, shape (N, d).
        rank: r, the dimension of the subspace U that holds the signals and the outputs W v.
    """

    weight: np.ndarray
    signals: np.ndarray
    inputs: np.ndarray
    rank: int

    @property
    def gradients(self) -> np.ndarray:
        """Vectorised gradients ``delta_i v_i^T`` of each sample, shape (N, d * d)."""
        return np.einsum("ni,nj->nij", self.signals, self.inputs).reshape(len(self.signals), -1)

    @property
    def mean_gradient(self) -> np.ndarray:
        """Shape (d, d)."""
        return self.signals.T @ self.inputs / len(self.signals)


def numerical_rank(matrix: np.ndarray) -> int:
    """The number of singular values above 1e-10 of the largest."""
    singular = np.linalg.svd(matrix, compute_uv=False)
    return int(np.count_nonzero(singular > _RANK_TOLERANCE * singular[0]))


def _build(rng: np.random.Generator, width: int, rank: int, samples: int, invertible: int, size: float) -> _Layer:
    """W of rank r and generic inputs, or W invertible and inputs with ``W v`` in U; sizes differ by samples."""
    rank = min(rank, width)
    basis = np.linalg.qr(rng.standard_normal((width, rank)))[0]
    sizes = size * np.exp(rng.standard_normal((samples, 1)))
    signals = sizes * (rng.standard_normal((samples, rank)) @ basis.T)
    if invertible:
        weight = rng.standard_normal((width, width))
        inputs = np.linalg.solve(weight, basis @ rng.standard_normal((rank, samples))).T
    else:
        weight = basis @ rng.standard_normal((rank, width))
        inputs = rng.standard_normal((samples, width))
    return _Layer(weight, signals, inputs, rank)


def _mean_gradient_rank(layer: _Layer) -> Slack:
    return at_least(layer.rank, numerical_rank(layer.mean_gradient), 0.0, _INTEGERS)


def _fisher_rank(layer: _Layer) -> Slack:
    found = numerical_rank(layer.gradients)  # F is their second moment
    spanned = numerical_rank(layer.inputs)
    return worst(
        at_least(layer.rank * layer.weight.shape[1], found, 0.0, _INTEGERS, part="rank at most r d"),
        at_least(min(len(layer.signals), layer.rank * spanned), found, 0.0, _INTEGERS, part="sharper bound"),
    )


def _example(width: int, rank: int, samples: int, invertible: int) -> _Layer:
    return _build(np.random.default_rng(0), width, rank, samples, invertible, 1.0)


_PARAMETERS = (
    Parameter("width", 1, 6),
    Parameter("rank", 1, 4),
    Parameter("samples", 1, 40),
    Parameter("invertible", 0, 1),
    Parameter("size", 1e-6, 1e6, "log"),
)
_LOW_RANK = (
    r"A linear layer $W \in \mathbb{R}^{d \times d}$ with inputs $v_{i}$ and backpropagated signals $\delta_{i}$, so "
    r"that the gradient of sample $i$ is $\delta_{i} v_{i}^T$."
)
_SUBSPACE = r"Assumption 2: one subspace $U$ of dimension $r$ holds every $\delta_{i}$ and every $W v_{i}$."


GRADIENT_RANK = Claim(
    key="A.7",
    title="Low-rank gradients",
    source="Lemma A.7, appendix A.4",
    statement=r"""The mean gradient $\bar{G} = \frac{1}{N} \sum_{i} \delta_{i} v_{i}^T$ has rank at most $r$.""",
    hypotheses=(_LOW_RANK, _SUBSPACE),
    verdict=Verdict.HOLDS,
    why="every column of the mean gradient lies in U; it means Assumption 2 where it cites 1",
    derivation=r"""Every column of $\bar{G}$ is a combination of the $\delta_{i}$, all in $U$. Only that half of
Assumption 2 is used; the lemma cites Assumption 1 in its place.""",
    evidence=r"""Random layers: $W$ of rank $r$ with generic inputs, or $W$ invertible with inputs in $W^{-1} U$. The
rank is the number of singular values above $10^{-10}$ of the largest. Generic samples attain $r$.""",
    check=_mean_gradient_rank,
    build=_build,
    parameters=_PARAMETERS,
    boundary=(
        Example("generic samples", "Width 5, $r = 2$, 20 samples: the rank is 2.", lambda: _example(5, 2, 20, 0)),
        Example("invertible W", "Width 5, $r = 3$, 20 samples: the rank is 3.", lambda: _example(5, 3, 20, 1)),
    ),
)

FISHER_RANK = Claim(
    key="A.8",
    title="Rank of a layer's Fisher matrix",
    source="Theorem A.8, appendix A.4",
    statement=r"""The layer's Fisher matrix $F = \frac{1}{N} \sum_{i} \mathrm{vec}(\delta_{i} v_{i}^T)
\mathrm{vec}(\delta_{i} v_{i}^T)^T$ has rank at most $r d$.""",
    hypotheses=(_LOW_RANK, _SUBSPACE, "The labels are those of the data: this is the empirical Fisher matrix."),
    verdict=Verdict.HOLDS,
    why="sharper: at most min(N, r dim span v); it says nothing about sharpness or tail",
    derivation=r"""$\mathrm{vec}(\delta v^T) = v \otimes \delta$ (columns stacked; the paper's order is the other
one, which changes nothing). It lies in $\mathrm{span}\{v_{i}\} \otimes U$, of dimension $r \dim
\mathrm{span}\{v_{i}\} \le r d$. A sum of $N$ rank-one matrices has rank at most $N$. So the rank is at most $\min(N,
r \dim \mathrm{span}\{v_{i}\})$, and at most $\min(N, r^2)$ if $W$ is invertible, because then $v_{i} \in W^{-1} U$.

The bound is about the empirical Fisher matrix, whose labels come from the data. Neither a small rank nor this bound
is condition 1 of the alignment instability condition: nothing is said about $\lambda_{d}$ or about the size of the
tail.""",
    evidence=r"""The rank of the stacked per-sample gradients (the rank of their second moment), by singular values,
against both bounds, for the same layers as Lemma A.7. Generic samples attain $r d$, $r^2$ and $N$.""",
    check=_fisher_rank,
    build=_build,
    parameters=_PARAMETERS,
    boundary=(
        Example("W of rank r", "Width 5, $r = 2$, 40 samples: the rank is $r d = 10$.", lambda: _example(5, 2, 40, 0)),
        Example("invertible W", "Width 5, $r = 3$, 40 samples: the rank is $r^2 = 9$.", lambda: _example(5, 3, 40, 1)),
        Example("few samples", "Width 5, $r = 3$, 4 samples: the rank is $N = 4$.", lambda: _example(5, 3, 4, 0)),
    ),
)


CLAIMS = (GRADIENT_RANK, FISHER_RANK)
