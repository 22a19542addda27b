"""The options of `bridge.estimate_aic`, and what they must satisfy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le

from bridge.experiments.options import (
    AdamBatchSize,
    Compute,
    OfModel,
    Optimizer,
    Resampling,
    Rows,
    Skill,
    SkillSampling,
)
from commands.options import require
from commands.settings import Option


@dataclass(frozen=True, kw_only=True)
class Settings(Resampling, Rows, Compute, SkillSampling, OfModel):
    """The options that decide a run's numbers; batch size and memory decide their rounding only."""

    skill: Skill = "refusals"
    finetune: Annotated[str, Option("What to train on: benign, gsm8k, gsm8k=FILE, or FILE.jsonl.")] = "benign"
    num_finetune: Annotated[int, Option("Rows of the fine-tuning set."), Ge(1)] = 64
    rank: Annotated[
        int | None, Option("d, the number of sharp directions. (default: 10, or N if that is less)"), Ge(1)
    ] = None
    energy: Annotated[
        float | None,
        Option(
            "Share of the trace that the sharp directions hold, the fewest that do, in place of --rank.",
            wanted="a share of the trace in (0, 1]",
        ),
        Gt(0),
        Le(1),
    ] = None
    optimizer: Optimizer = "sgd"
    adam_batch_size: AdamBatchSize = 8
    # Far beyond any real run, but the fourth power of learning rate x steps is still a float64.
    learning_rate: Annotated[
        float, Option("Learning rate of the planned fine-tune.", wanted="1e-30 to 1e6"), Ge(1e-30), Le(1e6)
    ] = 1e-4
    steps: Annotated[int, Option("Steps of the planned fine-tune; t = learning rate × steps."), Ge(1), Le(10**12)] = 100

    @property
    def horizon(self) -> float:
        """The time at which the planned fine-tune ends."""
        return self.learning_rate * self.steps

    def check_together(self) -> None:
        """Raise UserError for options that do not go together."""
        super().check_together()
        require(self.energy is None or self.rank is None, "energy", "one of --rank and --energy", "both")
        self.check_rank(self.rank)
