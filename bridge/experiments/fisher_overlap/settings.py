"""The options of `bridge.fisher_overlap`, and what they must satisfy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le

from bridge.experiments.options import Compute, Model, OfModel, Rows, SkillSampling
from commands.errors import UserError
from commands.options import require
from commands.settings import Option

_SHARE = "a share of the Fisher trace, above 0 and at most 1"


def _shares(texts: str | Sequence[str]) -> tuple[float, ...]:
    """The numbers in what a command line gives."""
    shares = []
    for text in [texts] if isinstance(texts, str) else texts:
        try:
            shares.append(float(text))
        except ValueError:
            raise UserError(f"--energy: expected {_SHARE}, got {text!r}") from None
    return tuple(shares)


@dataclass(frozen=True, kw_only=True)
class Settings(Rows, Compute, SkillSampling, OfModel):
    """The options that decide a run's numbers; batch size and memory decide their rounding only."""

    model: Model = "smollm2-135m-refusal"
    skill: Annotated[tuple[str, ...], Option("A skill: refusals, NAME, NAME=FILE or FILE.jsonl; give two or more.")] = (
        "refusals",
        "arithmetic",
        "benign",
    )
    num_skill: Annotated[int, Option("Rows of each skill."), Ge(4)] = 64  # two halves, and a block to leave out of one
    rank: Annotated[int, Option("d, the number of directions that the table and the verdict are of."), Ge(1)] = 10
    energy: Annotated[
        tuple[Annotated[float, Gt(0), Le(1)], ...],
        Option(
            "Share of the trace: skills are compared at the ranks that hold it, too; may be repeated.",
            wanted=_SHARE,
            read=_shares,
            several=True,
        ),
    ] = (0.5, 0.9)
    splits: Annotated[int, Option("Random splits of every skill into halves, for the ceiling."), Ge(1)] = 50
    jackknife: Annotated[int, Option("Blocks of prompts left out in turn, for the intervals."), Ge(5)] = 10
    permutations: Annotated[int, Option("Exchanges of the skills' labels, for the test; 0 for none."), Ge(0)] = 500
    simulations: Annotated[int, Option("Sets of unrelated scores drawn, for the floor."), Ge(1)] = 20

    @property
    def most(self) -> int:
        """The largest rank at which every half of every skill has as many directions."""
        return self.num_skill // 2 * self.draws - 1

    def check_together(self) -> None:
        """Raise UserError for options that do not go together."""
        skills, shares = ", ".join(self.skill), ", ".join(map(str, self.energy))
        require(len(self.skill) >= 2, "skill", "two sets or more (--skill A --skill B)", skills or "none")
        require(len(set(self.skill)) == len(self.skill), "skill", "different sets", skills)
        require(len(set(self.energy)) == len(self.energy), "energy", "different shares", shares)
        super().check_together()
        wanted = f"at most {self.most}, the directions that half of the samples show once their mean is removed"
        require(self.rank <= self.most, "rank", wanted, self.rank)
