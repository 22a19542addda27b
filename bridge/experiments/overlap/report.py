"""The table, the pictures and the page of `bridge.overlap`, drawn from its result alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from bridge.reports.drawing import DARK, LIGHT, MID, new_figure, png_of
from bridge.reports.numbers import number
from bridge.reports.pages import render_page
from commands.store import write_atomically

_STYLES = ((DARK, "o"), (MID, "s"), (LIGHT, "^"), ("#4d7c4a", "D"), ("0.35", "v"), ("#8a4f7d", "P"), ("#b8a13a", "X"))


def print_table(result: dict[str, Any]) -> None:
    """Print the closing table to standard output."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=190)
    samples = f"{result['fisher']} Fisher, {result['num_samples']} samples"
    title = f"{result['model']}: overlap with {result['skill']} ({samples})"
    table = Table(title=escape(title), title_justify="left", show_edge=False)
    names, rows = table_of(result)
    for k, name in enumerate(names):
        table.add_column(escape(name), justify="right" if k else "left")
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)
    for line in readings(result):
        console.print(escape(line))


def table_of(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the table, as text; one row a change."""
    entries = result["deltas"]
    names = ["change", "kind", "|ΔW|", "score ΔWᵀFΔW", "95 % interval", "per |ΔW|²", "× random", "between modules",
             "exact over tokens, ½"]  # fmt: skip
    optional = [key for key in ("utility_loss", "refusals", "rademacher") if any(key in e for e in entries.values())]
    headings = {
        "utility_loss": "utility loss measured",
        "refusals": "refusals",
        "rademacher": "by random signs",
    }
    rows = []
    for label, entry in entries.items():
        joint = entry["joint"]
        ends = joint["intervals"].get("raw")
        half = entry["all_parameters"]["overlap_score_exact"]["mean"] / 2
        share = entry["cross_module_share"]
        row = [
            label,
            entry["kind"],
            number(math.sqrt(entry["squared_norm"])),
            number(joint["raw"]),
            f"{number(ends[0])} … {number(ends[1])}" if ends else "",
            number(joint["normalised"]),
            number(joint["enrichment"]),
            "–" if share is None else f"{share:.1%}",
            number(half),
        ]
        rows.append(row + [_optional(entry, key) for key in optional])
    return [*names, *(headings[key] for key in optional)], rows


def _optional(entry: dict[str, Any], key: str) -> str:
    found = entry.get(key)
    if found is None:
        return "–"
    if key == "utility_loss":
        error = found["standard_error"]
        return number(found["mean"]) + (f" ± {number(error, 2)}" if error is not None else "")
    if key == "refusals":
        return f"{found['rate']:.0%} ({found['interval'][0]:.0%} … {found['interval'][1]:.0%})"
    joint = found["joint"]
    return f"{number(joint['estimate'])} ({number(joint['estimate'] / joint['exact'])} ×)" if joint["exact"] else "–"


def readings(result: dict[str, Any]) -> list[str]:
    """Sentences on what the table says."""
    entries = result["deltas"]
    lines = []
    for label, entry in entries.items():
        if "utility_loss" not in entry:
            continue
        measured = entry["utility_loss"]["mean"]
        half = entry["all_parameters"]["overlap_score_exact"]["mean"] / 2
        lines.append(f"{label}: {number(measured)} nats of KL per response; {_verdict(half, measured, result)}.")
    if "base_refusals" in result:
        before = result["base_refusals"]
        lines.append(
            f"Before any change it refuses {before['rate']:.0%} of {before['total']} prompts of {before['set']}."
        )
    ranking = result["ranking"]
    if ranking:
        orders = ", ".join(
            f"{name} {value:.2f}" for name, value in ranking["with_utility_loss"].items() if value is not None
        )
        lines.append(
            f"Rank correlation with the measured utility loss over {ranking['count']} changes (Spearman): {orders}."
        )
    return lines


def _verdict(half: float, measured: float, result: dict[str, Any]) -> str:
    """What half the exact score says beside the measured utility loss."""
    if measured <= 0:
        return f"the change is lost in the rounding of {result['dtype']}"
    ratio = half / measured
    if 0.8 <= ratio <= 1.25:
        return "the second-order score tells the damage"
    coarse = ratio < 1 and result["dtype"] in ("bfloat16", "float16")
    other = f", or too small for {result['dtype']}, whose rounding is measured too" if coarse else ""
    return f"the second-order score is {number(ratio)} times the damage: the change is too large for it{other}"


def write(result: dict[str, Any], settings: dict[str, Any], folder: Path) -> None:
    """Write the pictures and report.html."""
    drawn = {"scores": scores(result), "modules": modules(result)}
    if any("utility_loss" in entry for entry in result["deltas"].values()):
        drawn["damage"] = damage(result)
    for name, png in drawn.items():
        write_atomically(folder / f"{name}.png", png)
    names, rows = table_of(result)
    page = render_page(
        "experiments/overlap/report.html",
        drawn,
        result=result,
        settings=settings,
        headings=names,
        rows=rows,
        readings=readings(result),
    )
    write_atomically(folder / "report.html", page)


def _styled(result: dict[str, Any]) -> list[tuple[str, dict[str, Any], str, str]]:
    """Label, content, colour and marker of every change."""
    return [(label, entry, *_STYLES[k % len(_STYLES)]) for k, (label, entry) in enumerate(result["deltas"].items())]


def scores(result: dict[str, Any]) -> bytes:
    """scores.png: the score of every change and what random directions of its norms would have."""
    entries = list(result["deltas"].values())
    place = np.arange(len(entries))
    figure, (left, right) = new_figure(1, 2, (max(9.0, 1.4 * len(entries) + 5), 4.4))
    raw = np.array([entry["joint"]["raw"] for entry in entries])
    chance = np.array([entry["joint"]["null_mean"] for entry in entries])
    ends = np.array([entry["joint"]["intervals"].get("raw", [np.nan] * 2) for entry in entries]).T
    left.bar(place - 0.2, raw, 0.4, color=DARK, label="this change")
    left.errorbar(place - 0.2, raw, np.maximum(np.abs(ends - raw), 0), fmt="none", color="0.5", capsize=3)
    left.bar(place + 0.2, chance, 0.4, color=LIGHT, label="a random direction, same norm in every module")
    left.set(yscale="log", ylabel="overlap score $\\Delta W^T F \\Delta W$", title="raw")
    left.legend(frameon=False, fontsize=8)
    right.bar(place, [entry["joint"]["normalised"] or 0.0 for entry in entries], 0.5, color=DARK)
    right.set(ylabel="$\\Delta W^T F \\Delta W / |\\Delta W|^2$", title="normalised")
    for axis in (left, right):
        axis.set_xticks(place, list(result["deltas"]), rotation=30, ha="right", fontsize=8)
    return png_of(figure)


def modules(result: dict[str, Any]) -> bytes:
    """modules.png: score and squared norm of every block's part of every change."""
    figure, axes = new_figure(1, 2, (11.0, 4.4))
    for label, entry, color, marker in _styled(result):
        layers = list(entry["layers"].values())
        values = np.array([[layer["raw"], layer["squared_norm"]] for layer in layers])
        for axis, column in zip(axes, values.T, strict=True):
            axis.plot(np.arange(len(layers)), np.where(column > 0, column, np.nan), color=color, marker=marker, ms=3,
                      label=label)  # fmt: skip
    axes[0].set(yscale="log", xlabel="block", ylabel="the block's own score", title="overlap score by block")
    axes[1].set(ylim=(0, None), xlabel="block", ylabel="$|\\Delta W|^2$", title="squared norm by block")
    for axis in axes:
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0].legend(frameon=False, fontsize=8)
    return png_of(figure)


def damage(result: dict[str, Any]) -> bytes:
    """damage.png: the measured utility loss against half the exact score, and against the squared norm."""
    figure, (left, right) = new_figure(1, 2, (10.0, 4.6))
    ends = []
    for label, entry, color, marker in _styled(result):
        loss, error = entry["utility_loss"]["mean"], entry["utility_loss"]["standard_error"] or 0.0
        half = entry["all_parameters"]["overlap_score_exact"]["mean"] / 2
        style = {"color": color, "marker": marker, "ls": "none", "capsize": 3}
        low = min(error, loss * 0.999)  # an error bar cannot reach zero on a logarithmic axis
        left.errorbar([half], [loss], [[low], [error]], label=label, **style)
        right.errorbar([entry["squared_norm"]], [loss], [[low], [error]], label=label, **style)
        ends += [half, loss]
    bounds = [min(x for x in ends if x > 0) / 2, max(ends) * 2] if any(x > 0 for x in ends) else [0.1, 1.0]
    left.plot(bounds, bounds, color="0.6", ls=":", label="second order holds")
    left.set(xscale="log", yscale="log", xlabel="half the exact score, $\\frac{1}{2}\\Delta\\theta^T F \\Delta\\theta$")
    right.set(yscale="log", xlabel="squared norm of the change", xlim=(0, None))
    for axis in (left, right):
        axis.set_ylabel("measured utility loss (nats of KL per response)")
    left.legend(frameon=False, fontsize=8)
    return png_of(figure)
