"""What every run of `bridge.subspaces` begins and ends with: the updates opened, and the folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Generic, TypeVar

import torch

from bridge.deltas.weight_delta import WeightDelta, fingerprint
from bridge.experiments.session import Lent
from bridge.experiments.subspaces.settings import OfAlignment
from bridge.experiments.subspaces.updates import open_updates
from bridge.models.identity import threads
from bridge.models.loading import choose_device
from bridge.reports.results import Result
from commands.progress import Progress
from commands.runs import Arrays
from commands.store import Folder, RunFolder, Scratch, short_hash, write_arrays

Asked = TypeVar("Asked", bound=OfAlignment)
_DTYPES = {"float32": torch.float32, "float64": torch.float64}


class UpdatesSession(Generic[Asked]):
    """One run's updates, the matrices that are decomposed, and the device that does it. No model is loaded."""

    def __init__(self, command: str, settings: Asked, progress: Progress, lent: Lent | None = None) -> None:
        """Open the updates of a run of a command, as `python -m` takes its name.

        Raises:
            UserError: they cannot be used, are not of one model, or move no matrix.

        """
        self.command, self.settings, self.lent = command, settings, lent or Lent()
        self.progress = self.lent.progress or progress
        self.device = choose_device(settings.device)
        self.dtype = _DTYPES[settings.dtype]
        self.updates = open_updates(settings, self.progress)
        self.matrices = self.updates.matrices(settings.modules)

    @property
    def alignment(self) -> WeightDelta:
        """The alignment update, of settings that name one."""
        if self.updates.alignment is None:
            raise ValueError("expected settings with an alignment update")
        return self.updates.alignment

    def open_folder(self, out: Path | None) -> Folder:
        """The run's folder, runs/COMMAND/HASH unless another is given; a temporary one where none is wanted.

        Raises:
            UserError: as `RunFolder` does, or an update holds numbers that are not finite.

        """
        if self.lent.in_memory:
            return Scratch()
        identity = self._identity()
        name = self.command.removeprefix("bridge.").replace(" ", "-")
        folder = RunFolder(out or Path("runs") / name / short_hash(identity), self.command, identity)
        if not folder.complete:
            self.settings.write(folder.path, self.command)
        return folder

    def _identity(self) -> dict[str, object]:
        """What decides the run's numbers: the options, and the content of every update."""
        updates = self.updates
        return self.settings.identity() | {
            "device": self.device,
            "threads": threads(self.device),
            "alignment_sha256": fingerprint(updates.alignment) if updates.alignment else None,
            "aligned_sha256": updates.aligned.sha256 if updates.aligned else None,
            "updates_sha256": {label: fingerprint(delta) for label, delta in updates.others.items()},
            "order": list(updates.others),
        }

    def write(self, folder: Folder, result: Result, arrays: Mapping[str, Arrays]) -> None:
        """NAME.json, and NAME.npz with the arrays as PARAMETER/KEY."""
        flat = {f"{parameter}/{key}": values for parameter, found in arrays.items() for key, values in found.items()}
        write_arrays((folder.path / result.FILE).with_suffix(".npz"), flat)
        result.write(folder.path)

    def finish(self, folder: Folder) -> None:
        """Mark the folder complete, with the time that every stage took."""
        folder.finish(stage_seconds={k: round(v, 2) for k, v in self.progress.seconds.items()})
