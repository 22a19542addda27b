"""The options of `bridge.align`, and what they must satisfy."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

from annotated_types import Ge, Gt, Le, Lt

from bridge.experiments.options import Device, Model, Rows
from bridge.training.plan import Count, LearningRate, LoraAlpha, Method, Plan, TrainingSeed
from commands.settings import Option

_OF_PLAN = ("method", "learning_rate", "epochs", "batch_size", "micro_batch_size", "lora_rank", "lora_alpha", "seed")


@dataclass(frozen=True, kw_only=True)
class Settings(Rows):
    """What decides a run's numbers: model, rows, hyper-parameters, and how and how often refusals are counted."""

    model: Model = "smollm2-135m"
    refusals: Annotated[str, Option("What to learn: a set's NAME, NAME=FILE, or FILE.jsonl.")] = "refusals"
    benign: Annotated[str, Option("Harmless requests with answers, so that it does not refuse everything.")] = "benign"
    benign_share: Annotated[
        float,
        Option("Share of the training rows that is benign.", wanted="a share of the rows in [0, 1)"),
        Ge(0),
        Lt(1),
    ] = 0.55
    heldout_refusals: Annotated[str, Option("Unsafe requests that it is not trained on.")] = "refusals-heldout"
    heldout_benign: Annotated[str, Option("Harmless requests that it is not trained on.")] = "benign-heldout"
    target_refusals: Annotated[
        float,
        Option("Share of the held-out unsafe requests that must be refused to stop, ...", wanted="a share in (0, 1]"),
        Gt(0),
        Le(1),
    ] = 0.9
    limit_benign: Annotated[
        float,
        Option("... and share of the held-out harmless ones that may be.", wanted="a share in [0, 1)"),
        Ge(0),
        Lt(1),
    ] = 0.1
    method: Annotated[Method, Option("What is trained: all weights, or low-rank adapters.")] = "full"
    learning_rate: Annotated[LearningRate, Option("Learning rate of AdamW; constant after a warm-up of 5 steps.")] = (
        4e-5
    )
    epochs: Annotated[int, Option("Passes over the rows at most."), Ge(1), Le(10**6)] = 5
    batch_size: Annotated[Count, Option("Rows of one step.")] = 16
    micro_batch_size: Annotated[
        Count | None, Option("Rows computed at a time: memory only.", shown="a divisor up to 4")
    ] = None
    lora_rank: Annotated[Count, Option("Rank of the adapters.")] = 16
    lora_alpha: Annotated[LoraAlpha, Option("Alpha of the adapters, whose scale is alpha / rank.")] = 32.0
    eval_every: Annotated[int, Option("Steps between two counts of refusals."), Ge(1)] = 14
    eval_batch_size: Annotated[int, Option("Requests answered at a time."), Ge(1)] = 64
    max_new_tokens: Annotated[int, Option("Longest response read for refusals, in tokens."), Ge(1)] = 40
    seed: Annotated[TrainingSeed, Option("Seed of the rows, their order, and the adapters' start.")] = 0
    device: Device = None

    @property
    def dtype(self) -> None:
        """Type of the weights: none is given, the model has its default."""

    @cached_property
    def plan(self) -> Plan:
        """The plan of the training; UserError for one that no run can have."""
        given = {name: getattr(self, name) for name in _OF_PLAN}
        return Plan.read({**given, "scheduler": "constant_with_warmup", "warmup": 5.0})

    def check_together(self) -> None:
        """Raise UserError for a plan that no run can have."""
        self.plan.check()
        super().check_together()

    def identity(self) -> dict[str, object]:
        """The options as a manifest holds them: those of the training as its plan."""
        given = {name: value for name, value in super().identity().items() if name not in _OF_PLAN}
        return given | {"plan": self.plan.identity()}
