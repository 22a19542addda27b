"""The files of a model's folder: which hold the weights, and whether a model can be loaded from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from commands.errors import UserError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


def is_whole(folder: Path) -> bool:
    """Whether a model can be loaded from the folder (see `check_folder`)."""
    try:
        check_folder(folder)
    except UserError:
        return False
    return True


def check_folder(folder: Path) -> None:
    """Raise UserError unless the folder holds a configuration, whole safetensors files and a tokenizer.

    Only the headers of the safetensors files are read: enough to find one that was cut off or is none.
    """
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else None
    if config is None:
        if (folder / "adapter_config.json").is_file():
            raise UserError(f"{folder} holds an adapter: merge it into its base model and give that folder")
        raise UserError(f"{folder} holds no config.json: expected a model's folder in Hugging Face's format")
    if config.get("quantization_config"):
        raise UserError(f"{folder} holds quantised weights: give the model as it was before quantisation")
    for path in weight_files(folder):
        _check_header(path)
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise UserError(f"{folder} holds no tokenizer: expected tokenizer.json beside config.json")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold the model of a folder, in the order of their names.

    Raises UserError if there are none (pickles are never read) or one that the index names is missing.
    """
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE]
    if (folder / INDEX_FILE).is_file():
        names = sorted(set(read_json(folder / INDEX_FILE).get("weight_map", {}).values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing or not names:
            lacking = ", ".join(missing) or "it names none"
            raise UserError(f"{folder} lacks weight files that its {INDEX_FILE} names ({lacking}): fetch it again")
        return [folder / name for name in names]
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise UserError(
            f"{folder} holds its weights as pickles ({pickles[0]}), which can run any code and are not read: "
            "save the model as safetensors (model.save_pretrained)"
        )
    raise UserError(f"{folder} holds no weights: expected {SINGLE_FILE}, or {INDEX_FILE} and what it names")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; UserError if it holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object")
    return content


def _check_header(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is corrupted ({error}): fetch or save it again") from error
