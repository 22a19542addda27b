"""The valley of the skill in two parameters, and the paths of several updates that start along it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap

from commands.errors import UserError
from commands.progress import Progress
from sim.experiments.readings import onset_fit, predict
from sim.fields import Derivatives, Field, GradientFlow
from sim.flow import DivergedError, flow
from sim.problems import Dials, Problem
from sim.projections import StaticProjection, TrackedProjection
from sim.skills import GaussianSkill

SLOWING = 0.5  # second derivative of the fine-tuning loss along the valley's tangent
_EARLY, _EVEN = 61, 121  # times from horizon/1000 on, and evenly spread
_FIT = 0.2  # of the horizon: where the t^4 coefficient is read
_MARGIN = 0.25  # around the paths, of their extent


@dataclass(frozen=True)
class Options:
    """The options of the command.

    Attributes:
        sharpness: lambda.
        coupling: gamma.
        curvature: beta: the valley is ``x = -beta y^2 / 2``.
        horizon: T.
        resolution: points of the grid a side.
    """

    sharpness: float
    coupling: float
    curvature: float
    horizon: float
    resolution: int


def ridge(sharpness: float, coupling: float, curvature: float) -> Problem:
    """Skill ``N(x + beta y^2/2, 1/lambda)``, loss ``-y + b x y + c y^2/2`` with ``b = gamma / sqrt(lambda)``.

    At the origin ``F = diag(lambda, 0)`` and ``g = (0, -1)``: the update starts along the valley ``x = -beta y^2/2``,
    and the onset coefficient of gradient flow is ``|gamma - sqrt(lambda) beta|``. The last term of the loss slows the
    flow down along y, and changes nothing else.
    """
    b = coupling / sharpness**0.5
    skill = GaussianSkill(
        lambda theta: (theta[0] + curvature * theta[1] ** 2 / 2)[None], sharpness, torch.zeros(2, dtype=torch.float64)
    )

    def loss(theta: Tensor) -> Tensor:
        x, y = theta
        return -y + b * x * y + SLOWING * y * y / 2

    return Problem(skill, loss, 1, "skill N(x + beta y^2/2, 1/lambda), loss -y + b x y + y^2/4, b = gamma/sqrt(lambda)")


@dataclass(frozen=True, eq=False)
class Straight(Field):
    """The path that does not bend, ``theta(t) = theta* + t v``."""

    velocity: Tensor

    def __call__(self, state: Tensor) -> Tensor:
        """The same everywhere."""
        return self.velocity

    def derivatives(self, base: Tensor) -> Derivatives:
        """No acceleration, no jerk."""
        return Derivatives(self.velocity, torch.zeros_like(base), torch.zeros_like(base))


class NoOnsetError(ValueError):
    """The quartic onset is over too early to be read."""


def compute(options: Options, progress: Progress) -> dict[str, Any]:
    """The landscape on a grid, and the paths; the result of the command.

    Raises:
        UserError: for impossible dials, or a flow that diverges.
    """
    Dials(sharpness=options.sharpness, coupling=options.coupling, curvature=options.curvature).check()
    problem = ridge(options.sharpness, options.coupling, options.curvature)
    base, loss = problem.skill.base, problem.loss
    flows = GradientFlow(loss)
    fields: dict[str, Field] = {
        "gradient flow": flows,
        "straight line": Straight(flows(base)),
        "static projection": StaticProjection(loss, problem.skill.top_directions(base, problem.rank)),
        "tracked projection": TrackedProjection(loss, problem.skill, problem.rank),
    }
    paths = {}
    with progress.stage("paths", len(fields)) as tick:
        for name, field in fields.items():
            try:
                paths[name] = measure(problem, field, options.horizon)
            except DivergedError as error:
                raise UserError(f"--horizon must be below {error.time:.3g} for the {name}: {error}") from error
            except NoOnsetError as error:
                raise UserError(f"--horizon must be below {options.horizon:g} for the {name}: {error}") from error
            tick()
    grid = _grid(problem, paths, options.resolution)
    return {"schema_version": 1, "note": problem.note, "paths": paths, "grid": grid, "valley": _valley(options, grid)}


def measure(problem: Problem, field: Field, horizon: float) -> dict[str, Any]:
    """One path: where it goes, what it costs, and its onset against the prediction.

    Raises:
        DivergedError: if it diverges before the horizon.
        NoOnsetError: if it has an onset that cannot be read.
    """
    skill = problem.skill
    times = np.unique(np.concatenate([np.geomspace(1e-3, 1, _EARLY), np.linspace(0, 1, _EVEN)[1:]])) * horizon
    path = flow(field, skill.base, times)
    utility = skill.utility_losses(path)
    expected = predict(skill, field.derivatives(skill.base), problem.rank)
    tuned = vmap(problem.loss)(path)
    coefficient = None
    if expected.gamma_star > 0:
        try:
            coefficient = onset_fit(times, utility, _FIT * horizon, 2 if expected.leak > 0 else 4)[4]
        except ValueError as error:
            raise NoOnsetError("its quartic onset is over before the first times that are shown") from error
    return {
        "leak": expected.leak,
        "coupling": expected.coupling,
        "onset_coefficient": expected.gamma_star,
        "predicted_coefficient": expected.gamma_star**2 / 8,
        "paper_coefficient": expected.coupling**2 / 8,
        "coefficient": coefficient,
        "largest_utility_loss": float(utility.max()),
        "end": {
            "t": float(times[-1]),
            "x": float(path[-1, 0]),
            "y": float(path[-1, 1]),
            "utility_loss": float(utility[-1]),
            "fine_tuning_loss": float(tuned[-1]),
        },
        "curve": {
            "t": times.tolist(),
            "x": path[:, 0].tolist(),
            "y": path[:, 1].tolist(),
            "utility_loss": utility.tolist(),
            "fine_tuning_loss": tuned.tolist(),
        },
    }


def _grid(problem: Problem, paths: dict[str, Any], resolution: int) -> dict[str, Any]:
    """Utility loss and fine-tuning loss around the paths, as rows of constant y."""
    axes = {}
    along = max(path["end"]["y"] for path in paths.values())
    for name in ("x", "y"):
        values = np.concatenate([[0.0], *(path["curve"][name] for path in paths.values())])
        margin = _MARGIN * max(np.ptp(values), _MARGIN * along)
        axes[name] = np.linspace(values.min() - margin, values.max() + margin, resolution)
    y, x = np.meshgrid(axes["y"], axes["x"], indexing="ij")
    points = torch.from_numpy(np.stack([x.ravel(), y.ravel()], axis=1))
    return {
        "x": axes["x"].tolist(),
        "y": axes["y"].tolist(),
        "utility_loss": problem.skill.utility_losses(points).reshape(x.shape).tolist(),
        "fine_tuning_loss": vmap(problem.loss)(points).reshape(x.shape).tolist(),
    }


def _valley(options: Options, grid: dict[str, Any]) -> dict[str, list[float]]:
    """Where the utility loss is 0."""
    y = np.array(grid["y"])
    return {"x": (-options.curvature * y**2 / 2).tolist(), "y": y.tolist()}
