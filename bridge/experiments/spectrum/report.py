"""The table, the pictures and the page of `bridge.spectrum`, drawn from its result alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bridge.reports.drawing import DARK, LIGHT, MID, new_figure, png_of
from bridge.reports.numbers import number, set_name
from bridge.reports.pages import render_page
from commands.store import write_atomically

_STYLES = [(DARK, "-", "o"), (MID, "-", "s"), (LIGHT, "-", "^"), ("#4d7c4a", "-", "D"), ("0.35", "-", "v")]


def print_table(result: dict[str, Any]) -> None:
    """Print the closing table to standard output."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    title = f"{result['model']}: spectrum of the {result['fisher']} Fisher information"
    table = Table(title=escape(title), title_justify="left", show_edge=False)
    for name in HEADINGS:
        table.add_column(name, justify="left" if name == "skill" else "right")
    for row in rows(result):
        table.add_row(*map(escape, row))
    console.print(table)
    for name, skill in result["skills"].items():
        console.print(escape(reading(name, skill, result["rank"])))


HEADINGS = (
    "skill", "samples", "trace", "λ₁", "share of the top d", "effective rank", "by norms alone", "at half the samples",
    "unit norms, no mean", "halves agree", "by chance",
)  # fmt: skip


def rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """The table's rows as text, one a skill."""
    out: list[tuple[str, ...]] = []
    for name, skill in result["skills"].items():
        whole = skill["whole_model"]
        values = whole["eigenvalues"]
        top = sum(values[: result["rank"]]) / whole["trace"] if whole["trace"] else 0.0
        stable = next((x for x in skill["split_half"] if x["rank"] == result["rank"]), None)
        out.append(
            (
                set_name(name),
                str(skill["num_samples"]),
                number(whole["trace"]),
                number(values[0]),
                f"{top:.0%}",
                number(whole["effective_rank"]),
                number(whole["effective_rank_orthogonal"]),
                number(_at_half(skill)),
                number(whole["effective_rank_centred_normalised"]),
                number(stable["overlap"] if stable else None),
                number(stable["random"] if stable else None),
            )
        )
    return out


def _at_half(skill: dict[str, Any]) -> float | None:
    """Effective rank of half the samples, from the growth; None where there is no such subset."""
    half = skill["num_samples"] / 2
    near = min(skill["growth"], key=lambda point: abs(point["count"] - half))
    return near["effective_rank"] if abs(near["count"] - half) <= 0.1 * half else None


def reading(name: str, skill: dict[str, Any], rank: int) -> str:
    """One or two sentences: does this spectrum speak for low rank?"""
    whole, half = skill["whole_model"], _at_half(skill)
    grown = "its growth cannot be told from so few samples"
    if half:
        ratio = whole["effective_rank"] / half
        grown = f"twice the samples show {ratio:.2f} times the effective rank: " + (
            "it has stopped to grow" if ratio < 1.15 else "it still grows with the samples"
        )
    plain = whole["effective_rank"] / whole["effective_rank_orthogonal"] if whole["effective_rank_orthogonal"] else 0.0
    norms = f"unequal norms alone would give {number(whole['effective_rank_orthogonal'])}"
    shared = f"; the scores' directions bring that down to {plain:.0%}" if plain < 0.95 else ", so that they explain it"
    stable = next((x for x in skill["split_half"] if x["rank"] == rank), None)
    agree = (
        f" Two halves of the samples share {stable['overlap']:.1%} of their top {rank} directions." if stable else ""
    )
    return f"{set_name(name)}: {grown}; {norms}{shared}.{agree}"


def write(result: dict[str, Any], settings: dict[str, Any], folder: Path) -> None:
    """Write the pictures and report.html."""
    drawn = {"spectrum": spectra(result), "growth": growth(result), "blocks": blocks(result)}
    for name, png in drawn.items():
        write_atomically(folder / f"{name}.png", png)
    page = render_page(
        "experiments/spectrum/report.html",
        drawn,
        result=result,
        settings=settings,
        headings=HEADINGS,
        rows=rows(result),
        readings=[reading(name, skill, result["rank"]) for name, skill in result["skills"].items()],
    )
    write_atomically(folder / "report.html", page)


def _skills(result: dict[str, Any]) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Name, content and line style of every skill."""
    out = []
    for number_, (name, skill) in enumerate(result["skills"].items()):
        color, line, marker = _STYLES[number_ % len(_STYLES)]
        out.append((set_name(name), skill, {"color": color, "ls": line, "marker": marker, "ms": 3}))
    return out


def spectra(result: dict[str, Any]) -> bytes:
    """spectrum.png: eigenvalues as shares of the trace, and their sums, beside the decay by norms alone."""
    figure, (left, right) = new_figure(1, 2, (10.5, 4.2))
    for name, skill, style in _skills(result):
        whole = skill["whole_model"]
        total = whole["trace"] or 1.0
        values, norms = (np.array(whole[key]) / total for key in ("eigenvalues", "orthogonal"))
        order = np.arange(1, len(values) + 1)
        shown = values > values.max(initial=0.0) * 1e-12
        left.semilogy(order[shown], values[shown], label=name, **style)
        right.plot(order, np.cumsum(values), label=name, **style)
        plain = {"color": style["color"], "ls": "--", "lw": 1}
        left.semilogy(order, np.maximum(norms, 1e-300), label=f"{name}: same norms, orthogonal", **plain)
        right.plot(order, np.cumsum(norms), **plain)
    left.set(xlabel="k", ylabel="$\\lambda_k$ / trace", title="eigenvalues of F")
    right.set(xlabel="k", ylabel="share of the trace in the top k", ylim=(0, 1.03), title="sums")
    for axis in (left, right):
        axis.axvline(result["rank"], color="0.5", lw=1, ls=":")
        axis.xaxis.get_major_locator().set_params(integer=True)
    left.legend(frameon=False, fontsize=8)
    return png_of(figure)


def growth(result: dict[str, Any]) -> bytes:
    """growth.png: effective rank against the number of samples, of the scores and of their directions alone."""
    figure, (left, right) = new_figure(1, 2, (10.5, 4.2))
    largest = 1.0
    for name, skill, style in _skills(result):
        count = np.array([point["count"] for point in skill["growth"]])
        largest = max(largest, count.max())
        left.plot(count, [point["effective_rank"] for point in skill["growth"]], label=name, **style)
        left.plot(
            count, [point["orthogonal"] for point in skill["growth"]], color=style["color"], ls="--", lw=1,
            label=f"{name}: same norms, orthogonal",
        )  # fmt: skip
        right.plot(count, [point["centred_normalised"] for point in skill["growth"]], label=name, **style)
    for axis, title in ((left, "scores as they are"), (right, "scores of unit norm, without their mean")):
        axis.plot([0, largest], [0, largest], color="0.6", lw=1, ls=":", label="full rank: all that N samples show")
        axis.set(xlabel="samples N", ylabel="effective rank", title=title, xlim=(0, None), ylim=(0, None))
        axis.legend(frameon=False, fontsize=8)
    return png_of(figure)


def blocks(result: dict[str, Any]) -> bytes:
    """blocks.png: trace and effective rank of every block."""
    figure, (left, right) = new_figure(1, 2, (10.5, 4.2))
    for name, skill, style in _skills(result):
        layers = list(skill["layers"].values())
        order = np.arange(len(layers))
        left.plot(
            order, [layer["trace"] / (skill["whole_model"]["trace"] or 1.0) for layer in layers], label=name, **style
        )
        right.plot(order, [layer["effective_rank"] for layer in layers], label=name, **style)
        right.plot(order, [layer["effective_rank_orthogonal"] for layer in layers], color=style["color"], ls="--", lw=1)
    left.set(xlabel="block", ylabel="share of the trace", ylim=(0, None), title="where the sensitivity is")
    right.set(xlabel="block", ylabel="effective rank", ylim=(0, None), title="dashed: by norms alone")
    for axis in (left, right):
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(frameon=False, fontsize=8)
    return png_of(figure)
