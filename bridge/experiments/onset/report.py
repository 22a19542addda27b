"""What people see of a run of `bridge.onset`: the closing table, onset.png, pilot.png and report.html."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bridge.experiments.onset.readings import HEADINGS, rows, title
from bridge.reports.drawing import DARK, LIGHT, MID, new_figure, png_of
from bridge.reports.numbers import number
from bridge.reports.pages import render_page
from commands.store import write_atomically
from theory.local_slopes import READ_WITHIN

_FLOOR_NOTE = f"‡ rounding the weights may change it by more than {100 * READ_WITHIN:g} %: not read"


def print_table(result: Mapping[str, Any]) -> None:
    """Print the closing table and the sentences to standard output."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=170)
    main = result["sets"]["skill"]
    table = Table(title=escape(title(result)), title_justify="left", show_edge=False)
    for heading in HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows(main):
        table.add_row(*row)
    console.print(table)
    if any(not p["above_floor"] for p in main["points"]):
        console.print(_FLOOR_NOTE)
    for line in result["readings"]:
        console.print(escape(line))


def write(result: Mapping[str, Any], settings: Mapping[str, Any], responses: Sequence[str], folder: Path) -> None:
    """Write onset.png, pilot.png where there was a pilot, and report.html."""
    pictures = {"onset": onset_picture(result)}
    if result["pilot"] is not None:
        pictures["pilot"] = pilot_picture(result["pilot"])
    for name, png in pictures.items():
        write_atomically(folder / f"{name}.png", png)
    page = render_page(
        "experiments/onset/report.html",
        pictures,
        title=title(result),
        result=result,
        settings=settings,
        headings=HEADINGS,
        tables={name: rows(part) for name, part in result["sets"].items()},
        floor_note=_FLOOR_NOTE,
        responses=responses,
        n=number,
    )
    write_atomically(folder / "report.html", page)


def onset_picture(result: Mapping[str, Any]) -> bytes:
    """onset.png: measured points over the predicted curve and its parts, and the local exponents below."""
    main = result["sets"]["skill"]
    figure, (above, below) = new_figure(2, 1, (8.0, 8.0))
    t = np.array([p["t"] for p in main["points"]])
    fine = np.array([(p["t"], p["utility_loss"]) for p in main["curve"]])
    above.loglog(fine[:, 0], fine[:, 1], "-", color=DARK, lw=2, label="predicted, in the limit of small steps")
    above.loglog(
        t, [p["predicted"] for p in main["points"]], "_", color=DARK, ms=14, mew=1.5, label="predicted, these steps"
    )
    above.loglog(fine[:, 0], fine[:, 0] ** 2 / 2 * main["leak"] ** 2, "--", color=MID, label="leak part, slope 2")
    above.loglog(fine[:, 0], fine[:, 0] ** 4 / 8 * main["quartic"] ** 2, ":", color=MID, lw=2,
                 label="quartic part, slope 4")  # fmt: skip
    measured = np.array([p["utility_loss"] for p in main["points"]])
    ends = np.array([p["interval"] or [u, u] for p, u in zip(main["points"], measured, strict=True)])
    errors = np.maximum([measured - ends[:, 0], ends[:, 1] - measured], 0)
    above.errorbar(t, measured, errors, fmt="o", color=DARK, mfc="white", capsize=3, label="measured")
    if "probe" in result["sets"]:
        other = [p["utility_loss"] for p in result["sets"]["probe"]["points"]]
        above.loglog(t, other, "s", color=LIGHT, mfc="none", label="measured, on the samples whose overlap is removed")
    if main["floor"] > 0:
        above.axhline(main["floor"], color="0.5", lw=1, ls=(0, (5, 5)), label=f"rounding alone: {main['floor']:.1e}")
    _set_limits(above, [*measured, *fine[:, 1]])
    _exponents(below, main, t)
    for axis in (above, below):
        axis.axvline(main["crossover"], color="0.35", lw=1.2, ls="-.",
                     label=f"crossover: {main['crossover']:.2g}")  # fmt: skip
        _runs(axis, result["realistic"], t)
        _validity(axis, main, t)
        axis.legend(frameon=False, fontsize=8, loc="best")
    above.set(ylabel="utility loss  (nats of KL per response)")
    return png_of(figure)


def _set_limits(axis: Any, values: Sequence[float]) -> None:
    positive = [value for value in values if value > 0]
    if positive:
        axis.set_ylim(min(positive) / 5, max(positive) * 20)


def _exponents(axis: Any, main: Mapping[str, Any], t: np.ndarray) -> None:
    for key, style, label in (
        ("exponent", "o", "measured"), ("predicted_exponent", "_", "predicted, these steps")
    ):  # fmt: skip
        values = [np.nan if p[key] is None else p[key] for p in main["points"]]
        axis.semilogx(t, values, style, color=DARK, mfc="white", ms=8 if style == "o" else 14, label=label)
    for law in (2, 4):
        axis.axhline(law, color="0.7", lw=1)
    axis.set(xlabel="t = learning rate × steps", ylabel="exponent  d log loss / d log t")


def _runs(axis: Any, runs: Sequence[Mapping[str, Any]], t: np.ndarray) -> None:
    inside = [run for run in runs if t[0] / 3 <= run["t"] <= t[-1] * 3]
    for run in inside:
        label = f"{run['learning_rate']:g} × {run['steps']}"
        axis.axvline(run["t"], color=LIGHT, lw=3, alpha=0.6, label=label)
    further = [run for run in runs if run not in inside]
    if further and axis.get_xlabel():
        told = ", ".join(f"{run['learning_rate']:g} × {run['steps']}: {run['crossovers']:.2g} $t_c$" for run in further)
        axis.set_title(f"not shown: {told}", fontsize=8)


def _validity(axis: Any, main: Mapping[str, Any], t: np.ndarray) -> None:
    start = main["validity"]["ten_percent"]
    if start is not None:
        axis.axvspan(start, t[-1] * 1.2, color="0.9", zorder=0, label="more than 10 % off")


def pilot_picture(pilot: Mapping[str, Any]) -> bytes:
    """pilot.png: utility loss along the real optimiser's steps, the forecasts, and what happened."""
    figure, axis = new_figure(1, 1, (8.0, 5.0))
    for of_pilot, style, label in ((True, "o", "pilot steps"), (False, "s", "full run")):
        shown = [p for p in pilot["points"] if p["pilot"] == of_pilot and p["accumulated"] > 0]
        if shown:
            axis.loglog([p["accumulated"] for p in shown], [p["utility_loss"] for p in shown], style, color=DARK,
                        mfc="white" if of_pilot else DARK, label=label)  # fmt: skip
    last = [p for p in pilot["points"] if p["pilot"]][-1]
    dashes: tuple[Any, ...] = ("-", (0, (6, 1)), "--", ":", "-.")
    for (name, found), dash in zip(pilot["forecasts"].items(), dashes, strict=False):
        ends = [last["accumulated"], pilot["accumulated"]]
        start = found["value"] * (ends[0] / ends[1]) ** found["exponent"]
        axis.loglog(ends, [start, found["value"]], ls=dash, color=MID, label=f"{name}: {found['value']:.3g}")
        if found["low"] is not None:
            spread = [[found["value"] - found["low"]], [min(found["high"], 1e3 * found["value"]) - found["value"]]]
            axis.errorbar([ends[1]], [found["value"]], spread, color=MID, capsize=4)
    axis.set(xlabel="accumulated learning rate", ylabel="utility loss  (nats of KL per response)")
    if axis.get_legend_handles_labels()[0]:
        axis.legend(frameon=False, fontsize=8)
    else:
        axis.text(0.5, 0.5, "no step of a learning rate above 0", ha="center", va="center", transform=axis.transAxes)
    return png_of(figure)
