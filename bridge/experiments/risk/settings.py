"""The options of `bridge.risk`, and what they must satisfy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt

from bridge.experiments.labels import labelled_candidates
from bridge.experiments.options import (
    AdamBatchSize,
    Compute,
    Model,
    OfModel,
    Optimizer,
    Responses,
    Rows,
    Skill,
)
from commands.options import require
from commands.settings import Option


@dataclass(frozen=True, kw_only=True)
class Settings(Rows, Compute, Responses, OfModel):
    """The options that decide a run's numbers; batch size and memory decide their rounding only.

    `candidates` are sets by label.
    """

    model: Model = "smollm2-135m-refusal"
    candidates: Annotated[
        dict[str, str],
        Option(
            "[LABEL=]SET to train on: benign, gsm8k, gsm8k=FILE, FILE.jsonl; several may follow.",
            read=labelled_candidates,
            several=True,
        ),
    ] = field(default_factory=dict)
    skill: Skill = "refusals"
    num_rows: Annotated[
        int, Option("Rows of each candidate, chosen at random (all of a smaller one); 0 for all."), Ge(0)
    ] = 100
    optimizer: Optimizer = "adamw"
    adam_batch_size: AdamBatchSize = 8
    equal: Annotated[
        Literal["norm", "loss"],
        Option("What is equal where sets are ranked: norm of the update, or decrease of each set's own loss."),
    ] = "norm"
    distance: Annotated[
        float, Option("Norm of the update, where that is equal.", wanted="a positive number below 1e6"), Gt(0), Lt(1e6)
    ] = 0.1
    loss_decrease: Annotated[
        float,
        Option(
            "Decrease of the loss, where that is equal, in nats per response token.",
            wanted="a positive number below 1e6",
        ),
        Gt(0),
        Lt(1e6),
    ] = 0.01
    worst_by: Annotated[
        Literal["effect", "contribution"],
        Option(
            "The worst rows: those without which the set costs least at equal progress, or the largest shares of "
            "its leak."
        ),
    ] = "effect"
    clean: Annotated[
        int, Option("N, the worst rows that a copy of a candidate is written without; 0 for no copy."), Ge(0)
    ] = 0
    clean_candidate: Annotated[str | None, Option("Label of the candidate to clean. (default: the only one)")] = None
    bootstrap: Annotated[int, Option("Resamples for intervals and probabilities; 0 for none."), Ge(0)] = 1000

    @property
    def to_clean(self) -> str | None:
        """Label of the candidate to clean: the one that is named, or the only one."""
        if self.clean and self.clean_candidate is None and len(self.candidates) == 1:
            return next(iter(self.candidates))
        return self.clean_candidate

    @property
    def progress(self) -> dict[Literal["norm", "loss"], float]:
        """What is equal among the sets: the distance, and the decrease of a set's own loss."""
        return {"norm": self.distance, "loss": self.loss_decrease}

    def with_candidates(self, specs: Sequence[str]) -> Settings:
        """The same with further candidates, [LABEL=]SET each.

        Raises:
            UserError: two sets of one label, or a label that is none.

        """
        return replace(self, candidates=labelled_candidates(specs, self.candidates))

    def check_together(self) -> None:
        """Raise UserError for options that do not go together."""
        super().check_together()
        require(len(self.candidates) > 0, "candidates", "at least one set: a NAME, NAME=FILE or FILE.jsonl", "none")
        labels = " or ".join(self.candidates)
        if self.clean:
            require(self.to_clean is not None, "clean_candidate", f"which set to clean: {labels}", "none")
        if self.to_clean is not None:
            require(self.clean > 0, "clean_candidate", "--clean N with it, the number of rows to leave out", "none")
            require(self.to_clean in self.candidates, "clean_candidate", labels, self.to_clean)

    def identity(self) -> dict[str, object]:
        """The options as the manifest of a run holds them: JSON values by name."""
        return super().identity() | {"clean_candidate": self.to_clean}
