"""What a defence of a skill during fine-tuning is asked to do: the options, without the libraries that do it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal, TypeVar

from annotated_types import Ge, Gt

from commands.options import require
from commands.settings import Option, Settings

Kind = Literal["none", "static", "tracked", "budget"]
Number = TypeVar("Number", int, float)


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


@dataclass(frozen=True, kw_only=True)
class DefenceOptions(Settings):
    """The defence of a skill."""

    defend: Annotated[
        Kind, Option("Defence: each update is projected off what the skill is sensitive to, at the base or tracked.")
    ] = "none"
    refresh: Annotated[int | None, Option("Steps between two subspaces of tracked and budget.", shown="1"), Ge(1)] = (
        None
    )
    rank: Annotated[
        int | None, Option("d, the directions that are projected out. (default: all of the probe)"), Ge(1)
    ] = None
    max_utility_loss: Annotated[
        float | None,
        Option(
            "Budget of --defend budget: largest mean utility loss on the probe, in nats.",
            wanted="a positive number of nats",
        ),
        Gt(0),
    ] = None
    skill: Annotated[
        str | None, Option("What to defend: refusals, or FILE.jsonl; with --defend none, to measure only.")
    ] = None
    num_skill: Annotated[
        int | None, Option("Responses of the model that make the defence's probe.", shown="48"), Ge(1)
    ] = None
    held_out: Annotated[int | None, Option("Further responses, on which the defence is judged.", shown="48"), Ge(0)] = (
        None
    )
    max_new_tokens: Annotated[int | None, Option("Longest of these responses, in tokens.", shown="32"), Ge(1)] = None
    measure_every: Annotated[
        int | None,
        Option("Steps between two measurements of the probe's utility loss.", shown="5; budget: 1"),
        Ge(1),
    ] = None
    probe_batch_size: Annotated[int | None, Option("Responses of the probe computed at a time.", shown="4"), Ge(1)] = (
        None
    )
    probe_memory: Annotated[
        float | None,
        Option("GiB for what the probe keeps between passes.", shown="2", wanted="a positive number of GiB"),
        Gt(0),
    ] = None

    @cached_property
    def defence(self) -> DefencePlan | None:
        """The plan; None where nothing is defended or measured: kind "none" without a skill."""
        if self.defend == "none" and self.skill is None:
            return None
        return DefencePlan(
            kind=self.defend,
            skill=self.skill or "refusals",
            num_skill=_or(self.num_skill, 48),
            held_out=_or(self.held_out, 48),
            max_new_tokens=_or(self.max_new_tokens, 32),
            rank=self.rank,
            refresh=_or(self.refresh, 1),
            max_utility_loss=self.max_utility_loss,
            measure_every=_or(self.measure_every, 1 if self.defend == "budget" else 5),
            batch_size=_or(self.probe_batch_size, 4),
            memory=_or(self.probe_memory, 2.0),
        )

    def check_together(self) -> None:
        """Raise UserError for options that need a defence, or another one."""
        super().check_together()
        plan = self.defence
        if plan is None:
            for name in _OF_A_DEFENCE:
                value = getattr(self, name)
                require(value is None, name, "--defend, or --skill to measure only, with it", value)
            return
        if plan.rank is not None:
            wanted = f"1 to {plan.num_skill}, the number of responses of the probe (--num-skill)"
            require(plan.rank <= plan.num_skill, "rank", wanted, plan.rank)
        other = f"--defend {plan.kind}"
        if plan.kind == "budget":
            given = plan.max_utility_loss is not None
            require(given, "max_utility_loss", f"the budget in nats a response with {other}", "none")
            wanted = f"none with {other}, which measures at every step"
            require(plan.measure_every == 1, "measure_every", wanted, plan.measure_every)
        else:
            require(plan.max_utility_loss is None, "max_utility_loss", "--defend budget with it", other)
        if plan.kind in ("none", "static"):
            require(plan.refresh == 1, "refresh", "--defend tracked or budget with it", other)
        if plan.kind == "none":
            require(plan.rank is None, "rank", "--defend static, tracked or budget with it", other)


_OF_A_DEFENCE = (
    "refresh", "rank", "max_utility_loss", "num_skill", "held_out", "max_new_tokens", "measure_every",
    "probe_batch_size", "probe_memory",
)  # fmt: skip


def _or(given: Number | None, default: Number) -> Number:
    return default if given is None else given
