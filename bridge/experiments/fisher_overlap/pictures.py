"""The pictures of `bridge.fisher_overlap`, drawn from its result alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from bridge.experiments.fisher_overlap.result import CENTRINGS
from bridge.reports.drawing import DARK, LIGHT, MID, new_figure, png_of
from bridge.reports.numbers import set_name

MEANS = {"uncentred": "kept", "centred": "removed"}
"""What was done with the mean scores, by centring."""
_GREEN = "#4d7c4a"


def title_of(pair: dict[str, Any]) -> str:
    """A pair of skills as a person calls it."""
    return f"{set_name(pair['a'])} – {set_name(pair['b'])}"


def _grid(result: dict[str, Any], sharey: str = "") -> tuple[Any, Any]:
    """A figure of one column a pair, one row with the mean scores and one without them."""
    columns = len(result["pairs"])
    figure, axes = new_figure(2, columns, (max(6.0, 4.2 * columns), 7.2))
    axes = np.array(axes).reshape(2, columns)
    for column, pair in enumerate(result["pairs"]):
        axes[0, column].set_title(title_of(pair), fontsize=10)
    for row, centring in enumerate(CENTRINGS):
        axes[row, 0].set_ylabel(f"{sharey}\nmean scores {MEANS[centring]}")
    for axis in axes.flat:
        axis.axvline(result["rank"], color="0.5", lw=1, ls=":")
        axis.xaxis.get_major_locator().set_params(integer=True)
    for axis in axes[1]:
        axis.set_xlabel("d, directions on each side")
    return figure, axes


def _curve(axis: Any, result: dict[str, Any], entry: dict[str, Any], name: str, **style: Any) -> None:
    """One of a pair's curves over the ranks, with its interval as a band."""
    curves = entry["at_rank"]
    value = _floats(curves[name])
    axis.plot(result["ranks"], value, **style)
    if f"{name}_low" in curves:
        low, high = (_floats(curves[f"{name}_{end}"]) for end in ("low", "high"))
        axis.fill_between(result["ranks"], low, high, color=style["color"], alpha=0.18, lw=0)


def _floats(values: list[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values])


def overlaps(result: dict[str, Any]) -> bytes:
    """overlap.png: mode subspace overlap against the rank, with ceiling and floor."""
    figure, axes = _grid(result, "overlap of halves")
    for column, pair in enumerate(result["pairs"]):
        for row, centring in enumerate(CENTRINGS):
            axis, entry = axes[row, column], pair[centring]
            _curve(axis, result, entry, "cross", color=MID, marker="o", ms=3, label="across the skills")
            _curve(axis, result, entry, "own_a", color=DARK, label=f"within {set_name(pair['a'])}")
            _curve(axis, result, entry, "own_b", color=LIGHT, ls="--", label=f"within {set_name(pair['b'])}")
            _curve(axis, result, entry, "overlap", color="0.35", ls=":", label="across, all samples")
            _curve(axis, result, entry, "floor", color=_GREEN, ls="-.", label="unrelated scores")
    _same_height(axes)
    for axis in axes[0]:  # every pair has its own names
        axis.legend(frameon=False, fontsize=7)
    return png_of(figure)


def _same_height(axes: Any) -> None:
    """Overlaps from 0 to the largest that is drawn, the same in every panel."""
    lines = [line for axis in axes.flat for line in axis.lines if not line.get_label().startswith("_")]
    drawn = [np.nanmax(line.get_ydata(), initial=0.0) for line in lines]
    top = min(1.02, 1.3 * max([*drawn, 0.01]))
    for axis in axes.flat:
        axis.set_ylim(-0.02 * top, top)


def relative(result: dict[str, Any]) -> bytes:
    """relative.png: the relative overlap against the rank."""
    figure, axes = _grid(result, "relative overlap")
    for column, pair in enumerate(result["pairs"]):
        for row, centring in enumerate(CENTRINGS):
            axis = axes[row, column]
            _curve(axis, result, pair[centring], "relative", color=MID, marker="o", ms=3, label="directions")
            _curve(axis, result, pair[centring], "relative_b_in_a", color=DARK, label=f"trace of {set_name(pair['b'])}")
            _curve(
                axis, result, pair[centring], "relative_a_in_b", color=LIGHT, ls="--",
                label=f"trace of {set_name(pair['a'])}",
            )  # fmt: skip
            for level, text in ((0.0, "unrelated"), (1.0, "one skill")):
                axis.axhline(level, color="0.5", lw=1, ls="-.")
                axis.annotate(text, (result["ranks"][0], level), xytext=(0, 2), textcoords="offset points", fontsize=7)
            axis.set_ylim(-0.2, 1.4)
    for axis in axes[0]:  # every pair has its own names
        axis.legend(frameon=False, fontsize=7)
    return png_of(figure)


def energies(result: dict[str, Any]) -> bytes:
    """energy.png: the share of one skill's Fisher trace inside the other's subspace, against the rank."""
    figure, axes = _grid(result, "share of the trace")
    for column, pair in enumerate(result["pairs"]):
        a, b = set_name(pair["a"]), set_name(pair["b"])
        for row, centring in enumerate(CENTRINGS):
            axis, entry = axes[row, column], pair[centring]
            _curve(axis, result, entry, "b_in_b", color=DARK, label=f"{b} in its own, held out")
            _curve(axis, result, entry, "b_in_a", color=DARK, ls="--", marker="o", ms=3, label=f"{b} in {a}")
            _curve(axis, result, entry, "a_in_a", color=MID, label=f"{a} in its own, held out")
            _curve(axis, result, entry, "a_in_b", color=MID, ls="--", marker="s", ms=3, label=f"{a} in {b}")
            axis.plot(result["ranks"], entry["at_rank"]["random_in_a"], color=_GREEN, ls="-.", label="random space")
            axis.set_ylim(0, None)
            axis.legend(frameon=False, fontsize=6)
    return png_of(figure)


def blocks(result: dict[str, Any]) -> bytes:
    """blocks.png: the overlap across and within skills, block by block, at the rank of the verdict."""
    figure, axes = _grid(result, f"overlap of halves, d = {result['rank']}")
    for column, pair in enumerate(result["pairs"]):
        for row, centring in enumerate(CENTRINGS):
            axis = axes[row, column]
            for line in list(axis.lines):
                line.remove()  # the rank's: here blocks stand on the axis
            parts = [layer[centring][column] for layer in result["layers"].values()]
            styles = (
                ("cross", "across the skills", {"color": MID, "marker": "o"}),
                ("own_a", f"within {set_name(pair['a'])}", {"color": DARK, "marker": "s"}),
                ("own_b", f"within {set_name(pair['b'])}", {"color": LIGHT, "marker": "^", "ls": "--"}),
                ("floor", "random spaces", {"color": _GREEN, "ls": "-."}),
            )
            for name, label, style in styles:
                axis.plot(range(len(parts)), [part[name] for part in parts], label=label, ms=3, **style)
            axis.set_xlabel("block" if row else "")
    _same_height(axes)
    for axis in axes[0]:  # every pair has its own names
        axis.legend(frameon=False, fontsize=7)
    return png_of(figure)
