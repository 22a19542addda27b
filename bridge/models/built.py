"""Models that commands of this package have built, by name: folders in the user's cache that every command can use."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from bridge.models.architectures import ALIASES
from bridge.models.cache import cache_folder
from bridge.models.files import is_whole
from commands.errors import UserError

NOTE = "built.json"
"""What an installed model was built from; beside its config.json."""
_REFUSAL = "-refusal"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


def built_folder(name: str) -> Path:
    """Where the built model of a name is, or would be."""
    return cache_folder() / "built" / name.lower()


def is_built(name: str) -> bool:
    """Whether a whole model of that name is installed."""
    return _NAME.fullmatch(name.lower()) is not None and is_whole(built_folder(name))


def how_to_build(name: str) -> str | None:
    """The command that builds a model of this name, or None if no command does."""
    base = name.lower().removesuffix(_REFUSAL)
    if base == name.lower() or base not in ALIASES:
        return None
    return f"python -m bridge.align --model {base}"


def refusal_name(model: str) -> str:
    """The name under which `bridge.align` installs what it makes of a model, from the last part of its name."""
    last = model.rstrip("/").rsplit("/", 1)[-1].lower().removesuffix(".gguf").replace(":", "-")
    return re.sub(r"[^a-z0-9._-]+", "-", last).lstrip(".-_") + _REFUSAL


def check_name(name: str) -> None:
    """Raise UserError unless the name can be a built model's: lower case, and no alias of another model."""
    if not _NAME.fullmatch(name):
        raise UserError(f"--name: expected lower-case letters, digits, dots, dashes and underscores, got {name!r}")
    if name in ALIASES:
        raise UserError(f"--name: {name} is the alias of another model; choose another name")


def read_note(name: str) -> dict[str, object] | None:
    """What was noted when the model was installed, or None if none of that name is (or its note is gone)."""
    try:
        found = json.loads((built_folder(name) / NOTE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def check_free(name: str, run: str, replace: bool) -> None:
    """Raise UserError if the name is another run's, unless that is to be replaced."""
    if replace or not built_folder(name).exists() or (read_note(name) or {}).get("run") == run:
        return
    raise UserError(
        f"{name} has been built with other settings (its {NOTE} in {built_folder(name)} tells them): "
        "give --replace to put the new one in its place, or another --name"
    )


def install(model: Path, name: str, note: Mapping[str, object], replace: bool) -> Path:
    """Put a model's folder into the cache under a name; returns its place there.

    The files are hard links where the disk allows it, so that they take no room twice, else copies. The folder
    appears whole or not at all. `note` is kept beside it; its "run" identifies the run that built it: installing the
    same run's model again changes nothing.

    Raises:
        UserError: the name is another run's and `replace` is false, or the cache cannot be written.

    """
    from filelock import FileLock

    place = built_folder(name)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(place.with_name(f".{place.name}.lock")):
            check_free(name, str(note["run"]), replace)
            if not is_built(name) or (read_note(name) or {}).get("run") != note["run"]:
                _put(model, place, note)
    except OSError as error:
        raise UserError(
            f"the model cannot be installed in {place.parent}: {error.strerror or error}; its folder {model} can be "
            "used as it is (--model FOLDER)"
        ) from error
    return place


def _put(model: Path, place: Path, note: Mapping[str, object]) -> None:
    prefix = f".{place.name}.partial-"
    for leftover in place.parent.glob(f"{prefix}*"):
        shutil.rmtree(leftover)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=place.parent) as temporary:
        new = Path(temporary) / "new"
        new.mkdir()
        for file in sorted(model.iterdir()):
            _link(file, new / file.name)
        (new / NOTE).write_text(json.dumps(note, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        for path in (*new.iterdir(), new):
            _sync(path)
        if place.exists():
            place.rename(Path(temporary) / "old")
        new.rename(place)
        _sync(place.parent)


def _link(file: Path, target: Path) -> None:
    try:
        os.link(file, target)
    except OSError:  # another disk, or one without links
        shutil.copy2(file, target)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
