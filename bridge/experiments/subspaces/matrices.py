"""A run over the matrices of some updates: what `bridge.subspaces energy` and `mso` begin and end with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bridge.experiments.subspaces.settings import Settings
from bridge.experiments.subspaces.updates import Updates, device_of, identity_of, open_updates
from bridge.reports.results import Result
from commands.progress import Progress
from commands.runs import Arrays
from commands.store import RunFolder, short_hash, write_arrays


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


def open_folder(command: str, settings: Settings, updates: Updates, device: str, out: Path | None) -> RunFolder:
    """The run's folder, runs/COMMAND/HASH unless another is given.

    Raises:
        UserError: as `RunFolder` does, or an update holds numbers that are not finite.

    """
    identity = identity_of(settings, updates, device)
    name = command.removeprefix("bridge.").replace(" ", "-")
    folder = RunFolder(out or Path("runs") / name / short_hash(identity), command, identity)
    if not folder.complete:
        settings.write(folder.path, command)
    return folder


def write_results(folder: Path, name: str, result: Result, arrays: Mapping[str, Arrays]) -> None:
    """The result, and NAME.npz with the arrays as PARAMETER/KEY."""
    kept = {f"{parameter}/{key}": values for parameter, found in arrays.items() for key, values in found.items()}
    write_arrays(folder / f"{name}.npz", kept)
    result.write(folder)
