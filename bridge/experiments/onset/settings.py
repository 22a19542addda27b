"""The options of `bridge.onset`, and what they must satisfy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from bridge.experiments.options import AdamBatchSize, Compute, Model, OfModel, Resampling, Responses, Rows, Skill
from bridge.training.plan import Plan
from bridge.training.presets import DEFAULT_PRESET, PRESETS, make_plan
from commands.errors import UserError
from commands.options import require
from commands.settings import Option
from commands.settings import Settings as Group

LARGEST_RATE = 1e-3
"""Learning rate of the small steps where --learning-rate does not say, at most crossover / STEPS_TO_CROSSOVER."""
STEPS_TO_CROSSOVER = 20

Runs = tuple[tuple[float, int], ...]
"""Learning rate and number of steps of some runs."""
REALISTIC = {"sgd": "1e-3x1,1e-3x100,1e-2x100", "adamw": "1e-5x1,1e-5x100,1e-4x1,1e-4x100"}
"""Runs as people make them, where --realistic does not say."""


def parse_times(text: str | Sequence[str]) -> tuple[float, ...]:
    """Numbers, separated by commas; UserError otherwise."""
    return tuple(_number("at", part) for part in _parts(text))


def parse_runs(text: str | Sequence[str]) -> Runs:
    """RATExSTEPS, separated by commas; UserError otherwise."""
    runs = []
    for part in _parts(text):
        rate, cross, steps = part.partition("x")
        require(bool(cross) and steps.strip().isdigit(), "realistic", "RATExSTEPS, such as 1e-5x100", part)
        runs.append((_number("realistic", rate), int(steps)))
    return tuple(runs)


def _parts(text: str | Sequence[str]) -> list[str]:
    return (text if isinstance(text, str) else ",".join(text)).split(",")


def _number(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"--{option}: expected numbers, got {text!r}") from None


@dataclass(frozen=True, kw_only=True)
class Pilot(Group):
    """The real optimiser."""

    pilot_steps: Annotated[
        int, Option("Steps of the real optimiser from which the end of its run is forecast; 0 for none."), Ge(0)
    ] = 0
    full: Annotated[bool, Option("Run the real optimiser to its end, and compare the forecast.", flag=True)] = False
    preset: Annotated[str, Option(f"Preset of the real optimiser, as in bridge.finetune: {', '.join(PRESETS)}.")] = (
        DEFAULT_PRESET
    )
    pilot_learning_rate: Annotated[
        float | None, Option("Learning rate of the real optimiser. (default: preset)"), Gt(0), Le(1)
    ] = None
    pilot_epochs: Annotated[
        float | None, Option("Passes of the real optimiser over the rows. (default: preset)"), Gt(0), Le(10**6)
    ] = None
    pilot_batch_size: Annotated[
        int | None, Option("Rows of one step of the real optimiser. (default: preset)"), Ge(1)
    ] = None
    lora_rank: Annotated[int | None, Option("Rank of LoRA's factors. (default: preset)"), Ge(1)] = None
    lora_alpha: Annotated[
        float | None, Option("Alpha of LoRA's factors, whose scale is alpha / rank. (default: preset)"), Gt(0)
    ] = None


@dataclass(frozen=True, kw_only=True)
class Settings(Resampling, Rows, Compute, Pilot, Responses, OfModel):
    """The options that decide a run's numbers; batch size and memory decide their rounding only."""

    model: Model = "smollm2-135m-refusal"
    skill: Skill = "refusals"
    finetune: Annotated[str, Option("What to train on: benign, gsm8k, gsm8k=FILE, or FILE.jsonl.")] = "benign"
    num_finetune: Annotated[int, Option("Rows of the fine-tuning set: the full batch."), Ge(1)] = 64
    optimizer: Annotated[
        Literal["sgd", "adamw"],
        Option("Optimizer of the small steps: gradient descent, or AdamW with its second moments frozen."),
    ] = "sgd"
    method: Annotated[
        Literal["full", "lora"], Option("What moves: all selected weights, or LoRA's factors (and the pilot's method).")
    ] = "full"
    adam_batch_size: AdamBatchSize = 8
    remove_overlap: Annotated[
        bool, Option("Project every update off the skill's directions at the base.", flag=True)
    ] = False
    num_probe: Annotated[
        int, Option("Rows of the skill, others than --num-skill, whose directions are removed."), Ge(1)
    ] = 64
    rank: Annotated[
        int | None, Option("d, the number of directions removed. (default: all that the samples show)"), Ge(1)
    ] = None
    at: Annotated[
        tuple[float, ...],
        Option("Times to measure at, as fractions of the crossover.", read=parse_times, shown="0.03,0.1,0.3,0.6,1,2"),
    ] = (0.03, 0.1, 0.3, 0.6, 1.0, 2.0)
    learning_rate: Annotated[
        float | None,
        Option(
            "Largest of the small steps. "
            f"(default: {LARGEST_RATE:g}, or 1/{STEPS_TO_CROSSOVER} of the crossover if that is less)",
            wanted="1e-30 to 1e6",
        ),
        Ge(1e-30),
        Le(1e6),
    ] = None
    max_steps: Annotated[int, Option("Most small steps; a path of more is refused."), Ge(1)] = 1000
    curvature_iterations: Annotated[
        int, Option("Lanczos iterations for the leading curvature, two gradients each; 0 for none."), Ge(0)
    ] = 6
    realistic: Annotated[
        Runs | None,
        Option(
            "Runs to place on the time axis, as RATExSTEPS. "
            f"(default: {REALISTIC['sgd']}, or {REALISTIC['adamw']} for adamw)",
            read=parse_runs,
        ),
    ] = None
    dtype: Annotated[
        Literal["float32", "float64"] | None,
        Option(
            "Type of the weights: float32 or float64; in others a small step gets lost. (default: float32)",
            wanted="float32 or float64",
        ),
    ] = None

    @property
    def rows_of_skill(self) -> int:
        """Rows of the skill that are measured, and those that the overlap is removed on."""
        return self.num_skill + (self.num_probe if self.remove_overlap else 0)

    @property
    def usual_runs(self) -> Runs:
        """Runs to place on the time axis."""
        return self.realistic or parse_runs(REALISTIC[self.optimizer])

    @property
    def plan(self) -> Plan:
        """The real optimiser's plan.

        Raises:
            UserError: an unknown preset, or a plan that no run can have.

        """
        given = {
            "learning_rate": self.pilot_learning_rate,
            "epochs": self.pilot_epochs,
            "batch_size": self.pilot_batch_size,
            "lora_rank": self.lora_rank,
            "lora_alpha": self.lora_alpha,
            "lora_targets": self.modules,
            "seed": self.seed,
        }
        return make_plan(self.preset, self.method, given, {})

    def check_together(self) -> None:
        """Raise UserError for options that do not go together."""
        super().check_together()
        _check_times(self.at)
        for rate, steps in self.usual_runs:
            usable = 0 < rate < math.inf and 0 < steps <= 10**12
            require(usable, "realistic", "a positive rate and number of steps", f"{rate:g}x{steps}")
        if self.rank is not None:
            most = self.num_probe * self.draws
            require(self.remove_overlap, "rank", "--remove-overlap with it", "no --remove-overlap")
            require(self.rank <= most, "rank", f"1 to {most}, the samples that the overlap is removed on", self.rank)
        if self.method == "lora":
            wanted = "full with --optimizer adamw (frozen, it has no LoRA form; --pilot-steps runs the real one)"
            require(self.optimizer == "sgd", "method", wanted, "lora")
            require(not self.remove_overlap, "method", "full with --remove-overlap", "lora")
        require(self.pilot_steps > 0 or not self.full, "full", "--pilot-steps with it", "none")
        self.plan.check()

    def identity(self) -> dict[str, object]:
        """The options as the manifest of a run holds them: JSON values by name, the plan in place of its options."""
        of_plan = ("pilot_learning_rate", "pilot_epochs", "pilot_batch_size", "lora_rank", "lora_alpha")
        options = {name: value for name, value in super().identity().items() if name not in of_plan}
        return options | {"plan": asdict(self.plan), "realistic": [list(run) for run in self.usual_runs]}


def _check_times(times: tuple[float, ...]) -> None:
    increasing = all(0 < t < math.inf for t in times) and all(a < b for a, b in pairwise(times))
    text = ",".join(f"{t:g}" for t in times)
    require(increasing, "at", "increasing positive fractions of the crossover, such as 0.1,0.3,1", text)
    require(len(times) >= 2, "at", "two fractions at least, for an exponent", text)
