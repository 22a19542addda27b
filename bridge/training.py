"""Supervised fine-tuning of a model on tokenised samples: the plan, the run, and the log of every step.

The loss is the mean negative log-likelihood over the response tokens of a batch, whatever the sizes of the
micro-batches that it is computed in. Rows are neither packed nor cut; padding is on the right. The trained weights
are float32 (or float64): in bfloat16 most updates of a usual learning rate are rounded away.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from bridge.samples import Sample
from commands.errors import UserError
from commands.progress import Progress
from commands.store import RunFolder

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
    fields of trl's SFTConfig (a TrainingArguments), checked by `bridge.training_arguments.check_overrides`.
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


def with_lora(model: Any, plan: Plan, base_name: str | None = None) -> Any:
    """The model with new LoRA adapters on the plan's targets, drawn from the plan's seed (a peft.PeftModel).

    The model itself is changed (its linear modules are wrapped). A is drawn as peft draws it and B is 0, so the
    function is not changed yet. `base_name` is what adapter_config.json calls the base model.

    Raises:
        UserError: if the targets match no linear module, or the output layer.

    """
    import warnings

    import torch
    from peft import LoraConfig, get_peft_model

    from bridge.transformers_setup import quiet_transformers

    names = _targets(model, plan.lora_targets)
    config = LoraConfig(
        r=plan.lora_rank,
        lora_alpha=plan.lora_alpha,  # type: ignore[arg-type]  # a float is as good
        lora_dropout=plan.lora_dropout,
        target_modules=names,
        task_type="CAUSAL_LM",
    )
    with quiet_transformers(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's, of what it sets itself for GPT-2's Conv1D
        torch.manual_seed(plan.seed)
        adapted: Any = get_peft_model(model, config)
    adapted.peft_config["default"].base_model_name_or_path = base_name
    return adapted


def _targets(model: Any, pattern: str | None) -> list[str]:
    from bridge.taps import select_modules

    try:
        chosen = select_modules(model, pattern)
    except UserError as error:
        raise UserError(str(error).replace("--modules", "--lora-targets")) from None
    output = model.get_output_embeddings()
    for name, module in chosen.items():
        if module is output:
            raise UserError(f"--lora-targets: expected linear modules of the blocks, got the output layer {name}")
    return list(chosen)


def train(
    model: Any,
    samples: Sequence[Sample],
    plan: Plan,
    folder: RunFolder,
    progress: Progress,
    *,
    pad_id: int,
    on_step: OnStep | None = None,
    hook: StepHook | None = None,
    stage: str = "training",
) -> TrainingLog:
    """Fine-tune the model in place; with the same folder again, go on from the last whole checkpoint.

    Full fine-tuning trains every parameter of the model; LoRA the adapters of what `with_lora` returned. At the end
    the model is in evaluation mode and needs no gradient. On the CPU, the weights are the same to the last bit for
    the same samples, plan and number of threads, killed and continued or not.

    Args:
        model: a causal language model in float32 or float64; for LoRA, what `with_lora` returned.
        samples: what to train on, shuffled anew for each epoch by the plan's seed.
        plan: the hyper-parameters.
        folder: run folder; checkpoints live below its checkpoints and vanish when the run is finished.
        progress: where the stage is shown.
        pad_id: any id of the vocabulary; padding is masked.
        on_step: called after each step with the number of steps done and the model in evaluation mode; True ends
            the training. It does not disturb torch's random numbers, and is not called again for steps that a
            killed process had saved.
        hook: stands around every optimizer step (a defence, say); parameters that are not its own are frozen.
        stage: name of the stage, and of its folder of checkpoints.

    Returns:
        The log of all steps, those before a kill included.

    Raises:
        UserError: for a plan that cannot be used, no samples, weights of less than float32, a loss or gradient
            that is no number.

    """
    plan.check()
    if not samples:
        raise UserError("--data: expected at least one row to train on, got none")
    _make_trainable(model, plan, hook)
    from bridge import sft

    try:
        return sft.run(model, samples, plan, folder.checkpoint(stage), progress, pad_id, on_step, hook, stage)
    finally:
        model.eval().requires_grad_(False)


def _make_trainable(model: torch.nn.Module, plan: Plan, hook: StepHook | None) -> None:
    import torch

    adapted = hasattr(model, "peft_config")
    if adapted != (plan.method == "lora"):
        raise ValueError(f"method {plan.method} got a model {'with' if adapted else 'without'} adapters")
    chosen = None if hook is None else {id(parameter) for parameter in hook.trained}
    for name, parameter in model.named_parameters():
        wanted = "lora_" in name if adapted else parameter.is_floating_point()
        parameter.requires_grad_(wanted and (chosen is None or id(parameter) in chosen))
    low = next((p for p in model.parameters() if p.dtype not in (torch.float32, torch.float64)), None)
    if low is not None:
        raise UserError(
            f"--dtype: expected float32 or float64 weights, got {str(low.dtype).removeprefix('torch.')}: at usual "
            "learning rates it rounds most updates away; for speed on a GPU use --set bf16=true, which computes in "
            "bfloat16 and keeps the weights in float32"
        )
