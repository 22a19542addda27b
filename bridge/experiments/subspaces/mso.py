"""One run of `bridge.subspaces mso`: from the options to the finished run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import torch

from bridge.deltas.bases import Update, seeded, thin_svd, update_of
from bridge.deltas.choices import Side
from bridge.deltas.weight_delta import WeightDelta
from bridge.experiments.session import Lent
from bridge.experiments.subspaces import report
from bridge.experiments.subspaces.result import ComparedUpdate, MsoResult, Overlap, PairOverlap, Permuted
from bridge.experiments.subspaces.session import UpdatesSession
from bridge.experiments.subspaces.settings import ALIGNMENT, MsoSettings
from bridge.experiments.subspaces.updates import Updates, cosine_of, require_common, source_of
from bridge.models.blocks import group_by_block
from commands.progress import Progress
from commands.runs import Arrays, arrays_of, result_of
from commands.store import Folder, Part
from theory.subspaces import ROUNDING, chance_overlap, overlaps_at, permutation_p_value, ranks_by_energy

COMMAND = "bridge.subspaces mso"
_ROUNDING = {torch.float64: ROUNDING, torch.float32: 1e-5}  # of an overlap, relative, by the decompositions' dtype


def run(settings: MsoSettings, out: Path | None = None, quiet: bool = False, lent: Lent | None = None) -> MsoResult:
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
    for first, second in combinations(compared(session.updates).values(), 2):
        require_common(first, second, session.matrices)
    folder = session.open_folder(out)
    found = result_of(folder, MsoResult.read, partial(_measure, session, folder), session.progress)
    if not quiet:
        report.print_result(found, folder)
    return found


def compared(updates: Updates) -> dict[str, WeightDelta]:
    """All updates by label, the alignment update first."""
    first = {} if updates.alignment is None else {ALIGNMENT: updates.alignment}
    return {**first, **updates.others}


def _measure(session: UpdatesSession[MsoSettings], folder: Folder) -> MsoResult:
    """All matrices, one after the other, then the finished folder."""
    settings, deltas = session.settings, compared(session.updates)
    plan = Plan(settings.side, settings.energies, settings.permutations, settings.seed, session.dtype, session.device)
    measured = partial(matrix_overlaps, deltas, plan)
    arrays = arrays_of(session.matrices, measured, Part(folder, "matrix"), "matrices", session.progress)
    assembly = Assembly(deltas, plan, arrays)
    result = MsoResult(
        modules=settings.modules,
        side=settings.side,
        energies=list(settings.energies),
        permutations=settings.permutations,
        seed=settings.seed,
        dtype=settings.dtype,
        updates=assembly.updates(),
        pairs=assembly.pairs(),
    )
    if not session.lent.in_memory:
        session.write(folder, result, arrays)
        report.write(result, settings, folder.path)
        session.finish(folder)
    return result


# ---------------------------------------------------------------------------------------------- one matrix


@dataclass(frozen=True)
class Plan:
    """How overlaps are measured.

    Attributes:
        side: left or right singular vectors.
        energies: the energy fractions that choose the ranks.
        permutations: how many permutations of coordinates stand for chance.
        seed: of the permutations.
        dtype: of the decompositions, float32 or float64.
        device: where they are computed.

    """

    side: Side
    energies: tuple[float, ...]
    permutations: int
    seed: int
    dtype: torch.dtype
    device: str = "cpu"


@torch.no_grad()
def matrix_overlaps(deltas: Mapping[str, WeightDelta], plan: Plan, name: str) -> Arrays:
    """Overlaps of every pair of updates in one matrix that both move.

    A permutation of the coordinates of one update's singular vectors keeps its spectrum, and the spread of every
    vector over coordinates, and breaks their alignment with the other's.

    Args:
        deltas: the updates by label; pairs are numbered as `itertools.combinations` of their indices gives them.
        plan: how.
        name: the parameter.

    Returns:
        "norms" (U,); "cosines" (P,), 0 where one of a pair is zero; "ranks" (U, F), 0 where the update is zero; and
        of each pair p where neither is: "overlap/p" (F,) and "permuted/p" (permutations, F).

    """
    pairs = list(combinations(range(len(deltas)), 2))
    updates = [update_of(delta, name, plan.side) for delta in deltas.values()]
    arrays: Arrays = {"norms": np.array([u.norm if u else 0.0 for u in updates])}
    arrays["cosines"] = np.array([_cosine(updates[i], updates[j]) for i, j in pairs])
    vectors: list[torch.Tensor | None] = []
    ranks = np.zeros((len(deltas), len(plan.energies)), dtype=np.int64)
    for k in range(len(updates)):
        update, updates[k] = updates[k], None  # its vectors take its place in memory
        if update is None:
            vectors.append(None)
            continue
        columns, values = thin_svd(update, plan.dtype, plan.device)
        del update
        ranks[k] = ranks_by_energy(values.numpy(), plan.energies)
        vectors.append(columns[:, : ranks[k].max()].clone())
        del columns
    arrays["ranks"] = ranks
    for p, (i, j) in enumerate(pairs):
        mine, theirs = vectors[i], vectors[j]
        if mine is not None and theirs is not None:
            inner = (mine.T @ theirs).double().cpu().numpy()
            arrays[f"overlap/{p}"] = overlaps_at(inner, ranks[i], ranks[j], len(mine))
            arrays[f"permuted/{p}"] = _permuted(mine, theirs, ranks[i], ranks[j], name, plan)
    return arrays


def _cosine(a: Update | None, b: Update | None) -> float:
    """Cosine of two changes of a matrix; 0 where one is zero."""
    if a is None or b is None:
        return 0.0
    return float(a.scaled_inner(b) / np.sqrt(a.scaled_square) / np.sqrt(b.scaled_square))


def _permuted(
    a: torch.Tensor, b: torch.Tensor, ranks_a: np.ndarray, ranks_b: np.ndarray, name: str, plan: Plan
) -> np.ndarray:
    """(permutations, F) overlaps after the coordinates of b were permuted."""
    generator = seeded(f"permutation {plan.seed} {name}")
    rows = []
    for _ in range(plan.permutations):
        order = torch.randperm(len(b), generator=generator).to(b.device)
        rows.append(overlaps_at((a.T @ b[order]).double().cpu().numpy(), ranks_a, ranks_b, len(a)))
    return np.array(rows).reshape(plan.permutations, len(ranks_a))


# ------------------------------------------------------------------------------------------------ results


@dataclass(frozen=True)
class Assembly:
    """What of a result the arrays of `matrix_overlaps` decide, by parameter."""

    deltas: Mapping[str, WeightDelta]
    plan: Plan
    arrays: Mapping[str, Arrays]

    def updates(self) -> dict[str, ComparedUpdate]:
        """The updates by label."""
        return {
            label: ComparedUpdate(
                **vars(source_of(delta)), zero=sum(bool(found["norms"][k] == 0) for found in self.arrays.values())
            )
            for k, (label, delta) in enumerate(self.deltas.items())
        }

    def pairs(self) -> dict[str, PairOverlap]:
        """Every pair of updates, as A × B."""
        labels = list(self.deltas)
        numbered = enumerate(combinations(range(len(labels)), 2))
        return {f"{labels[i]} × {labels[j]}": _Pair(self, p, i, j).overlaps() for p, (i, j) in numbered}


@dataclass(frozen=True)
class _Pair:
    """Pair p, of the updates i and j."""

    assembly: Assembly
    p: int
    i: int
    j: int

    def overlaps(self) -> PairOverlap:
        """Over all matrices that both move, by block, and by matrix."""
        labels, arrays = list(self.assembly.deltas), self.assembly.arrays
        both = [name for name in arrays if f"overlap/{self.p}" in arrays[name]]
        return PairOverlap(
            updates=[labels[self.i], labels[self.j]],
            matrices=len(both),
            skipped=len(arrays) - len(both),
            whole=self._mean(both),
            layers={layer: self._mean(names) for layer, names in group_by_block(both).items()},
            tensors={name: self._mean([name]) for name in both},
        )

    def _mean(self, names: Sequence[str]) -> Overlap:
        """Over some matrices."""
        arrays = self.assembly.arrays
        overlap = np.mean([arrays[name][f"overlap/{self.p}"] for name in names], axis=0)
        permuted = np.mean([arrays[name][f"permuted/{self.p}"] for name in names], axis=0)  # (permutations, F)
        return Overlap(
            overlap=overlap.tolist(),
            chance=np.mean([self._chance(name) for name in names], axis=0).tolist(),
            cosine=cosine_of(
                np.array([arrays[name]["cosines"][self.p] for name in names]),
                np.array([arrays[name]["norms"][self.i] for name in names]),
                np.array([arrays[name]["norms"][self.j] for name in names]),
            ),
            ranks=[np.mean([arrays[name]["ranks"][k] for name in names], axis=0).tolist() for k in (self.i, self.j)],
            permuted=_spread(overlap, permuted, _ROUNDING[self.assembly.plan.dtype]),
        )

    def _chance(self, name: str) -> list[float]:
        """Chance level of one matrix, at every energy fraction."""
        shape = list(self.assembly.deltas.values())[self.i].shape(name)
        dimension = shape[0] if self.assembly.plan.side == "left" else shape[1]
        ranks = self.assembly.arrays[name]["ranks"]
        return [chance_overlap(int(a), int(b), dimension) for a, b in zip(ranks[self.i], ranks[self.j], strict=True)]


def _spread(overlap: np.ndarray, permuted: np.ndarray, rounding: float) -> Permuted | None:
    """Mean, central 95 % and one-sided p-value over permutations, at every energy fraction."""
    if not len(permuted):
        return None
    ends = np.quantile(permuted, (0.025, 0.975), axis=0)
    columns = zip(overlap, permuted.T, strict=True)
    return Permuted(
        mean=permuted.mean(axis=0).tolist(),
        interval=ends.T.tolist(),
        p_value=[permutation_p_value(value, column, rounding) for value, column in columns],
    )
