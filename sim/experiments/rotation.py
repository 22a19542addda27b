"""How far the sensitive subspace turns along gradient flow, against the bounds of Davis and Kahan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import jvp

from commands.errors import UserError
from commands.progress import Progress
from sim import problems
from sim.experiments.readings import Onset, predict
from sim.fields import GradientFlow
from sim.flow import DivergedError, flow
from sim.problems import Dials, Problem
from sim.skills import GaussianSkill, Skill
from theory.spectra import davis_kahan_bound, projector, sharp_davis_kahan_bound

_PARABOLA = "mean x + kappa y^2/2, loss -y + b x y, b = gamma/sqrt(lambda)"
_EARLY, _EVEN = 61, 100  # times from horizon/1000 on, and evenly spread; none of them is horizon/2
_NODES = 6  # of the extrapolation to t = 0
_SHORT = 2e-2  # times of the extrapolation, over those in which the path turns
_TURN_ROUNDING = 1e-12  # of a projector: a bound below has no ratio
_ROUNDING = 1e-10  # of its natural scale: a rate below is rounding


@dataclass(frozen=True)
class Options:
    """The options of the command.

    Attributes:
        dials: sharpness, coupling, curvature and dimension; no overlap, no tail.
        rank: d of the softmax case.
        gap: of the two eigenvalues that meet, over lambda.
        mixing: what keeps them apart in the case avoided, over lambda.
        horizon: T.
        seed: of the random cases.
    """

    dials: Dials
    rank: int
    gap: float
    mixing: float
    horizon: float
    seed: int


def meeting(sharpness: float, gap: float, mixing: float, horizon: float) -> Problem:
    """Two eigenvalues that approach each other along z, and are closest at half the horizon.

    Mean ``J(z) (x, y)`` with ``J^2 = (1 - a) I + [[u, w], [w, -u]]``, ``u = a (1 - 2 z/T)``, ``a = gap/2`` and
    ``w = mixing``; loss ``-z``. At x = y = 0 the Fisher matrix is lambda J^2 beside a zero for z: the path goes
    straight along z and the policy never changes, while its Fisher matrix does. Without mixing the eigenvalues cross.
    """
    half = gap / 2
    signs = torch.tensor([[1.0, 0.0], [0.0, -1.0]], dtype=torch.float64)
    mixed = torch.tensor([[0.0, mixing], [mixing, 0.0]], dtype=torch.float64)
    unit = torch.eye(2, dtype=torch.float64)

    def mean(theta: Tensor) -> Tensor:
        square = (1 - half) * unit + half * (1 - 2 * theta[2] / horizon) * signs + mixed
        root = (square[0, 0] * square[1, 1] - square[0, 1] * square[1, 0]).sqrt()
        return (square + root * unit) @ theta[:2] / (square[0, 0] + square[1, 1] + 2 * root).sqrt()

    skill = GaussianSkill(mean, sharpness, torch.zeros(3, dtype=torch.float64))
    return Problem(skill, lambda theta: -theta[2], 1, f"eigenvalues {'nearly meet' if mixing else 'meet'} at t = T/2")


def builders(options: Options) -> dict[str, Callable[[], Problem]]:
    """Every case by its name."""
    dials, n, seed = options.dials, options.dials.dimension, options.seed

    def eigenvalues_meet(mixing: float) -> Callable[[], Problem]:
        return lambda: meeting(dials.sharpness, options.gap, mixing, options.horizon)

    return {
        "softmax": lambda: problems.softmax(n, 2, 3, max(1, n // 3), seed, options.rank),
        "parabola": lambda: problems.dialled(dials, seed, _PARABOLA),
        "circle": lambda: problems.circle(dials.sharpness),
        "crossing": eigenvalues_meet(0.0),
        "avoided": eigenvalues_meet(options.mixing),
    }  # fmt: skip


def compute(cases: Sequence[str], options: Options, progress: Progress) -> dict[str, Any]:
    """Measure every case; the result of the command.

    Raises:
        UserError: for impossible dials or ranks, or a flow that diverges.
    """
    options.dials.check()
    found = {}
    with progress.stage("cases", len(cases)) as tick:
        for name in cases:
            try:
                found[name] = measure(builders(options)[name](), options.horizon)
            except DivergedError as error:
                raise UserError(f"--horizon must be below {error.time:.3g} for {name}: {error}") from error
            tick()
    return {"schema_version": 1, "cases": found}


def measure(problem: Problem, horizon: float) -> dict[str, Any]:
    """One case: the rotation of the projector and of the displacement it sees, beside their bounds.

    Raises:
        DivergedError: if the flow diverges before the horizon.
    """
    skill, field = problem.skill, GradientFlow(problem.loss)
    even = (np.arange(_EVEN) + 0.5) / _EVEN
    times = np.unique(np.concatenate([np.geomspace(1e-3, 1, _EARLY), even])) * horizon
    path = flow(field, skill.base, times)
    expected = predict(skill, field.derivatives(skill.base), problem.rank)
    moved = _Moved.along(skill, problem.rank, path)
    slope = _local_lipschitz(skill, expected.path.velocity)
    lipschitz = max(slope, float((moved.change / moved.distance).max()))
    curves = {
        "proposition": _bounds(davis_kahan_bound, lipschitz * moved.distance, moved.gap),
        "davis_kahan": _bounds(davis_kahan_bound, moved.change, moved.gap),
        "sharp": _bounds(sharp_davis_kahan_bound, moved.change, moved.gap),
    }
    vacuous = times[curves["proposition"] >= 1]
    return {
        "note": problem.note,
        "dimension": skill.dimension,
        "rank": problem.rank,
        "gap": moved.gap,
        "lipschitz": lipschitz,
        "local_lipschitz": slope,
        "largest_rotation": float(moved.rotation.max()),
        "largest_ratio": {name: _largest_ratio(moved.rotation, bound) for name, bound in curves.items()},
        "first_order_constant": _largest_ratio(moved.rotation[:1], moved.change[:1] / moved.gap),
        "vacuous_from": float(vacuous[0]) if vacuous.size else None,
        "drift": _drift_law(problem, expected, moved, lipschitz, slope, horizon),
        "curve": {
            "t": times.tolist(),
            "distance": moved.distance.tolist(),
            "rotation": moved.rotation.tolist(),
            **{name: bound.tolist() for name, bound in curves.items()},
            "drift": moved.drift.tolist(),
            "eigenvalues": moved.eigenvalues.tolist(),
            "utility_loss": skill.utility_losses(path).tolist(),
        },
    }


@dataclass(frozen=True, eq=False)
class _Moved:
    """The Fisher matrix along a path, against the base point; each array has shape (T,) or (T, 2).

    Attributes:
        gap: ``lambda_d - lambda_{d+1}`` at the base point.
        distance: ``|theta - theta*|``.
        change: ``|F(theta) - F(theta*)|`` in the operator norm.
        rotation: ``|P(theta) - P(theta*)|``.
        drift: ``|F(theta*)^(1/2) P(theta) (theta - theta*)|``.
        eigenvalues: ``lambda_d`` and ``lambda_{d+1}`` of F(theta).
    """

    gap: float
    distance: np.ndarray
    change: np.ndarray
    rotation: np.ndarray
    drift: np.ndarray
    eigenvalues: np.ndarray

    @classmethod
    def along(cls, skill: Skill, rank: int, path: Tensor) -> _Moved:
        base = skill.fisher(skill.base).numpy()
        fishers = [skill.fisher(theta).numpy() for theta in path]
        start, projectors = projector(base, rank), [projector(f, rank) for f in fishers]
        displacements = (path - skill.base).numpy()
        seen = np.stack([p @ d for p, d in zip(projectors, displacements, strict=True)])
        return cls(
            gap=float(-np.diff(_around_gap(base, rank))[0]),
            distance=np.linalg.norm(displacements, axis=1),
            change=np.array([np.linalg.norm(f - base, 2) for f in fishers]),
            rotation=np.array([np.linalg.norm(p - start, 2) for p in projectors]),
            drift=_fisher_norm(base, seen),
            eigenvalues=np.stack([_around_gap(f, rank) for f in fishers]),
        )


def _around_gap(matrix: np.ndarray, rank: int) -> np.ndarray:
    """``lambda_d`` and ``lambda_{d+1}``, with ``lambda_{n+1} = 0``."""
    return np.append(np.linalg.eigvalsh(matrix)[::-1], 0.0)[rank - 1 : rank + 1]


def _fisher_norm(fisher: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """``|F^(1/2) w|`` for each row."""
    return np.sqrt(np.maximum(np.einsum("ti,ij,tj->t", vectors, fisher, vectors), 0.0))


def _bounds(bound: Callable[[float, float], float], changes: np.ndarray, gap: float) -> np.ndarray:
    return np.array([bound(float(e), gap) for e in changes])


def _largest_ratio(measured: np.ndarray, bound: np.ndarray) -> float | None:
    """Largest measured over bound, where the bound is above rounding; None if it is so nowhere."""
    used = bound > _TURN_ROUNDING
    return float((measured[used] / bound[used]).max()) if used.any() else None


def _local_lipschitz(skill: Skill, velocity: Tensor) -> float:
    """``|DF(theta*)[v]| / |v|``: the Lipschitz constant of the Fisher matrix as the path starts."""
    change = jvp(skill.fisher, (skill.base,), (velocity,))[1]
    return float(torch.linalg.matrix_norm(change, 2) / velocity.norm())


def _drift_law(
    problem: Problem, expected: Onset, moved: _Moved, lipschitz: float, slope: float, horizon: float
) -> dict[str, float]:
    """Theorem B.3: ``drift >= (gamma/2 - rho) t^2 - O(t^3)`` where ``P g = 0``, for two values of rho.

    The paper's is ``2 sqrt(lambda_1) L_F |g|^2 / gap``; as t -> 0 half of it is enough, and the slope of F along g
    for L_F.
    """
    skill, speed = problem.skill, float(expected.path.velocity.norm())
    root = float(torch.linalg.matrix_norm(skill.fisher_factor(skill.base), 2))
    rho = root * speed * davis_kahan_bound(lipschitz * speed, moved.gap)
    rho_sharp = root * speed * davis_kahan_bound(slope * speed, moved.gap) / 2
    rate = _drift_rate(problem, expected, horizon)
    return {
        "coupling": expected.coupling,
        "rho": rho,
        "rho_sharp": rho_sharp,
        "bound": expected.coupling / 2 - rho,
        "sharp_bound": expected.coupling / 2 - rho_sharp,
        "rate": rate if rate > _ROUNDING * (rho_sharp + root * speed / horizon) else 0.0,
        "onset_coefficient": expected.gamma_star,
    }


def _drift_rate(problem: Problem, expected: Onset, horizon: float) -> float:
    """The limit of drift over t^2, from the polynomial in t through the moving part at a few short times."""
    skill, velocity = problem.skill, expected.path.velocity
    natural = float(velocity.norm() / (expected.path.acceleration.norm() + velocity.norm() / horizon))
    share = np.arange(1, _NODES + 1) / _NODES
    times = _SHORT * natural * share
    path = flow(GradientFlow(problem.loss), skill.base, times)
    seen = [projector(skill.fisher(x).numpy(), problem.rank) @ (x - skill.base).numpy() for x in path]
    limit = np.polynomial.polynomial.polyfit(share, np.stack(seen) / times[:, None] ** 2, _NODES - 1)[0]
    return float(_fisher_norm(skill.fisher(skill.base).numpy(), limit[None])[0])
