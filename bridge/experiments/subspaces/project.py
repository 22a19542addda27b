"""One run of `bridge.subspaces project`: from the options to the finished run folder."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

from bridge.deltas.bases import BasisChoice, SingularVectors, write_singular_vectors
from bridge.deltas.open import write_record
from bridge.deltas.parameters import write_moved_model
from bridge.deltas.projections import ProjectedDelta, write_projected
from bridge.experiments.subspaces import report
from bridge.experiments.subspaces.matrices import open_folder
from bridge.experiments.subspaces.result import Counts, ProjectResult
from bridge.experiments.subspaces.settings import ProjectSettings
from bridge.experiments.subspaces.updates import DTYPES, Updates, described, device_of, open_updates
from commands.errors import UserError
from commands.progress import Progress
from commands.runs import result_of
from commands.store import RunFolder

COMMAND = "bridge.subspaces project"


def run(settings: ProjectSettings, out: Path | None = None, quiet: bool = False) -> ProjectResult:
    """Project, write the run folder, print what is in it.

    Raises:
        UserError: for anything in the options or the updates that cannot be used.

    """
    settings.check()
    progress = Progress(quiet)
    device = device_of(settings)
    updates = open_updates(settings, progress)
    updates.matrices(settings.modules)
    _base_of(updates)
    folder = open_folder(COMMAND, settings, updates, device, out)
    projecting = partial(_project, settings, updates, device, folder, progress)
    found = result_of(folder, ProjectResult.read, projecting, progress)
    if not quiet:
        report.print_result(found, folder)
    return found


def _base_of(updates: Updates) -> tuple[str, str]:
    """Name and sha256 of the model that the projected update will start from."""
    (task,) = updates.others.values()
    if updates.aligned is not None:
        return updates.aligned.name, updates.aligned.sha256
    if task.base_sha256 is None:
        raise UserError(
            f"{task.label} does not say which model it starts from: give --aligned MODEL, whose change it is"
        )
    return "the model that the task update starts from", task.base_sha256


def _project(
    settings: ProjectSettings, updates: Updates, device: str, folder: RunFolder, progress: Progress
) -> ProjectResult:
    """All stages from the updates to the finished folder."""
    (task,) = updates.others.values()
    if updates.alignment is None:
        raise ValueError("projections need an alignment update")
    file = folder.checkpoint("vectors.safetensors")
    names = frozenset(updates.matrices(settings.modules))
    if file.exists():
        vectors = SingularVectors(file)
    else:
        vectors = write_singular_vectors(
            updates.alignment,
            file,
            side=settings.side,
            dtype=DTYPES[settings.dtype],
            device=device,
            names=names,
            progress=progress,
        )
    choice = BasisChoice(settings.basis, settings.side, settings.seed)
    projected = ProjectedDelta(
        task, vectors, choice, settings.fraction, settings.scheme, vectors=settings.vectors, names=names, device=device
    )
    if not projected.names:
        raise UserError(f"{projected.label}: expected a change, but nothing is left of it")
    base_name, base_sha256 = _base_of(updates)
    about: dict[str, object] = {
        "basis": settings.basis,
        "fraction": settings.fraction,
        "scheme": settings.scheme,
        "side": settings.side,
        "seed": settings.seed,
        "vectors": settings.vectors,
        "modules": settings.modules,
        "dtype": settings.dtype,
    }
    with progress.stage("projected change", 1):
        written = write_projected(folder.path, projected, base_sha256, about)
    if settings.save_model and updates.aligned is not None and not (folder.path / "model").exists():
        with progress.stage("moved model", 1):
            write_moved_model(updates.aligned.folder, written, 1.0, folder.path / "model")
    write_record(folder.path, written, Path(written.label).name, base_name, base_sha256)
    before, after = task.norm(), written.norm()
    result = ProjectResult(
        **about,  # type: ignore[arg-type]  # by the same names
        task=described(task),
        alignment=described(updates.alignment),
        file=Path(written.label).name,
        norm_before=before,
        norm_after=after,
        energy_kept=(after / before) ** 2 if math.isfinite(before) and before else 0.0,
        counts=Counts(**projected.counts),
    )
    result.write(folder.path)
    report.write(result, settings, folder.path)
    folder.finish(stage_seconds={k: round(v, 2) for k, v in progress.seconds.items()})
    return result
