"""What a defence of a skill during fine-tuning is asked to do: the options, without the libraries that do it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from commands.options import require

Kind = Literal["none", "static", "tracked", "budget"]
KINDS: tuple[Kind, ...] = ("none", "static", "tracked", "budget")


@dataclass(frozen=True)
class DefencePlan:
    """A defence, and the skill that it defends.

    kind: "static" projects every update off the sensitive subspace of the base; "tracked" off that of the weights at
    the last refresh, every `refresh` steps; "budget" like tracked, but only where and as far as the measured utility
    loss on the probe would pass `max_utility_loss` (nats a response); "none" measures only. `rank` is d, the
    directions of the subspace (None: all that the probe has). `num_skill` responses make the probe, one a prompt, and
    `held_out` others are measured at the end. Every `measure_every` steps the probe's utility loss is measured, and
    what is left of the update's leak ("budget": at every step). `batch_size` and `memory` (GiB) decide rounding only.
    """

    kind: Kind
    skill: str
    num_skill: int
    held_out: int
    max_new_tokens: int
    rank: int | None
    refresh: int
    max_utility_loss: float | None
    measure_every: int
    batch_size: int
    memory: float

    def check(self) -> None:
        """Raise UserError, naming the option, for values that no run can have."""
        require(self.kind in KINDS, "defend", " | ".join(KINDS), self.kind)
        for option, name, least in (
            ("num-skill", "num_skill", 1), ("held-out", "held_out", 0), ("max-new-tokens", "max_new_tokens", 1),
            ("refresh", "refresh", 1), ("measure-every", "measure_every", 1), ("probe-batch-size", "batch_size", 1),
        ):  # fmt: skip
            value = getattr(self, name)
            require(value >= least, option, f"a whole number from {least}", value)
        require(0 < self.memory < float("inf"), "probe-memory", "a positive number of GiB", self.memory)
        if self.rank is not None:
            wanted = f"1 to {self.num_skill}, the number of responses of the probe (--num-skill)"
            require(1 <= self.rank <= self.num_skill, "rank", wanted, self.rank)
        budget = self.max_utility_loss
        if self.kind == "budget":
            require(
                budget is not None, "max-utility-loss", "the budget in nats a response with --defend budget", "none"
            )
            wanted = "none with --defend budget, which measures at every step"
            require(self.measure_every == 1, "measure-every", wanted, self.measure_every)
        else:
            require(budget is None, "max-utility-loss", "--defend budget with it", f"--defend {self.kind}")
        require(budget is None or 0 < budget < float("inf"), "max-utility-loss", "a positive number of nats", budget)
        if self.kind in ("none", "static"):
            require(self.refresh == 1, "refresh", "--defend tracked or budget with it", f"--defend {self.kind}")
        if self.kind == "none":
            require(self.rank is None, "rank", "--defend static, tracked or budget with it", "--defend none")


def make_defence(kind: Kind, skill: str | None, **options: Any) -> DefencePlan | None:
    """The plan of the options, or None where nothing is defended or measured: kind "none" without a skill.

    Raises:
        UserError: for values that no run can have, and for options that need a defence.

    """
    given = {name: value for name, value in options.items() if value is not None}
    if kind == "none" and skill is None:
        for name, value in given.items():
            option = {"batch_size": "probe-batch-size", "memory": "probe-memory"}.get(name, name)
            require(False, option, "--defend, or --skill to measure only, with it", value)
        return None
    defaults: dict[str, Any] = {
        "num_skill": 48, "held_out": 48, "max_new_tokens": 32, "rank": None, "refresh": 1, "max_utility_loss": None,
        "measure_every": 1 if kind == "budget" else 5, "batch_size": 4, "memory": 2.0,
    }  # fmt: skip
    plan = DefencePlan(kind=kind, skill=skill or "refusals", **(defaults | given))
    plan.check()
    return plan
