"""The options of `bridge.harmfulness`, and what they must satisfy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from bridge.evaluation.judges import REFUSAL, Judge, read_judge
from bridge.evaluation.limits import Limits
from bridge.experiments.options import Answers, Model, Resampling
from commands.options import require
from commands.settings import Option, fields_of

GENERATION = ("model", "delta", "prompts", "num_prompts", "preset", "max_new_tokens")
"""The options that decide the responses; --rescore takes none of them."""


@dataclass(frozen=True, kw_only=True)
class Settings(Limits, Resampling, Answers):
    """The options that decide a run's numbers; batch size decides their rounding only, and limits no number.

    With `rescore`, the folder of an earlier run, the responses are that run's and so is what decided them.
    """

    model: Model = "smollm2-135m-refusal"
    prompts: Annotated[str, Option("Harmful prompts: advbench, another NAME, NAME=FILE or FILE.jsonl.")] = "advbench"
    judge: Annotated[
        tuple[str, ...],
        Option(
            "A judge: google/MODEL, openai/MODEL (keys from the environment), or refusal: offline, a refusal rate and "
            "no harmfulness score; may be repeated."
        ),
    ] = (REFUSAL,)
    num_prompts: Annotated[int, Option("Prompts, drawn by the seed; 0 for all."), Ge(0)] = 0
    rescore: Annotated[
        str | None, Option("Folder of a run whose responses are judged again, instead of generating.")
    ] = None
    bootstrap: Annotated[int, Option("Resamples for the interval of the mean; 0 for none."), Ge(0)] = 1000

    def check_together(self) -> None:
        """Raise UserError for options that do not go together, and for a judge that cannot be asked from here."""
        super().check_together()
        known = fields_of(type(self))
        for name in GENERATION if self.rescore is not None else ():
            given = getattr(self, name)
            require(given == known[name].default, name, "none with --rescore, whose responses are there already", given)
        require(len(set(self.judge)) == len(self.judge), "judge", "different judges", ", ".join(self.judge))
        require(bool(self.judge), "judge", "at least one judge", "none")
        for judge in self.judges:
            judge.require_ready()

    def identity(self) -> dict[str, object]:
        """The options as the manifest of a run holds them: what decides no number is not among them."""
        return {name: value for name, value in super().identity().items() if name not in fields_of(Limits)}

    @property
    def judges(self) -> list[Judge]:
        """The judges by their names; UserError for a name that is none."""
        return [read_judge(name) for name in self.judge]
