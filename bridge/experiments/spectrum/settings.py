"""The options of `bridge.spectrum`, and what they must satisfy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from bridge.experiments.options import Compute, OfModel, Rank, Rows, SkillSampling
from commands.options import require
from commands.settings import Option


@dataclass(frozen=True, kw_only=True)
class Settings(Rows, Compute, SkillSampling, OfModel):
    """The options that decide a run's numbers; batch size and memory decide their rounding only."""

    skill: Annotated[tuple[str, ...], Option("A skill: refusals, NAME, NAME=FILE or FILE.jsonl; may be repeated.")] = (
        "refusals",
    )
    rank: Rank = 10
    subsets: Annotated[int, Option("Random subsets of each size, for the growth of the rank."), Ge(1)] = 20

    def check_together(self) -> None:
        """Raise UserError for options that do not go together."""
        require(len(self.skill) > 0, "skill", "one set or more", "none")
        require(len(set(self.skill)) == len(self.skill), "skill", "different sets", ", ".join(self.skill))
        super().check_together()
        self.check_rank(self.rank)
