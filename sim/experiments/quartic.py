"""The onset of the utility loss along gradient flow: measured on the policy, against what the theory predicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor
from torch.func import vmap

from commands.errors import UserError
from commands.progress import Progress
from sim import problems
from sim.experiments.readings import Onset, power_coefficients, predict, slope_crosses
from sim.fields import GradientFlow
from sim.flow import DivergedError, trajectory
from sim.problems import Dials, Problem
from sim.session import finite
from sim.skills import Skill, path_derivatives
from theory import onset

Path = Callable[[np.ndarray], Tensor]  # increasing times to parameters, (T,) to (T, n)

POINTS = 121
_WINDOW = 0.15  # third derivatives may change d by a twentieth at the window's end: M3 t / (3 gamma_star)
_INNER = 0.1  # the part of the window that exponent and coefficient are read in, where they change it by 1/200
_BEFORE_CROSSOVER = 30.0
_BEYOND_WINDOW = 3.0
_DECADES = 1e-3  # times shown below the window, where no crossover is
_SMALLEST = 1e-12  # of the horizon: no window is looked for below
_NODES = 16  # of the Chebyshev interpolant that gives third derivatives along the path


def compute(cases: Sequence[str], dials: Dials, horizon: float, seed: int, progress: Progress) -> dict[str, Any]:
    """Measure every case; the result of the command.

    Raises:
        UserError: for impossible dials, a flow that diverges, or a case whose quartic window is empty.
    """
    dials.check()
    builders = _builders(dials, seed)
    found = {}
    with progress.stage("cases", len(cases)) as tick:
        for name in cases:
            try:
                found[name] = measure(builders[name](), horizon)
            except DivergedError as error:
                raise UserError(f"--horizon must be below {error.time:.3g} for {name}: {error}") from error
            except NoWindowError as error:
                raise UserError(f"{_remedy(name, dials, error)}: {error}") from error
            tick()
    return {"schema_version": 1, "cases": found}


def _builders(dials: Dials, seed: int) -> dict[str, Callable[[], Problem]]:
    """Every case by its name."""

    def dialled(note: str, **changes: float) -> Callable[[], Problem]:
        clean = {"overlap": 0.0, "tail": 0.0, "curvature": 0.0}
        return lambda: problems.dialled(replace(dials, **(clean | changes)), seed, note)  # type: ignore[arg-type]

    n = dials.dimension
    return {
        "coupled": dialled("curved loss, flat model: the paper's case"),
        "curved": dialled("curved loss and curved model", curvature=dials.curvature),
        "circle": lambda: problems.circle(dials.sharpness),
        "leaky": dialled("the gradient overlaps the sharp direction", overlap=dials.overlap),
        "tail": dialled("no overlap, but a leak through the tail", tail=dials.tail),
        "softmax": lambda: problems.softmax(n, 2, 3, max(1, n // 3), seed),
        "mlp": lambda: problems.perceptron(seed),
        "transformer": lambda: problems.transformer(seed),
    }


class NoWindowError(ValueError):
    """There is no time at which the quartic law could be read off; a leak of ``share`` of this one would leave some."""

    def __init__(self, leak: float, low: float, high: float) -> None:
        super().__init__(
            f"no quartic window, the leak of {leak:.3g} shows until t = {low:.3g} and higher orders from t = "
            f"{high:.3g} on"
        )
        self.share = _INNER * high / low / 2


def _remedy(case: str, dials: Dials, error: NoWindowError) -> str:
    if case == "leaky":
        return f"--overlap must be below about {dials.overlap * error.share:.2g} for leaky, got {dials.overlap}"
    if case == "tail":
        return f"--tail must be below about {dials.tail * error.share**2:.2g} for tail, got {dials.tail}"
    return f"--cases: leave out {case} with these dials and this seed"


def measure(problem: Problem, horizon: float) -> dict[str, Any]:
    """One case: loss, slope, exponent, coefficient and crossover along the flow, beside the predictions.

    Raises:
        DivergedError: if the flow diverges before the horizon.
        NoWindowError: if there is an onset, but the leak hides it until higher orders do.
    """
    skill, field = problem.skill, GradientFlow(problem.loss)
    predicted = predict(skill, field.derivatives(skill.base), problem.rank)

    def trajectory_to(end: float) -> Path:
        path = trajectory(field, skill.base[None], end)
        return lambda times: path(times)[0]

    path, end = _resolved(predicted, skill, trajectory_to, horizon)
    times = _times(predicted, end)
    thetas = path(times)
    losses = skill.utility_losses(thetas)
    third = _third_derivatives(skill, path, times)
    window = _quartic_window(predicted, times, third)
    return {
        "note": problem.note,
        "dimension": skill.dimension,
        "rank": problem.rank,
        "leak": predicted.leak,
        "coupling": predicted.coupling,
        "onset_coefficient": predicted.gamma_star,
        "correlation": predicted.correlation,
        "predicted_coefficient": predicted.gamma_star**2 / 8,
        "paper_coefficient": predicted.coupling**2 / 8,
        "predicted_crossover": predicted.crossover,
        **_readings(times, losses, window, predicted.crossover),
        "window": window,
        "end": {"t": float(times[-1]), "utility_loss": float(losses[-1])},
        "curve": _curve(skill, predicted, times, thetas, losses, third),
    }


def _resolved(
    predicted: Onset, skill: Skill, trajectory_to: Callable[[float], Path], horizon: float
) -> tuple[Path, float]:
    """The path up to three times the window's end, or to the horizon, and where it ends.

    The end is found by shrinking the horizon until third derivatives are resolved.
    """
    if predicted.gamma_star == 0:
        return trajectory_to(horizon), horizon
    *_, jerk = path_derivatives(skill.coordinates, skill.base, *predicted.path)
    size = float(_norm(skill, jerk[None])[0])
    end = min(horizon, _BEYOND_WINDOW * _WINDOW * predicted.gamma_star / size) if size > 0 else horizon
    while True:
        times = np.geomspace(end / 100, end, 25)
        try:
            path = trajectory_to(end)
            high = _window_end(predicted, times, _third_derivatives(skill, path, times))
        except DivergedError:
            if end < _SMALLEST * horizon:
                raise
            high = 0.0
        if high >= end / (1.5 * _BEYOND_WINDOW) or end < _SMALLEST * horizon:
            return path, end
        end = max(_BEYOND_WINDOW * high, end / 10)


def _times(predicted: Onset, end: float) -> np.ndarray:
    """Geometric times up to the end that show the crossover, where there is one."""
    start = end * _DECADES
    if predicted.crossover is not None:
        start = min(start, predicted.crossover / _BEFORE_CROSSOVER)
    times = np.geomspace(start, end, POINTS)
    times[-1] = end  # not its logarithm's rounding
    return times


def _window_end(predicted: Onset, times: np.ndarray, third: np.ndarray) -> float:
    """The last time at which third derivatives change d by a twentieth at most, or 0."""
    inside = times * third <= _WINDOW * predicted.gamma_star
    return float(times[inside].max(initial=0.0))


def _norm(skill: Skill, values: Tensor) -> np.ndarray:
    """Root of ``E[c^2]`` for each row."""
    return (values.square() @ skill.coordinate_weights).sqrt().numpy()


def _third_derivatives(skill: Skill, path: Path, times: np.ndarray) -> np.ndarray:
    """M3: the largest norm of the third derivative of the coordinates on [0, t], shape (T,).

    From the Chebyshev interpolant of the coordinates on [0, t_end], differentiated three times.
    """
    end = float(times[-1])
    nodes = (1 - np.cos(np.pi * (np.arange(_NODES) + 0.5) / _NODES)) / 2 * end
    values = vmap(skill.coordinates)(path(nodes)).numpy()
    fit = np.polynomial.chebyshev.chebfit(2 * nodes / end - 1, values, _NODES - 1)
    slope = np.polynomial.chebyshev.chebder(fit, 3, scl=2 / end)
    at = np.concatenate([[0.0], times])
    third = np.polynomial.chebyshev.chebval(2 * at / end - 1, slope).T
    norms = np.sqrt(third**2 @ skill.coordinate_weights.numpy())
    return np.maximum.accumulate(norms)[1:]


def _quartic_window(predicted: Onset, times: np.ndarray, third: np.ndarray) -> list[float] | None:
    """Where the quartic law holds to a tenth: the leak no longer shows, third derivatives not yet."""
    if predicted.gamma_star == 0:
        return None
    low, _ = onset.quartic_window(predicted.leak, predicted.gamma_star, 0.0)
    high = _window_end(predicted, times, third)
    low = max(low, float(times[0]))
    if np.count_nonzero((times >= low) & (times <= _INNER * high)) < 5:
        raise NoWindowError(predicted.leak, low, high)
    return [low, high]


def _readings(
    times: np.ndarray, losses: np.ndarray, window: list[float] | None, crossover: float | None
) -> dict[str, float | None]:
    """Exponent, coefficient and crossover as the curve shows them."""
    found: dict[str, float | None] = {"exponent": None, "coefficient": float((losses / times**4).min())}
    if window is not None:
        inner = (window[0], _INNER * window[1])
        found["exponent"] = onset.fit_exponent(times, losses, inner).exponent
        found["coefficient"] = power_coefficients(times, losses, window[1], 2 if crossover else 4)[4]
    found["crossover"] = None if crossover is None else slope_crosses(times, losses, 3.0)
    return found


def _curve(
    skill: Skill, predicted: Onset, times: np.ndarray, thetas: Tensor, losses: np.ndarray, third: np.ndarray
) -> dict[str, list[float | None]]:
    """What the picture shows: the loss, its slope, and the two-sided finite-time law."""
    first, second, _ = path_derivatives(skill.coordinates, skill.base, *predicted.path)
    leak, gamma = (float(_norm(skill, x[None])[0]) for x in (first, second))
    drop, rise = skill.distortion(vmap(skill.coordinates)(thetas))
    band = onset.finite_time_bounds(times, leak, gamma, third, drop, rise)
    positive = losses > 0
    slope = np.full(len(times), np.nan)
    if positive.all():
        slope = onset.local_slope(times, losses)
    return {
        "t": times.tolist(),
        "utility_loss": losses.tolist(),
        "slope": [finite(x) for x in slope],
        "lower": (band.lower**2 / 2).tolist(),
        "upper": [finite(x) for x in band.upper**2 / 2],
    }
