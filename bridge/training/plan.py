"""What decides a training: its plan, what it logs, what may act in every step; no library is imported."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from commands.errors import UserError

if TYPE_CHECKING:
    import torch


Method = Literal["lora", "full"]


OnStep = Callable[[int, Any], bool]


_MICRO_BATCH = 4  # rows at a time unless told: what fits beside a small model on a laptop


@runtime_checkable
class StepHook(Protocol):
    """Something that stands around every optimizer step of a training and may change what the step did.

    While it is there, only its `trained` parameters are trained. What it needs to go on after a kill it saves into
    each checkpoint.
    """

    @property
    def trained(self) -> Sequence[torch.nn.Parameter]:
        """The parameters that may move; of a LoRA model, some of its adapters'."""
        ...

    def before_step(self, done: int) -> None:
        """Called with the number of steps done, before the gradient of the next one is computed."""
        ...

    def after_step(self, done: int) -> None:
        """Called with the same number when the optimizer has moved the weights."""
        ...

    def save(self, folder: Path) -> None:
        """Write what decides the rest of the training into a checkpoint's folder."""
        ...

    def load(self, folder: Path) -> None:
        """Take over what `save` wrote."""
        ...


@dataclass(frozen=True)
class Plan:
    """Everything that decides a fine-tune, but for the model and the rows.

    `epochs` counts passes over the rows; `max_steps` takes its place where given. `batch_size` is the number of rows
    of one optimizer step, `micro_batch_size` the rows computed at a time: a divisor of it, which decides memory and
    rounding only (None: the largest up to 4). `scheduler` and `optimizer` are names of transformers
    (`lr_scheduler_type`, `optim`); `warmup` is a number of steps, or a share of them below 1. `lora_targets` is a
    regular expression for the linear modules that get an adapter (None: all in the blocks). `overrides` are further
    fields of trl's SFTConfig (a TrainingArguments), checked by `bridge.training.arguments.check_overrides`.
    """

    method: Method
    learning_rate: float
    epochs: float = 3.0
    max_steps: int | None = None
    batch_size: int = 8
    micro_batch_size: int | None = None
    scheduler: str = "linear"
    warmup: float = 0.0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    optimizer: str = "adamw_torch"
    lora_rank: int = 16
    lora_alpha: float = 32.0
    lora_dropout: float = 0.0
    lora_targets: str | None = None
    seed: int = 0
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Raise UserError, naming the option, for values that no run can have."""
        wanted: list[tuple[bool, str, str, object]] = [
            (self.method in ("lora", "full"), "method", "lora or full", self.method),
            (0 < self.learning_rate <= 1, "learning-rate", "above 0 and at most 1", self.learning_rate),
            (0 < self.epochs <= 10**6, "epochs", "above 0 and at most 1e6", self.epochs),
            (self.max_steps is None or self.max_steps >= 1, "max-steps", "a whole number from 1", self.max_steps),
            (self.batch_size >= 1, "batch-size", "a whole number from 1", self.batch_size),
            (self.micro >= 1 and self.batch_size % self.micro == 0, "micro-batch-size",
             f"a divisor of the batch size {self.batch_size}", self.micro_batch_size),
            (0 <= self.warmup < math.inf, "warmup", "0 or more steps, or a share below 1", self.warmup),
            (0 <= self.weight_decay < math.inf, "weight-decay", "0 or more", self.weight_decay),
            (0 <= self.max_grad_norm < math.inf, "max-grad-norm", "0 (no clipping) or more", self.max_grad_norm),
            (self.lora_rank >= 1, "lora-rank", "a whole number from 1", self.lora_rank),
            (0 < self.lora_alpha < math.inf, "lora-alpha", "a positive number", self.lora_alpha),
            (0 <= self.lora_dropout < 1, "lora-dropout", "a share in [0, 1)", self.lora_dropout),
            (0 <= self.seed < 2**32, "seed", "0 to 2^32 - 1", self.seed),
        ]  # fmt: skip
        for holds, option, expected, got in wanted:
            if not holds:
                raise UserError(f"--{option}: expected {expected}, got {got}")

    @property
    def micro(self) -> int:
        """Rows computed at a time."""
        if self.micro_batch_size is not None:
            return self.micro_batch_size
        return max(k for k in range(1, _MICRO_BATCH + 1) if max(self.batch_size, 1) % k == 0)

    def steps(self, num_samples: int) -> int:
        """Optimizer steps on so many rows; the last batch of an epoch may be smaller."""
        if self.max_steps is not None:
            return self.max_steps
        return math.ceil(self.epochs * math.ceil(num_samples / self.batch_size))


def is_likelihood(overrides: Mapping[str, Any]) -> bool:
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
