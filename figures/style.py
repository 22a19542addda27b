"""How every picture looks: readable in greyscale, on paper and on a screen."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DARK, MID, LIGHT = "#1b1b3a", "#b3541e", "#7a9cc6"  # of different lightness, so that grey keeps them apart
GREY = "0.55"


def figure(rows: int, columns: int, size: tuple[float, float], **options: Any) -> tuple[Figure, Any]:
    """A figure without a display, and its axes as an array of shape (rows, columns)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(drawn)
    axes = drawn.subplots(rows, columns, squeeze=False, **options)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    return drawn, axes


def png(drawn: Figure) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def reference_slope(axis: Axes, power: int, through: tuple[float, float], reach: tuple[float, float]) -> None:
    """A dotted line ``~ t^power`` through a point, labelled with its power."""
    x, y = through
    ends = [x * reach[0], x * reach[1]]
    heights = [y * reach[0] ** power, y * reach[1] ** power]
    axis.plot(ends, heights, ":", color=GREY, lw=1.2)
    axis.annotate(f"$t^{power}$", (ends[1], heights[1]), color="0.35", fontsize=8, ha="left", va="center")
