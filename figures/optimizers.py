"""Optimisers of ``sim.optimizers``: utility loss over t^4, where leak and onset part, and what a sign step leaks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from figures.style import DARK, GREY, LIGHT, MID, figure, png

_REFERENCE = "gradient flow"
_SHADES = (MID, LIGHT, "black", GREY)
_DASHES: tuple[Any, ...] = ("--", ":", "-.", (0, (6, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)), (0, (10, 3)))
_LOUD = 10.0  # times the smallest leak: an optimiser that makes its own


def draw(result: dict[str, Any]) -> bytes:
    """optimizers.png from the content of optimizers.json."""
    found = result["optimizers"]
    least = min(one["leak"] for one in found.values())
    loud = {name: one for name, one in found.items() if one["leak"] > _LOUD * least}
    quiet = {name: one for name, one in found.items() if name not in loud and name != _REFERENCE}
    drawn, (axes,) = figure(1, 3, (14.5, 4.6))
    _curves(axes[0], quiet, found[_REFERENCE], "updates that leak as little as the gradient")
    _curves(axes[1], loud, found[_REFERENCE], "updates that leak by themselves")
    _sign_steps(axes[2], result["sign_step"])
    return png(drawn)


def _curves(axis: Any, found: dict[str, Any], reference: dict[str, Any], title: str) -> None:
    lines: list[tuple[str, dict[str, Any], dict[str, Any]]]
    lines = [(_REFERENCE, reference, {"color": DARK, "ls": "-", "lw": 2.0})]
    for i, (name, one) in enumerate(found.items()):
        lines.append((name, one, {"color": _SHADES[i % len(_SHADES)], "ls": _DASHES[i % len(_DASHES)], "lw": 1.6}))
    for name, one, style in lines:
        t, loss = np.array(one["curve"]["t"]), np.array(one["curve"]["utility_loss"])
        seen = loss > 0
        axis.loglog(t[seen], loss[seen] / t[seen] ** 4, label=name, **style)
        if one["crossover"] is not None:
            height = np.exp(np.interp(np.log(one["crossover"]), np.log(t[seen]), np.log(loss[seen] / t[seen] ** 4)))
            axis.plot(one["crossover"], height, "o", color=style["color"], ms=5, mfc="white")
    axis.plot([], [], "o", color=GREY, ms=5, mfc="white", label="crossover")
    _quadratic(axis, lines)
    axis.set(xlabel="time t = learning rate x steps", ylabel="utility loss / t$^4$ (nats)")
    axis.set_title(title, fontsize=10)
    axis.legend(frameon=False, fontsize=8, loc="upper right")


def _quadratic(axis: Any, lines: list[tuple[str, dict[str, Any], dict[str, Any]]]) -> None:
    """A reference for what the leak does: u ~ t^2 is a slope of -2 here, u ~ t^4 is level."""
    curve = lines[0][1]["curve"]
    t, loss = curve["t"][0], curve["utility_loss"][0]
    if loss <= 0:
        return
    height = loss / t**4 / 8
    axis.plot([t, 8 * t], [height, height / 64], ":", color=GREY, lw=1.2)
    axis.annotate("$t^2$", (t * 2.0, height / 20), color="0.35", fontsize=8, ha="right", va="top")


def _sign_steps(axis: Any, steps: list[dict[str, Any]]) -> None:
    n = [one["dimension"] for one in steps]
    axis.errorbar(
        n,
        [one["share"] for one in steps],
        [2 * one["standard_error"] for one in steps],
        fmt="o",
        color=DARK,
        capsize=3,
        label="measured, 2 standard errors",
    )
    axis.plot(n, [one["predicted_share"] for one in steps], "x", color=MID, ms=9, mew=1.8, label="arcsine law")
    axis.axhline(1 - 2 / math.pi, ls="--", color=GREY, lw=1.2, label="$1 - 2/\\pi$")
    axis.axhline(1, ls=":", color="black", lw=1.2, label="a random direction")
    axis.axhline(0, ls="-", color=LIGHT, lw=1.2, label="the gradient itself")
    axis.set_xscale("log", base=2)
    axis.set_xticks(n, [str(x) for x in n])
    axis.set_ylim(-0.05, 1.5)
    axis.set(xlabel="number of parameters n", ylabel="overlap energy of the update / chance d/n")
    axis.set_title(f"Adam's first step, sensitive subspace of rank {steps[0]['rank']}", fontsize=10)
    axis.legend(frameon=False, fontsize=8, loc="upper right", ncols=2)
