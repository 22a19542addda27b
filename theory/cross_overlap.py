"""How far the sensitivity subspaces of several sets of scores overlap, from the inner products of all scores alone.

The union's Gram matrix ``K_ij = s_i . s_j`` over the samples of all sets holds the Gram matrix of every set, of every
part of one, and every cross-gram. With ``u_k = sum_i c_ik s_i`` the top eigenvectors of a set's Fisher information,
two sets have ``U_a^T U_b = C_a^T K C_b``: its singular values are the cosines of the principal angles (Bjorck and Golub
1973), its squares give the mode subspace overlap of "Safety Subspaces are Not Distinct" (arXiv 2505.14185), and
``u_k . s_j`` gives the share of one set's Fisher trace that lies in the other's subspace.

A set may have its mean score removed first: a mean that two sets share makes their subspaces look alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from theory.spectra import EPS, Spectrum, gram_spectrum, rank_by_energy

_PERMUTATION_STREAM = 4  # random streams apart from those of the bootstrap, the splits, the shuffles and the subsets


@dataclass(frozen=True)
class Questions:
    """At which ranks subspaces are compared: Q = ``len(ranks) + len(energies)`` answers.

    Attributes:
        ranks: numbers of directions d, the same on both sides.
        energies: shares of a set's Fisher trace; each side takes its own smallest rank that holds the share.
    """

    ranks: tuple[int, ...]
    energies: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not all(d >= 1 for d in self.ranks):
            raise ValueError(f"ranks must be 1 or more, got {self.ranks}")
        if not all(0 < share <= 1 for share in self.energies):
            raise ValueError(f"energies are shares of the trace in (0, 1], got {self.energies}")

    def __len__(self) -> int:
        return len(self.ranks) + len(self.energies)


@dataclass(frozen=True, eq=False)
class Subspace:
    """The eigenvectors of one set's Fisher information, as combinations of the union's scores.

    Attributes:
        indices: (M,) which samples of the union make up the set.
        weights: (M,) their weights, summing to 1.
        coefficients: (M, r), ``u_k = sum_i c_ik s_i`` in descending order of the eigenvalues; r directions exist.
        eigenvalues: (M,) descending.
        centred: whether the set's mean score was removed.
    """

    indices: Int[np.ndarray, " M"]
    weights: Float[np.ndarray, " M"]
    coefficients: Float[np.ndarray, "M r"]
    eigenvalues: Float[np.ndarray, " M"]
    centred: bool

    @property
    def trace(self) -> float:
        """Trace of the set's Fisher information (of its covariance, where the mean was removed)."""
        return float(self.eigenvalues.sum())

    def ranks(self, questions: Questions) -> Int[np.ndarray, " Q"]:
        """How many directions take part in each answer: never more than exist."""
        by_energy = [rank_by_energy(self.eigenvalues, share) for share in questions.energies]
        return np.minimum(np.array([*questions.ranks, *by_energy], dtype=np.int64), self.coefficients.shape[1])


def subspace(gram: Float[np.ndarray, "N N"], weights: Float[np.ndarray, " N"], centred: bool = False) -> Subspace:
    """The eigenvectors of ``F = sum_i w_i s_i s_i^T`` over the samples whose weight is not zero.

    Args:
        gram: inner products of all samples of the union.
        weights: of the samples, summing to 1; zero for those outside the set.
        centred: remove the mean score: the eigenvectors of ``sum_i w_i (s_i - m)(s_i - m)^T``, ``m = sum_i w_i s_i``.

    Raises:
        ValueError: if no weight is positive, or the matrix is not one of inner products.
    """
    held = np.flatnonzero(weights)
    if held.size == 0 or weights.min() < 0:
        raise ValueError("a set needs weights that are not negative and not all zero")
    w = weights[held] / weights[held].sum()
    part = gram[np.ix_(held, held)]
    found = gram_spectrum(_without_mean(part, w) if centred else part, w)
    count = len(held) - 1 if centred else len(held)  # centred scores span one direction less, whatever the rounding
    coefficients = found.basis(len(held))[:, :count]
    if centred:  # u_k = sum_i b_ik (s_i - m) in the scores themselves
        coefficients = coefficients - w[:, None] * coefficients.sum(axis=0)
    return Subspace(held, w, coefficients, _first(found, count), centred)


def _without_mean(gram: Float[np.ndarray, "M M"], weights: Float[np.ndarray, " M"]) -> Float[np.ndarray, "M M"]:
    """Inner products after the mean is removed; exactly zero where only rounding is left."""
    mean = gram @ weights
    centred = gram - mean[:, None] - mean + weights @ mean
    rounding = len(gram) * EPS * max(float(gram.diagonal().max()), 0.0)
    return centred if centred.diagonal().max() > rounding else np.zeros_like(gram)


def _first(found: Spectrum, count: int) -> Float[np.ndarray, " M"]:
    return np.where(np.arange(len(found.eigenvalues)) < count, found.eigenvalues, 0.0)


def inner_products(gram: Float[np.ndarray, "N N"], a: Subspace, b: Subspace) -> Float[np.ndarray, "ra rb"]:
    """``U_a^T U_b`` over all directions of both sides."""
    return a.coefficients.T @ gram[np.ix_(a.indices, b.indices)] @ b.coefficients


def set_cosines(gram: Float[np.ndarray, "N N"], a: Subspace, b: Subspace, d: int) -> Float[np.ndarray, " k"]:
    """Cosines of the principal angles between the top-d subspaces, descending; k directions exist on both sides."""
    return np.minimum(np.linalg.svd(inner_products(gram, a, b)[:d, :d], compute_uv=False), 1.0)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two sets at Q ranks.

    Attributes:
        overlap: (Q,) mode subspace overlap ``|U_a^T U_b|_F^2 / min(k_a, k_b)``, in [0, 1]; 0 where a side has no
            direction.
        b_in_a: (Q,) ``tr(P_a F_b) / tr F_b``: the share of b's Fisher trace in a's subspace.
        a_in_b: (Q,) the share of a's in b's.
    """

    overlap: Float[np.ndarray, " Q"]
    b_in_a: Float[np.ndarray, " Q"]
    a_in_b: Float[np.ndarray, " Q"]


def compare(gram: Float[np.ndarray, "N N"], a: Subspace, b: Subspace, questions: Questions) -> Comparison:
    """Overlap and shares of energy of two sets at every rank asked for, from one pair of eigenproblems."""
    between = gram[np.ix_(a.indices, b.indices)]
    ranks_a, ranks_b = a.ranks(questions), b.ranks(questions)
    sums = np.zeros((a.coefficients.shape[1] + 1, b.coefficients.shape[1] + 1))
    sums[1:, 1:] = np.cumsum(np.cumsum((a.coefficients.T @ between @ b.coefficients) ** 2, axis=0), axis=1)
    least = np.minimum(ranks_a, ranks_b)
    return Comparison(
        overlap=np.minimum(sums[ranks_a, ranks_b] / np.maximum(least, 1), 1.0),
        b_in_a=_energy(a.coefficients.T @ between, b)[ranks_a],
        a_in_b=_energy(b.coefficients.T @ between.T, a)[ranks_b],
    )


def _energy(projected: Float[np.ndarray, "r M"], of: Subspace) -> Float[np.ndarray, " r1"]:
    """Share of a set's trace in the first 0, 1, ..., r directions, from ``u_k . s_j`` of its samples."""
    if of.centred:
        projected = projected - (projected @ of.weights)[:, None]
    by_direction = projected**2 @ of.weights
    total = of.trace
    shares = np.cumsum(np.concatenate([[0.0], by_direction])) / (total if total > 0 else 1.0)
    return np.minimum(shares, 1.0)


def chance_overlap(a: Subspace, b: Subspace, questions: Questions, dimension: int) -> Float[np.ndarray, " Q"]:
    """``max(k_a, k_b) / n``: the mean overlap of random subspaces of R^n of the same ranks."""
    ranks = np.maximum(a.ranks(questions), b.ranks(questions))
    return ranks / dimension * (np.minimum(a.ranks(questions), b.ranks(questions)) > 0)


@dataclass(frozen=True, eq=False)
class Union:
    """The samples of several skills with the inner products of all their scores.

    Attributes:
        gram: (N, N).
        skills: (N,) the number of each sample's skill, 0, 1, ...
        groups: (N,) samples of one group (the responses drawn at one prompt) stay together in every split; a group
            belongs to one skill.
        dimension: n, the number of parameters.

    Raises:
        ValueError: if a shape does not fit, a group belongs to two skills, or skills are not numbered from 0.
    """

    gram: Float[np.ndarray, "N N"]
    skills: Int[np.ndarray, " S"]  # N of them, and of the groups: checked with a message that tells
    groups: Int[np.ndarray, " G"]
    dimension: int

    def __post_init__(self) -> None:
        if self.gram.shape != (len(self.skills),) * 2 or self.groups.shape != self.skills.shape:
            raise ValueError(
                f"expected a skill and a group for each of the {len(self.gram)} samples, got {len(self.skills)} and "
                f"{len(self.groups)}"
            )
        if not np.array_equal(np.unique(self.skills), np.arange(self.num_skills)):
            raise ValueError(f"skills must be numbered 0, 1, ... without gaps, got {np.unique(self.skills).tolist()}")
        pairs = np.unique(np.stack([self.groups, self.skills]), axis=1)
        if len(np.unique(pairs[0])) != pairs.shape[1]:
            raise ValueError("a group of samples that are not independent cannot belong to two skills")

    @property
    def num_skills(self) -> int:
        """How many skills there are."""
        return int(self.skills.max(initial=-1)) + 1

    def weights(self, skill: int) -> Float[np.ndarray, " N"]:
        """Uniform weights on the samples of one skill, zero elsewhere."""
        return weights_on(self.skills == skill)

    def pairs(self) -> list[tuple[int, int]]:
        """All pairs of different skills."""
        return [(a, b) for a in range(self.num_skills) for b in range(a + 1, self.num_skills)]


def weights_on(chosen: np.ndarray) -> Float[np.ndarray, " N"]:
    """Uniform weights, summing to 1, on the samples that a mask chooses."""
    return chosen / max(1, np.count_nonzero(chosen))


@dataclass(frozen=True, eq=False)
class Permuted:
    """The overlap of two skills beside that of random partitions of their samples into sets of the same sizes.

    Attributes:
        observed: (Q,) the overlap of the two skills.
        drawn: (R, Q) the same with the labels exchanged at random, whole groups together.
        p_values: (Q,) ``(1 + how many of the R are at most as large) / (R + 1)``: small where the skills overlap less
            than they would if their samples were exchangeable.
    """

    observed: Float[np.ndarray, " Q"]
    drawn: Float[np.ndarray, "R Q"]
    p_values: Float[np.ndarray, " Q"]


def permuted_overlaps(
    union: Union, a: int, b: int, questions: Questions, permutations: int, seed: int, centred: bool = False
) -> Permuted:
    """Are the samples of two skills exchangeable, as far as the overlap of their top subspaces can tell?

    Under exchangeability every assignment of the labels is as likely as the true one, so that the p-values are valid
    at any N (with the observed one counted among the draws, as in Phipson and Smyth 2010). Where prompts have equally
    many samples the sets keep their sizes; a set's mean is removed after the exchange.

    Raises:
        ValueError: if ``permutations`` is negative.
    """
    if permutations < 0:
        raise ValueError(f"the number of permutations must be 0 or more, got {permutations}")
    numbers = np.unique(union.groups[np.isin(union.skills, (a, b))])
    count = len(np.unique(union.groups[union.skills == a]))
    both = np.isin(union.groups, numbers)
    rng = np.random.default_rng([seed, _PERMUTATION_STREAM])

    def overlap(first: np.ndarray) -> Float[np.ndarray, " Q"]:
        parts = [subspace(union.gram, weights_on(chosen), centred) for chosen in (first, both & ~first)]
        return compare(union.gram, parts[0], parts[1], questions).overlap

    observed = overlap(union.skills == a)
    drawn = [overlap(np.isin(union.groups, rng.permutation(numbers)[:count])) for _ in range(permutations)]
    table = np.array(drawn).reshape(permutations, len(questions))
    slack = len(union.gram) * EPS  # draws that repeat the true partition are equal to it up to rounding
    p_values = (1 + np.count_nonzero(table <= observed + slack, axis=0)) / (permutations + 1)
    return Permuted(observed, table, p_values)


def isotropic_gram(
    squared_norms: Sequence[Float[np.ndarray, " N"]], dimensions: Sequence[int], rng: np.random.Generator
) -> Float[np.ndarray, "N N"]:
    """A Gram matrix of independent scores that have the given norms and, in every module, a uniform random direction.

    Exact in any dimension: the n-dimensional Gaussian vectors behind the directions enter by Bartlett's (1933)
    triangular factor where n >= N, so that nothing of size n is made.

    Args:
        squared_norms: by module, ``|s_i|^2`` of the module's part of every score.
        dimensions: by module, the number of parameters n.
        rng: where the draws come from.

    Raises:
        ValueError: if there is no module, or not one dimension a module.
    """
    if not squared_norms or len(squared_norms) != len(dimensions):
        raise ValueError(f"expected norms and a dimension by module, got {len(squared_norms)} and {len(dimensions)}")
    total = np.zeros((len(squared_norms[0]),) * 2)
    for squares, dimension in zip(squared_norms, dimensions, strict=True):
        directions = _random_directions(len(squares), dimension, rng)
        scores = np.sqrt(np.maximum(squares, 0.0))[:, None] * directions
        total += scores @ scores.T
    return total


def _random_directions(count: int, dimension: int, rng: np.random.Generator) -> Float[np.ndarray, "N m"]:
    """Uniform unit vectors of R^n up to a common rotation, in min(N, n) coordinates."""
    if dimension < count:
        found = rng.standard_normal((count, dimension))
    else:
        found = np.tril(rng.standard_normal((count, count)), -1)
        np.fill_diagonal(found, np.sqrt(rng.chisquare(dimension - np.arange(count))))
    return found / np.linalg.norm(found, axis=1, keepdims=True)
