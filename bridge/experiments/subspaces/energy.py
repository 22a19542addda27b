"""One run of `bridge.subspaces energy`: from the options to the finished run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch

from bridge.deltas.bases import (
    Update,
    basis,
    numerical_rank,
    random_order,
    rank_of,
    row_energies,
    thin_svd,
    update_of,
)
from bridge.deltas.choices import Basis, BasisChoice
from bridge.deltas.weight_delta import WeightDelta
from bridge.experiments.session import Lent
from bridge.experiments.subspaces import report
from bridge.experiments.subspaces.result import AlignmentUpdate, EnergyResult, KeptBy, KeptEnergy, TaskEnergy
from bridge.experiments.subspaces.session import UpdatesSession
from bridge.experiments.subspaces.settings import EnergySettings
from bridge.experiments.subspaces.updates import cosine_of, require_common, source_of
from bridge.models.blocks import group_by_block
from commands.progress import Progress
from commands.runs import Arrays, arrays_of, result_of
from commands.store import Folder, Part
from theory.subspaces import energy_shares, isotropic_share, spread, weighted_share

COMMAND = "bridge.subspaces energy"


def run(
    settings: EnergySettings, out: Path | None = None, quiet: bool = False, lent: Lent | None = None
) -> EnergyResult:
    """Measure, write the run folder, print the closing table.

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
    for task in session.updates.others.values():
        require_common(session.updates.alignment, task, session.matrices)
    folder = session.open_folder(out)
    found = result_of(folder, EnergyResult.read, partial(_measure, session, folder), session.progress)
    if not quiet:
        report.print_result(found, folder)
    return found


def _measure(session: UpdatesSession[EnergySettings], folder: Folder) -> EnergyResult:
    """All tensors, one after the other, then the finished folder."""
    measured = partial(tensor_energies, session)
    arrays = arrays_of(session.updates.names(), measured, Part(folder, "tensor"), "tensors", session.progress)
    result = _Assembly(session, arrays).result()
    if not session.lent.in_memory:
        session.write(folder, result, arrays)
        report.write(result, session.settings, folder.path)
        session.finish(folder)
    return result


# ------------------------------------------------------------------------------------------- one parameter


def tensor_energies(session: UpdatesSession[EnergySettings], name: str) -> Arrays:
    """Norms, cosines and shares of energy of one parameter.

    Returns:
        "norms" (1 + T,) of the alignment update and of every task, "cosines" (T,) of each task with it, 0 where one is
        zero. Of a matrix that the alignment update moved also "rank" () its numerical rank, "directions/KIND" (F,) how
        many a basis has at each fraction, and "shares/KIND" (T, R, F) of a task's energy that is kept: R = 1 for
        Top-K, else the repeats; NaN where the task is zero.

    """
    settings = session.settings
    update = update_of(session.alignment, name, settings.side)
    norms, cosines, squares = [update.norm if update else 0.0], [], []
    for task in session.updates.others.values():
        other = update_of(task, name, settings.side)
        square = other.scaled_square if other else 0.0
        squares.append(square)
        norms.append(other.norm if other else 0.0)
        inner = update.scaled_inner(other) if update and other else 0.0
        cosines.append(inner / np.sqrt(square) / np.sqrt(update.scaled_square) if update and other else 0.0)
    arrays: Arrays = {"norms": np.array(norms), "cosines": np.array(cosines)}
    if name not in session.matrices or update is None:
        return arrays
    del update  # a matrix of embeddings is large: only what is in use is held
    matrix = _Matrix(session, name, squares)
    arrays |= matrix.own()
    if "random" in settings.bases:
        arrays |= matrix.random()
    return arrays


@dataclass(frozen=True)
class _Matrix:
    """A matrix that the alignment update moved, and the energy of the tasks along its directions."""

    session: UpdatesSession[EnergySettings]
    name: str
    squares: Sequence[float]  # scaled squared norm of every task's part

    @property
    def settings(self) -> EnergySettings:
        """The options."""
        return self.session.settings

    @property
    def shape(self) -> tuple[int, ...]:
        """(M, N)."""
        return self.session.alignment.shape(self.name)

    def own(self) -> Arrays:
        """Top-K and Random-K: one decomposition, one pass over every task; a draw only orders its energies."""
        vectors, values = thin_svd(self._alignment(), self.session.dtype, self.session.device)
        rank = numerical_rank(values, self.session.dtype)
        arrays: Arrays = {"rank": np.array(rank)}
        wanted = [kind for kind in self.settings.bases if kind != "random"]
        rows = self._energies(vectors[:, :rank]) if wanted else []
        if "top-k" in wanted:
            arrays["shares/top-k"] = self._shares(rows)[:, None]
        if "random-k" in wanted:
            orders = [random_order(choice, rank, self.name).numpy() for choice in self._choices("random-k")]
            drawn = [self._shares([row[order] if len(row) else row for row in rows]) for order in orders]
            arrays["shares/random-k"] = np.stack(drawn, axis=1)
        for kind in wanted:
            arrays[f"directions/{kind}"] = np.minimum(self._ranks(), rank)
        return arrays

    def random(self) -> Arrays:
        """Random: one decomposition of Gaussian numbers a draw, one pass over every task."""
        dimension = self.shape[0 if self.settings.side == "left" else 1]
        like = torch.empty(dimension, 1, dtype=self.session.dtype, device=self.session.device)
        most = max(self._ranks())
        bases = (basis(choice, like, self.shape, self.name, most) for choice in self._choices("random"))
        drawn = [self._shares(self._energies(columns)) for columns in bases]
        return {"shares/random": np.stack(drawn, axis=1), "directions/random": np.array(self._ranks())}

    def _alignment(self) -> Update:
        update = update_of(self.session.alignment, self.name, self.settings.side)
        if update is None:
            raise ValueError(f"{self.name} has no directions")
        return update

    def _ranks(self) -> list[int]:
        """The rank of the basis at every fraction."""
        return [rank_of(fraction, *self.shape) for fraction in self.settings.fractions]

    def _choices(self, kind: Basis) -> list[BasisChoice]:
        """The repeated draws of a random basis."""
        return [BasisChoice(kind, self.settings.side, self.settings.seed + i) for i in range(self.settings.repeats)]

    def _energies(self, columns: torch.Tensor) -> list[np.ndarray]:
        """Energy of every task along each column of a basis; nothing where the task is zero."""
        rows = []
        for task in self.session.updates.others.values():
            update = update_of(task, self.name, self.settings.side)
            rows.append(row_energies(columns, update).numpy() if update else np.zeros(0))
        return rows

    def _shares(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """(T, F) of the tasks' energies in ordered directions, their shares at every fraction."""
        pairs = zip(rows, self.squares, strict=True)
        nothing = np.full(len(self.settings.fractions), np.nan)
        return np.array([energy_shares(row, square, self._ranks()) if square else nothing for row, square in pairs])


# ------------------------------------------------------------------------------------------------ results


@dataclass(frozen=True)
class _Assembly:
    """The result, from the arrays of `tensor_energies` by parameter."""

    session: UpdatesSession[EnergySettings]
    arrays: Mapping[str, Arrays]

    @property
    def settings(self) -> EnergySettings:
        """The options."""
        return self.session.settings

    @cached_property
    def with_directions(self) -> list[str]:
        """Matrices that the alignment update moved."""
        return [name for name in self.session.matrices if "rank" in self.arrays[name]]

    def result(self) -> EnergyResult:
        """The content of energy.json."""
        settings = self.settings
        return EnergyResult(
            side=settings.side,
            fractions=list(settings.fractions),
            bases=list(settings.bases),
            repeats=settings.repeats,
            seed=settings.seed,
            dtype=settings.dtype,
            modules=settings.modules,
            alignment=self._alignment(),
            tasks={label: self._task(k, task) for k, (label, task) in enumerate(self.session.updates.others.items())},
        )

    def _alignment(self) -> AlignmentUpdate:
        matrices = self.session.matrices
        return AlignmentUpdate(
            **vars(source_of(self.session.alignment)),
            matrices=len(matrices),
            zero=[name for name in matrices if "rank" not in self.arrays[name]],
            norm=float(np.linalg.norm([self.arrays[name]["norms"][0] for name in matrices])),
            ranks={name: int(self.arrays[name]["rank"]) for name in self.with_directions},
        )

    def _task(self, k: int, task: WeightDelta) -> TaskEnergy:
        matrices = self.session.matrices
        used = [name for name in self.with_directions if self.arrays[name]["norms"][1 + k] > 0]
        outside = [name for name in matrices if name not in self.with_directions]
        norms, lost = self._norms(k, matrices), self._norms(k, outside)
        top = norms.max()
        return TaskEnergy(
            **vars(source_of(task)),
            norm=float(top * np.linalg.norm(norms / top)),
            matrices=len(used),
            zero=len(self.with_directions) - len(used),
            without_directions=len(outside),
            energy_without_directions=float(np.sum((lost / top) ** 2) / np.sum((norms / top) ** 2)),
            cosine=self._cosine(k, matrices),
            cosine_all_parameters=self._cosine(k, list(self.arrays)),
            whole=self._kept(k, used),
            layers={layer: self._kept(k, names) for layer, names in group_by_block(used).items()},
            tensors={name: self._kept(k, [name]) for name in used},
        )

    def _norms(self, k: int, names: Sequence[str]) -> np.ndarray:
        """Norms of a task's parts."""
        return np.array([self.arrays[name]["norms"][1 + k] for name in names])

    def _cosine(self, k: int, names: Sequence[str]) -> float | None:
        norms = np.array([self.arrays[name]["norms"] for name in names])
        return cosine_of(np.array([self.arrays[name]["cosines"][k] for name in names]), norms[:, 0], norms[:, 1 + k])

    def _kept(self, k: int, names: Sequence[str]) -> KeptEnergy:
        """Energy kept of a task over some matrices, by basis: weighted by the task's own energy in each."""
        norms = self._norms(k, names)
        kept: dict[Basis, KeptBy] = {kind: self._kept_by(kind, k, names, norms) for kind in self.settings.bases}
        return KeptEnergy(norm=float(np.linalg.norm(norms)), cosine=self._cosine(k, names), bases=kept)

    def _kept_by(self, kind: Basis, k: int, names: Sequence[str], norms: np.ndarray) -> KeptBy:
        shape, fractions = self.session.alignment.shape, self.settings.fractions
        dimensions = [shape(name)[0 if self.settings.side == "left" else 1] for name in names]
        shares = np.stack([self.arrays[name][f"shares/{kind}"][k] for name in names], axis=-1)  # (R, F, tensors)
        directions = np.array([self.arrays[name][f"directions/{kind}"] for name in names])  # (tensors, F)
        chance = np.array(
            [[isotropic_share(int(d), m) for d in ds] for ds, m in zip(directions, dimensions, strict=True)]
        )
        asked = np.array([[rank_of(f, *shape(name)) for f in fractions] for name in names])
        spreads = [spread(column) for column in weighted_share(shares, norms).T]
        return KeptBy(
            kept=[s.mean for s in spreads],
            sd=[s.sd for s in spreads],
            interval=[np.clip(s.interval, 0, 1).tolist() if s.interval else None for s in spreads],
            isotropic=weighted_share(chance.T, norms).tolist(),
            directions=np.sum(directions, axis=0).tolist(),
            short=np.sum(directions < asked, axis=0).tolist(),
        )
