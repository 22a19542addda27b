"""One run of `bridge.subspaces mso`: from the options to the finished run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import torch

from bridge.deltas.bases import seeded, thin_svd, update_of
from bridge.deltas.weight_delta import WeightDelta
from bridge.experiments.subspaces import report
from bridge.experiments.subspaces.matrices import Opened, open_folder, open_matrices, write_results
from bridge.experiments.subspaces.result import ComparedUpdate, GroupOverlap, MsoResult, PairOverlap, Permuted
from bridge.experiments.subspaces.settings import ALIGNMENT, MsoSettings, Side
from bridge.experiments.subspaces.updates import DTYPES, Updates, cosine_of, described, require_common
from bridge.models.blocks import group_by_block
from commands.progress import Progress
from commands.runs import Arrays, arrays_of, result_of
from commands.store import Part, RunFolder
from theory.subspaces import ROUNDING, chance_overlap, overlaps_at, permutation_p_value, ranks_by_energy

COMMAND = "bridge.subspaces mso"
_ROUNDING = {"float64": ROUNDING, "float32": 1e-5}  # of an overlap, relative, by the dtype of the decompositions


def run(settings: MsoSettings, out: Path | None = None, quiet: bool = False) -> MsoResult:
    """Measure, write the run folder, print the closing table.

    Raises:
        UserError: for anything in the options or the updates that cannot be used.

    """
    settings.check()
    progress = Progress(quiet)
    opened = open_matrices(settings, progress)
    for first, second in combinations(compared(opened.updates).values(), 2):
        require_common(first, second, opened.matrices)
    folder = open_folder(COMMAND, settings, opened.updates, opened.device, out)
    found = result_of(folder, MsoResult.read, partial(_measure, settings, opened, folder, progress), progress)
    if not quiet:
        report.print_result(found, folder)
    return found


def compared(updates: Updates) -> dict[str, WeightDelta]:
    """All updates by label, the alignment update first."""
    first = {} if updates.alignment is None else {ALIGNMENT: updates.alignment}
    return {**first, **updates.others}


def _measure(settings: MsoSettings, opened: Opened, folder: RunFolder, progress: Progress) -> MsoResult:
    """All matrices, one after the other, then the finished folder."""
    deltas = compared(opened.updates)
    plan = Plan(settings.side, settings.energies, settings.permutations, settings.seed, settings.dtype, opened.device)

    def overlaps(name: str) -> Arrays:
        return matrix_overlaps(deltas, name, plan)

    arrays = arrays_of(opened.matrices, overlaps, Part(folder, "matrix"), "matrices", progress)
    result = assemble(deltas, plan, settings.modules, arrays)
    write_results(folder.path, "mso", result, arrays)
    report.write(result, settings, folder.path)
    folder.finish(stage_seconds={k: round(v, 2) for k, v in progress.seconds.items()})
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
        dtype: of the decompositions.
        device: where they are computed.

    """

    side: Side
    energies: tuple[float, ...]
    permutations: int
    seed: int
    dtype: str
    device: str = "cpu"


@torch.no_grad()
def matrix_overlaps(deltas: Mapping[str, WeightDelta], name: str, plan: Plan) -> Arrays:
    """Overlaps of every pair of updates in one matrix that both move.

    A permutation of the coordinates of one update's singular vectors keeps its spectrum, and the spread of every
    vector over coordinates, and breaks their alignment with the other's.

    Args:
        deltas: the updates by label; pairs are numbered as `itertools.combinations` of their indices gives them.
        name: the parameter.
        plan: how.

    Returns:
        "norms" (U,); "cosines" (P,), 0 where one of a pair is zero; "ranks" (U, F), 0 where the update is zero; and
        of each pair p where neither is: "overlap/p" (F,) and "permuted/p" (permutations, F).

    """
    pairs = list(combinations(range(len(deltas)), 2))
    listed = [update_of(delta, name, plan.side) for delta in deltas.values()]
    found: Arrays = {"norms": np.array([u.norm if u else 0.0 for u in listed])}
    cosines = []
    for i, j in pairs:
        a, b = listed[i], listed[j]
        inner = a.scaled_inner(b) / np.sqrt(a.scaled_square) / np.sqrt(b.scaled_square) if a and b else 0.0
        cosines.append(inner)
    found["cosines"] = np.array(cosines)
    vectors: list[torch.Tensor | None] = []
    ranks = np.zeros((len(deltas), len(plan.energies)), dtype=np.int64)
    for k in range(len(listed)):
        update, listed[k] = listed[k], None  # its vectors take its place in memory
        if update is None:
            vectors.append(None)
            continue
        columns, values = thin_svd(update, DTYPES[plan.dtype], plan.device)
        del update
        ranks[k] = ranks_by_energy(values.numpy(), plan.energies)
        vectors.append(columns[:, : ranks[k].max()].clone())
        del columns
    found["ranks"] = ranks
    for p, (i, j) in enumerate(pairs):
        mine, theirs = vectors[i], vectors[j]
        if mine is not None and theirs is not None:
            inner = (mine.T @ theirs).double().cpu().numpy()
            found[f"overlap/{p}"] = overlaps_at(inner, ranks[i], ranks[j], len(mine))
            found[f"permuted/{p}"] = _permuted(mine, theirs, ranks[i], ranks[j], name, plan)
    return found


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


def assemble(deltas: Mapping[str, WeightDelta], plan: Plan, modules: str, arrays: Mapping[str, Arrays]) -> MsoResult:
    """The content of mso.json, from the arrays of `matrix_overlaps` by parameter."""
    labels = list(deltas)
    pairs = {}
    for p, (i, j) in enumerate(combinations(range(len(labels)), 2)):
        both = [name for name in arrays if f"overlap/{p}" in arrays[name]]
        group = partial(_group, deltas[labels[i]], plan, arrays, (p, i, j))
        pairs[f"{labels[i]} × {labels[j]}"] = PairOverlap(
            updates=[labels[i], labels[j]],
            matrices=len(both),
            skipped=len(arrays) - len(both),
            whole=group(both),
            layers={layer: group(names) for layer, names in group_by_block(both).items()},
            tensors={name: group([name]) for name in both},
        )
    return MsoResult(
        modules=modules,
        side=plan.side,
        energies=list(plan.energies),
        permutations=plan.permutations,
        seed=plan.seed,
        dtype=plan.dtype,
        updates={
            label: ComparedUpdate(
                **vars(described(delta)), zero=sum(bool(of["norms"][k] == 0) for of in arrays.values())
            )
            for k, (label, delta) in enumerate(deltas.items())
        },
        pairs=pairs,
    )


def _group(
    delta: WeightDelta,
    plan: Plan,
    arrays: Mapping[str, Arrays],
    which: tuple[int, int, int],
    names: Sequence[str],
) -> GroupOverlap:
    """The pair p of the updates i and j over some matrices."""
    p, i, j = which
    overlap = np.mean([arrays[name][f"overlap/{p}"] for name in names], axis=0)
    permuted = np.mean([arrays[name][f"permuted/{p}"] for name in names], axis=0)  # (permutations, F)
    chance = np.mean([_chance(arrays[n]["ranks"], i, j, delta.shape(n), plan) for n in names], axis=0)
    return GroupOverlap(
        overlap=overlap.tolist(),
        chance=chance.tolist(),
        cosine=cosine_of(
            np.array([arrays[name]["cosines"][p] for name in names]),
            np.array([arrays[name]["norms"][i] for name in names]),
            np.array([arrays[name]["norms"][j] for name in names]),
        ),
        ranks=[np.mean([arrays[name]["ranks"][k] for name in names], axis=0).tolist() for k in (i, j)],
        permuted=_spread(overlap, permuted, _ROUNDING[plan.dtype]),
    )


def _chance(ranks: np.ndarray, i: int, j: int, shape: tuple[int, ...], plan: Plan) -> list[float]:
    dimension = shape[0] if plan.side == "left" else shape[1]
    return [chance_overlap(int(a), int(b), dimension) for a, b in zip(ranks[i], ranks[j], strict=True)]


def _spread(overlap: np.ndarray, permuted: np.ndarray, rounding: float) -> Permuted | None:
    """Mean, central 95 % and one-sided p-value over permutations, at every energy fraction."""
    if not len(permuted):
        return None
    pairs = zip(overlap, permuted.T, strict=True)
    return Permuted(
        mean=permuted.mean(axis=0).tolist(),
        interval=np.quantile(permuted, (0.025, 0.975), axis=0).T.tolist(),
        p_value=[permutation_p_value(value, column, rounding) for value, column in pairs],
    )
