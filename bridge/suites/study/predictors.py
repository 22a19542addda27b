"""The predictors of `bridge.study`: what each is, when it is known, and where the commands' results hold it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from bridge.experiments.estimate_aic.result import AicResult, LossAt
from bridge.experiments.finetune.result import FinetuneResult
from bridge.experiments.overlap.result import OverlapResult
from bridge.experiments.risk.result import RiskResult
from bridge.suites.study.settings import CHANGE
from bridge.training.pilot import DRIFTING, PilotResult

Stage = Literal["before", "pilot", "after"]
STAGES: tuple[Stage, ...] = ("before", "pilot", "after")
WHEN = {"before": "before training", "pilot": "after the pilot steps", "after": "after training"}


@dataclass(frozen=True)
class Predictor:
    """A number that may rank fine-tunes by their damage.

    stage: when it is known; trivial: whether it comes with any training, without a look at the skill; meaning: a line.
    """

    key: str
    name: str
    stage: Stage
    trivial: bool
    meaning: str


PREDICTORS = (
    Predictor("tokens", "response tokens", "before", True, "of the rows trained on"),
    Predictor("mean_tokens", "tokens per row", "before", True, "response tokens of a row on average"),
    Predictor("rate_steps", "learning rate × steps", "before", True, "sum of the schedule's learning rates"),
    Predictor("mean_loss", "mean loss", "before", True, "of the rows under the base, nats per token"),
    Predictor("gradient_norm", "gradient norm", "before", True, "of the mean loss, over the linear modules"),
    Predictor("leak", "leak", "before", False, "√(vᵀFv) of the optimiser's velocity, exact over the vocabulary"),
    Predictor("leak_per_norm", "leak at equal norm", "before", False, "leak over the velocity's norm"),
    Predictor("leak_per_decrease", "leak at equal decrease", "before", False,
              "√(vᵀFv) over the rate at which the set's own loss falls"),
    Predictor("gamma_star", "γ*", "before", False, "root mean square of l'' along the path"),
    Predictor("predicted_loss", "predicted utility loss", "before", False,
              "by derivatives at the base, at this learning rate × steps, where all weights are trained"),
    Predictor("pilot_norm", "norm at the pilot", "pilot", True, "of the change of what is trained (LoRA: its factors)"),
    Predictor("pilot_loss", "utility loss at the pilot", "pilot", False, "measured after the last pilot step"),
    Predictor("forecast", "forecast from the pilot", "pilot", False, "of the utility loss at the end"),
    Predictor("update_norm", "update norm", "after", True, "of the change of the weights"),
    Predictor("score", "overlap score", "after", False, "dWᵀFdW over all modules jointly"),
    Predictor("score_exact", "overlap score, exact over tokens", "after", False,
              "the same over all parameters, exact over the vocabulary"),
    Predictor("score_normalised", "overlap score, normalised", "after", False, "dWᵀFdW over |dW|²"),
    Predictor("score_enrichment", "overlap score, × random", "after", False,
              "over that of a random direction with each module's norm"),
    Predictor("score_modules", "overlap score, module by module", "after", False,
              "the sum of the modules' own scores, without cross terms"),
    Predictor("score_modules_normalised", "module by module, normalised", "after", False,
              "mean over modules of dWᵀFdW over |dW|²"),
    Predictor("score_signs", "overlap score by random signs", "after", False,
              "the paper's projection, summed over modules"),
    Predictor("score_signs_normalised", "by random signs, normalised", "after", False,
              "mean over modules of that estimate over |dW|²"),
)  # fmt: skip
"""All of them, in the order in which they become known."""

BY_KEY = {each.key: each for each in PREDICTORS}

Values = dict[str, float | None]


def of_training(found: FinetuneResult, folder: Path) -> Values:
    """What a fine-tune and its run folder give."""
    lines = (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    tokens = [sum(json.loads(line)["response_mask"]) for line in lines]
    return {
        "tokens": float(sum(tokens)),
        "mean_tokens": sum(tokens) / len(tokens),
        "rate_steps": math.fsum(found.learning_rates),
        "update_norm": found.update.norm,
    }


def of_estimate(found: AicResult, horizon: float | None) -> Values:
    """What an estimate on the very rows gives.

    The loss is predicted at the time `horizon`, the sum of the learning rates: between two times of the run's curve as
    the power law that joins them, beyond all of them not at all. Without a horizon nothing is predicted: the curve is
    of all weights, and a LoRA fine-tune moves along another path.
    """
    whole = found.whole_model
    speed = whole.velocity_norm
    return {
        "mean_loss": found.finetuning_loss,
        "gradient_norm": whole.gradient_norm,
        "leak": whole.leak_exact,
        "leak_per_norm": whole.leak_exact / speed if speed else None,
        "gamma_star": whole.onset_exact,
        "predicted_loss": None if horizon is None else loss_at(whole.predicted_loss_exact, whole.horizon, horizon),
    }


def of_risk(found: RiskResult) -> Values:
    """What the risk of the one set of these rows gives."""
    (risk,) = found.candidates.values()
    leak = math.sqrt(risk.leak_squared_exact)
    return {"leak_per_decrease": leak / risk.decrease if risk.decrease > 0 else None}


def of_pilot(found: PilotResult) -> Values:
    """What the pilot gives: the forecast is the drifting power law's, where three of its points can be used."""
    last = found.points[-1]
    forecast = found.forecasts.get(DRIFTING)
    return {
        "pilot_norm": last.displacement,
        "pilot_loss": last.utility_loss,
        "forecast": None if forecast is None else finite(forecast.value),
    }


def of_overlap(found: OverlapResult) -> Values:
    """What the overlap of the fine-tune's change gives."""
    change = found.deltas[CHANGE]
    joint, blocks = change.joint, change.blocks
    values: Values = {
        "score": joint.raw,
        "score_exact": change.all_parameters.overlap_score_exact.mean,
        "score_normalised": joint.normalised,
        "score_enrichment": joint.enrichment,
        "score_modules": change.sum_of_modules,
        "score_modules_normalised": _mean([block.normalised for block in blocks.values()]),
    }
    if change.rademacher is None:
        return values
    signs = {name: block.estimate for name, block in change.rademacher.blocks.items()}
    squares = {name: blocks[name].squared_norm for name in signs}
    return values | {
        "score_signs": math.fsum(signs.values()),
        "score_signs_normalised": _mean([signs[n] / squares[n] if squares[n] else None for n in signs]),
    }


def finite(value: float | None) -> float | None:
    """The value, or None where there is no finite one."""
    return value if value is not None and math.isfinite(value) else None


def loss_at(curve: Sequence[LossAt], horizon: float, t: float) -> float | None:
    """The predicted loss at t, linear in logarithms between the times laid around the crossover; None outside them.

    The estimate's own horizon is none of these times.
    """
    known = [
        (math.log(point.t), math.log(point.utility_loss))
        for point in curve
        if point.t != horizon and point.t and point.utility_loss
    ]
    times, losses = [at for at, _ in known], [loss for _, loss in known]
    if not known or t <= 0 or not times[0] <= math.log(t) <= times[-1]:
        return None
    return math.exp(float(np.interp(math.log(t), times, losses)))


def _mean(values: list[float | None]) -> float | None:
    """Mean of those that there are; None without any."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
