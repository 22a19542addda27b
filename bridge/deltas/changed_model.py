"""The model that an evaluation asks: one as it is, or one whose weights a fine-tune has changed."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bridge.deltas.open import open_delta, weights_folder
from bridge.deltas.parameters import parameter_files, save_snapshot, set_weights
from bridge.deltas.tensor_files import TensorFiles
from bridge.deltas.weight_delta import WeightDelta, fingerprint
from bridge.models.cache import Report
from bridge.models.identity import model_identity
from bridge.models.load import LoadedModel, load_model


@dataclass(frozen=True)
class ChangedModel(LoadedModel):
    """A model with a change of its weights applied; `name` is that of the model before the change.

    `base_sha256` is the sha256 of the weights before it, `change_sha256` that of the change's content;
    `weights_hash` is made of both.
    """

    base_sha256: str = ""
    change_sha256: str = ""


def open_changed(
    model: str,
    delta: str | Path | None = None,
    *,
    dtype: str | None = None,
    device: str | None = None,
    seed: int = 0,
    report: Report | None = None,
) -> LoadedModel:
    """Load a model (arguments as of `bridge.models.load.load_model`) and apply a change of its weights, if any.

    Raises:
        UserError: the model or the change cannot be used, or does not fit the other.

    """
    loaded = load_model(model, dtype=dtype, device=device, seed=seed, report=report)
    return loaded if delta is None else with_change(loaded, delta)


def with_change(loaded: LoadedModel, delta: str | Path) -> ChangedModel:
    """The model, its weights changed in place.

    Every parameter becomes base + change, summed in float64 and rounded once to the model's dtype; a LoRA adapter is
    merged that way.

    Args:
        loaded: the model before the change.
        delta: what `bridge.deltas.open.open_delta` takes: a run folder of bridge.finetune, an adapter's folder, a
            delta.safetensors, or the folder of the changed model.

    Raises:
        UserError: the change cannot be used, or is one of another model.

    """
    change = open_delta(delta, loaded)
    base_sha256, change_sha256 = loaded.weights_hash, fingerprint(change)
    _apply(loaded, change)
    both = hashlib.sha256(f"{base_sha256} {change_sha256}".encode())
    return ChangedModel(
        model=loaded.model,
        tokenizer=loaded.tokenizer,
        name=loaded.name,
        source=f"{loaded.source}, changed by {delta}",
        dtype=loaded.dtype,
        device=loaded.device,
        _hash=both.hexdigest,
        in_memory=loaded.in_memory,
        base_sha256=base_sha256,
        change_sha256=change_sha256,
    )


def _apply(loaded: LoadedModel, change: WeightDelta) -> None:
    folder = weights_folder(loaded)
    if folder is not None:
        set_weights(loaded.model, parameter_files(folder, loaded.model), change)
        return
    with tempfile.TemporaryDirectory() as place:  # a GGUF file, or drawn weights: no files to start from
        snapshot = Path(place) / "base.safetensors"
        save_snapshot(snapshot, loaded.model)
        set_weights(loaded.model, TensorFiles([snapshot]), change)


def changed_identity(loaded: LoadedModel) -> dict[str, object]:
    """What of a model decides the numbers: `model_identity`, and of a changed one what it was made from."""
    if not isinstance(loaded, ChangedModel):
        return model_identity(loaded)
    return model_identity(loaded) | {"base_sha256": loaded.base_sha256, "change_sha256": loaded.change_sha256}
