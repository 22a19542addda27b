"""The result of `bridge.onset`, put together from what was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int

from bridge.estimators.lanczos import Leading
from bridge.estimators.output_space import TokenMoments
from bridge.estimators.step_moments import StepMoments
from bridge.experiments.onset.result import (
    FACTOR_TWO,
    TEN_PERCENT,
    Curvature,
    CurvePoint,
    Interval,
    Left,
    OnsetPoint,
    OnsetResult,
    RemovedOverlap,
    SetName,
    SetOnset,
    UsualRun,
    Validity,
)
from bridge.experiments.onset.settings import Settings
from bridge.training.pilot import PilotResult
from theory import onset
from theory.descent import Schedule
from theory.local_slopes import first_departure, readable, readable_exponents, stretches
from theory.resampling import bootstrap_weights, percentile_interval


@dataclass(frozen=True)
class Curve:
    """The prediction for one set of samples: at the schedule's times, and of the flow at finer ones."""

    steps: StepMoments
    fine_times: Float[np.ndarray, " F"]
    fine_loss: Float[np.ndarray, "N F"]


@dataclass(frozen=True)
class Floor:
    """Utility loss (N,) of a change at the rounding level, and of the base put back after it."""

    rounding: Float[np.ndarray, " N"]
    round_trip: Float[np.ndarray, " N"]


@dataclass(frozen=True)
class Walked:
    """What the real steps did: utility loss (N, G) by set, the fine-tuning loss and the distance from the base."""

    losses: Mapping[SetName, Float[np.ndarray, "N G"]]
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
    motion_before: Mapping[SetName, Float[np.ndarray, " N"]]


@dataclass(frozen=True)
class Measured:
    """All that a run has measured; by set of samples where there are several. `along_velocity` is v . a of the flow."""

    schedule: Schedule
    motion: Mapping[SetName, TokenMoments]
    predicted: Mapping[SetName, Curve]
    walked: Walked
    floor: Mapping[SetName, Floor]
    leading: Leading | None
    removed: Removed | None
    finetuning_loss: float
    along_velocity: float
    groups: Mapping[SetName, Int[np.ndarray, " N"]]
    pilot: PilotResult | None = field(default=None)


def assemble(measured: Measured, settings: Settings, dtype: str) -> OnsetResult:
    """The result but for its sentences."""
    sets = {name: _of_set(measured, name, settings) for name in measured.motion}
    main = sets["skill"]
    assert main.crossover is not None  # there would be no schedule
    return OnsetResult(
        model=settings.model,
        skill=settings.skill,
        finetune=settings.finetune,
        optimizer=settings.optimizer,
        method=settings.method,
        dtype=dtype,
        finetuning_loss=measured.finetuning_loss,
        largest_rate=float(measured.schedule.rates.max()),
        crossover=main.crossover,
        sets=sets,
        curvature=_curvature(measured.leading),
        acceleration_along_velocity=measured.along_velocity,
        removed=_removed(measured, settings),
        realistic=[_usual_run(rate, steps, main, main.crossover) for rate, steps in settings.usual_runs],
        pilot=measured.pilot,
        readings=[],
    )


def _curvature(leading: Leading | None) -> Curvature | None:
    if leading is None:
        return None
    return Curvature(**asdict(leading), limit=2 / leading.value if leading.value > 0 else None)


def _usual_run(rate: float, steps: int, main: SetOnset, crossover: float) -> UsualRun:
    t, valid = rate * steps, main.validity.factor_two
    beyond, further = t > (valid or math.inf), t > main.points[-1].t
    return UsualRun(
        learning_rate=rate,
        steps=steps,
        t=t,
        crossovers=t / crossover,
        place="beyond the expansion" if beyond else "not measured so far" if further else None,
    )


# ----------------------------------------------------------------------------------------- overlap removed


def _removed(measured: Measured, settings: Settings) -> RemovedOverlap | None:
    if measured.removed is None:
        return None
    after = {name: moments.leak_variance for name, moments in measured.motion.items()}
    return removed_overlap(measured.removed, after, measured.groups, settings.bootstrap, settings.seed)


def removed_overlap(
    removed: Removed,
    after: Mapping[SetName, Float[np.ndarray, " N"]],
    groups: Mapping[SetName, Int[np.ndarray, " N"]],
    resamples: int,
    seed: int,
) -> RemovedOverlap:
    """What is left of each set's exact leak; `after` is the square of it, of each sample."""
    left: dict[SetName, Left] = {}
    drawn: dict[SetName, Float[np.ndarray, " B"]] = {}
    for stream, (name, variance) in enumerate(after.items()):
        before = removed.motion_before[name]
        weights = np.full(len(variance), 1 / len(variance))
        # the sets have their own samples, and the seed's draws of one may not go together with those of the other
        draws = bootstrap_weights(weights, resamples, seed + stream, groups[name])
        drawn[name] = np.sqrt(_safe(draws @ variance, draws @ before))
        share = np.sqrt(_safe(variance.mean(keepdims=True), before.mean(keepdims=True)))
        left[name] = Left(_or_none(float(share[0])), _interval(drawn[name]))
    return RemovedOverlap(
        rank=removed.rank,
        samples=removed.samples,
        condition=removed.condition,
        share=removed.share,
        leak_before=removed.leak_before,
        leak_after=removed.leak_after,
        motion_before={name: float(np.sqrt(v.mean())) for name, v in removed.motion_before.items()},
        left=left,
        difference=_interval(drawn["skill"] - drawn["probe"]),
    )


# --------------------------------------------------------------------------------------- one set of samples


def _of_set(measured: Measured, name: SetName, settings: Settings) -> SetOnset:
    moments, curve = measured.motion[name], measured.predicted[name]
    times, losses = measured.schedule.times, measured.walked.losses[name]
    floor = float(measured.floor[name].rounding.mean())
    weights = np.full(len(losses), 1 / len(losses))
    draws = bootstrap_weights(weights, settings.bootstrap, settings.seed, measured.groups[name])
    mean, predicted = losses.mean(0), curve.steps.loss.mean(0)
    read = readable(mean, floor)
    exponents = readable_exponents(times, mean, read)
    curves = _Curves(mean, predicted, draws, read, exponents, readable_exponents(times, predicted, read))
    return SetOnset(
        num_samples=len(losses),
        leak=moments.leak(),
        onset_coefficient=moments.onset(),
        quartic=moments.quartic(),
        crossover=onset.crossover(moments.leak(), moments.quartic()),
        crossover_of_the_scores=onset.crossover(moments.leak(), moments.onset()),
        cross=float(moments.cross.mean()),
        floor=floor,
        round_trip=float(measured.floor[name].round_trip.mean()),
        points=[_point(measured, name, curves, k) for k in range(len(times))],
        curve=[CurvePoint(float(t), float(u)) for t, u in zip(curve.fine_times, curve.fine_loss.mean(0), strict=True)],
        stretches=stretches(times, exponents),
        validity=validity(times, mean, predicted, read),
    )


@dataclass(frozen=True)
class _Curves:
    """The mean losses of one set, resamples of its samples, which losses can be read, and the exponents of both."""

    measured: Float[np.ndarray, " G"]
    predicted: Float[np.ndarray, " G"]
    draws: Float[np.ndarray, "B N"]
    read: Bool[np.ndarray, " G"]
    exponents: Float[np.ndarray, " G"]
    predicted_exponents: Float[np.ndarray, " G"]


def _point(measured: Measured, name: SetName, curves: _Curves, k: int) -> OnsetPoint:
    """Everything at the time of that number; `higher` is what terms beyond the named ones add."""
    schedule, moments = measured.schedule, measured.motion["skill"]
    losses, steps = measured.walked.losses[name][:, k], measured.predicted[name].steps
    t, end = schedule.times[k], int(schedule.ends[k])
    mean, predicted = curves.measured[k], curves.predicted[k]
    leak = float(t**2 / 2 * steps.leak_variance[:, k].mean())
    cross = float(t**3 / 2 * steps.cross[:, k].mean())
    quartic = float(t**4 / 8 * steps.quartic_variance[:, k].mean())
    return OnsetPoint(
        t=float(t),
        crossovers=float(t) * moments.quartic() / (2 * moments.leak()),
        steps=end,
        learning_rate=float(schedule.rates[end - 1]),
        acceleration_share=float(schedule.shares()[k]),
        finetuning_loss=measured.walked.finetuning_losses[k],
        distance=measured.walked.distances[k],
        leak_part=leak,
        cross_part=cross,
        quartic_part=quartic,
        higher_part=float(steps.loss[:, k].mean()) - leak - cross - quartic,
        utility_loss=float(mean),
        interval=_interval(curves.draws @ losses),
        predicted=float(predicted),
        ratio=float(mean / predicted) if predicted > 0 else None,
        ratio_interval=_interval(_safe(curves.draws @ losses, curves.draws @ steps.loss[:, k])),
        exponent=_or_none(curves.exponents[k]),
        predicted_exponent=_or_none(curves.predicted_exponents[k]),
        above_floor=bool(curves.read[k]),
    )


def validity(
    times: Float[np.ndarray, " G"],
    measured: Float[np.ndarray, " G"],
    predicted: Float[np.ndarray, " G"],
    read: Bool[np.ndarray, " G"],
) -> Validity:
    """When the two part for good, after the last time that cannot be read."""
    unread = np.flatnonzero(~read)
    after = slice(int(unread[-1]) + 1 if len(unread) else 0, None)

    def departure(factor: float) -> float | None:
        if not len(times[after]):
            return None
        return first_departure(times[after], measured[after], predicted[after], factor)

    return Validity(departure(TEN_PERCENT), departure(FACTOR_TWO))


def _interval(values: Float[np.ndarray, " B"]) -> Interval | None:
    ends = percentile_interval(values, 0.95) if len(values) else None
    return ends if ends is not None and all(map(math.isfinite, ends)) else None


def _safe(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)


def _or_none(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
