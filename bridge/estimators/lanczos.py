"""Leading curvature of the fine-tuning loss as the optimiser sees it: Lanczos on N^(1/2) H N^(1/2).

Lanczos, "An iteration method for the solution of the eigenvalue problem" (1950), without reorthogonalisation: only
three vectors of the size of the weights are held, and the copies of eigenvalues that lost orthogonality brings do
not touch the largest. It starts from N^(1/2) g, so that the first Ritz value is the curvature along the path itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bridge.estimators import curvature
from bridge.estimators.checkpoints import Accumulator
from bridge.estimators.curvature import Direction

Operator = Callable[[int, Direction], Direction]


@dataclass(frozen=True)
class Leading:
    """What a few iterations say of the largest eigenvalue.

    along_start: Rayleigh quotient of the first vector; value: the largest Ritz value, which the largest eigenvalue is
    not below (up to rounding); residual: an eigenvalue lies within this of it; iterations: those done.
    """

    along_start: float
    value: float
    residual: float
    iterations: int


def leading_eigenvalue(
    operator: Operator, start: Direction, iterations: int, path: Path, tick: Callable[[], None]
) -> Leading | None:
    """The largest Ritz value of a symmetric operator; None for a start of zero.

    Args:
        operator: the product with a direction; it is also told which iteration asks.
        start: the first vector.
        iterations: at most so many products; fewer where the space is exhausted.
        path: checkpoint; with it again the iteration goes on.
        tick: called after each product.

    """
    norm = _norm(start)
    if norm == 0:
        return None
    device = next(iter(start.values())).device
    sums = Accumulator(path, lambda: _begin(start, norm, iterations), device)

    def body(step: int) -> float:
        _iterate(sums.sums, operator, step)
        return 0.0

    sums.run(iterations, body, tick)
    alpha, beta = (sums.sums["numbers"][name].cpu().numpy() for name in ("alpha", "beta"))
    return _read(alpha, beta)


def _begin(start: Direction, norm: float, iterations: int) -> dict[str, Direction]:
    numbers = {name: torch.zeros(iterations, dtype=torch.float64) for name in ("alpha", "beta")}
    return {
        "current": {name: part / norm for name, part in start.items()},
        "previous": {name: torch.zeros_like(part) for name, part in start.items()},
        "numbers": numbers,
    }


def _iterate(state: dict[str, Direction], operator: Operator, step: int) -> None:
    alpha, beta = state["numbers"]["alpha"], state["numbers"]["beta"]
    before = float(beta[step - 1]) if step else 0.0
    if step and before == 0:
        return  # the space is exhausted: nothing further is known
    current, previous = state["current"], state["previous"]
    product = operator(step, current)
    alpha[step] = _inner(product, current)
    following: dict[str, Tensor] = {}
    for name, part in current.items():
        following[name] = product[name] - float(alpha[step]) * part - before * previous[name]
    size = _norm(following)
    scale = max(abs(float(alpha[step])), before)
    eps = torch.finfo(next(iter(current.values())).dtype).eps
    beta[step] = size if size > 10 * eps * scale else 0.0
    if float(beta[step]):
        state["previous"], state["current"] = current, {name: part / size for name, part in following.items()}


def _read(alpha: np.ndarray, beta: np.ndarray) -> Leading:
    ended = np.flatnonzero(beta == 0)
    count = int(ended[0]) + 1 if len(ended) else len(alpha)
    off = beta[: count - 1]
    values, vectors = np.linalg.eigh(np.diag(alpha[:count]) + np.diag(off, 1) + np.diag(off, -1))
    return Leading(float(alpha[0]), float(values[-1]), float(abs(beta[count - 1] * vectors[-1, -1])), count)


def _norm(direction: Direction) -> float:
    return _inner(direction, direction) ** 0.5


def _inner(a: Direction, b: Direction) -> float:
    """Summed by name: a checkpoint gives the modules back in another order than the model has."""
    return float(sum(curvature.inner_product(a[name], b[name]) for name in sorted(b)))
