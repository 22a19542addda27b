"""Naive float64 transcriptions of "Safety Subspaces are Not Distinct" (arXiv 2505.14185): one SVD for every question.

Matrices are divided by their largest magnitude first, which changes none of these ratios.
"""

from __future__ import annotations

import numpy as np


def unit(matrix: np.ndarray) -> np.ndarray:
    return np.asarray(matrix, dtype=np.float64) / np.abs(matrix).max()


def singular_basis(update: np.ndarray, rank: int, side: str) -> np.ndarray:
    """The first columns of U, or of V."""
    left, _, right = np.linalg.svd(unit(update), full_matrices=False)
    return (left if side == "left" else right.T)[:, :rank]


def parallel(task: np.ndarray, basis: np.ndarray, side: str) -> np.ndarray:
    projector = basis @ basis.T
    return projector @ task if side == "left" else task @ projector


def energy_kept(task: np.ndarray, basis: np.ndarray, side: str) -> float:
    scaled = unit(task)
    part = parallel(scaled, basis, side)
    return float(sum(x * x for x in part.ravel()) / sum(x * x for x in scaled.ravel()))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = unit(a), unit(b)
    return float(np.sum(a * b) / (np.sqrt(np.sum(a * a)) * np.sqrt(np.sum(b * b))))


def rank_by_energy(update: np.ndarray, energy: float) -> int:
    """The smallest rank whose truncation holds the share of the exact total."""
    values = np.linalg.svd(unit(update), compute_uv=False) ** 2
    total = np.sum(unit(update) ** 2)
    for rank in range(1, len(values) + 1):
        if np.sum(values[:rank]) >= energy * total * (1 - len(values) * np.finfo(np.float64).eps):
            return rank
    return len(values)


def mso(a: np.ndarray, b: np.ndarray, rank_a: int, rank_b: int, side: str) -> float:
    basis_a, basis_b = singular_basis(a, rank_a, side), singular_basis(b, rank_b, side)
    total = 0.0
    for i in range(rank_a):
        for j in range(rank_b):
            total += float(basis_a[:, i] @ basis_b[:, j]) ** 2
    return total / min(rank_a, rank_b)
