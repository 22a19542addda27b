"""onset.json: the measured onset beside its prediction, put together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int

from bridge.estimators.lanczos import Leading
from bridge.estimators.output_space import TokenMoments
from bridge.estimators.step_moments import StepMoments
from commands.store import SCHEMA_VERSION
from theory import onset
from theory.descent import Schedule
from theory.local_slopes import first_departure, readable, readable_exponents, stretches
from theory.resampling import bootstrap_weights, percentile_interval

if TYPE_CHECKING:
    from bridge.experiments.onset.settings import Settings

DEPARTURES = {"ten_percent": 1.1, "factor_two": 2.0}


@dataclass(frozen=True)
class Curve:
    """The prediction for one set of samples: at the schedule's times, and of the flow at finer ones."""

    steps: StepMoments
    fine_times: Float[np.ndarray, " F"]
    fine_loss: Float[np.ndarray, "N F"]


@dataclass(frozen=True)
class Measured:
    """What the real steps did: utility loss (N, G) by set, the fine-tuning loss and the distance from the base."""

    losses: dict[str, np.ndarray]
    finetuning_losses: list[float]
    distances: list[float]


@dataclass(frozen=True)
class Removed:
    """What the removal of the overlap took from the velocity.

    rank: d, the directions removed; samples: those that they are of; condition: largest over smallest of their
    eigenvalues; share: of the velocity's square that was taken; leak_before, leak_after: root mean square of s_i . v
    over the same samples; motion_before: by set, the square of the exact leak of the velocity as it was, sample by
    sample (its mean is the set's).
    """

    rank: int
    samples: int
    condition: float
    share: float
    leak_before: float
    leak_after: float
    motion_before: dict[str, Float[np.ndarray, " N"]]


@dataclass(frozen=True)
class Everything:
    """All that a run has measured; arrays by set of samples. `along_velocity` is v . a of the flow."""

    schedule: Schedule
    motion: Mapping[str, TokenMoments]
    predicted: Mapping[str, Curve]
    measured: Measured
    floor: Mapping[str, Mapping[str, np.ndarray]]
    leading: Leading | None
    removed: Removed | None
    finetuning_loss: float
    along_velocity: float
    groups: Mapping[str, Int[np.ndarray, " N"]]


def plain(settings: Settings) -> dict[str, Any]:
    """The settings as a table shows them, the real optimiser's plan among them."""
    found = asdict(settings)
    plan = found.pop("plan")
    return found | {f"plan.{key}": value for key, value in plan.items() if key != "overrides"}


def assemble(all_of: Everything, settings: Settings, dtype: str) -> dict[str, Any]:
    """The content of onset.json but for the pilot and the sentences."""
    sets = {name: _of_set(all_of, name, settings) for name in all_of.motion}
    main = sets["skill"]
    return {
        "schema_version": SCHEMA_VERSION,
        "model": settings.model,
        "skill": settings.skill,
        "finetune": settings.finetune,
        "optimizer": settings.optimizer,
        "method": settings.method,
        "dtype": dtype,
        "finetuning_loss": all_of.finetuning_loss,
        "largest_rate": float(all_of.schedule.rates.max()),
        "crossover": main["crossover"],
        "sets": sets,
        "curvature": _curvature(all_of.leading),
        "acceleration_along_velocity": all_of.along_velocity,
        "removed": None if all_of.removed is None else _removed_of(all_of, all_of.removed, settings),
        "realistic": [_realistic(rate, steps, main) for rate, steps in settings.realistic],
    }


def _curvature(leading: Leading | None) -> dict[str, Any] | None:
    if leading is None:
        return None
    limit = 2 / leading.value if leading.value > 0 else None
    return asdict(leading) | {"limit": limit}


def _realistic(rate: float, steps: int, main: Mapping[str, Any]) -> dict[str, Any]:
    t, valid = rate * steps, main["validity"]["factor_two"]
    last = main["points"][-1]["t"]
    return {
        "learning_rate": rate,
        "steps": steps,
        "t": t,
        "crossovers": t / main["crossover"],
        "place": "beyond the expansion" if t > (valid or math.inf) else "not measured so far" if t > last else None,
    }


def _removed_of(all_of: Everything, removed: Removed, settings: Settings) -> dict[str, Any]:
    after = {name: moments.leak_variance for name, moments in all_of.motion.items()}
    return removed_part(removed, after, all_of.groups, settings.bootstrap, settings.seed)


def removed_part(
    removed: Removed,
    after: Mapping[str, Float[np.ndarray, " N"]],
    groups: Mapping[str, Int[np.ndarray, " N"]],
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """The part "removed" of onset.json.

    "left": by set of samples, which share of its exact leak is left (`after`: the square of what is, of each sample),
    with its interval; "difference": the interval of the skill's share less the probe's.
    """
    left, drawn = {}, {}
    for stream, (name, variance) in enumerate(after.items()):
        before = removed.motion_before[name]
        weights = np.full(len(variance), 1 / len(variance))
        # the sets have their own samples, and the seed's draws of one may not go together with those of the other
        draws = bootstrap_weights(weights, resamples, seed + stream, groups[name])
        drawn[name] = np.sqrt(_safe(draws @ variance, draws @ before))
        share = np.sqrt(_safe(variance.mean(keepdims=True), before.mean(keepdims=True)))
        left[name] = {"share": _or_none(float(share[0])), "interval": _interval(drawn[name])}
    found = asdict(removed)
    found["motion_before"] = {name: float(np.sqrt(v.mean())) for name, v in removed.motion_before.items()}
    return found | {"left": left, "difference": _interval(drawn["skill"] - drawn["probe"])}


def _departures(
    times: Float[np.ndarray, " G"],
    measured: Float[np.ndarray, " G"],
    predicted: Float[np.ndarray, " G"],
    read: Bool[np.ndarray, " G"],
) -> dict[str, float | None]:
    """When the two part for good, by factor, after the last time that cannot be read."""
    unread = np.flatnonzero(~read)
    after = slice(int(unread[-1]) + 1 if len(unread) else 0, None)
    return {
        key: first_departure(times[after], measured[after], predicted[after], factor) if len(times[after]) else None
        for key, factor in DEPARTURES.items()
    }


def _of_set(all_of: Everything, name: str, settings: Settings) -> dict[str, Any]:
    moments, curve = all_of.motion[name], all_of.predicted[name]
    times, losses = all_of.schedule.times, all_of.measured.losses[name]
    floor = float(all_of.floor[name]["rounding"].mean())
    weights = np.full(len(losses), 1 / len(losses))
    draws = bootstrap_weights(weights, settings.bootstrap, settings.seed, all_of.groups[name])
    crossover = onset.crossover(moments.leak(), moments.quartic())
    measured, predicted = losses.mean(0), curve.steps.loss.mean(0)
    read = readable(measured, floor)
    slopes = readable_exponents(times, measured, read), readable_exponents(times, predicted, read)
    points = [
        {
            **_measured_at(all_of, k),
            **_predicted_at(times[k], curve.steps, k),
            "utility_loss": float(measured[k]),
            "interval": _interval(draws @ losses[:, k]),
            "predicted": float(predicted[k]),
            "ratio": _ratio(measured[k], predicted[k]),
            "ratio_interval": _interval(_safe(draws @ losses[:, k], draws @ curve.steps.loss[:, k])),
            "exponent": _or_none(slopes[0][k]),
            "predicted_exponent": _or_none(slopes[1][k]),
            "above_floor": bool(read[k]),
        }
        for k in range(len(times))
    ]
    return {
        "num_samples": len(losses),
        "leak": moments.leak(),
        "onset_coefficient": moments.onset(),
        "quartic": moments.quartic(),
        "crossover": crossover,
        "crossover_of_the_scores": onset.crossover(moments.leak(), moments.onset()),
        "cross": float(moments.cross.mean()),
        "floor": floor,
        "round_trip": float(all_of.floor[name]["round trip"].mean()),
        "points": points,
        "curve": [
            {"t": float(t), "utility_loss": float(u)}
            for t, u in zip(curve.fine_times, curve.fine_loss.mean(0), strict=True)
        ],
        "stretches": [asdict(s) for s in stretches(times, slopes[0])],
        "validity": _departures(times, measured, predicted, read),
    }


def _measured_at(all_of: Everything, k: int) -> dict[str, Any]:
    schedule, moments = all_of.schedule, all_of.motion["skill"]
    end = int(schedule.ends[k])
    return {
        "t": float(schedule.times[k]),
        "crossovers": float(schedule.times[k]) * moments.quartic() / (2 * moments.leak()),
        "steps": end,
        "learning_rate": float(schedule.rates[end - 1]),
        "acceleration_share": float(schedule.shares()[k]),
        "finetuning_loss": all_of.measured.finetuning_losses[k],
        "distance": all_of.measured.distances[k],
    }


def _predicted_at(t: float, steps: StepMoments, k: int) -> dict[str, float]:
    """The parts of the predicted loss; `higher` is what terms beyond the named ones add."""
    leak = float(t**2 / 2 * steps.leak_variance[:, k].mean())
    cross = float(t**3 / 2 * steps.cross[:, k].mean())
    quartic = float(t**4 / 8 * steps.quartic_variance[:, k].mean())
    higher = float(steps.loss[:, k].mean()) - leak - cross - quartic
    return {"leak_part": leak, "cross_part": cross, "quartic_part": quartic, "higher_part": higher}


def _interval(values: np.ndarray) -> list[float] | None:
    found = percentile_interval(values, 0.95) if len(values) else None
    return list(found) if found is not None and all(map(math.isfinite, found)) else None


def _safe(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)


def _ratio(measured: float, predicted: float) -> float | None:
    return float(measured / predicted) if predicted > 0 else None


def _or_none(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


# --------------------------------------------------------------------------------------------------- pilot
