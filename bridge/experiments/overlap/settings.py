"""The options of `bridge.overlap`, and what they must satisfy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge

from bridge.experiments.labels import check_deltas, labelled_deltas
from bridge.experiments.options import Bootstrap, Compute, OfModel, Rank, Resampling, Rows, Skill, SkillSampling
from commands.options import require
from commands.settings import Option


@dataclass(frozen=True, kw_only=True)
class Settings(Resampling, Rows, Compute, SkillSampling, OfModel):
    """The options that decide a run's numbers; batch size and memory decide their rounding only.

    `delta` are places of weight changes by label.
    """

    model: Annotated[
        str, Option("The model before the change: alias, hub name, local folder, GGUF file, or random:ALIAS.")
    ] = "smollm2-135m-refusal"
    delta: Annotated[
        dict[str, str],
        Option(
            "[LABEL=]PATH of a weight change: a run folder of bridge.finetune, an adapter, a delta.safetensors, or "
            "the folder of the changed model; may be repeated.",
            read=labelled_deltas,
            several=True,
        ),
    ] = field(default_factory=dict)
    skill: Skill = "refusals"
    rank: Rank = 10
    utility_loss: Annotated[
        bool, Option("Measure the utility loss of each changed model on the skill (token-exact KL).")
    ] = True
    refusals: Annotated[
        str | None, Option("A set of prompts at which each changed model answers, to count its refusals.")
    ] = None
    estimator: Annotated[
        Literal["exact", "rademacher"],
        Option("Estimator of the score; rademacher: beside the exact one, the paper's own by random signs."),
    ] = "exact"
    dim: Annotated[int, Option("Dimensions of the projection by random signs (the paper: 4,096)."), Ge(1)] = 4096
    bootstrap: Bootstrap = 1000

    def check_together(self) -> None:
        """Raise UserError for options that do not go together, and for changes that are not there."""
        require(len(self.delta) > 0, "delta", "a change of weights, such as a run folder of bridge.finetune", "none")
        check_deltas(self.delta)
        super().check_together()
        self.check_rank(self.rank)
