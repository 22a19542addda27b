"""One run of `bridge.subspaces project`: from the options to the finished run folder."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

from bridge.deltas.bases import singular_vectors
from bridge.deltas.choices import BasisChoice
from bridge.deltas.open import write_record
from bridge.deltas.parameters import write_moved_model
from bridge.deltas.projections import ProjectedDelta, write_projected
from bridge.deltas.weight_delta import WeightDelta
from bridge.experiments.session import Lent
from bridge.experiments.subspaces import report
from bridge.experiments.subspaces.result import ProjectResult
from bridge.experiments.subspaces.session import UpdatesSession
from bridge.experiments.subspaces.settings import ProjectSettings
from bridge.experiments.subspaces.updates import Updates, source_of
from commands.errors import UserError
from commands.progress import Progress
from commands.runs import result_of
from commands.store import Folder

COMMAND = "bridge.subspaces project"


def run(
    settings: ProjectSettings, out: Path | None = None, quiet: bool = False, lent: Lent | None = None
) -> ProjectResult:
    """Project, write the run folder, print what is in it.

    Args:
        settings: the options.
        out: the run folder; None for one in runs/.
        quiet: print nothing.
        lent: whether the result alone is wanted, and where stages are shown.

    Raises:
        UserError: for anything in the options or the updates that cannot be used.

    """
    settings.check()
    session = UpdatesSession(COMMAND, settings, Progress(quiet), lent)
    base = _base_of(session.updates)
    folder = session.open_folder(out)
    found = result_of(folder, ProjectResult.read, partial(_project, session, base, folder), session.progress)
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


def _project(session: UpdatesSession[ProjectSettings], base: tuple[str, str], folder: Folder) -> ProjectResult:
    """All stages from the updates to the finished folder."""
    settings, (task,) = session.settings, session.updates.others.values()
    projected = _projected(session, task, folder)
    written = _write(session, projected, base, folder)
    before, after = task.norm(), written.norm()
    result = ProjectResult(
        basis=settings.basis,
        fraction=settings.fraction,
        scheme=settings.scheme,
        side=settings.side,
        seed=settings.seed,
        vectors=settings.vectors,
        modules=settings.modules,
        dtype=settings.dtype,
        task=source_of(task),
        alignment=source_of(session.alignment),
        file=Path(written.label).name,
        norm_before=before,
        norm_after=after,
        energy_kept=(after / before) ** 2 if math.isfinite(before) and before else 0.0,
        counts=projected.counts,
    )
    if not session.lent.in_memory:
        result.write(folder.path)
        report.write(result, settings, folder.path)
        session.finish(folder)
    return result


def _projected(session: UpdatesSession[ProjectSettings], task: WeightDelta, folder: Folder) -> ProjectedDelta:
    """The part of the task update, computed matrix by matrix where it is read; UserError if nothing is left."""
    settings, names = session.settings, frozenset(session.matrices)
    vectors = singular_vectors(
        session.alignment, folder.checkpoint("vectors.safetensors"), side=settings.side, dtype=session.dtype,
        device=session.device, names=names, progress=session.progress,
    )  # fmt: skip
    choice = BasisChoice(settings.basis, settings.side, settings.seed)
    projected = ProjectedDelta(
        task, vectors, choice, settings.fraction, settings.scheme, vectors=settings.vectors, names=names,
        device=session.device,
    )  # fmt: skip
    if not projected.names:
        raise UserError(f"{projected.label}: expected a change, but nothing is left of it")
    return projected


def _write(
    session: UpdatesSession[ProjectSettings], projected: ProjectedDelta, base: tuple[str, str], folder: Folder
) -> WeightDelta:
    """Write the change, and the moved model where it is wanted, as fine-tuning does; returns what was written."""
    settings, aligned = session.settings, session.updates.aligned
    base_name, base_sha256 = base
    about = {
        name: getattr(settings, name)
        for name in ("basis", "fraction", "scheme", "side", "seed", "vectors", "modules", "dtype")
    }
    with session.progress.stage("projected change", 1):
        written = write_projected(folder.path, projected, base_sha256, about)
    moved = folder.path / "model"
    if settings.save_model and aligned is not None and not moved.exists():
        with session.progress.stage("moved model", 1):
            write_moved_model(aligned.folder, written, 1.0, moved)
    write_record(folder.path, written, Path(written.label).name, base_name, base_sha256)
    return written
