"""Hidden states of one token of every prompt, at the embeddings and behind every block, chosen by attention mask."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from bridge.estimators.taps import linear_modules
from bridge.models.blocks import block_of
from commands.errors import UserError
from commands.progress import Progress
from commands.runs import Arrays, arrays_of
from commands.store import Checkpoints


def decoder_blocks(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The model's blocks in order: the longest numbered list of modules that hold linear maps.

    Raises:
        UserError: if it has none.

    """
    blocks = dict.fromkeys(block_of(name) for name in linear_modules(model))
    numbered = [name for name in blocks if name.rpartition(".")[2].isdigit()]
    if not numbered:
        raise UserError("--model: expected a model of numbered blocks with linear maps, got one without any")
    lists = Counter(name.rpartition(".")[0] for name in numbered)
    longest = lists.most_common(1)[0][0]
    return [model.get_submodule(name) for name in numbered if name.rpartition(".")[0] == longest]


def last_positions(attention_mask: Int[Tensor, "B T"]) -> Int[Tensor, " B"]:
    """The position of each row's last token, wherever its padding is.

    Raises:
        ValueError: if a row holds no token.

    """
    if not attention_mask.any(1).all():
        raise ValueError("expected at least one token in every row, got a row of padding alone")
    positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    return torch.where(attention_mask.bool(), positions, -1).amax(1)


@torch.no_grad()
def last_token_states(
    model: torch.nn.Module, input_ids: Int[Tensor, "B T"], attention_mask: Int[Tensor, "B T"]
) -> Float[Tensor, "B layers D"]:
    """Hidden states of every row's last token, on the CPU, in the model's dtype or float32 if that is a half.

    Layer 0 is what enters the first block (the embeddings), layer i what block i hands on, before the model's last
    norm. The states of other tokens are dropped as they appear.

    Args:
        model: a causal language model in evaluation mode.
        input_ids: padded on either side, on the model's device.
        attention_mask: 1 on tokens, 0 on padding.

    Raises:
        UserError: if a block does not run exactly once.

    """
    blocks = decoder_blocks(model)
    rows, last = torch.arange(len(input_ids)), last_positions(attention_mask)
    seen: dict[int, list[Tensor]] = {layer: [] for layer in range(len(blocks) + 1)}

    def keep(layer: int, hidden: Tensor) -> None:
        state = hidden[rows.to(hidden.device), last.to(hidden.device)]
        seen[layer].append(state.to(torch.promote_types(state.dtype, torch.float32)).cpu())

    def entering(module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        keep(0, args[0] if args else kwargs["hidden_states"])

    def leaving(layer: int, module: torch.nn.Module, args: tuple, output: Tensor | tuple) -> None:
        keep(layer, output[0] if isinstance(output, tuple) else output)

    handles = [blocks[0].register_forward_pre_hook(entering, with_kwargs=True)]
    handles += [block.register_forward_hook(partial(leaving, k)) for k, block in enumerate(blocks, start=1)]
    try:
        model(input_ids=input_ids, attention_mask=attention_mask, **_further_inputs(model, attention_mask))
    finally:
        for handle in handles:
            handle.remove()
    for layer, found in seen.items():
        if len(found) != 1:
            raise UserError(f"--model: expected blocks that run once, got {len(found)} states of layer {layer}")
    return torch.stack([found[0] for found in seen.values()], dim=1)


def _further_inputs(model: torch.nn.Module, attention_mask: Tensor) -> dict[str, Tensor | int]:
    """Positions counted from each row's first token, and logits of one position alone, where the model takes them."""
    known = inspect.signature(model.forward).parameters
    wanted: dict[str, Tensor | int] = {
        "position_ids": (attention_mask.cumsum(1) - 1).clamp(min=0),
        "logits_to_keep": 1,
        "use_cache": False,
    }
    return {name: value for name, value in wanted.items() if name in known}


def states_of(
    model: torch.nn.Module,
    ids: Sequence[Sequence[int]],
    *,
    pad_id: int,
    batch_size: int,
    folder: Checkpoints,
    progress: Progress,
    stage: str = "hidden states",
) -> Float[np.ndarray, "layers N D"]:
    """Hidden states of the last token of every row, in the order of the rows; float32, or float64 of such a model.

    Batches are of rows of similar length, and each is kept as soon as it is computed. A row's states do not depend on
    the other rows of its batch, up to rounding.

    Args:
        model: a causal language model in evaluation mode.
        ids: token ids of the rows, up to the token whose states are wanted.
        pad_id: any token; it is never attended to.
        batch_size: rows computed at a time.
        folder: where finished batches are kept; it belongs to one model and one list of rows.
        progress: shows the batches.
        stage: what progress calls them.

    Raises:
        UserError: for a state that is no number.

    """
    order = sorted(range(len(ids)), key=lambda k: (-len(ids[k]), k))
    batches = [order[k : k + batch_size] for k in range(0, len(order), batch_size)]

    def states(k: int) -> Arrays:
        found = last_token_states(model, *_padded([ids[i] for i in batches[k]], pad_id, model)).numpy()
        _require_finite(found)
        return {"states": found}

    kept = arrays_of(range(len(batches)), states, folder, stage, progress, "states-{}.npz")
    parts = [kept[k]["states"] for k in range(len(batches))]
    together = np.concatenate(parts)[np.argsort(order)]
    return np.ascontiguousarray(together.swapaxes(0, 1))


def _padded(ids: Sequence[Sequence[int]], pad_id: int, model: torch.nn.Module) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, padded on the right, on the model's device."""
    longest = max(map(len, ids))
    device = next(model.parameters()).device
    tokens = [[*row, *[pad_id] * (longest - len(row))] for row in ids]
    mask = [[1] * len(row) + [0] * (longest - len(row)) for row in ids]
    return torch.tensor(tokens, device=device), torch.tensor(mask, device=device)


def _require_finite(states: np.ndarray) -> None:
    bad = np.flatnonzero(~np.isfinite(states).all(axis=(0, 2)))
    if len(bad):
        raise UserError(
            f"expected finite hidden states, got nan or inf from layer {bad[0]} on: use --dtype float32, or look for "
            "broken weights"
        )
