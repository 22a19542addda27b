"""Defences on the problems of ``sim.defenses``: utility and fine-tuning loss against time, and the refresh law."""

from __future__ import annotations

from typing import Any

import numpy as np

from figures.style import DARK, GREY, LIGHT, MID, figure, png, reference_slope

_FLOOR = 1e-34  # of a drawn loss: 0 has no logarithm
_ROUNDING = 1e-24  # of the parameters, seen as a utility loss
_STYLES: dict[str, dict[str, Any]] = {
    "none": {"color": DARK, "ls": "-", "lw": 2.2},
    "static": {"color": MID, "ls": "--", "lw": 1.8},
    "tracked": {"color": "black", "ls": ":", "lw": 1.8},
}
_REGION_DASHES = ((0, (6, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 3)))
_MARKERS = "os^Dvx"


def draw(result: dict[str, Any]) -> bytes:
    """defenses.png from the content of defenses.json."""
    problems = result["problems"]
    drawn, axes = figure(2, len(problems) + 1, (3.5 * (len(problems) + 1) + 0.3, 6.6))
    for (above, below), (name, problem) in zip(axes.T[:-1], problems.items(), strict=True):
        _problem(above, below, name, problem)
    handles: dict[str, Any] = {}
    for axis in axes[0, :-1]:
        handles |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    laws = {name: p["refresh_law"] for name, p in problems.items() if p["refresh_law"]}
    _refresh_law(axes[0, -1], laws)
    axes[1, -1].set_axis_off()
    axes[1, -1].legend(handles.values(), handles.keys(), loc="center left", frameon=False, fontsize=9)
    drawn.suptitle("What defences keep, and what they cost", fontsize=12)
    return png(drawn)


def _problem(above: Any, below: Any, name: str, problem: dict[str, Any]) -> None:
    lines = [(style_of(label, i), label, found) for i, (label, found) in enumerate(problem["defenses"].items())]
    ends = (problem["tracked_descent"][0], problem["tracked_descent"][-1])
    for found, shade in zip({e["refresh"]: e for e in ends}.values(), (LIGHT, GREY), strict=False):
        lines.append(({"color": shade, "ls": "-", "lw": 1.1}, f"tracked descent, R = {found['refresh']}", found))
    for style, label, found in lines:
        curve = found["curve"]
        t, utility = np.array(curve["t"]), np.array(curve["utility_loss"])
        above.loglog(t, np.maximum(utility, _FLOOR), label=label, **style)
        below.plot(t, curve["fine_tuning_loss"], **style)
    largest = max(found["largest_utility_loss"] for *_, found in lines)
    start = problem["defenses"]["none"]["curve"]["t"][0]
    end = problem["defenses"]["none"]["end"]["t"]
    above.set_ylim(_FLOOR / 3, largest * 1e4)
    above.set_xlim(start, end * 1.6)
    below.set_xlim(0, end * 1.03)
    for power, above_end in ((4, 300.0), (2, 1e-14)):
        reference_slope(above, power, (end / 10, largest * above_end / 10**power), (0.3, 7))
    above.axhspan(_FLOOR / 3, _ROUNDING, color=GREY, alpha=0.15, lw=0)
    above.annotate("rounding", (start * 1.3, _ROUNDING / 300), fontsize=8, color="0.35")
    above.set_title(f"{name}: rank of F {'constant' if problem['constant_rank'] else 'not constant'}", fontsize=10)
    above.set(xlabel="time t = learning rate x steps", ylabel="utility loss (nats)")
    below.set(xlabel="time t = learning rate x steps", ylabel="fine-tuning loss, from its start")


def style_of(defence: str, index: int) -> dict[str, Any]:
    """The line of a defence: the same in every picture."""
    dashes = _REGION_DASHES[(index - len(_STYLES)) % len(_REGION_DASHES)]
    return _STYLES.get(defence) or {"color": LIGHT, "ls": dashes, "lw": 2.0}


def _refresh_law(axis: Any, laws: dict[str, list[dict[str, Any]]]) -> None:
    if not laws:
        axis.set_axis_off()
        return
    for (name, law), marker in zip(laws.items(), _MARKERS, strict=False):
        shares = np.array([one["refresh"] / one["steps"] for one in law])
        axis.loglog(shares, [one["predicted"] for one in law], "--", color=GREY, lw=1.2)
        axis.loglog(shares, [one["measured"] for one in law], marker, color=DARK, ms=5, mfc="none", label=name)
    axis.plot([], [], "--", color=GREY, lw=1.2, label="$T^4 (R/K)^2\\,E[h^2]/8$")
    axis.legend(frameon=False, fontsize=8, loc="upper left")
    one = next(iter(laws.values()))[0]
    axis.margins(y=0.25)
    axis.set_title(f"refresh law at T = {one['horizon']:g}, K = {one['steps']}", fontsize=10)
    axis.set(xlabel="share R/K of steps between refreshes", ylabel="utility loss (nats)")
