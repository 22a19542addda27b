"""The updates of `bridge.safety_subspaces` themselves: what `bridge.subspaces` finds of their energies and overlaps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bridge.deltas.weight_delta import WeightDelta
from bridge.experiments.subspaces.settings import EnergySettings, MsoSettings
from bridge.experiments.subspaces.updates import Model, open_updates
from bridge.suites.safety_subspaces.points import bases
from bridge.suites.safety_subspaces.settings import ExperimentSettings
from bridge.suites.settings_file import run_quietly
from commands.errors import UserError
from commands.progress import Progress
from commands.store import read_arrays, read_result
from theory.subspaces import weighted_share

DTYPE = "float64"
"""Of every decomposition."""
_PERMUTATIONS = 20


def _common(settings: ExperimentSettings, tasks: Mapping[str, Path]) -> dict[str, Any]:
    return {
        "alignment": None, "aligned": settings.model, "base": settings.base, "side": settings.side, "modules": "all",
        "updates": {name: str(path) for name, path in tasks.items()}, "seed": settings.seed, "dtype": DTYPE,
        "device": settings.device,
    }  # fmt: skip


def _energy_settings(settings: ExperimentSettings, tasks: Mapping[str, Path]) -> EnergySettings:
    return EnergySettings(
        **_common(settings, tasks), fractions=settings.fractions, bases=settings.bases, repeats=settings.repeats
    )


def open_alignment(settings: ExperimentSettings, progress: Progress) -> tuple[Model, WeightDelta]:
    """The aligned model on disk, and the alignment update.

    Raises UserError, naming a tensor, unless the base is the aligned model's.
    """
    try:
        found = open_updates(_energy_settings(settings, {}), progress)
    except UserError as error:
        raise UserError(f"model and base: {error}") from error
    if found.aligned is None or found.alignment is None:
        raise ValueError("the settings name an aligned model and its base")
    return found.aligned, found.alignment


def measure_energies(settings: ExperimentSettings, tasks: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Run `bridge.subspaces energy` on the fine-tunes into a folder; see `read_energies`."""
    from bridge.experiments.subspaces.energy import run

    run_quietly(run, {"settings": _energy_settings(settings, tasks), "out": out})
    return read_energies(settings, list(tasks), out)


def read_energies(settings: ExperimentSettings, tasks: list[str], folder: Path) -> dict[str, Any]:
    """Of every fine-tune: norm, cosine with the alignment update, and energy inside each basis at each fraction.

    All over the matrices together; those that the alignment update did not move have no directions, so that all of
    their energy is outside of every basis. `bases` is by label of the basis, one entry a draw: "energy" and
    "isotropic", the latter what an update without preferred directions would have there. "zero" counts matrices that
    it did not move.
    """
    found = read_result(folder / "energy.json")
    arrays = read_arrays(folder / "energy.npz")
    out: dict[str, Any] = {}
    for k, task in enumerate(tasks):
        entry = found["tasks"][task]
        names = list(entry["tensors"])
        norms = np.array([arrays[f"{name}/norms"][1 + k] for name in names])
        with_directions = 1.0 - entry["energy_without_directions"]
        shares: dict[str, dict[str, list[float]]] = {}
        for each in bases(settings):
            draw = max(each.draw - 1, 0)
            drawn = np.array([arrays[f"{name}/shares/{each.kind}"][k, draw] for name in names])
            inside = {
                "energy": weighted_share(drawn.T, norms),
                "isotropic": np.array(entry["whole"]["bases"][each.kind]["isotropic"]),
            }
            shares[each.label] = {key: (with_directions * share).tolist() for key, share in inside.items()}
        out[task] = {key: entry[key] for key in ("norm", "cosine", "matrices", "zero")} | {"bases": shares}
    return out


def measure_overlaps(settings: ExperimentSettings, tasks: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Run `bridge.subspaces mso` on the alignment update and the fine-tunes into a folder; its result without tensors.

    The negated alignment update has the alignment update's subspaces: the sign does not enter.
    """
    from bridge.experiments.subspaces.mso import run

    chosen = MsoSettings(**_common(settings, tasks), energies=settings.energies, permutations=_PERMUTATIONS)
    run_quietly(run, {"settings": chosen, "out": out})
    found = read_result(out / "mso.json")
    pairs = [{key: value for key, value in pair.items() if key != "tensors"} for pair in found["pairs"].values()]
    zero = {label: update["zero"] for label, update in found["updates"].items()}
    return {"energies": list(settings.energies), "permutations": _PERMUTATIONS, "zero": zero, "pairs": pairs}
