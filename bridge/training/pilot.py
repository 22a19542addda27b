"""Pilot steps: the first steps of the real optimiser on its full schedule, the skill measured along them.

Everything is the fine-tune's own (`bridge.training.train`: AdamW, clipping, schedule of the full run), so that a pilot
is the beginning of the full run to the last bit, and the full run continues it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bridge.data.samples import Sample
from bridge.deltas.factors import dense_inner
from bridge.estimators.batches import Batch
from bridge.estimators.utility_loss import measure_utility_loss
from bridge.models.blocks import inner_model
from bridge.models.load import LoadedModel
from bridge.reports.results import Result
from bridge.training.plan import Method, Plan, TrainingLog
from bridge.training.train import train, with_lora
from commands.errors import UserError
from commands.progress import Progress
from commands.store import Checkpoints, Part, write_json
from theory.damage_forecast import forecast_end
from theory.pilot_forecast import LEVEL, Forecast, forecasts

_EVERY_STEP = 10  # up to here; then each further measured step is a quarter later
_GROWTH = 1.25
_FULL_POINTS = 6  # further measured steps where the full run is made


DRIFTING = "drifting power law"
"""Name of the forecast that lets the exponent wander."""


@dataclass(frozen=True)
class MeasuredPoint:
    """The skill after a number of optimizer steps, and whether that is one of the pilot's; see `PilotPoint`."""

    step: int
    accumulated: float
    displacement: float
    finetuning_loss: float
    utility_loss: float
    pilot: bool


@dataclass(frozen=True)
class ComparedForecast(Forecast):
    """A forecast of the end, over what happened where the full run was made."""

    ratio: float | None


@dataclass(frozen=True)
class PilotResult(Result):
    """What the pilot's steps measured, and what they forecast of the end of the run.

    Attributes:
        pilot_steps: steps of the pilot, of `steps` in all.
        accumulated: sum of the learning rates of all steps.
        points: what was measured, the full run's among them.
        forecasts: by method.
        happened: the utility loss at the end, where the full run was made.

    """

    FILE: ClassVar[str] = "pilot.json"

    method: Method
    optimizer: str
    scheduler: str
    learning_rate: float
    pilot_steps: int
    steps: int
    accumulated: float
    points: list[MeasuredPoint]
    forecasts: dict[str, ComparedForecast]
    happened: float | None

    @property
    def last_step(self) -> MeasuredPoint:
        """The last of the pilot's own points."""
        return [point for point in self.points if point.pilot][-1]

    def records(self) -> list[dict[str, object]]:
        """A row a forecast."""
        return [asdict(forecast) for forecast in self.forecasts.values()]


@dataclass(frozen=True)
class PilotPoint:
    """The skill after a number of optimizer steps.

    step: optimizer steps done; accumulated: sum of their learning rates; displacement: norm of the change of what is
    trained (for LoRA, of the factors); finetuning_loss: of the step's batch before the step; losses: (N,) utility
    loss of every sample.
    """

    step: int
    accumulated: float
    displacement: float
    finetuning_loss: float
    losses: Float[np.ndarray, " N"]


def measured_steps(pilot: int, total: int, full: bool) -> list[int]:
    """At which steps the skill is measured: all of the first ten, then ever rarer, and the last pilot step.

    With the full run some further ones and its last.
    """
    found, step = [], 1
    while step < pilot:
        found.append(step)
        step = step + 1 if step < _EVERY_STEP else max(step + 1, round(step * _GROWTH))
    found.append(pilot)
    if full and total > pilot:
        found += np.unique(np.rint(np.geomspace(pilot, total, _FULL_POINTS + 1)[1:]).astype(int)).tolist()
    return sorted({step for step in found if step <= total})


def check_length(pilot: int, total: int) -> None:
    """Raise UserError unless the full run goes on after the pilot."""
    if pilot >= total:
        raise UserError(f"--pilot-steps: expected fewer than {total}, the steps of the full run, got {pilot}")


def run_pilot(
    loaded: LoadedModel,
    samples: Sequence[Sample],
    skill: Sequence[Batch],
    plan: Plan,
    pilot_steps: int,
    full: bool,
    memory_bytes: int,
    folder: Checkpoints,
    progress: Progress,
) -> tuple[list[PilotPoint], TrainingLog]:
    """Train for the pilot's steps, or to the end, and measure the utility loss along the way.

    The model is left with the trained weights (and, for LoRA, its adapters).

    Args:
        loaded: the base model.
        samples: the fine-tuning rows.
        skill: batches of the skill's samples, with the base's own responses.
        plan: of the full run.
        pilot_steps: after how many steps a pilot ends.
        full: go on to the end of the plan.
        memory_bytes: what may be kept between passes.
        folder: keeps the training's checkpoints and the measured points.
        progress: where to show the stages.

    Raises:
        UserError: the full run would not go on after the pilot, or the training cannot be done.

    """
    total = plan.steps(len(samples))
    check_length(pilot_steps, total)
    model = with_lora(loaded.model, plan, base_name=loaded.name) if plan.method == "lora" else loaded.model
    wanted = measured_steps(pilot_steps, total, full)
    watch = _Watch(model, skill, wanted, memory_bytes, folder, total if full else pilot_steps)
    pad_id = int(loaded.tokenizer.pad_token_id)
    stage = "full run" if full else "pilot steps"
    log = train(model, samples, plan, folder, progress, pad_id=pad_id, on_step=watch.on_step, stage=stage)
    accumulated = np.cumsum(log.learning_rates)
    return [
        PilotPoint(
            step=step,
            accumulated=float(accumulated[step - 1]),
            displacement=displacement,
            finetuning_loss=log.losses[step - 1],
            losses=np.array(losses),
        )
        for step in wanted
        for displacement, losses in [watch.read(step)]
    ], log


def accumulated_rate(log: TrainingLog, plan: Plan, total: int) -> float:
    """Sum of the learning rates of the full run's steps, by transformers' own schedule."""
    if log.steps >= total:
        return math.fsum(log.learning_rates[:total])
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=plan.learning_rate)
    warmup = math.ceil(plan.warmup * total) if plan.warmup < 1 else int(plan.warmup)
    schedule = get_scheduler(plan.scheduler, optimizer, num_warmup_steps=warmup, num_training_steps=total)
    rates = []
    for _ in range(total):
        rates.append(float(schedule.get_last_lr()[0]))
        optimizer.step()
        schedule.step()
    return math.fsum(rates)


class _Watch:
    """Called after each step: measures at the wanted ones, and ends the training after the last."""

    def __init__(
        self,
        model: torch.nn.Module,
        skill: Sequence[Batch],
        wanted: Sequence[int],
        memory_bytes: int,
        folder: Checkpoints,
        last: int,
    ) -> None:
        self._model = inner_model(model)
        self._skill, self._wanted, self._memory, self._folder, self._last = skill, wanted, memory_bytes, folder, last
        self._trained = {
            name: p for name, p in self._model.named_parameters() if "lora_" in name or self._model is model
        }
        # LoRA's B starts at 0: with the factors of the start the model is the base, to the last bit.
        self._start = {name: p.detach().clone() for name, p in self._trained.items()}

    def read(self, step: int) -> tuple[float, list[float]]:
        """What was measured after a step: the displacement, and the utility loss of every sample."""
        measured = json.loads(self._folder.checkpoint(f"pilot-{step}.json").read_text())
        return measured["displacement"], measured["utility_loss"]

    def on_step(self, step: int, _: object) -> bool:
        """Measure where wanted; True ends the training."""
        path = self._folder.checkpoint(f"pilot-{step}.json")
        if step in self._wanted and not path.exists():
            write_json(path, self._measure(step))
        return step >= self._last

    def _measure(self, step: int) -> dict[str, object]:
        now = {name: p.detach().clone() for name, p in self._trained.items()}
        squares = [_squared_distance(part, self._start[name]) for name, part in now.items()]
        part = Part(self._folder, f"pilot-{step}")
        self._set(self._start)
        try:
            measured = measure_utility_loss(
                self._model,
                self._skill,
                {f"step {step} of the training": lambda: self._set(now)},
                lambda: self._set(self._start),
                self._memory,
                part,
                Progress(quiet=True),
            )
        finally:
            self._set(now)
        (losses,) = measured.values()
        return {"displacement": sum(squares) ** 0.5, "utility_loss": losses["utility_loss"].tolist()}

    @torch.no_grad()
    def _set(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self._trained.items():
            parameter.copy_(values[name])


def _squared_distance(left: Tensor, right: Tensor) -> float:
    difference = left.double() - right.double()
    return dense_inner(difference, difference)


def pilot_result(
    points: Sequence[PilotPoint], log: TrainingLog, plan: Plan, pilot_steps: int, total: int
) -> PilotResult:
    """Points, forecasts, and what happened where the full run was made.

    Steps of learning rate 0, of which a warm-up's first is one, move nothing: forecasts rest on the others, and there
    are none where no other was made.

    Args:
        points: what was measured.
        log: of the training, up to the last point.
        plan: of the full run.
        pilot_steps: after how many steps the pilot ended.
        total: steps of the full run.

    """
    measured = [
        MeasuredPoint(
            step=point.step,
            accumulated=point.accumulated,
            displacement=point.displacement,
            finetuning_loss=point.finetuning_loss,
            utility_loss=float(point.losses.mean()),
            pilot=point.step <= pilot_steps,
        )
        for point in points
    ]
    target = accumulated_rate(log, plan, total)
    happened = measured[-1].utility_loss if measured[-1].step == total else None
    return PilotResult(
        method=plan.method,
        optimizer=plan.optimizer,
        scheduler=plan.scheduler,
        learning_rate=plan.learning_rate,
        pilot_steps=pilot_steps,
        steps=total,
        accumulated=target,
        points=measured,
        forecasts={
            name: ComparedForecast(**asdict(forecast), ratio=forecast.value / happened if happened else None)
            for name, forecast in _forecasts([point for point in measured if point.pilot], target).items()
        },
        happened=happened,
    )


def _forecasts(pilot: Sequence[MeasuredPoint], target: float) -> dict[str, Forecast]:
    """From the pilot's points that moved on from the one before."""
    times = np.array([point.accumulated for point in pilot])
    moved = np.diff(times, prepend=0.0) > 0
    if not moved.any():
        return {}
    seen = times[moved], np.array([point.utility_loss for point in pilot])[moved]
    found = forecasts(*seen, target)
    if end := forecast_end(*seen, target, level=LEVEL):
        drifting = Forecast(DRIFTING, end.value, end.low, end.high, end.exponent, end.num_points)
        found = {DRIFTING: drifting} | found
    return found
