"""The pictures of `bridge.fisher_overlap`, drawn from its result alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.experiments.fisher_overlap.result import Curves, FisherOverlapResult, Pair
from bridge.reports.drawing import DARK, LIGHT, MID, new_figure, png_of
from bridge.reports.numbers import set_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_GREEN = "#4d7c4a"
Values = Sequence[float | None]


def title_of(pair: Pair) -> str:
    """A pair of skills as a person calls it."""
    return f"{set_name(pair.a)} – {set_name(pair.b)}"


def _grid(result: FisherOverlapResult, sharey: str = "") -> tuple[Figure, np.ndarray]:
    """A figure of one column a pair, one row with the mean scores and one without them."""
    columns = len(result.pairs)
    figure, axes = new_figure(2, columns, (max(6.0, 4.2 * columns), 7.2))
    axes = np.array(axes).reshape(2, columns)
    for column, pair in enumerate(result.pairs):
        axes[0, column].set_title(title_of(pair), fontsize=10)
    for row, mean in enumerate(result.pairs[0].by_mean):
        axes[row, 0].set_ylabel(f"{sharey}\nmean scores {mean}")
    for axis in axes.flat:
        axis.axvline(result.rank, color="0.5", lw=1, ls=":")
        axis.xaxis.get_major_locator().set_params(integer=True)
    for axis in axes[1]:
        axis.set_xlabel("d, directions on each side")
    return figure, axes


def _panels(result: FisherOverlapResult, axes: np.ndarray) -> Iterator[tuple[Axes, Pair, Curves]]:
    """Every panel with its pair, and the curves that belong there."""
    for column, pair in enumerate(result.pairs):
        for row, overlap in enumerate(pair.by_mean.values()):
            yield axes[row, column], pair, overlap.at_rank


def _curve(
    axis: Axes, result: FisherOverlapResult, values: Values, band: tuple[Values, Values] | None = None, **style: Any
) -> None:
    """A curve over the ranks, with its interval as a band."""
    axis.plot(result.ranks, _floats(values), **style)
    if band is not None:
        low, high = map(_floats, band)
        axis.fill_between(result.ranks, low, high, color=style["color"], alpha=0.18, lw=0)


def _floats(values: Values) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values])


def overlaps(result: FisherOverlapResult) -> bytes:
    """overlap.png: mode subspace overlap against the rank, with ceiling and floor."""
    figure, axes = _grid(result, "overlap of halves")
    for axis, pair, at in _panels(result, axes):
        own_a, own_b = f"within {set_name(pair.a)}", f"within {set_name(pair.b)}"
        across = {"color": MID, "marker": "o", "ms": 3, "label": "across the skills"}
        _curve(axis, result, at.cross, (at.cross_low, at.cross_high), **across)
        _curve(axis, result, at.own_a, (at.own_a_low, at.own_a_high), color=DARK, label=own_a)
        _curve(axis, result, at.own_b, (at.own_b_low, at.own_b_high), color=LIGHT, ls="--", label=own_b)
        _curve(axis, result, at.overlap, color="0.35", ls=":", label="across, all samples")
        _curve(axis, result, at.floor, color=_GREEN, ls="-.", label="unrelated scores")
    _same_height(axes)
    for axis in axes[0]:  # every pair has its own names
        axis.legend(frameon=False, fontsize=7)
    return png_of(figure)


def _same_height(axes: np.ndarray) -> None:
    """Overlaps from 0 to the largest that is drawn, the same in every panel."""
    lines = [line for axis in axes.flat for line in axis.lines if not line.get_label().startswith("_")]
    drawn = [np.nanmax(line.get_ydata(), initial=0.0) for line in lines]
    top = min(1.02, 1.3 * max([*drawn, 0.01]))
    for axis in axes.flat:
        axis.set_ylim(-0.02 * top, top)


def relative(result: FisherOverlapResult) -> bytes:
    """relative.png: the relative overlap against the rank."""
    figure, axes = _grid(result, "relative overlap")
    for axis, pair, at in _panels(result, axes):
        a, b = f"trace of {set_name(pair.a)}", f"trace of {set_name(pair.b)}"
        ends = (at.relative_low, at.relative_high)
        _curve(axis, result, at.relative, ends, color=MID, marker="o", ms=3, label="directions")
        ends = (at.relative_b_in_a_low, at.relative_b_in_a_high)
        _curve(axis, result, at.relative_b_in_a, ends, color=DARK, label=b)
        ends = (at.relative_a_in_b_low, at.relative_a_in_b_high)
        _curve(axis, result, at.relative_a_in_b, ends, color=LIGHT, ls="--", label=a)
        for level, text in ((0.0, "unrelated"), (1.0, "one skill")):
            axis.axhline(level, color="0.5", lw=1, ls="-.")
            axis.annotate(text, (result.ranks[0], level), xytext=(0, 2), textcoords="offset points", fontsize=7)
        axis.set_ylim(-0.2, 1.4)
    for axis in axes[0]:  # every pair has its own names
        axis.legend(frameon=False, fontsize=7)
    return png_of(figure)


def energies(result: FisherOverlapResult) -> bytes:
    """energy.png: the share of one skill's Fisher trace inside the other's subspace, against the rank."""
    figure, axes = _grid(result, "share of the trace")
    for axis, pair, at in _panels(result, axes):
        a, b = set_name(pair.a), set_name(pair.b)
        across_b = {"color": DARK, "ls": "--", "marker": "o", "ms": 3, "label": f"{b} in {a}"}
        across_a = {"color": MID, "ls": "--", "marker": "s", "ms": 3, "label": f"{a} in {b}"}
        _curve(axis, result, at.b_in_b, (at.b_in_b_low, at.b_in_b_high), color=DARK, label=f"{b} in its own, held out")
        _curve(axis, result, at.b_in_a, (at.b_in_a_low, at.b_in_a_high), **across_b)
        _curve(axis, result, at.a_in_a, (at.a_in_a_low, at.a_in_a_high), color=MID, label=f"{a} in its own, held out")
        _curve(axis, result, at.a_in_b, (at.a_in_b_low, at.a_in_b_high), **across_a)
        _curve(axis, result, at.random_in_a, color=_GREEN, ls="-.", label="random space")
        axis.set_ylim(0, None)
        axis.legend(frameon=False, fontsize=6)
    return png_of(figure)


def blocks(result: FisherOverlapResult) -> bytes:
    """blocks.png: the overlap across and within skills, block by block, at the rank of the verdict."""
    figure, axes = _grid(result, f"overlap of halves, d = {result.rank}")
    for column, pair in enumerate(result.pairs):
        for row, mean in enumerate(pair.by_mean):
            axis = axes[row, column]
            for line in list(axis.lines):
                line.remove()  # the rank's: here blocks stand on the axis
            parts = [layer.by_mean[mean][column] for layer in result.layers.values()]
            own_a, own_b = f"within {set_name(pair.a)}", f"within {set_name(pair.b)}"
            order = range(len(parts))
            axis.plot(order, [p.cross for p in parts], ms=3, color=MID, marker="o", label="across the skills")
            axis.plot(order, [p.own_a for p in parts], ms=3, color=DARK, marker="s", label=own_a)
            axis.plot(order, [p.own_b for p in parts], ms=3, color=LIGHT, marker="^", ls="--", label=own_b)
            axis.plot(order, [p.floor for p in parts], ms=3, color=_GREEN, ls="-.", label="random spaces")
            axis.set_xlabel("block" if row else "")
    _same_height(axes)
    for axis in axes[0]:  # every pair has its own names
        axis.legend(frameon=False, fontsize=7)
    return png_of(figure)
