"""Random directions of ``sim.null_model``: the law of their overlap, its tails, and the utility that they cost."""

from __future__ import annotations

from typing import Any

import numpy as np

from figures.style import DARK, GREY, LIGHT, MID, figure, png

_SHADES = (DARK, MID, LIGHT, "0.5")
_DASHES = ("-", "--", "-.", ":")
_MARKERS = "os^D"


def draw(result: dict[str, Any]) -> bytes:
    """null_model.png from the content of null_model.json."""
    drawn, axes = figure(1, 3, (15, 4.8))
    for i, found in enumerate(result["overlap"]):
        style = {"color": _SHADES[i % 4], "marker": _MARKERS[i % 4]}
        _law(axes[0, 0], found, style, _DASHES[i % 4])
        _tails(axes[0, 1], found, style, _DASHES[i % 4])
    _label_overlap(axes[0, 0], axes[0, 1])
    _cost(axes[0, 2], result)
    drawn.suptitle("Random fine-tuning directions (Theorem 4.1)", fontsize=12)
    return png(drawn)


def _law(axis: Any, found: dict[str, Any], style: dict[str, Any], dashes: str) -> None:
    energy = np.array(found["curve"]["energy"]) / found["predicted_mean"]
    every = slice(None, None, 8)
    axis.plot(energy, found["curve"]["exact"], dashes, color=style["color"], lw=1.3)
    label = f"n = {found['dimension']}, d = {found['rank']}"
    axis.plot(
        energy[every], np.array(found["curve"]["measured"])[every], ls="none", ms=4, mfc="none", label=label, **style
    )


def _tails(axis: Any, found: dict[str, Any], style: dict[str, Any], dashes: str) -> None:
    tails = found["deviations"]
    eps, measured = np.array(tails["eps"]), np.array(tails["measured"])
    axis.semilogy(eps, tails["exact"], dashes, color=style["color"], lw=1.3)
    axis.semilogy(eps, np.where(measured > 0, measured, np.nan), ls="none", ms=4, mfc="none", **style)
    bound = np.array(tails["chernoff"])
    if bound.min() < 1:
        axis.semilogy(eps, np.where(bound < 1, bound, np.nan), dashes, color=style["color"], lw=3.5, alpha=0.35)


def _label_overlap(law: Any, tails: Any) -> None:
    law.plot([], [], "-", color=GREY, lw=1.3, label="exact Beta law")
    law.legend(frameon=False, fontsize=8, loc="lower right")
    law.set(xlim=(0, 4), ylim=(0, 1.02), xlabel="energy |P g|$^2$ over chance d/n", ylabel="share of directions below")
    law.set_title("Overlap of random directions", fontsize=10)
    tails.plot([], [], "o", color=GREY, ms=4, mfc="none", label="measured")
    tails.plot([], [], "-", color=GREY, lw=1.3, label="exact Beta law")
    tails.plot([], [], "-", color=GREY, lw=3.5, alpha=0.35, label="bound 2 exp(-c eps$^2$ d), where below 1")
    tails.legend(frameon=False, fontsize=8, loc="lower left")
    tails.set(
        xlim=(0, 1), ylim=(1e-6, 2), xlabel="relative deviation eps from d/n", ylabel="probability of a larger one"
    )
    tails.set_title("Tails (Lemma A.3)", fontsize=10)


def _cost(axis: Any, result: dict[str, Any]) -> None:
    by_tail: dict[float, list[dict[str, Any]]] = {}
    for found in result["utility_loss"]:
        by_tail.setdefault(found["tail"], []).append(found)
    for i, (tail, rows) in enumerate(by_tail.items()):
        n, mean = np.array([r["dimension"] for r in rows]), np.array([r["mean"] for r in rows])
        label = "F = I" if tail == 1 else f"tail eigenvalues {tail:g}"
        axis.loglog(n, mean, ls=_DASHES[i % 4], marker=_MARKERS[i % 4], color=_SHADES[i % 4], ms=6, lw=1.4, label=label)
    rows = by_tail[min(by_tail)]
    n, claim = np.array([r["dimension"] for r in rows]), np.array([r["claim"] for r in rows])
    axis.fill_between(
        n, claim, claim / 1e9, color=GREY, alpha=0.2, lw=0, label="allowed by Theorem 4.1 (2), as printed"
    )
    if len(n) > 1:
        axis.plot(n, rows[0]["mean"] / 20 * n[0] / n, ":", color=GREY, lw=1.2)
        axis.annotate("~ 1/n", (n[0], rows[0]["mean"] / 40), fontsize=8, color="0.35", va="top")
    axis.set_ylim(claim.min() / 1e3, max(r["mean"] for r in result["utility_loss"]) * 100)
    axis.legend(frameon=False, fontsize=8, loc="upper right")
    axis.set(xlabel="dimension n", ylabel="utility loss (nats), mean over directions")
    axis.set_title(f"Utility loss of a step of {result['step']:g}, d = {rows[0]['rank']}", fontsize=10)
