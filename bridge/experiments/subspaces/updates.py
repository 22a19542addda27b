"""The updates that `bridge.subspaces` works on: opened, and checked to be of one model, before anything is written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bridge.deltas.bases import matrix_names, update_of
from bridge.deltas.open import RECORD_FILE, open_delta
from bridge.deltas.parameters import check_fits, parameter_files, skeleton
from bridge.deltas.tensor_files import TensorFiles
from bridge.deltas.weight_delta import Difference, WeightDelta
from bridge.experiments.subspaces.result import Source
from bridge.experiments.subspaces.settings import OfAlignment
from bridge.models.blocks import block_of
from bridge.models.built import NOTE
from bridge.models.files import read_json
from bridge.models.load import folder_of, hash_folder
from commands.errors import UserError
from commands.progress import Progress
from theory.subspaces import joint_cosine


@dataclass(frozen=True)
class Model:
    """The aligned model on disk: its folder, the sha256 of its weights, and its parameters without their values."""

    name: str
    folder: Path
    sha256: str
    skeleton: torch.nn.Module


@dataclass(frozen=True)
class Updates:
    """The alignment update, if any, and the others by label; the aligned model where it was named."""

    alignment: WeightDelta | None
    others: dict[str, WeightDelta]
    aligned: Model | None

    def names(self) -> list[str]:
        """Every parameter that one of them moves, in the order of the model."""
        listed = [*([self.alignment] if self.alignment else []), *self.others.values()]
        if self.aligned is not None:
            moved = {name for delta in listed for name in delta.names}
            return [name for name, _ in self.aligned.skeleton.named_parameters() if name in moved]
        return list(dict.fromkeys(name for delta in listed for name in delta.names))

    def matrices(self, modules: str) -> list[str]:
        """Those with two dimensions; with "blocks" only the weights inside the numbered blocks.

        Raises UserError if there is none.
        """
        listed = [*([self.alignment] if self.alignment else []), *self.others.values()]
        two = {name for delta in listed for name in matrix_names(delta)}
        found = [name for name in self.names() if name in two and (modules == "all" or block_of(name) != name)]
        if not found:
            raise UserError(f"--modules {modules}: expected updates that move matrices, got none")
        return found


def open_updates(settings: OfAlignment, progress: Progress) -> Updates:
    """Open what the options name.

    Raises:
        UserError: naming the tensor: key sets, shapes or dtypes of the models differ, the base is not the aligned
            model's, an update is of another model, or is zero everywhere.

    """
    aligned = None
    if settings.aligned is not None:
        folder = folder_of(settings.aligned, progress.say)
        aligned = Model(settings.aligned, folder, hash_folder(folder), skeleton(folder))
    alignment = _alignment(settings, aligned, progress)
    others = {
        label: open_delta(path, base_folder=aligned.folder if aligned else None, require_nonzero=True)
        for label, path in settings.updates.items()
    }
    for each in others.values():
        if isinstance(each, Difference):
            each.require_one_dtype()
    _check_bases(alignment, others, aligned)
    first = {} if alignment is None else {f"the alignment update ({alignment.label})": alignment}  # no label has ( )
    named = first | others
    _check_shapes(named)
    return Updates(alignment, others, aligned)


def _alignment(settings: OfAlignment, aligned: Model | None, progress: Progress) -> WeightDelta | None:
    if settings.alignment is not None:
        found = open_delta(settings.alignment, require_nonzero=True)
        if aligned is not None:
            check_fits(found, aligned.skeleton)
        return found
    if settings.base is None or aligned is None:
        return None
    folder = folder_of(settings.base, progress.say)
    start = skeleton(folder)
    _check_keys(aligned, start, settings.base)
    moved, base = parameter_files(aligned.folder, aligned.skeleton), parameter_files(folder, start)
    sha256 = hash_folder(folder)
    difference = Difference(moved, base, f"{settings.aligned} minus {settings.base}", sha256)
    difference.require_one_dtype()
    _check_recorded(aligned, sha256, settings.base)
    _check_related(difference, base)
    difference.require_nonzero()
    return difference


def _check_keys(aligned: Model, base: torch.nn.Module, base_name: str) -> None:
    """Both models have the same parameters under the same names."""
    mine, theirs = ({n: tuple(p.shape) for n, p in m.named_parameters()} for m in (aligned.skeleton, base))
    for name in (*mine, *theirs):
        if mine.get(name) != theirs.get(name):
            found, wanted = (str(list(s)) if s else "nothing" for s in (theirs.get(name), mine.get(name)))
            raise UserError(
                f"--base {base_name} is no base of {aligned.name}: expected {name} of shape {wanted}, got {found}"
            )


def _check_recorded(aligned: Model, base_sha256: str, base_name: str) -> None:
    """Where the aligned model's run folder is still there, it says from which weights it started."""
    recorded = _recorded_base(aligned.folder)
    if recorded is not None and recorded[1] != base_sha256:
        name, sha256 = recorded
        raise UserError(
            f"--base: {aligned.name} was aligned from {name} with sha256 {sha256[:12]}…, and {base_name} has "
            f"{base_sha256[:12]}…"
        )


def _recorded_base(folder: Path) -> tuple[str, str] | None:
    """Name and hash of the base in the record of the run that made a model's folder, as far as it can be found."""
    run = folder.parent if folder.name == "model" else None
    if (folder / NOTE).is_file():
        noted = read_json(folder / NOTE).get("folder")
        run = Path(noted) if isinstance(noted, str) else run
    if run is None or not (run / RECORD_FILE).is_file():
        return None
    base = read_json(run / RECORD_FILE).get("base")
    if not isinstance(base, dict) or not {"name", "weights_sha256"} <= base.keys():
        return None
    return str(base["name"]), str(base["weights_sha256"])


def _check_related(difference: Difference, base: TensorFiles) -> None:
    """Two models that have nothing to do with each other differ by more than the weights themselves."""
    ratios = {}
    for name in matrix_names(difference):
        change = update_of(difference, name)
        stored = base.read(name).double()
        size = float(torch.linalg.vector_norm(stored))
        norm = change.norm if change is not None else 0.0
        ratios[name] = norm / size if size else math.inf if norm else 0.0
    far = [name for name, ratio in ratios.items() if ratio > 1]
    if 2 * len(far) > len(ratios):
        worst = max(ratios, key=ratios.__getitem__)
        raise UserError(
            f"{difference.label}: expected a base that the aligned model was trained from, but in {len(far)} of "
            f"{len(ratios)} matrices the two differ by more than the base's own norm, most in {worst} "
            f"({ratios[worst]:.3g} times): they are unrelated"
        )


def _check_bases(alignment: WeightDelta | None, others: Mapping[str, WeightDelta], aligned: Model | None) -> None:
    """All updates but the alignment's start from the same weights, where those were recorded: the aligned model's."""
    first: tuple[str, str] | None = (aligned.name, aligned.sha256) if aligned else None
    for label, delta in others.items():
        if delta.base_sha256 is None:
            continue
        if alignment is not None and delta.base_sha256 == alignment.base_sha256:
            raise UserError(
                f"{label} ({delta.label}) starts from the model before the alignment update: expected a change of the "
                f"aligned model"
            )
        if first is not None and delta.base_sha256 != first[1]:
            raise UserError(
                f"{label} ({delta.label}) is a change of another model than {first[0]}: it starts from weights with "
                f"sha256 {delta.base_sha256[:12]}…, expected {first[1][:12]}…; the alignment update itself goes into "
                f"--alignment, or --aligned and --base"
            )
        first = first or (label, delta.base_sha256)


def _check_shapes(named: Mapping[str, WeightDelta]) -> None:
    """One shape for a parameter in all updates, and at least one parameter that any two of them share."""
    seen: dict[str, tuple[str, tuple[int, ...]]] = {}
    for label, delta in named.items():
        if seen and not any(name in seen for name in delta.names):
            raise UserError(
                f"{delta.label} is a change of another model: it moves {delta.names[0]} and the like, and none of the "
                f"parameters that the others move, such as {next(iter(seen))}"
            )
        for name in delta.names:
            shape = delta.shape(name)
            other, wanted = seen.setdefault(name, (label, shape))
            if shape != wanted:
                raise UserError(
                    f"{label} and {other} are changes of different models: {name} is {list(shape)} in one and "
                    f"{list(wanted)} in the other"
                )


def require_common(first: WeightDelta | None, second: WeightDelta, names: Sequence[str]) -> None:
    """Raise UserError unless both updates move one of the matrices."""
    both = (name for name in names if first is not None and update_of(first, name) and update_of(second, name))
    if first is not None and next(both, None) is None:
        raise UserError(f"{second.label}: expected an update of matrices that {first.label} moves, too, got none")


def source_of(delta: WeightDelta) -> Source:
    """What of an update stands in a result."""
    return Source(delta.label, delta.kind, delta.base_sha256)


def cosine_of(
    cosines: np.ndarray, norms_a: np.ndarray, norms_b: np.ndarray, chosen: np.ndarray | None = None
) -> float | None:
    """Cosine over some parameters from those of each (see `theory.subspaces.joint_cosine`)."""
    picked = slice(None) if chosen is None else chosen
    return joint_cosine(cosines[picked], norms_a[picked], norms_b[picked])
