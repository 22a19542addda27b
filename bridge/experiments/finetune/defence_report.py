"""What people see of a defence in a run of `bridge.finetune`: lines of the closing table, and defence.png."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bridge.reports.drawing import DARK, LIGHT, MID, new_figure, png_of
from bridge.reports.numbers import number

# Below this share of the leak, what the gram says is left is 0 but for its own rounding in float64. In float32 the
# weights are left with more, some 1e-5 to 1e-3 of the leak: only a measurement tells (leak_applied).
_ROUNDING = 1e-6


def defence_lines(found: Mapping[str, Any] | None) -> list[tuple[str, str, str]]:
    """Name, value and meaning of what came of a defence (the field `defence` of finetune.json, or None)."""
    if found is None:
        return []
    losses, seen = found["utility_loss"], found["summary"]
    rows = [("defence", found["kind"], _meaning(found))]
    for name, where in (("probe", "of the probe"), ("held_out", "held out")):
        if losses[name] is not None:
            loss = losses[name]
            error = "" if loss["standard_error"] is None else f" ± {number(loss['standard_error'])}"
            meaning = f"nats a response, {loss['responses']} responses to {found['skill']} {where}"
            rows.append((f"utility loss, {name.replace('_', ' ')}", f"{number(loss['mean'])}{error}", meaning))
    rows.append(("loss reached", number(found["loss_reached"]), "mean over all training rows, per response token"))
    if seen["inside"] is not None:
        share = f"{100 * seen['inside']:.3g} %"
        over = f"over the {seen['steps_projected']} projected steps"
        rows.append(("updates inside", share, f"of their squared norm lay in the sensitive subspace, {over}"))
        left = "0" if seen["leak_left"] < _ROUNDING * seen["leak"] else number(seen["leak_left"])
        meaning = (
            f"first-order change of a response's log-probability, before and, by the gram, after projection, {over}"
        )
        rows.append(("leak of an update", f"{number(seen['leak'])} to {left}", meaning))
        if measured := seen["measured"]:
            meaning = f"measured with rounding at {measured['steps']} of these steps, before and after projection"
            ends = f"{number(measured['leak'])} to {number(measured['leak_applied'])}"
            rows.append(("leak as applied", ends, meaning))
    extra = f"{100 * found['extra_share']:.0f} %"
    rows.append(("extra time", f"{number(found['extra_seconds'])} s", f"{extra} of the training without it"))
    return rows


def _meaning(found: Mapping[str, Any]) -> str:
    seen, kind = found["summary"], found["kind"]
    if kind == "none":
        return f"the probe of {found['num_skill']} responses is measured, nothing is projected"
    low, high = seen["rank"] or (0, 0)
    rank = f"rank {low}" if low == high else f"rank {low} to {high}"
    every = "every step" if found["refresh"] == 1 else f"every {found['refresh']} steps"
    text = f"{rank}, of the base" if kind == "static" else f"{rank}, refreshed {every}"
    if kind == "budget":
        text += (
            f"; at most {number(found['max_utility_loss'])} nats: {seen['steps_projected']} of {len(found['steps'])} "
            f"steps projected, {seen['steps_held_back']} shortened"
        )
    return text


def defence_picture(found: Mapping[str, Any]) -> bytes:
    """defence.png: the probe's utility loss over the steps, and the leak of each update before and after."""
    figure, axes = new_figure(1, 2, (10.0, 4.2))
    left, right = axes[0], axes[1]
    measured = [(s["step"], s["utility_loss"]) for s in found["steps"] if s["utility_loss"] is not None]
    last = (len(found["steps"]), found["utility_loss"]["probe"]["mean"])
    points = [(0, 0.0), *(p for p in measured if p[0] < last[0]), last]
    left.plot(*zip(*points, strict=True), "o-", color=DARK, ms=3, lw=1.2, label="probe")
    held = found["utility_loss"]["held_out"]
    if held is not None:
        left.errorbar([last[0]], [held["mean"]], [held["standard_error"] or 0.0], fmt="s", color=MID, label="held out")
    if found["max_utility_loss"] is not None:
        left.axhline(found["max_utility_loss"], color=LIGHT, ls="--", label="budget")
    left.set(xlabel="step", ylabel="utility loss, nats a response", ylim=(0, None))
    left.legend(frameon=False, fontsize=8)
    _draw_leaks(right, [s for s in found["steps"] if s["leak"] is not None])
    for axis in axes:
        axis.xaxis.get_major_locator().set_params(integer=True)
    return png_of(figure)


def _draw_leaks(axis: Any, seen: Sequence[Mapping[str, Any]]) -> None:
    axis.set(xlabel="step", ylabel="leak of the update, nats")
    for name, color, style, label in (
        ("leak", DARK, "o-", "optimizer's update"), ("leak_left", MID, "o-", "left after projection, by the gram"),
        ("leak_applied", LIGHT, "s", "left after projection, measured"),
    ):  # fmt: skip
        values = [(s["step"], s[name]) for s in seen if (s[name] or 0.0) > _ROUNDING * s["leak"]]
        if values:
            axis.plot(*zip(*values, strict=True), style, color=color, ms=3, lw=1.2, label=label)
            axis.set_yscale("log")
    if seen:
        axis.legend(frameon=False, fontsize=8)
    else:
        axis.text(0.5, 0.5, "no update was looked at", ha="center", va="center", transform=axis.transAxes)
