"""One run of `bridge.subspaces energy`: from the options to the finished run folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

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
from bridge.deltas.weight_delta import WeightDelta
from bridge.experiments.subspaces import report
from bridge.experiments.subspaces.matrices import Opened, open_folder, open_matrices, write_results
from bridge.experiments.subspaces.result import (
    AlignmentMatrices,
    BasisEnergies,
    EnergyResult,
    GroupEnergies,
    TaskEnergies,
)
from bridge.experiments.subspaces.settings import EnergySettings
from bridge.experiments.subspaces.updates import DTYPES, Updates, cosine_of, described, require_common
from bridge.models.blocks import group_by_block
from commands.progress import Progress
from commands.runs import Arrays, arrays_of, result_of
from commands.store import Part, RunFolder
from theory.subspaces import energy_shares, isotropic_share, spread, weighted_share

COMMAND = "bridge.subspaces energy"


def run(settings: EnergySettings, out: Path | None = None, quiet: bool = False) -> EnergyResult:
    """Measure, write the run folder, print the closing table.

    Raises:
        UserError: for anything in the options or the updates that cannot be used.

    """
    settings.check()
    progress = Progress(quiet)
    opened = open_matrices(settings, progress)
    for task in opened.updates.others.values():
        require_common(opened.updates.alignment, task, opened.matrices)
    folder = open_folder(COMMAND, settings, opened.updates, opened.device, out)
    found = result_of(folder, EnergyResult.read, partial(_measure, settings, opened, folder, progress), progress)
    if not quiet:
        report.print_result(found, folder)
    return found


def _measure(settings: EnergySettings, opened: Opened, folder: RunFolder, progress: Progress) -> EnergyResult:
    """All tensors, one after the other, then the finished folder."""
    updates, two = opened.updates, set(opened.matrices)

    def energies(name: str) -> Arrays:
        return tensor_energies(settings, updates, name, name in two, opened.device)

    arrays = arrays_of(updates.names(), energies, Part(folder, "tensor"), "tensors", progress)
    result = assemble(settings, updates, opened.matrices, arrays)
    write_results(folder.path, "energy", result, arrays)
    report.write(result, settings, folder.path)
    folder.finish(stage_seconds={k: round(v, 2) for k, v in progress.seconds.items()})
    return result


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
    matrix = _Matrix(settings, updates, name, alignment.shape(name), squares, device)
    found |= matrix.own()
    if "random" in settings.bases:
        found |= matrix.random()
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

    def own(self) -> Arrays:
        """Top-K and Random-K: one decomposition, one pass over every task; a draw only orders its energies."""
        bases, dtype = set(self.settings.bases), DTYPES[self.settings.dtype]
        alignment = self.updates.alignment
        update = update_of(alignment, self.name, self.settings.side) if alignment else None
        if update is None:
            raise ValueError(f"{self.name} has no directions")
        directions, values = thin_svd(update, dtype, self.device)
        rank = numerical_rank(values, dtype)
        found: Arrays = {"rank": np.array(rank)}
        del update
        rows = self.energies(directions[:, :rank]) if {"top-k", "random-k"} & bases else []
        if "top-k" in bases:
            found["shares/top-k"] = self.shares(rows)[:, None]
        if "random-k" in bases:
            orders = [random_order(choice, rank, self.name).numpy() for choice in self.choices("random-k")]
            drawn = [self.shares([row[order] if len(row) else row for row in rows]) for order in orders]
            found["shares/random-k"] = np.stack(drawn, axis=1)
        for kind in {"top-k", "random-k"} & bases:
            found[f"directions/{kind}"] = np.minimum(self.wanted(), rank)
        return found

    def random(self) -> Arrays:
        """Random: one decomposition of Gaussian numbers a draw, one pass over every task."""
        dimension = self.shape[0 if self.settings.side == "left" else 1]
        like = torch.empty(dimension, 1, dtype=DTYPES[self.settings.dtype], device=self.device)
        wanted = self.wanted()
        drawn = [
            self.shares(self.energies(basis(choice, like, self.shape, self.name, max(wanted))))
            for choice in self.choices("random")
        ]
        return {"shares/random": np.stack(drawn, axis=1), "directions/random": np.array(wanted)}


# ------------------------------------------------------------------------------------------------ results


def assemble(
    settings: EnergySettings, updates: Updates, matrices: Sequence[str], arrays: Mapping[str, Arrays]
) -> EnergyResult:
    """The content of energy.json, from the arrays of `tensor_energies` by parameter."""
    alignment = updates.alignment
    if alignment is None:
        raise ValueError("energies need an alignment update")
    with_directions = [name for name in matrices if "rank" in arrays[name]]
    return EnergyResult(
        side=settings.side,
        fractions=list(settings.fractions),
        bases=list(settings.bases),
        repeats=settings.repeats,
        seed=settings.seed,
        dtype=settings.dtype,
        modules=settings.modules,
        alignment=AlignmentMatrices(
            **vars(described(alignment)),
            matrices=len(matrices),
            zero=[name for name in matrices if "rank" not in arrays[name]],
            norm=float(np.linalg.norm([arrays[name]["norms"][0] for name in matrices])),
            ranks={name: int(arrays[name]["rank"]) for name in with_directions},
        ),
        tasks={
            label: _Task(settings, k, arrays, alignment.shape).result(delta, matrices, with_directions)
            for k, (label, delta) in enumerate(updates.others.items())
        },
    )


@dataclass(frozen=True)
class _Task:
    """The k-th task in the arrays of all parameters."""

    settings: EnergySettings
    k: int
    arrays: Mapping[str, Arrays]
    shape: Callable[[str], tuple[int, ...]]

    def result(self, delta: WeightDelta, matrices: Sequence[str], with_directions: Sequence[str]) -> TaskEnergies:
        """One task's part of the result."""
        used = [name for name in with_directions if self._norm(name) > 0]
        outside = [name for name in matrices if name not in with_directions]
        norms = np.array([self._norm(name) for name in matrices])
        lost = np.array([self._norm(name) for name in outside])
        top = norms.max()
        return TaskEnergies(
            **vars(described(delta)),
            norm=float(top * np.linalg.norm(norms / top)),
            matrices=len(used),
            zero=len(with_directions) - len(used),
            without_directions=len(outside),
            energy_without_directions=float(np.sum((lost / top) ** 2) / np.sum((norms / top) ** 2)),
            cosine=self._cosine(matrices),
            cosine_all_parameters=self._cosine(list(self.arrays)),
            whole=self._group(used),
            layers={layer: self._group(names) for layer, names in group_by_block(used).items()},
            tensors={name: self._group([name]) for name in used},
        )

    def _norm(self, name: str) -> float:
        return float(self.arrays[name]["norms"][1 + self.k])

    def _cosine(self, names: Sequence[str]) -> float | None:
        norms = np.array([self.arrays[name]["norms"] for name in names])
        cosines = np.array([self.arrays[name]["cosines"][self.k] for name in names])
        return cosine_of(cosines, norms[:, 0], norms[:, 1 + self.k])

    def _group(self, names: Sequence[str]) -> GroupEnergies:
        """Energy kept over some matrices, by basis: weighted by the task's own energy in each."""
        norms = np.array([self._norm(name) for name in names])
        bases: dict[str, BasisEnergies] = {kind: self._basis(kind, names, norms) for kind in self.settings.bases}
        return GroupEnergies(float(np.linalg.norm(norms)), self._cosine(names), bases)

    def _basis(self, kind: str, names: Sequence[str], norms: np.ndarray) -> BasisEnergies:
        arrays, settings = self.arrays, self.settings
        dimensions = [self.shape(name)[0 if settings.side == "left" else 1] for name in names]
        shares = np.stack([arrays[name][f"shares/{kind}"][self.k] for name in names], axis=-1)  # (R, F, tensors)
        directions = [arrays[name][f"directions/{kind}"] for name in names]
        chance = np.array(
            [[isotropic_share(int(d), m) for d in ds] for ds, m in zip(directions, dimensions, strict=True)]
        )
        wanted = [[rank_of(f, *self.shape(name)) for f in settings.fractions] for name in names]
        spreads = [spread(column) for column in weighted_share(shares, norms).T]  # of (R, F)
        return BasisEnergies(
            kept=[s.mean for s in spreads],
            sd=[s.sd for s in spreads],
            interval=[np.clip(s.interval, 0, 1).tolist() if s.interval else None for s in spreads],
            isotropic=weighted_share(chance.T, norms).tolist(),
            directions=np.sum(directions, axis=0).tolist(),
            short=np.sum(np.array(directions) < np.array(wanted), axis=0).tolist(),
        )
