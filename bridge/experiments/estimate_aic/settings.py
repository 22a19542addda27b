"""The options of `bridge.estimate_aic`, and what they must satisfy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from commands.options import at_least, require


@dataclass(frozen=True)
class Settings:
    """The options that decide a run's numbers; batch size and memory decide their rounding only."""

    model: str
    skill: str
    finetune: str
    num_skill: int
    num_finetune: int
    fisher: Literal["sampled", "empirical"]
    draws: int
    max_new_tokens: int
    rank: int | None
    energy: float | None
    modules: str | None
    optimizer: Literal["sgd", "adamw"]
    adam_batch_size: int
    learning_rate: float
    steps: int
    dtype: str | None
    device: str | None
    batch_size: int
    memory: float
    max_length: int
    bootstrap: int
    seed: int
    skip_bad_rows: bool

    @property
    def num_samples(self) -> int:
        """N: rows of the skill times draws."""
        return self.num_skill * self.draws

    def check(self) -> None:
        """Raise UserError for options that no run can have."""
        at_least(
            1, self, "num_skill", "num_finetune", "draws", "max_new_tokens", "adam_batch_size", "steps", "batch_size"
        )
        require(self.max_length >= 2, "max_length", "at least 2 tokens", self.max_length)
        if self.energy is not None:
            require(0 < self.energy <= 1, "energy", "a share of the trace in (0, 1]", self.energy)
            require(self.rank is None, "energy", "one of --rank and --energy", "both")
        # Far beyond any real run, but the fourth power of learning rate x steps is still a float64.
        require(1e-30 <= self.learning_rate <= 1e6, "learning_rate", "1e-30 to 1e6", self.learning_rate)
        require(self.steps <= 10**12, "steps", "at most 1e12", self.steps)
        require(0 < self.memory < float("inf"), "memory", "a positive number of GiB", self.memory)
        require(self.bootstrap >= 0, "bootstrap", "0 or more resamples", self.bootstrap)
        require(self.seed >= 0, "seed", "0 or more", self.seed)
        if self.fisher == "empirical":
            require(
                self.draws == 1,
                "draws",
                "1 with --fisher empirical (its responses are the data's)",
                self.draws,
            )
        if self.rank is not None:
            wanted = f"1 to {self.num_samples}, the number of samples (rows × draws): F has no more directions"
            require(1 <= self.rank <= self.num_samples, "rank", wanted, self.rank)
