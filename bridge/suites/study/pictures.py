"""The pictures of `bridge.study`: a panel for every predictor, a point for every fine-tune. Readable in greyscale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from bridge.reports.drawing import DARK, MID, new_figure, png_of
from bridge.suites.study.predictors import WHEN, Predictor
from bridge.suites.study.result import OUTCOMES, POOLED, WITHIN, OutcomeName, StudyResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LOOKS = {"full": (DARK, "o", "full"), "lora": (MID, "^", "LoRA")}
_COLUMNS = 4
_WIDE = 20.0  # largest over smallest, from which an axis is logarithmic: a power of ten then lies on it


def pictures(result: StudyResult) -> dict[str, bytes]:
    """PNG files by outcome, of those outcomes that were measured."""
    drawn = {outcome: scatter(result, outcome) for outcome in OUTCOMES}
    return {outcome: png for outcome, png in drawn.items() if png is not None}


def scatter(result: StudyResult, outcome: OutcomeName) -> bytes | None:
    """An outcome against every predictor, one panel each; None without any that is known of two fine-tunes."""
    shown = [each for each in result.predictors if sum(row.has(each.key, outcome) for row in result.rows) > 1]
    if not shown:
        return None
    lines = math.ceil(len(shown) / _COLUMNS)
    figure, drawn = new_figure(lines, _COLUMNS, (3.1 * _COLUMNS, 0.6 + 2.85 * lines))
    axes = np.array(drawn, dtype=object).reshape(lines, _COLUMNS)
    for k, axis in enumerate(axes.flat):
        if k < len(shown):
            _panel(axis, result, shown[k], outcome)
        else:
            axis.set_axis_off()
    for row in axes:
        row[0].set_ylabel(OUTCOMES[outcome] + (" (nats)" if outcome == "utility_loss" else ""), fontsize=8)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return png_of(figure)


def _panel(axis: Axes, result: StudyResult, predictor: Predictor, outcome: OutcomeName) -> None:
    rows = [row for row in result.rows if row.has(predictor.key, outcome)]
    for method in result.methods:
        color, marker, label = _LOOKS[method]
        some = [row for row in rows if row.method == method]
        x, y = [row.predictor(predictor.key) for row in some], [row.damage(outcome) for row in some]
        axis.plot(x, y, marker, color=color, ms=4, mfc="none" if method == "lora" else color, label=label)
    _scale(axis, "x", [row.predictor(predictor.key) for row in rows])
    _scale(axis, "y", [row.damage(outcome) for row in rows])
    groups = result.correlations[outcome]
    measured = groups[WITHIN].get(predictor.key)
    rho = "" if measured is None or measured.spearman is None else f"ρ = {measured.spearman:+.2f}"
    within = " within methods" if rho and POOLED in groups else ""
    axis.set_title(f"{predictor.name}\n{rho}{within}", fontsize=8)
    axis.set_xlabel(f"{WHEN[predictor.stage]}{', trivial' if predictor.trivial else ''}", fontsize=7)
    axis.tick_params(labelsize=7)
    axis.xaxis.get_offset_text().set_fontsize(7)


def _scale(axis: Axes, which: str, values: Sequence[float]) -> None:
    from matplotlib.ticker import NullFormatter

    if min(values) > 0 and max(values) / min(values) > _WIDE:
        axis.set(**{f"{which}scale": "log"})
        getattr(axis, f"{which}axis").set_minor_formatter(NullFormatter())  # or labels run into each other
