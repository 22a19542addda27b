"""A model lent to a trainer: silent and without dropout while it is away, and given back as it was."""

from __future__ import annotations

import gc
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

from bridge.models.blocks import inner_model
from bridge.models.transformers_setup import quiet_transformers

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


@contextmanager
def quiet() -> Iterator[None]:
    """No bars or warnings of the libraries; the random states of Python, NumPy and torch are put back."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with quiet_transformers(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def given_back(model: PreTrainedModel | PeftModel, checkpointing: bool) -> Iterator[None]:
    """Undo at the end what the trainer does to a model: its forward, its cache, activation checkpointing."""
    parts = (model, inner_model(model))
    kept = [dict(part.__dict__) for part in parts]
    use_cache = model.config.use_cache
    try:
        yield
    finally:
        model.config.use_cache = use_cache
        if checkpointing:
            parts[-1].gradient_checkpointing_disable()
            parts[-1].disable_input_require_grads()
        for part, before in zip(parts, kept, strict=True):
            for name in part.__dict__.keys() - before.keys():
                del part.__dict__[name]
            part.__dict__ |= {name: before[name] for name in ("forward",) if name in before}
        gc.collect()  # the optimizer's moments hang in a cycle of the trainer's


@contextmanager
def without_dropout(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """The model's own dropout is off inside; LoRA's, which the plan asks for, stays.

    Architectures keep it as modules, as numbers of modules, or as numbers of their configuration.
    """
    owners = [m.__dict__ for name, m in model.named_modules() if "lora_dropout" not in name]
    owners += [part.__dict__ for part in (model.config, model.config.get_text_config())]
    found: list[tuple[dict[str, object], str, float]] = []
    for owner in {id(owner): owner for owner in owners}.values():
        names = [name for name in owner if "drop" in name and isinstance(owner[name], float)]
        found += [(owner, name, owner[name]) for name in names]
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd) and "lora_dropout" not in name:
            found.append((module.__dict__, "p", module.p))
    for owner, name, _ in found:
        owner[name] = 0.0
    try:
        yield
    finally:
        for owner, name, value in found:
            owner[name] = value
