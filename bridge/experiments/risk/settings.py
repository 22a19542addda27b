"""The options of `bridge.risk`, and what they must satisfy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from commands.options import at_least, require


@dataclass(frozen=True)
class Settings:
    """The options that decide a run's numbers; batch size and memory decide their rounding only.

    `candidates`: sets by label. `num_rows` 0 is all rows. `clean_candidate`: a label, where `clean` is not 0.
    """

    model: str
    candidates: dict[str, str]
    skill: str
    num_skill: int
    draws: int
    max_new_tokens: int
    num_rows: int
    optimizer: Literal["adamw", "sgd"]
    adam_batch_size: int
    equal: Literal["norm", "loss"]
    distance: float
    loss_decrease: float
    worst_by: Literal["effect", "contribution"]
    clean: int
    clean_candidate: str | None
    modules: str | None
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
        at_least(1, self, "num_skill", "draws", "max_new_tokens", "adam_batch_size", "batch_size")
        at_least(2, self, "max_length")
        at_least(0, self, "num_rows", "clean", "bootstrap", "seed")
        require(len(self.candidates) > 0, "candidates", "at least one set: a NAME, NAME=FILE or FILE.jsonl", "none")
        for name in ("distance", "loss_decrease"):
            value = getattr(self, name)
            require(0 < value < 1e6, name, "a positive number below 1e6", value)
        require(0 < self.memory < float("inf"), "memory", "a positive number of GiB", self.memory)
        labels = " or ".join(self.candidates)
        if self.clean:
            require(self.clean_candidate is not None, "clean_candidate", f"which set to clean: {labels}", "none")
        if self.clean_candidate is not None:
            require(self.clean > 0, "clean_candidate", "--clean N with it, the number of rows to leave out", "none")
            require(self.clean_candidate in self.candidates, "clean_candidate", labels, self.clean_candidate)
