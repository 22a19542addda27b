"""Cases that lie, and a softmax policy written out naively."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from theory.ledger.scenarios import Scenario
from theory.ledger.skills import SoftmaxSkill


def doctored(scenario: Scenario, **estimates: Any) -> Scenario:
    """The scenario with other numbers in the place of its estimated ones."""
    copy = replace(scenario)
    vars(copy)["estimate"] = replace(scenario.estimate, **estimates)
    return copy


def probabilities(skill: SoftmaxSkill, displacement: np.ndarray) -> np.ndarray:
    """The policy at a displacement, shape (X, K)."""
    a, q, c = (np.asarray(x, dtype=float) for x in (skill.logits.linear, skill.logits.quadratic, skill.logits.cubic))
    d = displacement
    z = a @ d + np.einsum("mij,i,j->m", q, d, d) / 2 + np.einsum("mijk,i,j,k->m", c, d, d, d) / 6
    weights = skill.base.astype(float) * np.exp(z).reshape(skill.base.shape)
    return weights / weights.sum(axis=1, keepdims=True)


def divergence(skill: SoftmaxSkill, displacement: np.ndarray) -> float:
    """``KL(base || moved)`` by its definition."""
    base = skill.base.astype(float)
    return float(skill.prompts.astype(float) @ (base * np.log(base / probabilities(skill, displacement))).sum(axis=1))


def fisher(skill: SoftmaxSkill, displacement: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """The Fisher matrix from differences of log-probabilities."""
    n = len(displacement)
    gradients = np.stack(
        [
            np.log(probabilities(skill, displacement + e)) - np.log(probabilities(skill, displacement - e))
            for e in step * np.eye(n)
        ],
        axis=-1,
    ) / (2 * step)
    weights = skill.prompts.astype(float)[:, None] * probabilities(skill, displacement)
    return np.einsum("xk,xki,xkj->ij", weights, gradients, gradients)
