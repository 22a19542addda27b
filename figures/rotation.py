"""The turn of the sensitive subspace on every case of ``sim.rotation``, and below it what the turn does.

Below: the drift of Theorem B.3 over t^2 where the loss bends the path, the two eigenvalues where they meet.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from figures.style import DARK, GREY, LIGHT, MID, figure, png, reference_slope

_STYLES = {
    "proposition": ("Proposition B.1: $2 L_F\\,|\\theta-\\theta^*| / \\Lambda$", MID, "--", 1.6),
    "davis_kahan": ("$2 e / \\Lambda$,  $e = |F - F^*|$", GREY, "-.", 1.6),
    "sharp": ("sharp: $\\sin(\\arcsin(2e/\\Lambda)/2)$", LIGHT, "-", 4.0),
}


def draw(result: dict[str, Any]) -> bytes:
    """rotation.png from the content of rotation.json."""
    cases = result["cases"]
    drawn, axes = figure(2, len(cases), (3.3 * len(cases) + 0.6, 6.4))
    for (above, below), (name, case) in zip(axes.T, cases.items(), strict=True):
        bends = case["drift"]["coupling"] > 0
        _turn(above, name, case, logarithmic=bends and case["largest_ratio"]["sharp"] is not None)
        (_drift if bends else _eigenvalues)(below, case)
    handles: dict[str, Any] = {}
    for axis in axes.flat:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    drawn.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    drawn.suptitle("How far the sensitive subspace turns along gradient flow, and how far it may", fontsize=12)
    return png(drawn)


def _turn(axis: Any, name: str, case: dict[str, Any], *, logarithmic: bool) -> None:
    curve = case["curve"]
    t = np.array(curve["t"])
    for key, (label, color, dashes, width) in _STYLES.items():
        axis.plot(t, curve[key], dashes, color=color, lw=width, label=label)
    axis.plot(t, curve["rotation"], "-", color=DARK, lw=1.6, label="measured: $|P(\\theta(t)) - P(\\theta^*)|$")
    axis.axhline(1.0, color="black", lw=0.6)
    if logarithmic:
        axis.set(xscale="log", yscale="log", xlim=(t[0], t[-1]))
        largest = max(curve["proposition"][-1], 1.0)
        axis.set_ylim(min(curve["rotation"][0], curve["sharp"][0]) / 3, largest * 3)
        axis.annotate("1: no bound", (t[0] * 1.3, 1.15), fontsize=8, color="0.35", va="bottom")
        reference_slope(axis, 1, (t[-1] / 8, curve["sharp"][0] / t[0] * t[-1] / 60), (0.3, 3))
    else:
        axis.set(xlim=(0, t[-1]), ylim=(0, 2.05))
        axis.annotate("1: no bound", (t[-1] * 0.03, 1.03), fontsize=8, color="0.35", va="bottom")
    ratio = case["largest_ratio"]["sharp"]
    axis.set_title(f"{name}: {'no turn' if ratio is None else f'at most {ratio:.3f} x sharp bound'}", fontsize=10)
    axis.set_ylabel("distance of the projectors", fontsize=9)
    axis.set_xlabel("time t = learning rate x steps", fontsize=9)


def _drift(axis: Any, case: dict[str, Any]) -> None:
    curve, law = case["curve"], case["drift"]
    t = np.array(curve["t"])
    axis.axhspan(-1e3, 0, color=GREY, alpha=0.15, lw=0)
    axis.semilogx(t, np.array(curve["drift"]) / t**2, "-", color=DARK, lw=2, label="below: drift / $t^2$")
    utility = np.sqrt(2 * np.maximum(np.array(curve["utility_loss"]), 0)) / t**2
    axis.plot(t, utility, "--", color="0.3", lw=1.3, label="below: $\\sqrt{2\\,\\mathrm{utility\\ loss}}$ / $t^2$")
    axis.axhline(law["coupling"] / 2, color=GREY, ls="-.", lw=1.4, label="below: $\\gamma/2$")
    axis.axhline(law["sharp_bound"], color=LIGHT, ls="-", lw=2.5, label="below: $\\gamma/2 - \\rho$, sharp")
    axis.axhline(law["bound"], color=MID, ls=":", lw=1.8, label="below: $\\gamma/2 - \\rho$, paper")
    shown = [law["bound"], law["coupling"] / 2, law["rate"], law["onset_coefficient"] / 2, float(utility.max())]
    margin = 0.12 * (max(shown) - min(shown))
    axis.set(xlim=(t[0], t[-1]), ylim=(min(shown) - margin, max(shown) + margin))
    axis.annotate("below 0: no bound", (0.03, 0.03), xycoords="axes fraction", fontsize=8, color="0.35")
    axis.set_ylabel("over $t^2$", fontsize=9)
    axis.set_xlabel("time t = learning rate x steps", fontsize=9)


def _eigenvalues(axis: Any, case: dict[str, Any]) -> None:
    t, values = np.array(case["curve"]["t"]), np.array(case["curve"]["eigenvalues"])
    axis.plot(t, values[:, 0], "-", color=DARK, lw=1.8, label="below: $\\lambda_d$")
    axis.plot(t, values[:, 1], ls=(0, (2, 1)), color=DARK, lw=1.8, label="below: $\\lambda_{d+1}$")
    axis.set(xlim=(0, t[-1]))
    axis.margins(y=0.2)
    axis.set_ylabel("eigenvalue of the Fisher matrix", fontsize=9)
    axis.set_xlabel("time t = learning rate x steps", fontsize=9)
