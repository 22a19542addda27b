"""One run of `bridge.subspaces energy`: from the options to the finished run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bridge.deltas.bases import (
    BasisChoice,
    Kind,
    basis,
    numerical_rank,
    random_order,
    rank_of,
    row_energies,
    thin_svd,
    update_of,
)
from bridge.experiments.subspaces import report
from bridge.experiments.subspaces.matrices import Opened, open_folder, open_matrices, write_results
from bridge.experiments.subspaces.updates import DTYPES, Updates, cosine_of, described, require_common
from bridge.models.blocks import group_by_block
from commands.progress import Progress
from commands.runs import Arrays, arrays_of, result_of
from commands.store import SCHEMA_VERSION, Part, RunFolder
from theory.subspaces import energy_shares, isotropic_share, spread, weighted_share

if TYPE_CHECKING:
    from bridge.experiments.subspaces.settings import EnergySettings

COMMAND = "bridge.subspaces energy"


def run(settings: EnergySettings, out: Path | None = None, quiet: bool = False) -> Path:
    """Measure, write the run folder, print the closing table; returns the folder.

    Raises:
        UserError: for anything in the options or the updates that cannot be used.

    """
    settings.check()
    progress = Progress(quiet)
    opened = open_matrices(settings, progress)
    for task in opened.updates.others.values():
        require_common(opened.updates.alignment, task, opened.matrices)
    folder = open_folder(COMMAND, settings, opened, out)
    found = result_of(folder, "energy.json", partial(_measure, settings, opened, folder, progress), progress)
    if not quiet:
        report.print_energy(found)
        print(f"\n{folder.path / 'report.html'}")
    return folder.path


def _measure(settings: EnergySettings, opened: Opened, folder: RunFolder, progress: Progress) -> None:
    """All tensors, one after the other, then the finished folder."""
    updates, two = opened.updates, set(opened.matrices)

    def energies(name: str) -> Arrays:
        return tensor_energies(settings, updates, name, name in two, opened.device)

    arrays = arrays_of(updates.names(), energies, Part(folder, "tensor"), "tensors", progress)
    result = assemble(settings, updates, opened.matrices, arrays)
    write_results(folder.path, "energy", result, arrays)
    report.write_energy(result, asdict(settings), folder.path)
    folder.finish(stage_seconds={k: round(v, 2) for k, v in progress.seconds.items()})


# ------------------------------------------------------------------------------------------- one parameter


def tensor_energies(settings: EnergySettings, updates: Updates, name: str, is_matrix: bool, device: str) -> Arrays:
    """Norms, cosines and shares of energy of one parameter.

    Returns:
        "norms" (1 + T,) of the alignment update and of every task, "cosines" (T,) of each task with it, 0 where one is
        zero. Of a matrix that the alignment update moved also "rank" () its numerical rank, "directions/KIND" (F,) how
        many a basis has at each fraction, and "shares/KIND" (T, R, F) of a task's energy that is kept: R = 1 for
        Top-K, else the repeats; NaN where the task is zero.

    """
    alignment = updates.alignment
    if alignment is None:
        raise ValueError("energies need an alignment update")
    update = update_of(alignment, name, settings.side)
    tasks = list(updates.others.values())
    norms, cosines = [update.norm if update else 0.0], []
    squares = []
    for task in tasks:
        other = update_of(task, name, settings.side)
        square = other.scaled_square if other else 0.0
        squares.append(square)
        norms.append(other.norm if other else 0.0)
        inner = update.scaled_inner(other) if update and other else 0.0
        cosines.append(inner / np.sqrt(square) / np.sqrt(update.scaled_square) if update and other else 0.0)
    found: Arrays = {"norms": np.array(norms), "cosines": np.array(cosines)}
    if not is_matrix or update is None:
        return found
    del update  # a matrix of embeddings is large: only what is in use is held
    this = _Matrix(settings, updates, name, alignment.shape(name), squares, device)
    found |= _own(this)
    if "random" in settings.bases:
        found |= _random(this)
    return found


@dataclass(frozen=True)
class _Matrix:
    """A matrix that the alignment update moved, and what is asked of it."""

    settings: EnergySettings
    updates: Updates
    name: str
    shape: tuple[int, ...]
    squares: Sequence[float]  # scaled squared norm of every task's part
    device: str

    def wanted(self) -> list[int]:
        """The rank of the basis at every fraction."""
        return [rank_of(fraction, *self.shape) for fraction in self.settings.fractions]

    def choices(self, kind: Kind) -> list[BasisChoice]:
        """The repeated draws of a random basis."""
        return [BasisChoice(kind, self.settings.side, self.settings.seed + i) for i in range(self.settings.repeats)]

    def energies(self, columns: torch.Tensor) -> list[np.ndarray]:
        """Of every task, the energy along each column of a basis; nothing where the task is zero."""
        rows = []
        for task in self.updates.others.values():
            update = update_of(task, self.name, self.settings.side)
            rows.append(row_energies(columns, update).numpy() if update else np.zeros(0))
        return rows

    def shares(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """(T, F) of the tasks' energies in ordered directions, their shares at every fraction."""
        pairs = zip(rows, self.squares, strict=True)
        nothing = np.full(len(self.settings.fractions), np.nan)
        return np.array([energy_shares(row, square, self.wanted()) if square else nothing for row, square in pairs])


def _own(this: _Matrix) -> Arrays:
    """Top-K and Random-K: one decomposition, one pass over every task; a draw only orders its energies."""
    settings, dtype = this.settings, DTYPES[this.settings.dtype]
    update = update_of(this.updates.alignment, this.name, settings.side) if this.updates.alignment else None
    if update is None:
        raise ValueError(f"{this.name} has no directions")
    vectors, values = thin_svd(update, dtype, this.device)
    rank = numerical_rank(values, dtype)
    found: Arrays = {"rank": np.array(rank)}
    del update
    rows = this.energies(vectors[:, :rank]) if {"top-k", "random-k"} & set(settings.bases) else []
    if "top-k" in settings.bases:
        found["shares/top-k"] = this.shares(rows)[:, None]
    if "random-k" in settings.bases:
        orders = [random_order(choice, rank, this.name).numpy() for choice in this.choices("random-k")]
        drawn = [this.shares([row[order] if len(row) else row for row in rows]) for order in orders]
        found["shares/random-k"] = np.stack(drawn, axis=1)
    for kind in {"top-k", "random-k"} & set(settings.bases):
        found[f"directions/{kind}"] = np.minimum(this.wanted(), rank)
    return found


def _random(this: _Matrix) -> Arrays:
    """Random: one decomposition of Gaussian numbers a draw, one pass over every task."""
    dimension = this.shape[0 if this.settings.side == "left" else 1]
    like = torch.empty(dimension, 1, dtype=DTYPES[this.settings.dtype], device=this.device)
    most = max(this.wanted())
    drawn = []
    for choice in this.choices("random"):
        drawn.append(this.shares(this.energies(basis(choice, like, this.shape, this.name, most))))
    return {"shares/random": np.stack(drawn, axis=1), "directions/random": np.array(this.wanted())}


# ------------------------------------------------------------------------------------------------ results


def assemble(
    settings: EnergySettings, updates: Updates, matrices: Sequence[str], arrays: Mapping[str, Arrays]
) -> dict[str, Any]:
    """The content of energy.json, from the arrays of `tensor_energies` by parameter."""
    alignment = updates.alignment
    if alignment is None:
        raise ValueError("energies need an alignment update")
    with_directions = [name for name in matrices if "rank" in arrays[name]]
    tasks = {
        label: _task(settings, delta, k, matrices, with_directions, arrays, alignment.shape)
        for k, (label, delta) in enumerate(updates.others.items())
    }
    unmoved = [name for name in matrices if "rank" not in arrays[name]]
    return {
        "schema_version": SCHEMA_VERSION,
        "side": settings.side,
        "fractions": list(settings.fractions),
        "bases": list(settings.bases),
        "repeats": settings.repeats,
        "seed": settings.seed,
        "dtype": settings.dtype,
        "modules": settings.modules,
        "alignment": {
            **described(alignment),
            "matrices": len(matrices),
            "zero": unmoved,
            "norm": float(np.linalg.norm([arrays[name]["norms"][0] for name in matrices])),
            "ranks": {name: int(arrays[name]["rank"]) for name in with_directions},
        },
        "tasks": tasks,
    }


def _task(
    settings: EnergySettings,
    delta: Any,
    k: int,
    matrices: Sequence[str],
    with_directions: Sequence[str],
    arrays: Mapping[str, Arrays],
    shape: Any,
) -> dict[str, Any]:
    """One task's part of the result."""
    used = [name for name in with_directions if arrays[name]["norms"][1 + k] > 0]

    def group(names: Sequence[str]) -> dict[str, Any]:
        return _group(settings, k, names, arrays, shape)

    everything = list(arrays)
    outside = [name for name in matrices if name not in with_directions]
    norms = np.array([arrays[name]["norms"][1 + k] for name in matrices])
    lost = np.array([arrays[name]["norms"][1 + k] for name in outside])
    top = norms.max()
    return {
        **described(delta),
        "norm": float(top * np.linalg.norm(norms / top)),
        "matrices": len(used),
        "zero": len(with_directions) - len(used),
        "without_directions": len(outside),
        "energy_without_directions": float(np.sum((lost / top) ** 2) / np.sum((norms / top) ** 2)),
        "cosine": _cosine(k, matrices, arrays),
        "cosine_all_parameters": _cosine(k, everything, arrays),
        "whole": group(used),
        "layers": {layer: group(names) for layer, names in group_by_block(used).items()},
        "tensors": {name: group([name]) for name in used},
    }


def _cosine(k: int, names: Sequence[str], arrays: Mapping[str, Arrays]) -> float | None:
    norms = np.array([arrays[name]["norms"] for name in names])
    return cosine_of(np.array([arrays[name]["cosines"][k] for name in names]), norms[:, 0], norms[:, 1 + k])


def _group(
    settings: EnergySettings, k: int, names: Sequence[str], arrays: Mapping[str, Arrays], shape: Any
) -> dict[str, Any]:
    """Energy kept of a task over some matrices, by basis: weighted by the task's own energy in each."""
    norms = np.array([arrays[name]["norms"][1 + k] for name in names])
    dimensions = [shape(name)[0 if settings.side == "left" else 1] for name in names]
    bases = {}
    for kind in settings.bases:
        shares = np.stack([arrays[name][f"shares/{kind}"][k] for name in names], axis=-1)  # (R, F, tensors)
        directions = [arrays[name][f"directions/{kind}"] for name in names]
        chance = np.array(
            [[isotropic_share(int(d), m) for d in ds] for ds, m in zip(directions, dimensions, strict=True)]
        )
        asked = [[rank_of(f, *shape(name)) for f in settings.fractions] for name in names]
        whole = weighted_share(shares, norms)  # (R, F)
        spreads = [spread(column) for column in whole.T]
        bases[kind] = {
            "kept": [s.mean for s in spreads],
            "sd": [s.sd for s in spreads],
            "interval": [np.clip(s.interval, 0, 1).tolist() if s.interval else None for s in spreads],
            "isotropic": weighted_share(chance.T, norms).tolist(),
            "directions": np.sum(directions, axis=0).tolist(),
            "short": np.sum(np.array(directions) < np.array(asked), axis=0).tolist(),
        }
    return {"norm": float(np.linalg.norm(norms)), "cosine": _cosine(k, names, arrays), "bases": bases}
