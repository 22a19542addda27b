"""Parts of a model: its blocks, by the names of its modules, and the model inside of a PeftModel."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from torch.nn import Module
    from transformers import PreTrainedModel

_BLOCK = re.compile(r"^(.*?\.\d+)(\.|$)")  # model.layers.3.self_attn.q_proj -> model.layers.3


def inner_model(model: Module) -> PreTrainedModel:
    """The causal language model itself, inside a PeftModel or not."""
    return cast("PreTrainedModel", getattr(model, "get_base_model", lambda: model)())


def block_of(name: str) -> str:
    """The numbered block that holds a module, or the module itself when it stands outside every block."""
    found = _BLOCK.match(name)
    return found.group(1) if found else name


def group_by_block(names: Sequence[str]) -> dict[str, list[str]]:
    """Module names by block, in the model's order."""
    blocks: dict[str, list[str]] = {}
    for name in names:
        blocks.setdefault(block_of(name), []).append(name)
    return blocks


def block_number(name: str) -> int | None:
    """The number of a numbered block; None of a matrix that stands outside of every block."""
    last = name.rpartition(".")[2]
    return int(last) if last.isdecimal() else None
