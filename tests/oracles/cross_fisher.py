"""Naive overlaps of sets of explicit scores: dense Fisher matrices, their eigenvectors and projectors, in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from theory.resampling import half_weights


@dataclass
class DenseSet:
    """The Fisher matrix of some scores (rows), with equal weights, its mean score removed if wanted."""

    scores: np.ndarray
    centred: bool = False

    @property
    def rows(self) -> np.ndarray:
        return self.scores - self.scores.mean(axis=0) if self.centred else self.scores

    @property
    def fisher(self) -> np.ndarray:
        total = np.zeros((self.scores.shape[1],) * 2)
        for s in self.rows:
            total += np.outer(s, s) / len(self.rows)
        return total

    @property
    def most(self) -> int:
        """How many directions a generic set of this size shows."""
        return min(len(self.scores) - self.centred, self.scores.shape[1])

    def projector(self, rank: int) -> np.ndarray:
        top = np.linalg.eigh(self.fisher)[1][:, ::-1][:, : min(rank, self.most)]
        return top @ top.T

    def rank_of(self, question: float) -> int:
        """A rank as it is, or the smallest that holds a share (given as a float) of the trace."""
        if isinstance(question, int):
            return min(question, self.most)
        values = np.linalg.eigvalsh(self.fisher)[::-1]
        return next(k for k in range(1, len(values) + 1) if values[:k].sum() >= question * values.sum())


def overlap(a: DenseSet, b: DenseSet, question: float) -> float:
    """Mode subspace overlap: ``tr(P_a P_b) / min(k_a, k_b)``."""
    ranks = a.rank_of(question), b.rank_of(question)
    return float(np.trace(a.projector(ranks[0]) @ b.projector(ranks[1]))) / min(ranks)


def energy(of: DenseSet, inside: DenseSet, question: float) -> float:
    """``tr(P F) / tr F``."""
    return float(np.trace(inside.projector(inside.rank_of(question)) @ of.fisher) / np.trace(of.fisher))


def cosines(a: DenseSet, b: DenseSet, rank: int) -> np.ndarray:
    """Cosines of the principal angles, from the eigenvalues of ``P_a P_b P_a``."""
    product = a.projector(rank) @ b.projector(rank) @ a.projector(rank)
    return np.sqrt(np.maximum(np.linalg.eigvalsh(product)[::-1][:rank], 0))


def halves(scores: np.ndarray, splits: int, seed: int, skill: int, groups: np.ndarray) -> list[tuple[np.ndarray, ...]]:
    """Which rows make up the halves of a skill, split by split, drawn as the package draws them."""
    own = int(np.random.SeedSequence([seed, skill]).generate_state(1)[0])
    drawn = half_weights(np.full(len(scores), 1 / len(scores)), splits, own, groups)
    assert drawn is not None
    return [(np.flatnonzero(first), np.flatnonzero(second)) for first, second in drawn.swapaxes(0, 1)]


def split_means(
    a: np.ndarray, b: np.ndarray, halves_a: list, halves_b: list, question: float, centred: bool
) -> dict[str, float]:
    """Means over the splits of everything that is compared half by half."""
    rows: dict[str, list[float]] = {}
    for parts_a, parts_b in zip(halves_a, halves_b, strict=True):
        sets_a = [DenseSet(a[part], centred) for part in parts_a]
        sets_b = [DenseSet(b[part], centred) for part in parts_b]
        both = [(x, y) for x in sets_a for y in sets_b]
        own = {"a": sets_a, "b": sets_b}
        found = {
            "cross": np.mean([overlap(x, y, question) for x, y in both]),
            "b_in_a": np.mean([energy(y, x, question) for x, y in both]),
            "a_in_b": np.mean([energy(x, y, question) for x, y in both]),
        }
        for name, (first, second) in own.items():
            found[f"own_{name}"] = overlap(first, second, question)
            there, back = energy(first, second, question), energy(second, first, question)
            found[f"{name}_in_{name}"] = (there + back) / 2
        for name, value in found.items():
            rows.setdefault(name, []).append(float(value))
    return {name: float(np.mean(values)) for name, values in rows.items()}


def relative_overlap(means: dict[str, float], floor: float) -> float | None:
    """None where a skill's halves do not overlap more than the floor."""
    if min(means["own_a"], means["own_b"]) <= floor:
        return None
    return float((means["cross"] - floor) / np.sqrt((means["own_a"] - floor) * (means["own_b"] - floor)))


def jackknife_reach(parts: list[list[float]], level: float) -> float:
    """Half the width of the block jackknife's interval of two independent samples."""
    variance = 0.0
    for values in parts:
        mean = sum(values) / len(values)
        variance += (len(values) - 1) / len(values) * sum((v - mean) ** 2 for v in values)
    return float(student.ppf((1 + level) / 2, sum(map(len, parts)) - 2) * variance**0.5)
