"""Language models by name: an alias, one built here, on the hub, a local folder, a GGUF file, or random weights.

`resolve` says at once what a name means, or what is wrong with it, before anything heavy is imported. `load_model`
gives the model, ready to be measured: in evaluation mode, without gradients, sampling from itself alone.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from bridge.models import loading
from bridge.models.architectures import DEFAULT_ALIAS, architecture
from bridge.models.cache import Report, file_sha256
from bridge.models.default import ensure_default, read_provenance
from bridge.models.files import SINGLE_FILE, check_folder, is_whole, weight_files
from bridge.models.hub import cached_snapshot, download_snapshot
from bridge.models.names import ModelSource, check_device_name, resolve
from bridge.models.transformers_setup import quick_imports
from commands.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = ("float32", "bfloat16", "float16", "float64")

_FindHash = Callable[[], str]


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode whose parameters need no gradient, and its tokenizer.

    `source` says for people where it is from; `dtype` is that of the parameters ("float32", ...), `device`
    where they are ("cpu", "cuda:0").
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    source: str
    dtype: str
    device: str
    _hash: _FindHash = field(repr=False)
    in_memory: bool = False  # given by a caller: its weights are in no files

    @cached_property
    def weights_hash(self) -> str:
        """Sha256 of the parameters, hexadecimal, found when first asked for.

        For files it is that of their content, in the order of their names (`cat *.safetensors | sha256sum`),
        whatever dtype they were loaded in; for random weights that of configuration, seed and dtype.
        Raises UserError if the converted default model is no longer what was once written.
        """
        return self._hash()


def load_model(
    name: str = DEFAULT_ALIAS,
    *,
    dtype: str | None = None,
    device: str | None = None,
    seed: int = 0,
    report: Report | None = None,
) -> LoadedModel:
    """Load a model by its name (see `resolve`), ready to be measured.

    `dtype` is float32 (the default, on GPUs too), bfloat16, float16 or float64; `device` is cpu, cuda,
    cuda:N, or auto (the default: the first GPU where there is one). `seed` draws the weights of `random:`
    names, on the CPU and in that dtype, so that they are the same on every device; such a model uses the
    default model's tokenizer, and its vocabulary grows where that needs more room. `report` is given lines
    about slow steps (default: printed to standard error).

    The model's `generation_config` keeps only the ids of special tokens: `generate()` draws from the model's
    own distribution, at temperature 1 and without top-k or top-p. The tokenizer has a padding token.

    Raises UserError: unknown or unreachable name, unusable or corrupted files, weights that do not fit the
    architecture, unknown dtype, a device that is not there or is out of memory.
    """
    source = resolve(name)
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"unknown dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
    check_device_name(device)
    if device is not None and device.startswith("cuda"):
        loading.choose_device(device)  # before a long download
    dtype = dtype or "float32"
    path = _obtain(source, report or _print)
    with quick_imports():
        import torch

        loading.import_architecture(path)
    chosen = loading.choose_device(device)
    model, tokenizer, find_hash = _read(source, path, getattr(torch, dtype), seed)
    model = loading.place(loading.prepare(model, tokenizer), chosen)
    description = _describe(source, path, seed)
    return LoadedModel(model, tokenizer, name, description, dtype, str(model.device), find_hash)


def folder_of(name: str, report: Report | None = None) -> Path:
    """The folder of a model's safetensors files, fetched where need be; nothing is loaded.

    Raises UserError as `resolve`, and for what is no such folder (GGUF files, random weights).
    """
    source = resolve(name)
    if source.kind not in ("default", "hub", "folder"):
        raise UserError(f"{name}: expected a model that is a folder of safetensors files, got {source.description}")
    return _obtain(source, report or _print)


def _obtain(source: ModelSource, report: Report) -> Path:
    """The folder or GGUF file of a source, fetched where need be; for random weights the tokenizer's."""
    if source.kind in ("default", "random"):
        folder = ensure_default(report)
    elif source.kind == "hub":
        folder = _obtain_from_hub(source.location, report)
    else:
        return Path(source.location)
    check_folder(folder)
    return folder


def _obtain_from_hub(repository: str, report: Report) -> Path:
    """The snapshot in the local hub cache if a whole model is there, else a download."""
    cached = cached_snapshot(repository)
    if cached is not None and is_whole(cached):
        return cached
    return download_snapshot(repository, report)


def _read(
    source: ModelSource, path: Path, dtype: torch.dtype, seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, _FindHash]:
    """The model, its tokenizer, and what finds the hash of its weights."""
    if source.kind == "random":
        tokenizer = loading.load_tokenizer(path)
        fields = loading.random_fields(architecture(source.location), tokenizer)
        drawn = json.dumps({"config": fields, "seed": seed, "dtype": str(dtype)}, sort_keys=True)
        return loading.build_random(fields, dtype, seed), tokenizer, hashlib.sha256(drawn.encode()).hexdigest
    if source.kind == "gguf":
        model, tokenizer = loading.read_gguf(path)
        return model.to(dtype), tokenizer, partial(file_sha256, path)  # type: ignore[arg-type]
    find_hash = _checked_hash if source.kind == "default" else hash_folder
    return loading.load_weights(path, dtype), loading.load_tokenizer(path), partial(find_hash, path)


def hash_folder(folder: Path) -> str:
    """Sha256 over the content of the weight files, in the order of their names."""
    digest = hashlib.sha256()
    for path in weight_files(folder):
        with path.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def _checked_hash(folder: Path) -> str:
    """The same of the converted default model; UserError if its weights are no longer those once written."""
    found = hash_folder(folder)
    noted = read_provenance(folder)
    if noted is None or noted["files"][SINGLE_FILE]["sha256"] != found:
        raise UserError(f"the default model in {folder} has changed on the disk: delete the folder and run again")
    return found


def _describe(source: ModelSource, path: Path, seed: int) -> str:
    if source.kind == "hub":  # the hub cache names a snapshot's folder by its commit
        return f"{source.description}, commit {path.name}"
    return f"{source.description}, seed {seed}" if source.kind == "random" else source.description


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
