"""The options of `bridge.fisher_overlap`, and what they must satisfy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from commands.options import at_least, require


@dataclass(frozen=True)
class Settings:
    """The options that decide a run's numbers; batch size and memory decide their rounding only."""

    model: str
    skill: tuple[str, ...]
    num_skill: int
    fisher: Literal["sampled", "empirical"]
    draws: int
    max_new_tokens: int
    rank: int
    energy: tuple[float, ...]
    modules: str | None
    splits: int
    jackknife: int
    permutations: int
    simulations: int
    dtype: str | None
    device: str | None
    batch_size: int
    memory: float
    max_length: int
    seed: int
    skip_bad_rows: bool

    def check(self) -> None:
        """Raise UserError for options that no run can have."""
        at_least(1, self, "draws", "max_new_tokens", "rank", "splits", "simulations", "batch_size")
        at_least(2, self, "max_length")
        at_least(4, self, "num_skill")  # two halves, and a block to leave out of one
        at_least(5, self, "jackknife")
        at_least(0, self, "seed", "permutations")
        require(0 < self.memory < float("inf"), "memory", "a positive number of GiB", self.memory)
        require(
            len(self.skill) >= 2, "skill", "two sets or more (--skill A --skill B)", ", ".join(self.skill) or "none"
        )
        require(len(set(self.skill)) == len(self.skill), "skill", "different sets", ", ".join(self.skill))
        require(
            len(set(self.energy)) == len(self.energy), "energy", "different shares", ", ".join(map(str, self.energy))
        )
        for share in self.energy:
            require(0 < share <= 1, "energy", "a share of the Fisher trace, above 0 and at most 1", share)
        if self.fisher == "empirical":
            require(self.draws == 1, "draws", "1 with --fisher empirical (its responses are the data's)", self.draws)
        wanted = f"at most {self.most}, the directions that half of the samples show once their mean is removed"
        require(self.rank <= self.most, "rank", wanted, self.rank)

    @property
    def most(self) -> int:
        """The largest rank at which every half of every skill has as many directions."""
        return self.num_skill // 2 * self.draws - 1
