"""The options of `bridge.align`, and what they must satisfy."""

from __future__ import annotations

from dataclasses import dataclass

from bridge.training.plan import Plan
from commands.options import at_least, require


@dataclass(frozen=True)
class Settings:
    """What decides a run's numbers: model, rows, hyper-parameters, and how and how often refusals are counted."""

    model: str
    refusals: str
    benign: str
    benign_share: float
    heldout_refusals: str
    heldout_benign: str
    target_refusals: float
    limit_benign: float
    eval_every: int
    eval_batch_size: int
    max_new_tokens: int
    max_length: int
    plan: Plan
    device: str | None
    skip_bad_rows: bool

    def check(self) -> None:
        """Raise UserError for options that no run can have."""
        at_least(1, self, "eval_batch_size", "max_new_tokens")
        at_least(2, self, "max_length")
        require(self.eval_every >= 1, "eval_every", "a whole number from 1", self.eval_every)
        require(0 <= self.benign_share < 1, "benign_share", "a share of the rows in [0, 1)", self.benign_share)
        require(0 < self.target_refusals <= 1, "target_refusals", "a share in (0, 1]", self.target_refusals)
        require(0 <= self.limit_benign < 1, "limit_benign", "a share in [0, 1)", self.limit_benign)
        self.plan.check()
