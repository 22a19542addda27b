"""Tables, pictures and pages of `bridge.subspaces`, drawn from its results alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bridge.models.blocks import block_number
from bridge.reports.drawing import DARK, LIGHT, MID, new_figure, png_of
from bridge.reports.numbers import number
from bridge.reports.pages import render_page
from commands.store import write_atomically

_STYLES = {"top-k": (DARK, "o", "-"), "random-k": (MID, "s", "-"), "random": (LIGHT, "^", "-")}
_COLUMNS = 3  # panels in a row
SIDE_NOTE = (
    "Sides are those of the weight as it is stored: left is the output of torch.nn.Linear and the input of GPT-2's "
    "Conv1D."
)


# ------------------------------------------------------------------------------------------------- energy


def energy_table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the table of `energy`; a row for a task and a fraction."""
    headings = ["task", "cosine with alignment", "fraction"]
    for kind in result["bases"]:
        headings += [kind, f"isotropic ({kind})"]
    rows = []
    for label, task in result["tasks"].items():
        for f, fraction in enumerate(result["fractions"]):
            row = [label, number(task["cosine"]), f"{fraction:g}"]
            for kind in result["bases"]:
                found = task["whole"]["bases"][kind]
                row += [_with_spread(found, f), f"{found['isotropic'][f]:.4f}"]
            rows.append(row)
    return headings, rows


def _with_spread(found: dict[str, Any], f: int) -> str:
    ends = found["interval"][f]
    return f"{found['kept'][f]:.4f}" + (f" ({ends[0]:.4f} … {ends[1]:.4f})" if ends else "")


def energy_readings(result: dict[str, Any]) -> list[str]:
    """Sentences on what the numbers of `energy` say, and on what took no part."""
    lines = []
    for label, task in result["tasks"].items():
        lines += [line for line in (_comparison(result, label), _against_random(result, label)) if line]
        if task["zero"]:
            lines.append(f"{label}: skipped, never scored: {_matrices(task['zero'])} that did not move in this task.")
        if task["without_directions"]:
            lines.append(
                f"{label}: left out, for want of directions: {_matrices(task['without_directions'])} that the "
                f"alignment update did not move, with {task['energy_without_directions']:.1%} of the task's energy."
            )
        short = _short(task)
        if short:
            lines.append(
                f"{label}: the alignment update has fewer directions than the rank asked for in up to "
                f"{_matrices(short)}; Top-K and Random-K take all that there are."
            )
    return lines


def _short(task: dict[str, Any]) -> int:
    bases = task["whole"]["bases"]
    return max((max(bases[kind]["short"]) for kind in ("top-k", "random-k") if kind in bases), default=0)


def _middle(result: dict[str, Any]) -> int:
    """The fraction that sentences speak of: that nearest 0.25, where bases differ most visibly."""
    return int(np.argmin(np.abs(np.array(result["fractions"]) - 0.25)))


def _comparison(result: dict[str, Any], label: str) -> str | None:
    task, f = result["tasks"][label], _middle(result)
    if "top-k" not in task["whole"]["bases"]:
        return None
    found = task["whole"]["bases"]["top-k"]
    kept, chance = found["kept"][f], found["isotropic"][f]
    times = f"{number(kept / chance)} times" if chance else "beside nothing of"
    return (
        f"{label}: the top singular directions of the alignment update at fraction {result['fractions'][f]:g} keep "
        f"{kept:.1%} of the task update's energy, {times} what they would keep of an isotropic one ({chance:.1%})."
    )


def _against_random(result: dict[str, Any], label: str) -> str | None:
    bases, f = result["tasks"][label]["whole"]["bases"], _middle(result)
    if "top-k" not in bases or "random-k" not in bases or bases["random-k"]["interval"][f] is None:
        return None
    kept, (low, high) = bases["top-k"]["kept"][f], bases["random-k"]["interval"][f]
    where = "above" if kept > high else "below" if kept < low else "within"
    return (
        f"{label}: that is {where} where 95 % of draws among all singular directions of the alignment update would "
        f"lie ({low:.1%} … {high:.1%})."
    )


def print_energy(result: dict[str, Any]) -> None:
    """Print the closing table of `energy`."""
    _print(_energy_title(result), *energy_table(result), energy_readings(result))


def _energy_title(result: dict[str, Any]) -> str:
    return f"Energy of task updates in {result['side']} subspaces of the alignment update"


def write_energy(result: dict[str, Any], settings: dict[str, Any], folder: Path) -> None:
    """Write energy.png, layers.png and report.html."""
    drawn = {"energy": energy_picture(result), "layers": energy_layers(result)}
    side = "M of its rows (left)" if result["side"] == "left" else "N of its columns (right)"
    captions = {
        "energy": "Energy kept against the fraction of min(M, N) that is the rank. Dashed: what an isotropic update "
        f"would keep, the number of directions over the dimension {side}. Bands: where 95 % of further draws would "
        "lie.",
        "layers": f"Energy kept by {result['bases'][0]} over the isotropic expectation, block by block.",
    }
    about = (
        "Energy kept is |P ΔW|² / |ΔW|² with P the projector on the basis; the orthogonal part keeps the rest. Over "
        "several matrices it is weighted by the task's own energy; those that the alignment update did not move are "
        f"left out. {SIDE_NOTE} After “Safety Subspaces are Not Distinct” (arXiv 2505.14185)."
    )
    _write(folder, _energy_title(result), energy_readings(result), energy_table(result), drawn, captions, about,
           settings)  # fmt: skip


def energy_picture(result: dict[str, Any]) -> bytes:
    """energy.png: a panel a task."""
    figure, axes = _panels(len(result["tasks"]))
    for axis, (label, task) in zip(axes, result["tasks"].items(), strict=True):
        for kind, found in task["whole"]["bases"].items():
            color, marker, line = _STYLES[kind]
            axis.plot(result["fractions"], found["kept"], line, color=color, marker=marker, ms=4, label=kind)
            if found["interval"][0] is not None:
                low, high = np.array(found["interval"]).T
                axis.fill_between(result["fractions"], low, high, color=color, alpha=0.2, lw=0)
            axis.plot(result["fractions"], found["isotropic"], "--", color=color, lw=1)
        axis.plot([], [], "--", color="0.4", lw=1, label="isotropic")
        axis.set(title=label, xlabel="fraction of min(M, N)", ylabel="energy kept", xlim=(0, 1), ylim=(0, 1.02))
        axis.legend(frameon=False, fontsize=8)
    return png_of(figure)


def energy_layers(result: dict[str, Any]) -> bytes:
    """layers.png: energy kept over expectation by block, at three fractions."""
    kind = result["bases"][0]
    chosen = _three(result["fractions"])
    figure, axes = _panels(len(result["tasks"]))
    for axis, (label, task) in zip(axes, result["tasks"].items(), strict=True):
        places, layers, across = _blocks(task["layers"])
        for f, color, marker in zip(chosen, (DARK, MID, LIGHT), "os^", strict=False):
            found = [layer["bases"][kind] for layer in layers]
            ratios = [x["kept"][f] / x["isotropic"][f] if x["isotropic"][f] else math.nan for x in found]
            axis.plot(places, ratios, color=color, marker=marker, ms=3, label=f"{kind}, {result['fractions'][f]:g}")
        axis.axhline(1, color="0.5", ls="--", lw=1)
        axis.set(title=label, xlabel=across, ylabel="energy kept / isotropic", ylim=(0, None))
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(frameon=False, fontsize=8)
    return png_of(figure)


def _three(values: Sequence[float]) -> list[int]:
    """Indices of at most three values, spread over all."""
    return sorted({round(share * (len(values) - 1)) for share in (0.2, 0.5, 0.8)})


# ---------------------------------------------------------------------------------------------------- mso


def mso_table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the table of `mso`; a row for a pair and an energy fraction."""
    headings = ["updates", "cosine", "energy", "overlap", "chance", "ranks (mean)"]
    if result["permutations"]:
        headings += ["permuted", "p"]
    rows = []
    for label, pair in result["pairs"].items():
        found = pair["whole"]
        for f, energy in enumerate(result["energies"]):
            ranks = " and ".join(number(ranks[f]) for ranks in found["ranks"])
            row = [label, number(found["cosine"]), f"{energy:g}", f"{found['overlap'][f]:.4f}",
                   f"{found['chance'][f]:.4f}", ranks]  # fmt: skip
            if found["permuted"]:
                low, high = found["permuted"]["interval"][f]
                row += [f"{low:.4f} … {high:.4f}", number(found["permuted"]["p_value"][f], 2)]
            rows.append(row)
    return headings, rows


def mso_readings(result: dict[str, Any]) -> list[str]:
    """Sentences on what the numbers of `mso` say, and on what took no part."""
    f = int(np.argmin(np.abs(np.array(result["energies"]) - 0.9)))
    lines = []
    for label, pair in result["pairs"].items():
        found = pair["whole"]
        overlap, chance = found["overlap"][f], found["chance"][f]
        lines.append(
            f"{label}: at {result['energies'][f]:.0%} of the energy the subspaces overlap by {overlap:.3f}, "
            f"{number(overlap / chance)} times the chance level {chance:.3f} of random subspaces of the same ranks."
        )
        if pair["skipped"]:
            lines.append(
                f"{label}: skipped, never scored: {_matrices(pair['skipped'])} that one of the two did not move."
            )
    return lines


def print_mso(result: dict[str, Any]) -> None:
    """Print the closing table of `mso`."""
    _print(_mso_title(result), *mso_table(result), mso_readings(result))


def _mso_title(result: dict[str, Any]) -> str:
    return f"Mode subspace overlap of {result['side']} singular subspaces of updates"


def write_mso(result: dict[str, Any], settings: dict[str, Any], folder: Path) -> None:
    """Write mso.png, layers.png and report.html."""
    drawn = {"mso": mso_picture(result), "layers": mso_layers(result)}
    captions = {
        "mso": "Overlap over the energy fraction that chooses the ranks, mean over the matrices; dashed: max(k) / m, "
        "the mean of random subspaces of these ranks; band: central 95 % when the coordinates of one update's "
        "vectors are permuted.",
        "layers": "The same by block, at three energy fractions; dashed: the chance level.",
    }
    about = (
        "Overlap is |QᵃᵀQᵇ|² / min(kᵃ, kᵇ), 1 for a subspace inside the other, with k the smallest rank whose "
        "singular values hold the fraction of the whole update's energy. An update and its negative have the same "
        f"subspaces. {SIDE_NOTE} After “Safety Subspaces are Not Distinct” (arXiv 2505.14185); the permutations are "
        "not in the paper."
    )
    _write(folder, _mso_title(result), mso_readings(result), mso_table(result), drawn, captions, about, settings)


def mso_picture(result: dict[str, Any]) -> bytes:
    """mso.png: a panel a pair."""
    figure, axes = _panels(len(result["pairs"]))
    for axis, (label, pair) in zip(axes, result["pairs"].items(), strict=True):
        found = pair["whole"]
        axis.plot(result["energies"], found["overlap"], "o-", color=DARK, ms=4, label="overlap")
        axis.plot(result["energies"], found["chance"], "--", color=MID, label="chance, max(k)/m")
        if found["permuted"]:
            low, high = np.array(found["permuted"]["interval"]).T
            axis.fill_between(result["energies"], low, high, color=LIGHT, alpha=0.6, lw=0, label="permuted, 95 %")
        axis.set(title=label, xlabel="energy fraction", ylabel="mode subspace overlap", ylim=(0, 1.02))
        axis.legend(frameon=False, fontsize=8)
    return png_of(figure)


def mso_layers(result: dict[str, Any]) -> bytes:
    """layers.png: overlap by block, at three energy fractions."""
    chosen = _three(result["energies"])
    figure, axes = _panels(len(result["pairs"]))
    for axis, (label, pair) in zip(axes, result["pairs"].items(), strict=True):
        places, layers, across = _blocks(pair["layers"])
        for f, color, marker in zip(chosen, (DARK, MID, LIGHT), "os^", strict=False):
            axis.plot(places, [layer["overlap"][f] for layer in layers], color=color, marker=marker, ms=3,
                      label=f"energy {result['energies'][f]:g}")  # fmt: skip
            axis.plot(places, [layer["chance"][f] for layer in layers], "--", color=color, lw=1)
        axis.set(title=label, xlabel=across, ylabel="mode subspace overlap", ylim=(0, 1.02))
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(frameon=False, fontsize=8)
    return png_of(figure)


# ------------------------------------------------------------------------------------------------ project


def project_rows(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the table of `project`."""
    counts = result["counts"]
    rows = [
        ["part", f"{result['scheme']} to {result['basis']} ({result['side']}), fraction {result['fraction']:g}"],
        ["norm before → after", f"{number(result['norm_before'])} → {number(result['norm_after'])}"],
        ["energy left, what was kept whole included", f"{result['energy_kept']:.4f}"],
        ["matrices projected", str(counts["projected"])],
        ["of these with fewer directions than asked for", str(counts["short"])],
        ["matrices without directions", str(counts["without_directions"])],
        ["parameters kept whole", str(counts["kept"])],
        ["parameters dropped", str(counts["dropped"])],
    ]
    return ["", "projected update"], rows


def print_project(result: dict[str, Any]) -> None:
    """Print the closing table of `project`."""
    _print(f"Projection of {result['task']['source']}", *project_rows(result), [])


def write_project(result: dict[str, Any], settings: dict[str, Any], folder: Path) -> None:
    """Write report.html."""
    about = (
        f"{result['file']} is a change of weights that every command takes: --delta with this folder. What is no "
        f"matrix (norms, biases) has no singular directions: it is kept whole in either part, so that the parallel and "
        f"the orthogonal part hold it twice, or dropped from both (--vectors). {SIDE_NOTE}"
    )
    title = f"Projection of {result['task']['source']}"
    _write(folder, title, [], project_rows(result), {}, {}, about, settings)


# ------------------------------------------------------------------------------------------------- shared


def _blocks(layers: dict[str, Any]) -> tuple[list[int], list[Any], str]:
    """The numbered blocks, at their numbers; everything, in its order, where there is none; and what that axis is."""
    numbered = {number: layer for name, layer in layers.items() if (number := block_number(name)) is not None}
    if numbered:
        return list(numbered), list(numbered.values()), "numbered block"
    return list(range(len(layers))), list(layers.values()), "matrix, in the model's order"


def _matrices(count: int) -> str:
    return f"{count} {'matrix' if count == 1 else 'matrices'}"


def _panels(count: int) -> tuple[Any, list[Any]]:
    columns = min(count, _COLUMNS)
    rows = -(-count // columns)
    figure, axes = new_figure(rows, columns, (4.4 * columns + 0.6, 3.8 * rows))
    flat = list(np.atleast_1d(axes).ravel())
    for axis in flat[count:]:
        axis.set_axis_off()
    return figure, flat[:count]


def _print(title: str, names: list[str], rows: list[list[str]], lines: list[str]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=190)
    table = Table(title=escape(title), title_justify="left", show_edge=False)
    for k, name in enumerate(names):
        table.add_column(escape(name), justify="right" if k else "left")
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)
    for line in lines:
        console.print(escape(line))


def _write(
    folder: Path,
    title: str,
    lines: list[str],
    table: tuple[list[str], list[list[str]]],
    drawn: dict[str, bytes],
    captions: dict[str, str],
    about: str,
    settings: dict[str, Any],
) -> None:
    for name, png in drawn.items():
        write_atomically(folder / f"{name}.png", png)
    headings, rows = table
    page = render_page(
        "experiments/subspaces/report.html", drawn, title=title, readings=lines, headings=headings, rows=rows,
        captions=captions, about=about, settings=settings,
    )  # fmt: skip
    write_atomically(folder / "report.html", page)
