"""A run over the matrices of some updates: what `bridge.subspaces energy` and `mso` begin and end with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.experiments.subspaces.updates import Updates, device_of, identity_of, open_updates
from commands.progress import Progress
from commands.runs import Arrays
from commands.store import RunFolder, short_hash, write_arrays, write_json

if TYPE_CHECKING:
    from bridge.experiments.subspaces.settings import Settings


@dataclass(frozen=True)
class Opened:
    """The updates of a run, the names of the matrices that are decomposed, and the device that does it."""

    updates: Updates
    matrices: list[str]
    device: str


def open_matrices(settings: Settings, progress: Progress) -> Opened:
    """Open the updates.

    Raises:
        UserError: they cannot be used, are not of one model, or move no matrix.

    """
    device = device_of(settings)
    updates = open_updates(settings, progress)
    return Opened(updates, updates.matrices(settings.modules), device)


def open_folder(command: str, settings: Settings, opened: Opened, out: Path | None) -> RunFolder:
    """The run's folder, runs/COMMAND/HASH unless another is given.

    Raises:
        UserError: as `RunFolder` does, or an update holds numbers that are not finite.

    """
    identity = identity_of(settings, opened.updates, opened.device)
    name = command.removeprefix("bridge.").replace(" ", "-")
    return RunFolder(out or Path("runs") / name / short_hash(identity), command, identity)


def write_results(folder: Path, name: str, result: Mapping[str, Any], arrays: Mapping[str, Arrays]) -> None:
    """NAME.json, and NAME.npz with the arrays as PARAMETER/KEY."""
    kept = {f"{parameter}/{key}": values for parameter, found in arrays.items() for key, values in found.items()}
    write_arrays(folder / f"{name}.npz", kept)
    write_json(folder / f"{name}.json", result)
