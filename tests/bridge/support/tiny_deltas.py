"""Changes of tiny models: full ones made by noise, LoRA ones made by peft, and their dense float64 equals."""

from __future__ import annotations

import math
import warnings
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def jolted(model: Any, seed: int = 0, size: float = 1e-2) -> Any:
    """A copy whose parameters have all moved at random."""
    moved = deepcopy(model)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw, dtype=torch.float64).to(parameter) * size)
    return moved


def adapted(model: Any, targets: list[str], seed: int = 0, **config: Any) -> Any:
    """A copy of the model with a random LoRA adapter of peft's in it, not merged."""
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft_model: Any = get_peft_model(deepcopy(model), LoraConfig(target_modules=targets, **config)).eval()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=draw, dtype=torch.float64) * 0.1)
    return peft_model


def save_adapter(peft_model: Any, folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft_model.save_pretrained(folder, save_embedding_layers=False)
    return folder


def merged_change(model: Any, peft_model: Any) -> dict[str, Tensor]:
    """What peft's own merge adds to each parameter that it changes, in float64."""
    merged = dict(deepcopy(peft_model).merge_and_unload().named_parameters())
    changes = {name: (merged[name] - p).detach().double() for name, p in model.named_parameters()}
    return {name: change for name, change in changes.items() if bool(change.any())}


def dense_inner(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """Sum over shared names of the products of all entries, one by one, in float64."""
    return math.fsum(
        a * b
        for name in left.keys() & right.keys()
        for a, b in zip(left[name].double().flatten().tolist(), right[name].double().flatten().tolist(), strict=True)
    )
