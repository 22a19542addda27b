"""Naive gradient descent on dense parameters, and what is predicted of it, one autograd call at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.func import grad

from bridge.data.samples import Sample
from tests.oracles.brute_force import BruteForce


def descend(oracle: BruteForce, samples: Sequence[Sample], rates: Sequence[float], map_: Tensor) -> Tensor:
    """theta after steps theta <- theta - eta N g(theta), N a dense matrix."""
    theta = oracle.theta.clone()
    for rate in rates:
        theta = theta - rate * map_ @ grad(oracle.loss)(theta, samples)
    return theta


def descend_lora(
    oracle: BruteForce, samples: Sequence[Sample], rates: Sequence[float], a: dict[str, Tensor], scale: float
) -> Tensor:
    """theta after steps on LoRA's factors, W = W_0 + scale B A from B = 0; every weight is (out, in)."""
    base = oracle.unflatten(oracle.theta)
    factors = {name: (torch.zeros(w.shape[0], len(a[name]), dtype=w.dtype), a[name]) for name, w in base.items()}

    def theta_of(factors: dict[str, tuple[Tensor, Tensor]]) -> Tensor:
        return torch.cat([(base[name] + scale * b @ x).flatten() for name, (b, x) in factors.items()])

    def loss(factors: dict[str, tuple[Tensor, Tensor]]) -> Tensor:
        return oracle.loss(theta_of(factors), samples)

    for rate in rates:
        step = grad(loss)(factors)
        factors = {name: (b - rate * step[name][0], x - rate * step[name][1]) for name, (b, x) in factors.items()}
    return theta_of(factors)


def lora_map(oracle: BruteForce, a: dict[str, Tensor], scale: float) -> Tensor:
    """The dense matrix of G -> scale^2 G A^T A."""
    blocks = []
    for name, weight in oracle.unflatten(oracle.theta).items():
        blocks.append(scale**2 * torch.kron(torch.eye(weight.shape[0], dtype=weight.dtype), a[name].T @ a[name]))
    return torch.block_diag(*blocks)


def predicted(
    oracle: BruteForce, samples: Sequence[Sample], v: Tensor, a: Tensor, times: Sequence[float]
) -> list[dict[str, float]]:
    """Predicted loss at each time and its parts, from the derivatives of the logits along theta + t v + t^2/2 a."""
    sums = [dict.fromkeys(("loss", "leak_variance", "cross", "quartic_variance"), 0.0) for _ in times]
    for sample in samples:
        z, z1, z2 = oracle.logit_derivatives(v, a, sample)
        p = torch.softmax(z, -1)
        c1, c2 = (x - (p * x).sum(-1, keepdim=True) for x in (z1, z2))
        for t, total in zip(times, sums, strict=True):
            shift = t * c1 + t**2 / 2 * c2
            total["loss"] += float(torch.log1p((p * (torch.expm1(shift) - shift)).sum(-1)).sum())
            total["leak_variance"] += float((p * c1**2).sum())
            total["cross"] += float((p * c1 * c2).sum() + (p * c1**3).sum() / 3)
            total["quartic_variance"] += float((p * c2**2).sum())
    return [{name: value / len(samples) for name, value in total.items()} for total in sums]


def slope(t: Sequence[float], error: Callable[[float], float]) -> float:
    """Least-squares exponent of an error's size against t."""
    x = torch.tensor(list(t), dtype=torch.float64).log()
    y = torch.tensor([abs(error(each)) for each in t], dtype=torch.float64).log()
    centred = x - x.mean()
    return float(centred @ y / (centred @ centred))
