"""What decides a training, what it logs and changes; no library is imported."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from commands.options import require
from commands.settings import Option, Settings

Method = Literal["lora", "full"]
Count = Annotated[int, Ge(1)]
LearningRate = Annotated[float, Gt(0), Le(1)]
Epochs = Annotated[float, Gt(0), Le(10**6)]
LoraAlpha = Annotated[float, Gt(0)]
LoraDropout = Annotated[float, Ge(0), Lt(1)]
TrainingSeed = Annotated[int, Ge(0), Lt(2**32)]

_MICRO_BATCH = 4  # rows at a time unless told: what fits beside a small model on a laptop


@dataclass(frozen=True)
class Plan(Settings):
    """Everything that decides a fine-tune, but for the model and the rows.

    `optimizer` and `scheduler` are names of transformers (`optim`, `lr_scheduler_type`); `overrides` are checked by
    `bridge.training.arguments.check_overrides`.
    """

    method: Annotated[Method, Option("What is trained: low-rank adapters, or all weights.")]
    learning_rate: Annotated[LearningRate, Option("Highest learning rate of the schedule.")]
    epochs: Annotated[Epochs, Option("Passes over the rows.")] = 3.0
    max_steps: Annotated[Count | None, Option("Optimizer steps, in place of the epochs.")] = None
    batch_size: Annotated[Count, Option("Rows of one step.")] = 8
    micro_batch_size: Annotated[
        Count | None, Option("Rows computed at a time: memory and rounding only; None for a divisor up to 4.")
    ] = None
    scheduler: Annotated[str, Option("Schedule of the learning rate over the steps.")] = "linear"
    warmup: Annotated[float, Option("Steps of the warm-up, or a share of all below 1."), Ge(0)] = 0.0
    weight_decay: Annotated[float, Option("Weight decay of the optimizer."), Ge(0)] = 0.0
    max_grad_norm: Annotated[float, Option("Norm at which gradients are clipped; 0 for none."), Ge(0)] = 1.0
    optimizer: Annotated[str, Option("The optimizer.")] = "adamw_torch"
    lora_rank: Annotated[Count, Option("Rank of the adapters.")] = 16
    lora_alpha: Annotated[LoraAlpha, Option("Alpha of the adapters, whose scale is alpha / rank.")] = 32.0
    lora_dropout: Annotated[LoraDropout, Option("Dropout before the adapters.")] = 0.0
    lora_targets: Annotated[
        str | None, Option("Regular expression for the modules that get an adapter; None for all in the blocks.")
    ] = None
    seed: Annotated[TrainingSeed, Option("Seed of the rows, their order, and the adapters' start.")] = 0
    overrides: Annotated[dict[str, object], Option("Further fields of trl's SFTConfig (a TrainingArguments).")] = field(
        default_factory=dict
    )

    def check_together(self) -> None:
        """Raise UserError unless the micro-batches make up the batches."""
        whole = self.batch_size % self.micro == 0
        require(whole, "micro_batch_size", f"a divisor of the batch size {self.batch_size}", self.micro_batch_size)
        super().check_together()

    @property
    def micro(self) -> int:
        """Rows computed at a time."""
        if self.micro_batch_size is not None:
            return self.micro_batch_size
        return max(k for k in range(1, _MICRO_BATCH + 1) if self.batch_size % k == 0)

    def steps(self, num_samples: int) -> int:
        """Optimizer steps on so many rows; the last batch of an epoch may be smaller."""
        if self.max_steps is not None:
            return self.max_steps
        return math.ceil(self.epochs * math.ceil(num_samples / self.batch_size))


def is_likelihood(overrides: Mapping[str, object]) -> bool:
    """Whether the loss is the negative log-likelihood: fields of SFTConfig can ask for another objective."""
    return overrides.get("loss_type", "nll") in ("nll", "chunked_nll") and not overrides.get("label_smoothing_factor")


@dataclass(frozen=True)
class TrainingLog:
    """What happened at each optimizer step, in order.

    losses: mean negative log-likelihood, in nats per response token, of the step's batch before the step (where
    the plan's overrides name another objective, its values);
    learning_rates: of the step; gradient_norms: Euclidean, before clipping; epochs: passes over the rows after the
    step; tokens, response_tokens: in the step's batch. `seconds` of training in all, killed attempts left out;
    `stopped`: on_step ended the run before its last step.
    """

    losses: tuple[float, ...]
    learning_rates: tuple[float, ...]
    gradient_norms: tuple[float, ...]
    epochs: tuple[float, ...]
    tokens: tuple[int, ...]
    response_tokens: tuple[int, ...]
    seconds: float
    stopped: bool

    @property
    def steps(self) -> int:
        """Number of optimizer steps."""
        return len(self.losses)


@dataclass(frozen=True)
class UpdateSummary:
    """The change of all weights.

    Attributes:
        norm: Euclidean norm of the change.
        squared_norm: its square.
        shares: of that square, in each kind of parameter (`bridge.training.tuning.parameter_kinds`).
        moved_parameters: how many parameters (tensors) may have moved.
        parameters: how many there are.
        norms: of the change of each that may have moved, by its name.

    """

    norm: float
    squared_norm: float
    shares: dict[str, float]
    moved_parameters: int
    parameters: int
    norms: dict[str, float]
