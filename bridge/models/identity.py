"""What of a loaded model decides the numbers, and its name as a part of a folder's name."""

from __future__ import annotations

import json

import torch

from bridge.models.load import LoadedModel
from commands.store import short_hash


def threads(device: str) -> int | None:
    """Threads decide the order of the CPU's sums, and so the last digits."""
    return torch.get_num_threads() if device == "cpu" else None


def model_identity(loaded: LoadedModel) -> dict[str, object]:
    """What of a loaded model decides the numbers: weights, configuration, dtype, device, threads."""
    return {
        "dtype": loaded.dtype,
        "device": loaded.device,
        "threads": threads(loaded.device),
        "weights_sha256": loaded.weights_hash,
        "config": short_hash(json.loads(loaded.model.config.to_json_string())),
    }


def positions_of(loaded: LoadedModel) -> int | None:
    """Number of positions that a model has, where its configuration limits them."""
    limit = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
    return limit if isinstance(limit, int) else None
