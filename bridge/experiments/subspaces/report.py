"""Tables, pictures and pages of `bridge.subspaces`, drawn from its results alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import singledispatch
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from bridge.deltas.choices import Basis
from bridge.experiments.subspaces.result import EnergyResult, KeptBy, MsoResult, ProjectResult, TaskEnergy
from bridge.experiments.subspaces.settings import OfAlignment
from bridge.models.blocks import block_number
from bridge.reports.console import print_tables
from bridge.reports.drawing import DARK, LIGHT, MID, new_figure, png_of
from bridge.reports.numbers import number
from bridge.reports.pages import write_page
from bridge.reports.results import Result, pictures_of, tables_of
from bridge.reports.tables import Table
from commands.store import Folder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STYLES: dict[Basis, tuple[str, str, str]] = {
    "top-k": (DARK, "o", "-"), "random-k": (MID, "s", "-"), "random": (LIGHT, "^", "-"),
}  # fmt: skip
_COLUMNS = 3  # panels in a row
_WIDTH = 190  # of the terminal's table, in characters
SIDE_NOTE = (
    "Sides are those of the weight as it is stored: left is the output of torch.nn.Linear and the input of GPT-2's "
    "Conv1D."
)
Layer = TypeVar("Layer")


def print_result(result: Result, folder: Folder) -> None:
    """Print the closing table to standard output, and where the report is."""
    print_tables(tables_of(result), readings(result), _WIDTH)
    print(f"\n{folder.path if isinstance(result, ProjectResult) else folder.path / 'report.html'}")


def write(result: Result, settings: OfAlignment, folder: Path) -> None:
    """Write the pictures and report.html."""
    (table,) = tables_of(result)
    write_page(
        folder,
        "experiments/subspaces/report.html",
        pictures_of(result),
        title=table.caption,
        table=table,
        readings=readings(result),
        captions=captions(result),
        about=about(result),
        settings=settings.identity(),
    )


@singledispatch
def readings(result: Result) -> list[str]:
    """Sentences on what the numbers say, and on what took no part."""
    return []


@singledispatch
def captions(result: Result) -> dict[str, str]:
    """What the pictures show, by their names."""
    return {}


@singledispatch
def about(result: Result) -> str:
    """What the numbers mean."""
    return ""


# ------------------------------------------------------------------------------------------------- energy


@tables_of.register
def energy_tables(result: EnergyResult) -> list[Table]:
    """The table of `energy`; a row for a task and a fraction."""
    headings = ["task", "cosine with alignment", "fraction"]
    for kind in result.bases:
        headings += [kind, f"isotropic ({kind})"]
    rows = []
    for label, task in result.tasks.items():
        for f, fraction in enumerate(result.fractions):
            row = [label, number(task.cosine), f"{fraction:g}"]
            for kind in result.bases:
                by = task.whole.bases[kind]
                row += [_with_spread(by, f), f"{by.isotropic[f]:.4f}"]
            rows.append(row)
    return [Table(f"Energy of task updates in {result.side} subspaces of the alignment update", headings, rows)]


def _with_spread(by: KeptBy, f: int) -> str:
    ends = by.interval[f]
    return f"{by.kept[f]:.4f}" + (f" ({ends[0]:.4f} … {ends[1]:.4f})" if ends else "")


@readings.register
def energy_readings(result: EnergyResult) -> list[str]:
    """What bases keep beside chance, and what was left out."""
    lines = []
    for label, task in result.tasks.items():
        lines += [line for line in (_comparison(result, label), _against_random(result, label)) if line]
        if task.zero:
            lines.append(f"{label}: skipped, never scored: {_matrices(task.zero)} that did not move in this task.")
        if task.without_directions:
            lines.append(
                f"{label}: left out, for want of directions: {_matrices(task.without_directions)} that the "
                f"alignment update did not move, with {task.energy_without_directions:.1%} of the task's energy."
            )
        short = _short(task)
        if short:
            lines.append(
                f"{label}: the alignment update has fewer directions than the rank asked for in up to "
                f"{_matrices(short)}; Top-K and Random-K take all that there are."
            )
    return lines


def _short(task: TaskEnergy) -> int:
    return max((max(by.short) for kind, by in task.whole.bases.items() if kind != "random"), default=0)


def _middle(result: EnergyResult) -> int:
    """The fraction that sentences speak of: that nearest 0.25, where bases differ most visibly."""
    return int(np.argmin(np.abs(np.array(result.fractions) - 0.25)))


def _comparison(result: EnergyResult, label: str) -> str | None:
    top, f = result.tasks[label].whole.bases.get("top-k"), _middle(result)
    if top is None:
        return None
    kept, chance = top.kept[f], top.isotropic[f]
    times = f"{number(kept / chance)} times" if chance else "beside nothing of"
    return (
        f"{label}: the top singular directions of the alignment update at fraction {result.fractions[f]:g} keep "
        f"{kept:.1%} of the task update's energy, {times} what they would keep of an isotropic one ({chance:.1%})."
    )


def _against_random(result: EnergyResult, label: str) -> str | None:
    bases, f = result.tasks[label].whole.bases, _middle(result)
    ends = bases["random-k"].interval[f] if "random-k" in bases else None
    if "top-k" not in bases or ends is None:
        return None
    kept, (low, high) = bases["top-k"].kept[f], ends
    where = "above" if kept > high else "below" if kept < low else "within"
    return (
        f"{label}: that is {where} where 95 % of draws among all singular directions of the alignment update would "
        f"lie ({low:.1%} … {high:.1%})."
    )


@captions.register
def energy_captions(result: EnergyResult) -> dict[str, str]:
    """Captions of energy.png and layers.png."""
    side = "M of its rows (left)" if result.side == "left" else "N of its columns (right)"
    return {
        "energy": "Energy kept against the fraction of min(M, N) that is the rank. Dashed: what an isotropic update "
        f"would keep, the number of directions over the dimension {side}. Bands: where 95 % of further draws would "
        "lie.",
        "layers": f"Energy kept by {result.bases[0]} over the isotropic expectation, block by block.",
    }


@about.register
def about_energy(result: EnergyResult) -> str:
    """What an energy is."""
    return (
        "Energy kept is |P ΔW|² / |ΔW|² with P the projector on the basis; the orthogonal part keeps the rest. Over "
        "several matrices it is weighted by the task's own energy; those that the alignment update did not move are "
        f"left out. {SIDE_NOTE} After “Safety Subspaces are Not Distinct” (arXiv 2505.14185)."
    )


@pictures_of.register
def energy_pictures(result: EnergyResult) -> dict[str, bytes]:
    """The pictures of `energy` by name."""
    return {"energy": energy_picture(result), "layers": energy_layers(result)}


def energy_picture(result: EnergyResult) -> bytes:
    """energy.png: a panel a task."""
    figure, axes = _panels(len(result.tasks))
    for axis, (label, task) in zip(axes, result.tasks.items(), strict=True):
        for kind, by in task.whole.bases.items():
            color, marker, line = _STYLES[kind]
            axis.plot(result.fractions, by.kept, line, color=color, marker=marker, ms=4, label=kind)
            if all(by.interval):
                low, high = np.array(by.interval).T
                axis.fill_between(result.fractions, low, high, color=color, alpha=0.2, lw=0)
            axis.plot(result.fractions, by.isotropic, "--", color=color, lw=1)
        axis.plot([], [], "--", color="0.4", lw=1, label="isotropic")
        axis.set(title=label, xlabel="fraction of min(M, N)", ylabel="energy kept", xlim=(0, 1), ylim=(0, 1.02))
        axis.legend(frameon=False, fontsize=8)
    return png_of(figure)


def energy_layers(result: EnergyResult) -> bytes:
    """layers.png: energy kept over expectation by block, at three fractions."""
    kind = result.bases[0]
    chosen = _three(result.fractions)
    figure, axes = _panels(len(result.tasks))
    for axis, (label, task) in zip(axes, result.tasks.items(), strict=True):
        positions, layers, across = _blocks(task.layers)
        for f, color, marker in zip(chosen, (DARK, MID, LIGHT), "os^", strict=False):
            bys = [layer.bases[kind] for layer in layers]
            ratios = [by.kept[f] / by.isotropic[f] if by.isotropic[f] else math.nan for by in bys]
            axis.plot(positions, ratios, color=color, marker=marker, ms=3, label=f"{kind}, {result.fractions[f]:g}")
        axis.axhline(1, color="0.5", ls="--", lw=1)
        axis.set(title=label, xlabel=across, ylabel="energy kept / isotropic", ylim=(0, None))
        axis.locator_params("x", integer=True)
        axis.legend(frameon=False, fontsize=8)
    return png_of(figure)


def _three(values: Sequence[float]) -> list[int]:
    """Indices of at most three values, spread over all."""
    return sorted({round(share * (len(values) - 1)) for share in (0.2, 0.5, 0.8)})


# ---------------------------------------------------------------------------------------------------- mso


@tables_of.register
def mso_tables(result: MsoResult) -> list[Table]:
    """The table of `mso`; a row for a pair and an energy fraction."""
    headings = ["updates", "cosine", "energy", "overlap", "chance", "ranks (mean)"]
    if result.permutations:
        headings += ["permuted", "p"]
    rows = []
    for label, pair in result.pairs.items():
        whole = pair.whole
        for f, energy in enumerate(result.energies):
            ranks = " and ".join(number(ranks[f]) for ranks in whole.ranks)
            row = [label, number(whole.cosine), f"{energy:g}", f"{whole.overlap[f]:.4f}", f"{whole.chance[f]:.4f}",
                   ranks]  # fmt: skip
            if whole.permuted:
                low, high = whole.permuted.interval[f]
                row += [f"{low:.4f} … {high:.4f}", number(whole.permuted.p_value[f], 2)]
            rows.append(row)
    return [Table(f"Mode subspace overlap of {result.side} singular subspaces of updates", headings, rows)]


@readings.register
def mso_readings(result: MsoResult) -> list[str]:
    """Overlaps beside chance, and what was left out."""
    f = int(np.argmin(np.abs(np.array(result.energies) - 0.9)))
    lines = []
    for label, pair in result.pairs.items():
        overlap, chance = pair.whole.overlap[f], pair.whole.chance[f]
        lines.append(
            f"{label}: at {result.energies[f]:.0%} of the energy the subspaces overlap by {overlap:.3f}, "
            f"{number(overlap / chance)} times the chance level {chance:.3f} of random subspaces of the same ranks."
        )
        if pair.skipped:
            lines.append(f"{label}: skipped, never scored: {_matrices(pair.skipped)} that one of the two did not move.")
    return lines


@captions.register
def mso_captions(result: MsoResult) -> dict[str, str]:
    """Captions of mso.png and layers.png."""
    return {
        "mso": "Overlap over the energy fraction that chooses the ranks, mean over the matrices; dashed: max(k) / m, "
        "the mean of random subspaces of these ranks; band: central 95 % when the coordinates of one update's "
        "vectors are permuted.",
        "layers": "The same by block, at three energy fractions; dashed: the chance level.",
    }


@about.register
def about_mso(result: MsoResult) -> str:
    """What an overlap is."""
    return (
        "Overlap is |QᵃᵀQᵇ|² / min(kᵃ, kᵇ), 1 for a subspace inside the other, with k the smallest rank whose "
        "singular values hold the fraction of the whole update's energy. An update and its negative have the same "
        f"subspaces. {SIDE_NOTE} After “Safety Subspaces are Not Distinct” (arXiv 2505.14185); the permutations are "
        "not in the paper."
    )


@pictures_of.register
def mso_pictures(result: MsoResult) -> dict[str, bytes]:
    """The pictures of `mso` by name."""
    return {"mso": mso_picture(result), "layers": mso_layers(result)}


def mso_picture(result: MsoResult) -> bytes:
    """mso.png: a panel a pair."""
    figure, axes = _panels(len(result.pairs))
    for axis, (label, pair) in zip(axes, result.pairs.items(), strict=True):
        whole = pair.whole
        axis.plot(result.energies, whole.overlap, "o-", color=DARK, ms=4, label="overlap")
        axis.plot(result.energies, whole.chance, "--", color=MID, label="chance, max(k)/m")
        if whole.permuted:
            low, high = np.array(whole.permuted.interval).T
            axis.fill_between(result.energies, low, high, color=LIGHT, alpha=0.6, lw=0, label="permuted, 95 %")
        axis.set(title=label, xlabel="energy fraction", ylabel="mode subspace overlap", ylim=(0, 1.02))
        axis.legend(frameon=False, fontsize=8)
    return png_of(figure)


def mso_layers(result: MsoResult) -> bytes:
    """layers.png: overlap by block, at three energy fractions."""
    chosen = _three(result.energies)
    figure, axes = _panels(len(result.pairs))
    for axis, (label, pair) in zip(axes, result.pairs.items(), strict=True):
        positions, layers, across = _blocks(pair.layers)
        for f, color, marker in zip(chosen, (DARK, MID, LIGHT), "os^", strict=False):
            axis.plot(positions, [layer.overlap[f] for layer in layers], color=color, marker=marker, ms=3,
                      label=f"energy {result.energies[f]:g}")  # fmt: skip
            axis.plot(positions, [layer.chance[f] for layer in layers], "--", color=color, lw=1)
        axis.set(title=label, xlabel=across, ylabel="mode subspace overlap", ylim=(0, 1.02))
        axis.locator_params("x", integer=True)
        axis.legend(frameon=False, fontsize=8)
    return png_of(figure)


# ------------------------------------------------------------------------------------------------ project


@tables_of.register
def project_tables(result: ProjectResult) -> list[Table]:
    """The table of `project`."""
    counts = result.counts
    rows = [
        ["part", f"{result.scheme} to {result.basis} ({result.side}), fraction {result.fraction:g}"],
        ["norm before → after", f"{number(result.norm_before)} → {number(result.norm_after)}"],
        ["energy left, what was kept whole included", f"{result.energy_kept:.4f}"],
        ["matrices projected", str(counts.projected)],
        ["of these with fewer directions than asked for", str(counts.short)],
        ["matrices without directions", str(counts.without_directions)],
        ["parameters kept whole", str(counts.kept)],
        ["parameters dropped", str(counts.dropped)],
    ]
    return [Table(f"Projection of {result.task.source}", ["", "projected update"], rows)]


@about.register
def about_projection(result: ProjectResult) -> str:
    """What was written."""
    return (
        f"{result.file} is a change of weights that every command takes: --delta with this folder. What is no "
        f"matrix (norms, biases) has no singular directions: it is kept whole in either part, so that the parallel and "
        f"the orthogonal part hold it twice, or dropped from both (--vectors). {SIDE_NOTE}"
    )


# ------------------------------------------------------------------------------------------------- shared


def _blocks(layers: Mapping[str, Layer]) -> tuple[list[int], list[Layer], str]:
    """The numbered blocks, at their numbers; everything, in its order, where there is none; and what that axis is."""
    numbered = {number: layer for name, layer in layers.items() if (number := block_number(name)) is not None}
    if numbered:
        return list(numbered), list(numbered.values()), "numbered block"
    return list(range(len(layers))), list(layers.values()), "matrix, in the model's order"


def _matrices(count: int) -> str:
    return f"{count} {'matrix' if count == 1 else 'matrices'}"


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    columns = min(count, _COLUMNS)
    rows = -(-count // columns)
    figure, axes = new_figure(rows, columns, (4.4 * columns + 0.6, 3.8 * rows))
    flat = list(np.atleast_1d(axes).ravel())
    for axis in flat[count:]:
        axis.set_axis_off()
    return figure, flat[:count]
