"""What sim computes by forward mode and factors, here by interpolation, loops and dense autograd."""

from __future__ import annotations

import math

import numpy as np
import torch

NODES = 15


def taylor(values_at, radius, order=3):
    """Derivatives 0..order at 0 of a function of one number, from its values at Chebyshev nodes in [-radius, radius].

    ``values_at`` takes the nodes, increasing and without 0, and returns one row for each.
    """
    nodes = np.sort(np.cos(np.pi * (np.arange(NODES + 1) + 0.5) / (NODES + 1)))
    coefficients = np.linalg.solve(np.vander(nodes, increasing=True), np.asarray(values_at(radius * nodes)))
    return [torch.from_numpy(coefficients[k] * math.factorial(k) / radius**k) for k in range(order + 1)]


def gradient(function, theta):
    """By reverse mode."""
    theta = theta.clone().requires_grad_(True)
    return torch.autograd.grad(function(theta), theta)[0]


def hessian(function, theta):
    """By reverse mode twice."""
    return torch.autograd.functional.hessian(function, theta)


def scores(skill, theta):
    """One backward pass an outcome."""
    count = len(skill.log_probabilities(theta))
    return torch.stack([gradient(lambda t, i=i: skill.log_probabilities(t)[i], theta) for i in range(count)])


def curvatures(skill, velocity):
    """``v^T Hess(l_i) v`` at the base point, one Hessian an outcome."""
    count = len(skill.weights)
    parts = (hessian(lambda t, i=i: skill.log_probabilities(t)[i], skill.base) for i in range(count))
    return torch.stack([velocity @ part @ velocity for part in parts])


def relative_error(value, expected):
    """In the norm of the whole vector."""
    return float((value - expected).norm() / expected.norm())
