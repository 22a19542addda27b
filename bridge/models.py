"""Language models by name: an alias, one built here, on the hub, a local folder, a GGUF file, or random weights.

`resolve` says at once what a name means, or what is wrong with it, before anything heavy is imported. `load`
gives the model, ready to be measured: in evaluation mode, without gradients, sampling from itself alone.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bridge import loading
from bridge.architectures import ALIASES, DEFAULT_ALIAS, HUB_NAMES, architecture
from bridge.built_models import built_folder, how_to_build, is_built
from bridge.default_model import Report, default_folder, ensure_default, file_sha256, read_provenance
from bridge.hub import cached_snapshot, download_snapshot, nearest
from bridge.model_files import SINGLE_FILE, check_folder, is_whole, weight_files
from bridge.transformers_setup import quick_imports
from commands.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = ("float32", "bfloat16", "float16", "float64")
RANDOM_PREFIX = "random:"
_HUB_NAME = re.compile(r"(?!.*(?:--|\.\.))[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(?<![.-])", re.ASCII)

_FindHash = Callable[[], str]
Kind = Literal["default", "hub", "folder", "gguf", "random"]


@dataclass(frozen=True)
class ModelSource:
    """What a model's name means.

    `location` is the folder or file (kinds default, folder, gguf), the name on the hub (hub), or the alias
    whose architecture is built (random).
    """

    name: str
    kind: Kind
    location: str

    @property
    def description(self) -> str:
        """One line for people: where the model is from."""
        return {
            "default": "SmolLM2-135M-Instruct from the package index",
            "hub": f"{self.location} from the Hugging Face hub",
            "folder": f"local folder {self.location}",
            "gguf": f"GGUF file {self.location}",
            "random": f"random weights in the architecture of {self.location}",
        }[self.kind]


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

    @cached_property
    def weights_hash(self) -> str:
        """Sha256 of the parameters, hexadecimal, found when first asked for.

        For files it is that of their content, in the order of their names (`cat *.safetensors | sha256sum`),
        whatever dtype they were loaded in; for random weights that of configuration, seed and dtype.
        Raises UserError if the converted default model is no longer what was once written.
        """
        return self._hash()


def resolve(name: str) -> ModelSource:
    """Say what a model's name means, without the network and without importing torch.

    An alias (letter case does not matter) or the name of a model that a command has built comes before a folder
    of that name; "./NAME" is always a folder. Raises UserError if the name can mean nothing, with the nearest
    known names, if it is that of a model not built yet, or if the folder holds no model that can be used.
    """
    if name.lower().startswith(RANDOM_PREFIX):
        alias = name[len(RANDOM_PREFIX) :].lower()
        if alias not in ALIASES:
            raise UserError(f"{name}: {RANDOM_PREFIX} wants the alias of an architecture; {nearest(alias)}")
        return ModelSource(name, "random", alias)
    if name.lower() == DEFAULT_ALIAS:
        return ModelSource(name, "default", str(default_folder()))
    if name.lower() in HUB_NAMES:
        return ModelSource(name, "hub", HUB_NAMES[name.lower()])
    if is_built(name):
        return ModelSource(name, "folder", str(built_folder(name)))
    path = Path(name).expanduser()
    if name and path.exists():
        return _resolve_path(name, path.absolute())
    if name.startswith((".", "~")) or path.is_absolute() or name.endswith((".gguf", ".safetensors")):
        raise UserError(f"no such folder or file: {name}; give a model's folder, an alias or a name on the hub")
    if _HUB_NAME.fullmatch(name):
        return ModelSource(name, "hub", name)
    if (command := how_to_build(name)) is not None:
        raise UserError(f"{name} has not been built: run {command}")
    raise UserError(f"unknown model {name!r}: no alias, local folder or name on the hub; {nearest(name)}")


def _resolve_path(name: str, path: Path) -> ModelSource:
    if path.is_file():
        if path.suffix != ".gguf":
            raise UserError(f"{name} is a file: expected a folder with config.json, or a .gguf file")
        return ModelSource(name, "gguf", str(path))
    ggufs = sorted(path.glob("*.gguf"))
    if not (path / "config.json").exists() and ggufs:
        if len(ggufs) > 1:
            names = ", ".join(file.name for file in ggufs)
            raise UserError(f"{name} holds several GGUF files: name one of them ({names})")
        return ModelSource(name, "gguf", str(ggufs[0]))
    check_folder(path)
    return ModelSource(name, "folder", str(path))


def load(
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
    loading.check_device_name(device)
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


def _read(source: ModelSource, path: Path, dtype: torch.dtype, seed: int) -> tuple[Any, Any, _FindHash]:
    """The model, its tokenizer, and what finds the hash of its weights."""
    if source.kind == "random":
        tokenizer = loading.load_tokenizer(path)
        fields = loading.random_fields(architecture(source.location), tokenizer)
        drawn = json.dumps({"config": fields, "seed": seed, "dtype": str(dtype)}, sort_keys=True)
        return loading.build_random(fields, dtype, seed), tokenizer, hashlib.sha256(drawn.encode()).hexdigest
    if source.kind == "gguf":
        model, tokenizer = loading.read_gguf(path)
        return model.to(dtype), tokenizer, partial(file_sha256, path)
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
