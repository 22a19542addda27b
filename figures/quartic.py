"""The onset of the utility loss on every case of ``sim.quartic``: the loss, and the loss over the quartic law."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from figures.style import DARK, GREY, LIGHT, MID, figure, png

_COLUMNS = 4
_FLOOR = 1e-300  # a loss that is drawn on a logarithmic axis


def draw(result: dict[str, Any]) -> bytes:
    """quartic.png from the content of quartic.json."""
    cases = result["cases"]
    columns = min(_COLUMNS, len(cases))
    rows = math.ceil(len(cases) / columns)
    size = (3.5 * columns + 0.5, 4.6 * rows + 0.6)
    drawn, axes = figure(2 * rows, columns, size, height_ratios=[3, 2] * rows)
    for i, (name, case) in enumerate(cases.items()):
        row, column = divmod(i, columns)
        _loss(axes[2 * row, column], name, case)
        _ratio(axes[2 * row + 1, column], case)
    for axis in axes.flat:
        axis.set_visible(axis.has_data())
    handles: dict[str, Any] = {}
    for axis in axes.flat:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    drawn.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    drawn.suptitle("Utility loss along gradient flow, and relative to the quartic law", fontsize=12)
    return png(drawn)


def _curves(case: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Times, loss, and the lower and upper bound, NaN where there is none."""
    curve = case["curve"]
    upper = np.array([np.nan if x is None else x for x in curve["upper"]], dtype=float)
    return np.array(curve["t"]), np.array(curve["utility_loss"]), np.array(curve["lower"]), upper


def _loss(axis: Any, name: str, case: dict[str, Any]) -> None:
    t, loss, lower, upper = _curves(case)
    _lines(axis, case, t, loss, lower, upper, over=1.0)
    shown = [loss[loss > 0].min(initial=1.0), case["paper_coefficient"] * t[0] ** 4 or 1.0]
    axis.set_ylim(min(shown) / 5, max(loss.max(), case["paper_coefficient"] * t[-1] ** 4) * 8)
    axis.set_ylabel("utility loss (nats)", fontsize=9)
    if case["crossover"] is not None:
        axis.annotate("$t_c$", (case["crossover"], 0.03), xycoords=("data", "axes fraction"), fontsize=9, color="0.35")
    exponent = "no quartic onset" if case["exponent"] is None else f"exponent {case['exponent']:.3f}"
    axis.set_title(f"{name}: {exponent}", fontsize=10)


def _ratio(axis: Any, case: dict[str, Any]) -> None:
    """The loss over the quartic law, on a linear axis; over t^4 alone where the law is zero."""
    t, loss, lower, upper = _curves(case)
    law, paper = case["predicted_coefficient"], case["paper_coefficient"]
    if law > 0:
        _lines(axis, case, t, loss, lower, upper, over=law * t**4)
        axis.set_yscale("linear")
        axis.set_ylim(0, max(2.0, 1.3 * paper / law))
        axis.set_ylabel("loss over $\\gamma_\\star^2 t^4/8$", fontsize=9)
    else:
        _lines(axis, case, t, loss, lower, upper, over=t**4)
        axis.set_ylim(paper * 1e-30, paper * 10)
        axis.set_ylabel("loss over $t^4$", fontsize=9)
    axis.set_xlabel("time t = learning rate x steps", fontsize=9)


def _lines(
    axis: Any,
    case: dict[str, Any],
    t: np.ndarray,
    loss: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
    over: np.ndarray | float,
) -> None:
    """Measured, predicted and bounding curves, divided by ``over``."""
    law, paper = case["predicted_coefficient"] * t**4, case["paper_coefficient"] * t**4
    if case["predicted_coefficient"] > 0:
        low, high = np.maximum(lower, _FLOOR) / over, upper / over
        axis.fill_between(t, low, high, color=LIGHT, alpha=0.45, lw=0, label="two-sided finite-time law")
    axis.loglog(t, np.where(loss > 0, loss, np.nan) / over, "-", color=DARK, lw=2.2, label="measured")
    axis.loglog(t, paper / over, "--", color=MID, lw=1.4, label="paper: $\\gamma^2 t^4/8$")
    if case["predicted_coefficient"] > 0:
        axis.loglog(t, law / over, "-", color="white", lw=0.9)  # so that the dots show on the measured curve
        axis.loglog(t, law / over, ":", color="black", lw=0.9, label="$\\gamma_\\star^2 t^4/8$")
    if case["leak"] > 0:
        leak = case["leak"] ** 2 * t**2 / 2
        axis.loglog(t, leak / over, "-.", color=GREY, lw=1.3, label="leak: $v^T F v\\,t^2/2$")
    if case["crossover"] is not None:
        axis.axvline(case["crossover"], color=GREY, lw=0.8)
    axis.set_xlim(t[0], t[-1])
