"""What people see of a defence in a run of `bridge.finetune`: lines of the closing table, and defence.png."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bridge.experiments.finetune.result import DefenceResult
from bridge.reports.drawing import DARK, LIGHT, MID, new_figure, png_of
from bridge.reports.numbers import number
from bridge.training.defences.record import StepRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Below this share of the leak, what the gram says is left is 0 but for its own rounding in float64. In float32 the
# weights are left with more, some 1e-5 to 1e-3 of the leak: only a measurement tells (leak_applied).
_ROUNDING = 1e-6


def defence_lines(found: DefenceResult | None) -> list[tuple[str, str, str]]:
    """Name, value and meaning of what came of a defence."""
    if found is None:
        return []
    losses = {
        "probe": (found.utility_loss.probe, "of the probe"),
        "held out": (found.utility_loss.held_out, "held out"),
    }
    rows: list[tuple[str, str, str]] = [("defence", found.kind, _meaning(found))]
    for name, (loss, where) in losses.items():
        if loss is not None:
            error = "" if loss.standard_error is None else f" ± {number(loss.standard_error)}"
            meaning = f"nats a response, {loss.responses} responses to {found.skill} {where}"
            rows.append((f"utility loss, {name}", f"{number(loss.mean)}{error}", meaning))
    rows.append(("loss reached", number(found.loss_reached), "mean over all training rows, per response token"))
    rows += _leak_lines(found)
    extra = f"{100 * found.extra_share:.0f} %"
    return [*rows, ("extra time", f"{number(found.extra_seconds)} s", f"{extra} of the training without it")]


def _leak_lines(found: DefenceResult) -> list[tuple[str, str, str]]:
    """Say how much of the updates was sensitive, and what the projection left of it."""
    seen = found.summary
    if seen.inside is None or seen.leak is None or seen.leak_left is None:
        return []
    over = f"over the {seen.steps_projected} projected steps"
    left = "0" if seen.leak_left < _ROUNDING * seen.leak else number(seen.leak_left)
    meaning = f"first-order change of a response's log-probability, before and, by the gram, after projection, {over}"
    rows = [
        (
            "updates inside",
            f"{100 * seen.inside:.3g} %",
            f"of their squared norm lay in the sensitive subspace, {over}",
        ),
        ("leak of an update", f"{number(seen.leak)} to {left}", meaning),
    ]
    if measured := seen.measured:
        meaning = f"measured with rounding at {measured.steps} of these steps, before and after projection"
        rows.append(("leak as applied", f"{number(measured.leak)} to {number(measured.leak_applied)}", meaning))
    return rows


def _meaning(found: DefenceResult) -> str:
    seen, kind = found.summary, found.kind
    if kind == "none":
        return f"the probe of {found.num_skill} responses is measured, nothing is projected"
    low, high = seen.rank or (0, 0)
    rank = f"rank {low}" if low == high else f"rank {low} to {high}"
    every = "every step" if found.refresh == 1 else f"every {found.refresh} steps"
    text = f"{rank}, of the base" if kind == "static" else f"{rank}, refreshed {every}"
    if kind == "budget":
        text += (
            f"; at most {number(found.max_utility_loss)} nats: {seen.steps_projected} of {len(found.steps)} "
            f"steps projected, {seen.steps_held_back} shortened"
        )
    return text


def defence_picture(found: DefenceResult) -> bytes:
    """defence.png: the probe's utility loss over the steps, and the leak of each update before and after."""
    figure, axes = new_figure(1, 2, (10.0, 4.2))
    left, right = axes[0], axes[1]
    measured = [(step.step, step.utility_loss) for step in found.steps if step.utility_loss is not None]
    last = (len(found.steps), found.utility_loss.probe.mean)
    points = [(0, 0.0), *(p for p in measured if p[0] < last[0]), last]
    left.plot(*zip(*points, strict=True), "o-", color=DARK, ms=3, lw=1.2, label="probe")
    held = found.utility_loss.held_out
    if held is not None:
        left.errorbar([last[0]], [held.mean], [held.standard_error or 0.0], fmt="s", color=MID, label="held out")
    if found.max_utility_loss is not None:
        left.axhline(found.max_utility_loss, color=LIGHT, ls="--", label="budget")
    left.set(xlabel="step", ylabel="utility loss, nats a response", ylim=(0, None))
    left.legend(frameon=False, fontsize=8)
    _draw_leaks(right, [step for step in found.steps if step.leak is not None])
    for axis in axes:
        axis.xaxis.get_major_locator().set_params(integer=True)
    return png_of(figure)


def _draw_leaks(axis: Axes, seen: Sequence[StepRecord]) -> None:
    axis.set(xlabel="step", ylabel="leak of the update, nats")
    of_steps = (
        ([step.leak for step in seen], DARK, "o-", "optimizer's update"),
        ([step.leak_left for step in seen], MID, "o-", "left after projection, by the gram"),
        ([step.leak_applied for step in seen], LIGHT, "s", "left after projection, measured"),
    )
    for leaks, color, style, label in of_steps:
        pairs = zip(seen, leaks, strict=True)
        values = [(step.step, leak) for step, leak in pairs if leak and leak > _ROUNDING * (step.leak or 0.0)]
        if values:
            axis.plot(*zip(*values, strict=True), style, color=color, ms=3, lw=1.2, label=label)
            axis.set_yscale("log")
    if seen:
        axis.legend(frameon=False, fontsize=8)
    else:
        axis.text(0.5, 0.5, "no update was looked at", ha="center", va="center", transform=axis.transAxes)
