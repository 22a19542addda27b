"""Naive float64 transcriptions with n x n matrices, and a softmax model with closed-form derivatives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from theory.statistics import ScoreStatistics


@dataclass
class Problem:
    """Explicit scores, path vectors, curvature and weights of a toy problem."""

    scores: np.ndarray
    v: np.ndarray
    a: np.ndarray
    curvature: np.ndarray | None
    weights: np.ndarray | None

    def stats(self, **changes):
        return ScoreStatistics.from_scores(
            self.scores, self.v, self.a, curvature=self.curvature, weights=self.weights, **changes
        )

    @property
    def w(self):
        n = len(self.scores)
        return np.full(n, 1 / n) if self.weights is None else self.weights


def random_problem(seed, n_samples, n_params, *, weighted=False, rank=None):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(n_samples, n_params)) * np.exp(rng.normal(size=(n_samples, 1)) / 2)
    if rank is not None:
        scores = rng.normal(size=(n_samples, rank)) @ rng.normal(size=(rank, n_params))
    weights = rng.dirichlet(np.ones(n_samples)) if weighted else None
    return Problem(scores, rng.normal(size=n_params), rng.normal(size=n_params), rng.normal(size=n_samples), weights)


def fisher(problem):
    matrix = np.zeros((problem.scores.shape[1],) * 2)
    for weight, s in zip(problem.w, problem.scores, strict=True):
        matrix += weight * np.outer(s, s)
    return matrix


def dense_quantities(problem, d):
    """Every AIC quantity from the dense Fisher matrix, its eigenvectors and projector."""
    f = fisher(problem)
    values, vectors = np.linalg.eigh(f)
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
    n, n_samples = len(f), len(problem.scores)
    k = min(d, n)
    projector = vectors[:, :k] @ vectors[:, :k].T
    root = vectors @ np.diag(np.sqrt(values)) @ vectors.T
    padded = np.concatenate([values, np.zeros(max(0, n_samples - n))])[:n_samples]
    first, mean = problem.scores @ problem.v, problem.w @ problem.scores
    found = {
        "eigenvalues": padded,
        "sharpness": padded[d - 1],
        "tail": np.trace(f) - padded[:d].sum(),
        "overlap": np.linalg.norm(projector @ problem.v),
        "coupling": np.linalg.norm(root @ projector @ problem.a),
        "leak": np.sqrt(problem.v @ f @ problem.v),
        "velocity_norm": np.linalg.norm(problem.v),
        "acceleration_norm": np.linalg.norm(problem.a),
        "effective_rank": np.trace(f) ** 2 / np.trace(f @ f),
        "mean_score_share": mean @ mean / np.trace(f),
    }
    if problem.curvature is not None:
        second = problem.scores @ problem.a + problem.curvature
        onset = np.sqrt(sum(problem.w * second**2))
        found["onset_coefficient"] = onset
        found["crossover"] = 2 * found["leak"] / onset
        found["correlation"] = sum(problem.w * first * second) / found["leak"] / onset
    return found


class SoftmaxCurve:
    """Several prompts, logits quadratic in theta around 0, along theta(t) = t v + t^2/2 a + t^3/6 b.

    Outcomes are all (prompt, response) pairs, weighted by P(prompt) pi_0(response).
    """

    def __init__(self, seed, prompts=3, responses=4, n=5):
        rng = np.random.default_rng(seed)
        self.z0 = rng.normal(size=(prompts, responses))
        self.linear = rng.normal(size=(prompts, responses, n))
        quadratic = rng.normal(size=(prompts, responses, n, n))
        self.quadratic = (quadratic + quadratic.swapaxes(2, 3)) / 2
        self.v, self.a, self.b = rng.normal(size=(3, n))
        self.prompt_weights = rng.dirichlet(np.ones(prompts))
        self.p0 = np.exp(self.z0) / np.exp(self.z0).sum(axis=1, keepdims=True)
        self.weights = (self.prompt_weights[:, None] * self.p0).ravel()

    def _centred(self, x):
        """Subtract each prompt's mean over responses."""
        return x - np.einsum("pr,pr...->p...", self.p0, x)[:, None]

    def stats(self):
        scores = self._centred(self.linear)
        # Hess l_y = Q_y - E Q - Cov(A), contracted with v on both sides
        along = np.einsum("prij,i,j->pr", self.quadratic, self.v, self.v)
        spread = np.einsum("pr,pr->p", self.p0, (scores @ self.v) ** 2)
        curvature = self._centred(along) - spread[:, None]
        return ScoreStatistics.from_scores(
            scores.reshape(-1, len(self.v)),
            self.v,
            self.a,
            fisher="exact",
            curvature=curvature.ravel(),
            weights=self.weights,
        )

    def logit_changes(self, t):
        theta = t * self.v + t**2 / 2 * self.a + t**3 / 6 * self.b
        return self.linear @ theta + np.einsum("prij,i,j->pr", self.quadratic, theta, theta) / 2

    def log_probability_changes(self, t):
        """l(t) - l(0) of every outcome, without cancellation."""
        dz = self.logit_changes(t)
        return (dz - np.log1p(np.sum(self.p0 * np.expm1(dz), axis=1, keepdims=True))).ravel()

    def logit_derivatives(self, t):
        """First three derivatives of the logits at t."""
        theta = t * self.v + t**2 / 2 * self.a + t**3 / 6 * self.b
        one, two, three = self.v + t * self.a + t**2 / 2 * self.b, self.a + t * self.b, self.b
        q = self.quadratic
        first = self.linear @ one + np.einsum("prij,i,j->pr", q, theta, one)
        second = self.linear @ two + np.einsum("prij,i,j->pr", q, theta, two)
        second += np.einsum("prij,i,j->pr", q, one, one)
        third = self.linear @ three + np.einsum("prij,i,j->pr", q, theta, three)
        third += 3 * np.einsum("prij,i,j->pr", q, one, two)
        return first, second, third

    def third_derivative(self, t):
        """l'''(t) of every outcome: z''' - [E z''' + 3 Cov(z', z'') + kappa_3(z')] under pi_t."""
        dz = self.logit_changes(t)
        p = self.p0 * np.exp(dz)
        p /= p.sum(axis=1, keepdims=True)
        first, second, third = self.logit_derivatives(t)

        def mean(x):
            return np.sum(p * x, axis=1, keepdims=True)

        c1, c2 = first - mean(first), second - mean(second)
        return (third - mean(third) - 3 * mean(c1 * c2) - mean(c1**3)).ravel()
