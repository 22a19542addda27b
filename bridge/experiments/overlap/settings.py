"""The options of `bridge.overlap`, and what they must satisfy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from commands.options import at_least, require


@dataclass(frozen=True)
class Settings:
    """The options that decide a run's numbers; batch size and memory decide their rounding only."""

    model: str
    delta: dict[str, str]
    skill: str
    num_skill: int
    fisher: Literal["sampled", "empirical"]
    draws: int
    max_new_tokens: int
    rank: int
    modules: str | None
    utility_loss: bool
    refusals: str | None
    estimator: Literal["exact", "rademacher"]
    dim: int
    dtype: str | None
    device: str | None
    batch_size: int
    memory: float
    max_length: int
    bootstrap: int
    seed: int
    skip_bad_rows: bool

    def check(self) -> None:
        """Raise UserError for options that no run can have."""
        at_least(1, self, "num_skill", "draws", "max_new_tokens", "rank", "batch_size", "dim")
        at_least(2, self, "max_length")
        at_least(0, self, "seed", "bootstrap")
        require(0 < self.memory < float("inf"), "memory", "a positive number of GiB", self.memory)
        require(len(self.delta) > 0, "delta", "a change of weights, such as a run folder of bridge.finetune", "none")
        if self.fisher == "empirical":
            require(self.draws == 1, "draws", "1 with --fisher empirical (its responses are the data's)", self.draws)
        most = self.num_skill * self.draws
        require(self.rank <= most, "rank", f"at most {most}, the number of samples (rows × draws)", self.rank)
