"""What the name of a model means: found without torch, without the network, before anything is loaded."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bridge.models.architectures import ALIASES, DEFAULT_ALIAS, HUB_NAMES
from bridge.models.built import built_folder, how_to_build, is_built
from bridge.models.cache import default_folder
from bridge.models.files import check_folder
from bridge.models.hub import nearest
from commands.errors import UserError
from commands.paths import expanded

RANDOM_PREFIX = "random:"


_HUB_NAME = re.compile(r"(?!.*(?:--|\.\.))[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(?<![.-])", re.ASCII)


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
    path = expanded(name)
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


def run_name(model: str) -> str:
    """A model's name as a part of a folder's name."""
    return model.strip("/").replace("/", "--").replace(":", "-")[-60:]


def check_device_name(name: str | None) -> None:
    """Raise UserError unless the name is cpu, cuda, cuda:N, auto or None."""
    if name is not None and not re.fullmatch(r"cpu|auto|cuda(:\d+)?", name):
        raise UserError(f"unknown device {name!r}: expected cpu, cuda, cuda:N or auto")
