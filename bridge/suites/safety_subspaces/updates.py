"""The updates of `bridge.safety_subspaces` themselves: what `bridge.subspaces` finds of their energies and overlaps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bridge.deltas.weight_delta import WeightDelta
from bridge.experiments.session import Lent
from bridge.experiments.subspaces.energy import run as energy
from bridge.experiments.subspaces.mso import run as mso
from bridge.experiments.subspaces.result import EnergyResult, TaskEnergy
from bridge.experiments.subspaces.settings import EnergySettings, MsoSettings
from bridge.experiments.subspaces.updates import Model, open_updates
from bridge.suites.safety_subspaces.points import Point, bases
from bridge.suites.safety_subspaces.result import ProjectedUpdate, UpdateOverlaps
from bridge.suites.safety_subspaces.settings import ExperimentSettings
from commands.errors import UserError
from commands.progress import Progress
from commands.runs import Arrays
from commands.store import read_arrays
from theory.subspaces import weighted_share

DTYPE = "float64"
"""Of every decomposition."""
_PERMUTATIONS = 20


def _common(settings: ExperimentSettings) -> dict[str, object]:
    return {
        "aligned": settings.model, "base": settings.base, "side": settings.side, "seed": settings.seed, "dtype": DTYPE,
        "device": settings.device,
    }  # fmt: skip


def _named(tasks: Mapping[str, Path]) -> dict[str, str]:
    return {name: str(path) for name, path in tasks.items()}


def _energy_settings(settings: ExperimentSettings, tasks: Mapping[str, Path]) -> EnergySettings:
    own = {"fractions": settings.fractions, "bases": settings.bases, "repeats": settings.repeats}
    return EnergySettings.read({**_common(settings), **own, "task": _named(tasks)})


def open_alignment(settings: ExperimentSettings, progress: Progress) -> tuple[Model, WeightDelta]:
    """The aligned model on disk, and the alignment update.

    Raises UserError, naming a tensor, unless the base is the aligned model's.
    """
    try:
        updates = open_updates(_energy_settings(settings, {}), progress)
    except UserError as error:
        raise UserError(f"model and base: {error}") from error
    if updates.aligned is None or updates.alignment is None:
        raise ValueError("the settings name an aligned model and its base")
    return updates.aligned, updates.alignment


@dataclass(frozen=True)
class Shares:
    """Shares of an update's squared norm inside a basis, over fractions; and of one without preferred directions."""

    energy: list[float]
    isotropic: list[float]


@dataclass(frozen=True)
class Energies:
    """What `bridge.subspaces energy` finds of the fine-tunes.

    Attributes:
        tasks: by the fine-tune's name.
        inside: the same, by the label of the basis, one entry a draw: shares over all matrices together. Those that
            the alignment update did not move have no directions, so that all of their energy is outside of every basis.

    """

    tasks: dict[str, TaskEnergy]
    inside: dict[str, dict[str, Shares]]

    def of(self, settings: ExperimentSettings, point: Point) -> ProjectedUpdate:
        """What a projected model is, and the energy that its part of the update has."""
        shares = self.inside[point.finetune][point.basis.label]
        k = settings.fractions.index(point.fraction)

        def part(inside: float) -> float:
            return inside if point.scheme == "parallel" else 1.0 - inside

        return ProjectedUpdate(
            name=point.name,
            finetune=point.finetune,
            basis=point.basis.kind,
            label=point.basis.label,
            draw=point.basis.number,
            seed=point.basis.seed,
            scheme=point.scheme,
            fraction=point.fraction,
            energy=part(shares.energy[k]),
            isotropic=part(shares.isotropic[k]),
        )


def measure_energies(
    settings: ExperimentSettings, tasks: Mapping[str, Path], out: Path, lent: Lent | None = None
) -> Energies:
    """Run `bridge.subspaces energy` on the fine-tunes into a folder, and sum up what it finds, draw by draw."""
    found = energy(_energy_settings(settings, tasks), out, quiet=True, lent=lent)
    arrays = read_arrays((out / EnergyResult.FILE).with_suffix(".npz"))
    inside = {name: _inside(settings, found.tasks[name], k, arrays) for k, name in enumerate(tasks)}
    return Energies(found.tasks, inside)


def _inside(settings: ExperimentSettings, task: TaskEnergy, k: int, arrays: Arrays) -> dict[str, Shares]:
    """Shares inside every basis of the k-th task."""
    names = list(task.tensors)
    norms = np.array([arrays[f"{name}/norms"][1 + k] for name in names])
    with_directions = 1.0 - task.energy_without_directions
    shares: dict[str, Shares] = {}
    for basis in bases(settings):
        draw = max(basis.number - 1, 0)
        drawn = np.array([arrays[f"{name}/shares/{basis.kind}"][k, draw] for name in names])
        isotropic = np.array(task.whole.bases[basis.kind].isotropic)
        both = (weighted_share(drawn.T, norms), isotropic)
        shares[basis.label] = Shares(*((with_directions * share).tolist() for share in both))
    return shares


def measure_overlaps(
    settings: ExperimentSettings, tasks: Mapping[str, Path], out: Path, lent: Lent | None = None
) -> UpdateOverlaps:
    """Run `bridge.subspaces mso` on the alignment update and the fine-tunes into a folder; its result without tensors.

    The negated alignment update has the alignment update's subspaces: the sign does not enter.
    """
    own = {"energies": settings.energies, "permutations": _PERMUTATIONS}
    found = mso(MsoSettings.read({**_common(settings), **own, "update": _named(tasks)}), out, quiet=True, lent=lent)
    return UpdateOverlaps(
        energies=found.energies,
        permutations=found.permutations,
        zero={label: update.zero for label, update in found.updates.items()},
        pairs=[pair.summary() for pair in found.pairs.values()],
    )
