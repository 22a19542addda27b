"""Defences against the onset: what they keep of the utility, and what they cost in fine-tuning loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap

from commands.errors import UserError
from commands.progress import Progress
from sim import losses, problems
from sim.experiments.readings import NoFitError, onset_fit, predict
from sim.fields import Field, GradientFlow
from sim.flow import DivergedError, descend, flow
from sim.problems import Problem
from sim.projections import StaticProjection, TrackedProjection, TrustRegion
from sim.skills import GaussianSkill

REFRESH_TIME = 2e-3  # T of the refresh law, which holds to leading order: its error is O(T)
_POINTS = 61
_DECADES = 1e-3  # times shown below the horizon
_FIT = 0.2  # of the horizon: where the t^4 coefficient is read
_DRAWN = 200  # points of a discrete curve that are kept


@dataclass(frozen=True)
class Options:
    """The options of the command.

    Attributes:
        dimension: n of the softmax problem.
        rank: d of its projector, or None for the rank of its Fisher matrix.
        sharpness: lambda on the circle and in the problem of varying rank.
        curvature: kappa of the problem of varying rank.
        steps: K of tracked gradient descent.
        horizon: T.
        refresh: the projector is renewed every so many steps.
        strengths: mu of the trust regions.
        seed: of the softmax problem.
    """

    dimension: int
    rank: int | None
    sharpness: float
    curvature: float
    steps: int
    horizon: float
    refresh: Sequence[int]
    strengths: Sequence[float]
    seed: int


def varying_rank(sharpness: float, curvature: float) -> Problem:
    """Mean ``(sqrt(lambda) x, kappa y^2/2)``, loss ``-y``: F has rank 1 at the base point and 2 beside it.

    The top direction is x while ``kappa y < sqrt(lambda)``, so that a projector of rank 1 does not see the second
    output move; where the two eigenvalues meet it turns to y, and a tracked path ends there.
    """

    def mean(theta: Tensor) -> Tensor:
        return torch.stack([sharpness**0.5 * theta[0], curvature * theta[1] ** 2 / 2])

    skill = GaussianSkill(mean, 1.0, torch.zeros(2, dtype=torch.float64))
    return Problem(skill, losses.straight, 1, "skill N((sqrt(lambda) x, kappa y^2/2), I), loss -y")


def cases(options: Options) -> dict[str, tuple[Problem, bool]]:
    """The problems by name, and whether the rank of F is d all along.

    Raises:
        UserError: if the rank is impossible.
    """
    kernel = max(1, options.dimension // 3)
    softmax = problems.softmax(options.dimension, 2, 3, kernel, options.seed, options.rank)
    full = softmax.rank == problems.fisher_rank(softmax.skill)  # type: ignore[arg-type]
    return {
        "softmax": (softmax, full),
        "circle": (problems.circle(options.sharpness), True),
        "varying rank": (varying_rank(options.sharpness, options.curvature), False),
    }


def compute(options: Options, progress: Progress) -> dict[str, Any]:
    """Every defence on every problem; the result of the command.

    Raises:
        UserError: for an impossible rank, or a path that diverges, or an onset that cannot be read.
    """
    found = {}
    chosen = cases(options)
    with progress.stage("problems", len(chosen)) as tick:
        for name, (problem, constant_rank) in chosen.items():
            try:
                found[name] = measure(problem, constant_rank, options)
            except DivergedError as error:
                raise UserError(f"--horizon must be below {error.time:.3g} for {name}: {error}") from error
            except NoFitError as error:
                raise UserError(f"--horizon must be another for {name}: {error}") from error
            tick()
    return {"schema_version": 1, "problems": found}


def measure(problem: Problem, constant_rank: bool, options: Options) -> dict[str, Any]:
    """One problem: continuous defences, tracked gradient descent, and the refresh law.

    Raises:
        DivergedError: if a path diverges before the horizon.
    """
    return {
        "note": problem.note,
        "dimension": problem.skill.dimension,
        "rank": problem.rank,
        "constant_rank": constant_rank,
        "defenses": {
            name: _continuous(problem, field, options.horizon) for name, field in _fields(problem, options).items()
        },
        "tracked_descent": [_discrete(problem, options.steps, every, options.horizon) for every in options.refresh],
        "refresh_law": [refresh_law(problem, options.steps, every) for every in options.refresh]
        if constant_rank
        else None,
    }


def _fields(problem: Problem, options: Options) -> Mapping[str, Field]:
    loss, skill, rank = problem.loss, problem.skill, problem.rank
    return {
        "none": GradientFlow(loss),
        "static": StaticProjection(loss, skill.top_directions(skill.base, rank)),
        "tracked": TrackedProjection(loss, skill, rank),
        **{f"trust region {mu:g}": TrustRegion(loss, skill, mu) for mu in options.strengths},
    }


def _continuous(problem: Problem, field: Field, horizon: float) -> dict[str, Any]:
    skill = problem.skill
    times = np.geomspace(horizon * _DECADES, horizon, _POINTS)
    times[-1] = horizon
    thetas = flow(field, skill.base, times)
    utility = skill.utility_losses(thetas)
    expected = predict(skill, field.derivatives(skill.base), problem.rank)
    coefficient = None
    if expected.gamma_star > 0:
        lowest = 2 if expected.leak > 0 else 4
        coefficient = onset_fit(times, utility, _FIT * horizon, lowest)[4]
    return {
        "leak": expected.leak,
        "onset_coefficient": expected.gamma_star,
        "predicted_coefficient": expected.gamma_star**2 / 8,
        "coefficient": coefficient,
        **_curve(problem, times, thetas, utility),
    }


def _curve(problem: Problem, times: np.ndarray, thetas: Tensor, utility: np.ndarray) -> dict[str, Any]:
    """Losses against time, and where they end; the fine-tuning loss is counted from the base point."""
    values = (vmap(problem.loss)(thetas) - problem.loss(problem.skill.base)).tolist()
    return {
        "end": {"t": float(times[-1]), "utility_loss": float(utility[-1]), "fine_tuning_loss": values[-1]},
        "largest_utility_loss": float(utility.max()),
        "curve": {"t": times.tolist(), "utility_loss": utility.tolist(), "fine_tuning_loss": values},
    }


def _descent(problem: Problem, steps: int, every: int, horizon: float) -> Tensor:
    """Parameters after each step of tracked gradient descent, shape (K + 1, n)."""
    field = TrackedProjection(problem.loss, problem.skill, problem.rank)
    return descend(field, problem.skill.base, np.full(steps, horizon / steps), refresh=every)


def _discrete(problem: Problem, steps: int, every: int, horizon: float) -> dict[str, Any]:
    kept = np.unique(np.geomspace(1, steps, _DRAWN).round().astype(int))
    thetas = _descent(problem, steps, every, horizon)[kept]
    curve = _curve(problem, kept * (horizon / steps), thetas, problem.skill.utility_losses(thetas))
    return {"refresh": every, "steps": steps, **curve}


def refresh_law(problem: Problem, steps: int, every: int) -> dict[str, Any]:
    """The utility loss of tracked gradient descent at a short time T, against the law.

    ``T^4 (sum_i R_i^2 / K^2)^2 E[h^2] / 8`` with ``h = v^T Hess(l) v`` and the lengths R_i of the intervals between
    two refreshes; ``(R/K)^2`` where R divides K. It needs a Fisher matrix of constant rank d.
    """
    skill = problem.skill
    velocity = TrackedProjection(problem.loss, skill, problem.rank)(skill.base)
    stats = skill.statistics(velocity, torch.zeros_like(velocity))
    assert stats.curvature is not None
    whole, rest = divmod(steps, every)
    factor = ((whole * every**2 + rest**2) / steps**2) ** 2
    predicted = REFRESH_TIME**4 * factor * stats.expectation(stats.curvature**2) / 8
    measured = float(skill.utility_losses(_descent(problem, steps, every, REFRESH_TIME)[-1:])[0])
    return {
        "refresh": every,
        "steps": steps,
        "horizon": REFRESH_TIME,
        "factor": factor,
        "predicted": predicted,
        "measured": measured,
    }
