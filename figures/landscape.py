"""The valley of ``sim.landscape`` seen from above, with the paths of four updates, and their losses against time."""

from __future__ import annotations

from typing import Any

import numpy as np

from figures.style import DARK, GREY, LIGHT, MID, figure, png, reference_slope

_STYLES: dict[str, dict[str, Any]] = {
    "gradient flow": {"color": DARK, "ls": "-", "lw": 2.4, "marker": "o"},
    "static projection": {"color": "0.45", "ls": "-", "lw": 4.0, "marker": "s"},
    "straight line": {"color": "black", "ls": "--", "lw": 1.5, "marker": "x"},
    "tracked projection": {"color": "black", "ls": ":", "lw": 2.2, "marker": "^"},
}
_MARKED = 4  # equal times that are marked on every path
_FLOOR = 1e-24  # the parameters' rounding, seen as a utility loss


def draw(result: dict[str, Any]) -> bytes:
    """landscape.png from the content of landscape.json."""
    drawn, axes = figure(1, 2, (13.5, 6.2), width_ratios=[1.25, 1])
    _map(drawn, axes[0, 0], result)
    _losses(axes[0, 1], result)
    drawn.suptitle("A path that starts along the valley, and leaves", fontsize=12)
    return png(drawn)


def _map(drawn: Any, axis: Any, result: dict[str, Any]) -> None:
    from matplotlib.patheffects import Normal, Stroke

    grid = result["grid"]
    depth = np.sqrt(2 * np.array(grid["utility_loss"]))
    filled = axis.contourf(grid["x"], grid["y"], depth, levels=14, cmap="Greys", vmax=1.7 * depth.max())
    axis.contour(
        grid["x"],
        grid["y"],
        grid["fine_tuning_loss"],
        levels=10,
        linestyles="dashed",
        colors=MID,
        linewidths=0.6,
        alpha=0.7,
    )
    bar = drawn.colorbar(filled, ax=axis, shrink=0.8, pad=0.02)
    bar.set_label("$\\sqrt{2\\,\\mathrm{utility\\ loss}}$: distance in the policy (nats$^{1/2}$)", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    axis.plot(
        result["valley"]["x"],
        result["valley"]["y"],
        "-",
        color=LIGHT,
        lw=7,
        alpha=0.8,
        label="valley floor: no utility loss",
    )
    outline = [Stroke(linewidth=5, foreground="white"), Normal()]
    for name, style in _STYLES.items():
        curve = result["paths"][name]["curve"]
        effects = outline if name == "gradient flow" else None
        axis.plot(
            curve["x"], curve["y"], **style, ms=7, markevery=_marked(curve["t"]), path_effects=effects, label=name
        )
    axis.plot([], [], "--", color=MID, lw=0.8, label="level lines of the fine-tuning loss")
    axis.plot(0, 0, "*", color="black", ms=14, mec="white", zorder=5)
    axis.annotate("$\\theta^*$", (0, 0), xytext=(12, -12), textcoords="offset points", fontsize=12)
    axis.set(xlim=(grid["x"][0], grid["x"][-1]), ylim=(grid["y"][0], grid["y"][-1]))
    axis.set(xlabel="x: the sharp direction (parameter units)", ylabel="y: the flat direction (parameter units)")
    axis.set_title(f"markers every {result['paths']['gradient flow']['end']['t'] / _MARKED:g} of t", fontsize=10)
    axis.legend(loc="lower left", fontsize=8, framealpha=0.9)


def _marked(times: list[float]) -> list[int]:
    t = np.array(times)
    return [int(np.argmin(np.abs(t - share * t[-1]))) for share in np.arange(1, _MARKED + 1) / _MARKED]


def _losses(axis: Any, result: dict[str, Any]) -> None:
    largest = _FLOOR * 1e3  # where no path loses anything
    for name, style in _STYLES.items():
        path = result["paths"][name]
        t, loss = np.array(path["curve"]["t"]), np.array(path["curve"]["utility_loss"])
        line = {k: v for k, v in style.items() if k != "marker"}
        exponent = ": 0" if path["coefficient"] is None else f": {path['coefficient']:.3g} $t^4$"
        axis.loglog(t, np.maximum(loss, _FLOOR / 10), **line, label=f"{name}{exponent}")
        largest = max(largest, float(loss.max()))
    flow = result["paths"]["gradient flow"]
    paper = flow["paper_coefficient"] * t**4
    axis.plot(
        t, paper, "-.", color=GREY, lw=1.3, label=f"paper: $\\gamma^2 t^4/8$ = {flow['paper_coefficient']:.3g} $t^4$"
    )
    axis.axhspan(_FLOOR / 100, _FLOOR, color=GREY, alpha=0.2, lw=0)
    axis.annotate("rounding", (t[0] * 1.3, _FLOOR * 1.5), fontsize=8, color="0.35")
    reference_slope(axis, 4, (t[-1] / 10, largest * 1e-6), (0.3, 5))
    axis.set(xlim=(t[0], t[-1] * 1.1), ylim=(_FLOOR / 100, largest * 10))
    axis.set(xlabel="time t = learning rate x steps", ylabel="utility loss (nats)")
    axis.set_title("Utility loss", fontsize=10)
    axis.legend(frameon=False, fontsize=8.5, loc="center right", bbox_to_anchor=(1.0, 0.3))
