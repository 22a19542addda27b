"""The fields of trl's SFTConfig (a TrainingArguments): what a plan makes of them, and what a user may override."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch

from bridge.models.transformers_setup import quick_imports
from bridge.training.plan import Plan
from commands.errors import UserError, first_line

with quick_imports():
    from trl import SFTConfig

# Fields of SFTConfig that are not the user's: by exact name or by prefix (ending in "*"), and why.
_OWNED: dict[str, tuple[str, ...]] = {
    "use --learning-rate": ("learning_rate",),
    "use --epochs": ("num_train_epochs",),
    "use --max-steps": ("max_steps",),
    "use --seed": ("seed", "data_seed"),
    "use --batch-size and --micro-batch-size": (
        "per_device_train_batch_size", "gradient_accumulation_steps", "auto_find_batch_size", "dataloader_drop_last"),
    "use --max-length": ("max_length", "truncation_mode"),
    "use --device": ("use_cpu",),
    "the run folder keeps the checkpoints, and the same command resumes from them": (
        "output_dir", "save_*", "enable_jit_checkpoint", "resume_from_checkpoint", "load_best_model_at_end",
        "ignore_data_skip", "restore_callback_states_from_checkpoint", "metric_for_best_model", "greater_is_better"),
    "the run folder records every step": (
        "logging_*", "log_*", "report_to", "disable_tqdm", "run_name", "project", "trackio_*",
        "include_num_input_tokens_seen", "skip_memory_metrics"),
    "nothing is uploaded; upload the finished folder yourself": ("push_to_hub*", "hub_*"),
    "nothing is evaluated while training; measure the finished run": (
        "do_*", "eval_*", "per_device_eval_batch_size", "prediction_loss_only", "include_for_metrics",
        "batch_eval_metrics", "*_full_eval"),
    "rows are tokenised, masked and padded before the trainer sees them": (
        "packing", "packing_strategy", "padding_free", "dataset_*", "completion_only_loss", "assistant_only_loss",
        "chat_template_path", "eos_token", "pad_token", "remove_unused_columns", "label_names", "shuffle_dataset",
        "length_column_name"),
    "the model is loaded before: use --model": ("model_init_kwargs", "trust_remote_code"),
    "one process trains on one device": (
        "ddp_*", "fsdp*", "deepspeed", "parallelism_config", "accelerator_config", "local_rank"),
    "float16 loses small gradients; use bf16=true": ("fp16",),
}  # fmt: skip


def check_overrides(overrides: Mapping[str, object]) -> None:
    """Raise UserError for a field that SFTConfig does not have, that is not the user's, or a value of another type."""
    fields = {f.name: f for f in dataclasses.fields(SFTConfig) if f.init and not f.name.startswith("_")}
    for name, value in overrides.items():
        reason = next((why for why, names in _OWNED.items() if any(_matches(name, n) for n in names)), None)
        if name in fields and reason is not None:
            raise UserError(f"--set {name}: cannot be set, since {reason}" if " --" not in f" {reason}"
                            else f"--set {name}: {reason}")  # fmt: skip
        if name not in fields:
            near = get_close_matches(name, fields, n=3, cutoff=0.4)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise UserError(f"--set {name}: no field of TrainingArguments or SFTConfig has this name{hint}")
        _check_type(name, value, fields[name].default)
    _check_order(overrides.get("train_sampling_strategy", "random"))


def _check_order(strategy: object) -> None:
    """Other orders than these are drawn from a generator whose state no checkpoint keeps."""
    if strategy not in ("random", "sequential"):
        raise UserError(
            f"--set train_sampling_strategy: expected random or sequential, got {strategy!r}: a run that was stopped "
            "could not go on with the same rows"
        )


def _matches(name: str, pattern: str) -> bool:
    if pattern.endswith("*"):
        return name.startswith(pattern[:-1])
    return name.endswith(pattern[1:]) if pattern.startswith("*") else name == pattern


def _check_type(name: str, value: object, default: object) -> None:
    expected: dict[type, tuple[str, tuple[type, ...]]] = {
        bool: ("true or false", (bool,)),
        int: ("a whole number", (int,)),
        float: ("a number", (int, float)),
    }
    kind = type(default)
    if kind not in expected or value is None:
        return
    words, types = expected[kind]
    if not isinstance(value, types) or (kind is not bool and isinstance(value, bool)):
        raise UserError(f"--set {name}: expected {words}, got {value!r}")


def arguments(plan: Plan, folder: Path, device: torch.device) -> SFTConfig:
    """The trainer's arguments for a plan; UserError where transformers refuses a value."""
    check_overrides(plan.overrides)
    if device.type == "cpu" and plan.overrides.get("activation_offloading"):
        raise UserError(
            "--set activation_offloading: expected a GPU, whose activations are moved to the CPU, got the CPU"
        )
    fields: dict[str, Any] = {
        "output_dir": str(folder),
        "learning_rate": plan.learning_rate,
        "num_train_epochs": plan.epochs,
        "max_steps": plan.max_steps or -1,
        "per_device_train_batch_size": plan.micro,
        "gradient_accumulation_steps": plan.batch_size // plan.micro,
        "lr_scheduler_type": plan.scheduler,
        "warmup_steps": plan.warmup,
        "weight_decay": plan.weight_decay,
        "max_grad_norm": plan.max_grad_norm,
        "optim": plan.optimizer,
        "seed": plan.seed,
        "data_seed": plan.seed,
        # What differs from trl's own defaults: nothing of it may change the numbers or leave the machine.
        "gradient_checkpointing": False,
        "bf16": False,
        "max_length": None,
        "packing": False,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "remove_unused_columns": False,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": device.type == "cuda",
        "use_cpu": device.type == "cpu",
    }
    try:
        found = SFTConfig(**fields | dict(plan.overrides))
        if device.type == "cuda":
            found._n_gpu = found.n_gpu and 1  # reading it finds the devices; the others are not ours
    except (ValueError, TypeError, AttributeError, ImportError) as error:
        raise UserError(f"--set: transformers refuses the training arguments: {first_line(error)}") from error
    return found
