"""The pictures of `bridge.study`: a panel for every predictor, a point for every fine-tune. Readable in greyscale."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bridge.reports.drawing import DARK, MID, new_figure, png_of
from bridge.suites.study.predictors import WHEN
from bridge.suites.study.result import OUTCOMES, POOLED, WITHIN, has, is_measured

Found = Mapping[str, Any]
_LOOKS = {"full": (DARK, "o", "full"), "lora": (MID, "^", "LoRA")}
_COLUMNS = 4
_WIDE = 20.0  # largest over smallest, from which an axis is logarithmic: a power of ten then lies on it


def pictures(found: Found) -> dict[str, bytes]:
    """PNG files by outcome, of those outcomes that were measured."""
    drawn = {outcome: scatter(found, outcome) for outcome in OUTCOMES if _points(found, outcome)}
    return {outcome: png for outcome, png in drawn.items() if png is not None}


def scatter(found: Found, outcome: str) -> bytes | None:
    """An outcome against every predictor, one panel each; None without any that is known of two fine-tunes."""
    shown = [each for each in found["predictors"] if sum(has(r, each["key"], outcome) for r in found["rows"]) > 1]
    if not shown:
        return None
    lines = math.ceil(len(shown) / _COLUMNS)
    figure, drawn = new_figure(lines, _COLUMNS, (3.1 * _COLUMNS, 0.6 + 2.85 * lines))
    axes = np.array(drawn, dtype=object).reshape(lines, _COLUMNS)
    for k, axis in enumerate(axes.flat):
        if k < len(shown):
            _panel(axis, found, shown[k], outcome)
        else:
            axis.set_axis_off()
    for row in axes:
        row[0].set_ylabel(OUTCOMES[outcome] + (" (nats)" if outcome == "utility_loss" else ""), fontsize=8)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return png_of(figure)


def _panel(axis: Any, found: Found, predictor: Mapping[str, Any], outcome: str) -> None:
    key = predictor["key"]
    rows = [row for row in found["rows"] if has(row, key, outcome)]
    for method in found["methods"]:
        color, marker, label = _LOOKS[method]
        some = [row for row in rows if row["method"] == method]
        x = [row["predictors"][key] for row in some]
        y = [row["outcomes"][outcome]["value"] for row in some]
        axis.plot(x, y, marker, color=color, ms=4, mfc="none" if method == "lora" else color, label=label)
    _scale(axis, "x", [row["predictors"][key] for row in rows])
    _scale(axis, "y", [row["outcomes"][outcome]["value"] for row in rows])
    groups = found["correlations"][outcome]
    measured = groups[WITHIN].get(key)
    rho = "" if measured is None or measured["spearman"] is None else f"ρ = {measured['spearman']:+.2f}"
    within = " within methods" if rho and POOLED in groups else ""
    axis.set_title(f"{predictor['name']}\n{rho}{within}", fontsize=8)
    trivial = ", trivial" if predictor["trivial"] else ""
    axis.set_xlabel(f"{WHEN[predictor['stage']]}{trivial}", fontsize=7)
    axis.tick_params(labelsize=7)
    axis.xaxis.get_offset_text().set_size(7)


def _scale(axis: Any, which: str, values: Sequence[float]) -> None:
    from matplotlib.ticker import NullFormatter

    if min(values) > 0 and max(values) / min(values) > _WIDE:
        axis.set(**{f"{which}scale": "log"})
        getattr(axis, f"{which}axis").set_minor_formatter(NullFormatter())  # or labels run into each other


def _points(found: Found, outcome: str) -> bool:
    return any(is_measured(row, outcome) for row in found["rows"])
