"""The options of `bridge.onset`, and what they must satisfy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from bridge.training.plan import Plan
from commands.errors import UserError
from commands.options import at_least, require

LARGEST_RATE = 1e-3
"""Of the small steps, where --learning-rate does not say; at most the crossover divided by STEPS_TO_CROSSOVER."""


STEPS_TO_CROSSOVER = 20


REALISTIC = {"sgd": "1e-3x1,1e-3x100,1e-2x100", "adamw": "1e-5x1,1e-5x100,1e-4x1,1e-4x100"}
"""Runs as people make them, where --realistic does not say."""


@dataclass(frozen=True)
class Settings:
    """The options that decide a run's numbers. `rank` None is all directions that the probe shows."""

    model: str
    skill: str
    finetune: str
    num_skill: int
    num_finetune: int
    draws: int
    max_new_tokens: int
    modules: str | None
    optimizer: Literal["sgd", "adamw"]
    method: Literal["full", "lora"]
    adam_batch_size: int
    remove_overlap: bool
    num_probe: int
    rank: int | None
    at: tuple[float, ...]
    learning_rate: float | None
    max_steps: int
    curvature_iterations: int
    realistic: tuple[tuple[float, int], ...]
    pilot_steps: int
    full: bool
    preset: str
    plan: Plan
    dtype: str | None
    device: str | None
    batch_size: int
    memory: float
    max_length: int
    bootstrap: int
    seed: int
    skip_bad_rows: bool

    @property
    def rows_of_skill(self) -> int:
        """Rows of the skill that are measured, and those that the overlap is removed on."""
        return self.num_skill + (self.num_probe if self.remove_overlap else 0)

    def check(self) -> None:
        """Raise UserError for options that no run can have."""
        at_least(
            1, self, "num_skill", "num_finetune", "draws", "max_new_tokens", "adam_batch_size", "num_probe",
            "batch_size", "max_steps",
        )  # fmt: skip
        at_least(0, self, "curvature_iterations", "pilot_steps", "bootstrap", "seed")
        require(self.max_length >= 2, "max_length", "at least 2 tokens", self.max_length)
        require(0 < self.memory < math.inf, "memory", "a positive number of GiB", self.memory)
        if self.learning_rate is not None:
            require(1e-30 <= self.learning_rate <= 1e6, "learning_rate", "1e-30 to 1e6", self.learning_rate)
        if self.rank is not None:
            most = self.num_probe * self.draws
            require(self.remove_overlap, "rank", "--remove-overlap with it", "no --remove-overlap")
            require(
                1 <= self.rank <= most, "rank", f"1 to {most}, the samples that the overlap is removed on", self.rank
            )
        if self.method == "lora":
            require(self.optimizer == "sgd", "method", "full with --optimizer adamw (frozen, it has no LoRA form; "
                    "--pilot-steps runs the real one)", "lora")  # fmt: skip
            require(not self.remove_overlap, "method", "full with --remove-overlap", "lora")
        require(self.pilot_steps > 0 or not self.full, "full", "--pilot-steps with it", "none")
        wanted = "float32 or float64: in others a small step is below the spacing of the weights"
        require(self.dtype in (None, "float32", "float64"), "dtype", wanted, self.dtype)
        self.plan.check()


def parse_times(text: str) -> tuple[float, ...]:
    """Increasing positive numbers, separated by commas; UserError otherwise."""
    found = tuple(_number("at", part) for part in text.split(","))
    require(all(0 < t < math.inf for t in found) and all(a < b for a, b in pairwise(found)),
            "at", "increasing positive fractions of the crossover, such as 0.1,0.3,1", text)  # fmt: skip
    require(len(found) >= 2, "at", "two fractions at least, for an exponent", text)
    return found


def parse_runs(text: str) -> tuple[tuple[float, int], ...]:
    """RATExSTEPS separated by commas; UserError otherwise."""
    found = []
    for part in text.split(","):
        rate, cross, steps = part.partition("x")
        require(bool(cross) and steps.strip().isdigit(), "realistic", "RATExSTEPS, such as 1e-5x100", part)
        found.append((_number("realistic", rate), int(steps)))
        require(0 < found[-1][0] < math.inf and 0 < found[-1][1] <= 10**12, "realistic",
                "a positive rate and number of steps", part)  # fmt: skip
    return tuple(found)


def _number(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"--{option}: expected numbers, got {text!r}") from None
