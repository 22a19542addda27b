"""The table, the pictures and the page of `bridge.overlap`, drawn from its result alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bridge.experiments.overlap.result import ChangeOverlap, OverlapResult
from bridge.experiments.overlap.settings import Settings
from bridge.reports.console import print_tables
from bridge.reports.drawing import DARK, LIGHT, MID, new_figure, png_of
from bridge.reports.numbers import number
from bridge.reports.pages import write_page
from bridge.reports.results import pictures_of, tables_of
from bridge.reports.tables import Table
from commands.store import Folder

_STYLES = ((DARK, "o"), (MID, "s"), (LIGHT, "^"), ("#4d7c4a", "D"), ("0.35", "v"), ("#8a4f7d", "P"), ("#b8a13a", "X"))


def print_result(result: OverlapResult, folder: Folder) -> None:
    """Print the closing table to standard output, and where the report is."""
    print_tables(tables(result), readings(result), width=190)
    print(f"\n{folder.path / 'report.html'}")


HEADINGS = (
    "change", "kind", "|ΔW|", "score ΔWᵀFΔW", "95 % interval", "per |ΔW|²", "× random", "between modules",
    "exact over tokens, ½",
)  # fmt: skip


@tables_of.register
def tables(result: OverlapResult) -> list[Table]:
    """The closing table, a row a change."""
    changes = list(result.deltas.values())
    optional: dict[str, Callable[[ChangeOverlap], str]] = {}
    if any(change.utility_loss for change in changes):
        optional["utility loss measured"] = _utility_loss
    if any(change.refusals for change in changes):
        optional["refusals"] = _refusals
    if any(change.rademacher for change in changes):
        optional["by random signs"] = _random_signs
    rows = [
        [*_cells(label, change), *(cell(change) for cell in optional.values())]
        for label, change in result.deltas.items()
    ]
    samples = f"{result.fisher} Fisher, {result.num_samples} samples"
    return [Table(f"{result.model}: overlap with {result.skill} ({samples})", (*HEADINGS, *optional), rows, words=2)]


def _cells(label: str, change: ChangeOverlap) -> list[str]:
    """What stands in every table, in the order of the headings."""
    joint, ends, share = change.joint, change.joint.intervals.get("raw"), change.cross_module_share
    return [
        label,
        change.kind,
        number(math.sqrt(change.squared_norm)),
        number(joint.raw),
        f"{number(ends[0])} … {number(ends[1])}" if ends else "",
        number(joint.normalised),
        number(joint.enrichment),
        "–" if share is None else f"{share:.1%}",
        number(change.second_order_loss),
    ]


def _utility_loss(change: ChangeOverlap) -> str:
    if change.utility_loss is None:
        return "–"
    error = change.utility_loss.standard_error
    return number(change.utility_loss.mean) + (f" ± {number(error, 2)}" if error is not None else "")


def _refusals(change: ChangeOverlap) -> str:
    if change.refusals is None:
        return "–"
    low, high = change.refusals.interval
    return f"{change.refusals.rate:.0%} ({low:.0%} … {high:.0%})"


def _random_signs(change: ChangeOverlap) -> str:
    if change.rademacher is None or change.rademacher.joint.ratio is None:
        return "–"
    joint = change.rademacher.joint
    return f"{number(joint.estimate)} ({number(joint.ratio)} ×)"


def readings(result: OverlapResult) -> list[str]:
    """Sentences on what the table says."""
    lines = [
        f"{label}: {number(change.utility_loss.mean)} nats of KL per response; "
        f"{verdict(change.second_order_loss, change.utility_loss.mean, result.dtype)}."
        for label, change in result.deltas.items()
        if change.utility_loss is not None
    ]
    before, ranking = result.base_refusals, result.ranking
    if before is not None:
        lines.append(f"Before any change it refuses {before.rate:.0%} of {before.total} prompts of {before.set}.")
    if ranking is not None:
        known = {name: value for name, value in ranking.with_utility_loss.items() if value is not None}
        orders = ", ".join(f"{name} {value:.2f}" for name, value in known.items())
        lines.append(
            f"Rank correlation with the measured utility loss over {ranking.count} changes (Spearman): {orders}."
        )
    return lines


def verdict(half: float, measured: float, dtype: str) -> str:
    """What half the exact score says beside the measured utility loss of a model in that dtype."""
    if measured <= 0:
        return f"the change is lost in the rounding of {dtype}"
    ratio = half / measured
    if 0.8 <= ratio <= 1.25:
        return "the second-order score tells the damage"
    coarse = ratio < 1 and dtype in ("bfloat16", "float16")
    other = f", or too small for {dtype}, whose rounding is measured too" if coarse else ""
    return f"the second-order score is {number(ratio)} times the damage: the change is too large for it{other}"


@pictures_of.register
def pictures(result: OverlapResult) -> dict[str, bytes]:
    """The run's pictures by name."""
    drawn = {"scores": scores(result), "modules": modules(result)}
    if any(change.utility_loss for change in result.deltas.values()):
        drawn["damage"] = damage(result)
    return drawn


def write(result: OverlapResult, settings: Settings, folder: Path) -> None:
    """Write the pictures and report.html."""
    write_page(
        folder,
        "experiments/overlap/report.html",
        pictures(result),
        result=result,
        settings=settings.identity(),
        table=tables(result)[0],
        readings=readings(result),
    )


def _styled(result: OverlapResult) -> list[tuple[str, ChangeOverlap, str, str]]:
    """Label, content, colour and marker of every change."""
    return [(label, change, *_STYLES[k % len(_STYLES)]) for k, (label, change) in enumerate(result.deltas.items())]


def scores(result: OverlapResult) -> bytes:
    """scores.png: the score of every change and what random directions of its norms would have."""
    joints = [change.joint for change in result.deltas.values()]
    order = np.arange(len(joints))
    figure, (left, right) = new_figure(1, 2, (max(9.0, 1.4 * len(joints) + 5), 4.4))
    raw = np.array([joint.raw for joint in joints])
    chance = np.array([joint.null_mean for joint in joints])
    ends = np.array([joint.intervals.get("raw", (np.nan, np.nan)) for joint in joints]).T
    left.bar(order - 0.2, raw, 0.4, color=DARK, label="this change")
    left.errorbar(order - 0.2, raw, np.maximum(np.abs(ends - raw), 0), fmt="none", color="0.5", capsize=3)
    left.bar(order + 0.2, chance, 0.4, color=LIGHT, label="a random direction, same norm in every module")
    left.set(yscale="log", ylabel="overlap score $\\Delta W^T F \\Delta W$", title="raw")
    left.legend(frameon=False, fontsize=8)
    right.bar(order, [joint.normalised or 0.0 for joint in joints], 0.5, color=DARK)
    right.set(ylabel="$\\Delta W^T F \\Delta W / |\\Delta W|^2$", title="normalised")
    for axis in (left, right):
        axis.set_xticks(order, list(result.deltas), rotation=30, ha="right", fontsize=8)
    return png_of(figure)


def modules(result: OverlapResult) -> bytes:
    """modules.png: score and squared norm of every block's part of every change."""
    figure, axes = new_figure(1, 2, (11.0, 4.4))
    for label, change, color, marker in _styled(result):
        values = np.array([[layer.raw, layer.squared_norm] for layer in change.layers.values()])
        for axis, column in zip(axes, values.T, strict=True):
            shown = np.where(column > 0, column, np.nan)
            axis.plot(np.arange(len(values)), shown, color=color, marker=marker, ms=3, label=label)
    axes[0].set(yscale="log", xlabel="block", ylabel="the block's own score", title="overlap score by block")
    axes[1].set(ylim=(0, None), xlabel="block", ylabel="$|\\Delta W|^2$", title="squared norm by block")
    for axis in axes:
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0].legend(frameon=False, fontsize=8)
    return png_of(figure)


def damage(result: OverlapResult) -> bytes:
    """damage.png: the measured utility loss against half the exact score, and against the squared norm."""
    figure, (left, right) = new_figure(1, 2, (10.0, 4.6))
    ends = []
    for label, change, color, marker in _styled(result):
        if change.utility_loss is None:
            continue
        loss, error = change.utility_loss.mean, change.utility_loss.standard_error or 0.0
        style = {"color": color, "marker": marker, "ls": "none", "capsize": 3}
        low = min(error, loss * 0.999)  # an error bar cannot reach zero on a logarithmic axis
        left.errorbar([change.second_order_loss], [loss], [[low], [error]], label=label, **style)
        right.errorbar([change.squared_norm], [loss], [[low], [error]], label=label, **style)
        ends += [change.second_order_loss, loss]
    bounds = [min(x for x in ends if x > 0) / 2, max(ends) * 2] if any(x > 0 for x in ends) else [0.1, 1.0]
    left.plot(bounds, bounds, color="0.6", ls=":", label="second order holds")
    left.set(xscale="log", yscale="log", xlabel="half the exact score, $\\frac{1}{2}\\Delta\\theta^T F \\Delta\\theta$")
    right.set(yscale="log", xlabel="squared norm of the change", xlim=(0, None))
    for axis in (left, right):
        axis.set_ylabel("measured utility loss (nats of KL per response)")
    left.legend(frameon=False, fontsize=8)
    return png_of(figure)
