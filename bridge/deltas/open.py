"""Changes of weights, full or LoRA, behind one type: opened from wherever they are, and checked against a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from bridge.deltas.lora import CONFIG_FILE, LoraDelta
from bridge.deltas.parameters import (
    check_fits,
    parameter_files,
    save_snapshot,
    set_weights,
    skeleton,
    write_full_delta,
    write_moved_model,
)
from bridge.deltas.weight_delta import Difference, FullDelta, WeightDelta
from bridge.models.files import check_folder, read_json
from bridge.models.hub import cached_snapshot
from commands.errors import UserError
from commands.paths import expanded
from commands.store import write_json

if TYPE_CHECKING:
    from bridge.models.load import LoadedModel

__all__ = [
    "Difference",
    "FullDelta",
    "LoraDelta",
    "WeightDelta",
    "check_fits",
    "open_delta",
    "parameter_files",
    "save_snapshot",
    "set_weights",
    "weights_folder",
    "write_full_delta",
    "write_moved_model",
    "write_record",
]

RECORD_FILE = "delta.json"
SCHEMA_VERSION = 1
_EXPECTED = "a run folder of bridge.finetune, an adapter's folder, a delta.safetensors, or a moved model's folder"


def write_record(folder: Path, delta: WeightDelta, file: str, base_name: str, base_sha256: str) -> None:
    """Write delta.json into a run folder: where in it the change is, of what kind, and of which base."""
    base = {"name": base_name, "weights_sha256": base_sha256}
    fields = {"kind": delta.kind, "file": file, "base": base, "squared_norm": delta.squared_norm()}
    write_json(folder / RECORD_FILE, {"schema_version": SCHEMA_VERSION, **fields})


def open_delta(
    spec: str | Path,
    base: LoadedModel | None = None,
    *,
    base_folder: Path | None = None,
    require_nonzero: bool = False,
) -> WeightDelta:
    """Open a change of weights and, where the base is given, check that it is a change of that model.

    Args:
        spec: a run folder of bridge.finetune (with delta.json), an adapter's folder, a delta.safetensors file, or the
            folder of a moved model, from which the base's weights are subtracted.
        base: the model that the change starts from.
        base_folder: where its weights are; found from the base's name where it is a folder or on the hub.
        require_nonzero: refuse a change that is zero everywhere.

    Raises:
        UserError: nothing of the kind is there, it cannot be read, or it is a change of another model.

    """
    path = expanded(spec)
    if not path.exists():
        raise UserError(f"no such change of weights: {spec}; expected {_EXPECTED}")
    model = base.model if base else skeleton(base_folder) if base_folder else None
    delta = _open(path, base, base_folder, model)
    if base is not None and delta.base_sha256 is not None and delta.base_sha256 != base.weights_hash:
        raise UserError(
            f"{delta.label} is a change of another model than {base.name}: it starts from weights with sha256 "
            f"{str(delta.base_sha256)[:12]}…, and these have {base.weights_hash[:12]}…"
        )
    if model is not None:
        check_fits(delta, model)
    if require_nonzero:
        delta.require_nonzero()
    return delta


def _open(path: Path, base: LoadedModel | None, folder: Path | None, model: torch.nn.Module | None) -> WeightDelta:
    if path.is_file():
        return FullDelta(path)
    if (path / RECORD_FILE).is_file():
        return _open_record(path, model)
    if (path / CONFIG_FILE).is_file():
        return LoraDelta(path, model, _recorded_base(path))
    if not (path / "config.json").is_file():
        raise UserError(f"{path} holds no change of weights: expected {_EXPECTED}")
    check_folder(path)
    folder = folder or (weights_folder(base) if base else None)
    if folder is None or model is None:
        raise UserError(
            f"{path} is a model's folder, so the change is its difference from the base's weights: expected a base "
            f"that is a folder of safetensors files, got {base.source if base else 'none'}"
        )
    moved, start = parameter_files(path, model), parameter_files(folder, model)
    return Difference(moved, start, str(path), base.weights_hash if base else None)


def _open_record(folder: Path, model: torch.nn.Module | None) -> WeightDelta:
    record = read_json(folder / RECORD_FILE)
    try:
        version, kind, file = record["schema_version"], record["kind"], folder / record["file"]
        sha256 = record["base"]["weights_sha256"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / RECORD_FILE} lacks fields ({error}): run bridge.finetune again") from error
    if version != SCHEMA_VERSION or kind not in ("full", "lora"):
        raise UserError(
            f"{folder / RECORD_FILE}: expected schema_version {SCHEMA_VERSION} and kind full or lora, got {version!r} "
            f"and {kind!r}"
        )
    if kind == "lora":
        return LoraDelta(file, model, sha256)
    delta = FullDelta(file)
    delta.base_sha256 = sha256
    return delta


def _recorded_base(adapter: Path) -> str | None:
    """`weights_hash` of an adapter's base where the adapter lies in a run folder, whose record says it."""
    adapter = adapter.absolute()
    if not (adapter.parent / RECORD_FILE).is_file():
        return None
    record = read_json(adapter.parent / RECORD_FILE)
    base = record.get("base")
    return base.get("weights_sha256") if record.get("file") == adapter.name and isinstance(base, dict) else None


def weights_folder(base: LoadedModel) -> Path | None:
    """The folder of safetensors files that a model was loaded from, or None (GGUF, random weights, in memory)."""
    from bridge.models.names import resolve

    if base.in_memory:
        return None
    source = resolve(base.name)
    if source.kind == "hub":
        return cached_snapshot(source.location)
    return Path(source.location) if source.kind in ("default", "folder") else None
