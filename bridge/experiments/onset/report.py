"""The tables, the pictures and the page of `bridge.onset`, drawn from its result alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from bridge.experiments.onset.readings import title
from bridge.experiments.onset.result import OnsetPoint, OnsetResult, SetName, SetOnset, UsualRun
from bridge.experiments.onset.settings import Settings
from bridge.reports.console import print_tables
from bridge.reports.drawing import DARK, LIGHT, MID, new_figure, png_of
from bridge.reports.numbers import number
from bridge.reports.pages import write_page
from bridge.reports.results import pictures_of, tables_of
from bridge.reports.tables import Table
from bridge.training.pilot import PilotResult
from commands.store import Folder
from theory.local_slopes import READ_WITHIN

_FLOOR_NOTE = f"‡ rounding the weights may change it by more than {100 * READ_WITHIN:g} %: not read"
_NAMES: dict[SetName, str] = {"skill": "the skill's samples", "probe": "the samples whose directions were removed"}


def print_result(result: OnsetResult, folder: Folder) -> None:
    """Print the closing table and the sentences to standard output, and where the report is."""
    note = [] if all(point.above_floor for point in result.main.points) else [_FLOOR_NOTE]
    print_tables([set_table(title(result), result.main)], [*note, *result.readings], width=170)
    print(f"\n{folder.path / 'report.html'}")


@tables_of.register
def tables(result: OnsetResult) -> list[Table]:
    """The points of every set of samples, and the pilot's forecasts."""
    found = [set_table(f"{title(result)}: {_NAMES[name]}", onset) for name, onset in result.sets.items()]
    return found + ([forecast_table(result.pilot)] if result.pilot and result.pilot.forecasts else [])


HEADINGS = ("t", "t / t_c", "steps", "measured", "95 % interval", "predicted", "leak", "cross", "quartic", "ratio",
            "exponent", "predicted", "fine-tuning loss")  # fmt: skip


def set_table(caption: str, onset: SetOnset) -> Table:
    """The points of one set of samples."""
    return Table(caption, HEADINGS, [_row(point) for point in onset.points], words=0)


def _row(point: OnsetPoint) -> list[str]:
    return [
        number(point.t),
        f"{point.crossovers:.2g}",
        str(point.steps),
        number(point.utility_loss, 4) + ("" if point.above_floor else " ‡"),
        "–" if point.interval is None else " to ".join(map(number, point.interval)),
        number(point.predicted, 4),
        number(point.leak_part),
        number(point.cross_part),
        number(point.quartic_part),
        f"{point.ratio:.4f}" if point.ratio is not None and point.above_floor else "–",
        "–" if point.exponent is None else f"{point.exponent:.2f}",
        "–" if point.predicted_exponent is None else f"{point.predicted_exponent:.2f}",
        f"{point.finetuning_loss:.4f}",
    ]


def forecast_table(pilot: PilotResult) -> Table:
    """What the pilot's steps forecast of the end of the run."""
    headings = ("method", "utility loss", "95 % interval", "exponent", "forecast / happened")
    rows = []
    for name, end in pilot.forecasts.items():
        interval = "–" if end.low is None else f"{number(end.low)} to {number(end.high)}"
        rows.append((name, number(end.value), interval, number(end.exponent), number(end.ratio)))
    return Table(f"Forecast for step {pilot.steps}", headings, rows)


def write(result: OnsetResult, settings: Settings, responses: Sequence[str], folder: Path) -> None:
    """Write onset.png, pilot.png where there was a pilot, and report.html."""
    options = {name: value for name, value in settings.identity().items() if name != "plan"}
    plan = {f"plan.{name}": value for name, value in asdict(settings.plan).items() if name != "overrides"}
    write_page(
        folder,
        "experiments/onset/report.html",
        pictures(result),
        title=title(result),
        result=result,
        settings=options | plan,
        tables={name: set_table(_NAMES[name], onset) for name, onset in result.sets.items()},
        forecasts=forecast_table(result.pilot) if result.pilot and result.pilot.forecasts else None,
        floor_note=_FLOOR_NOTE,
        responses=responses,
        n=number,
    )


@pictures_of.register
def pictures(result: OnsetResult) -> dict[str, bytes]:
    """The run's pictures by name."""
    drawn = {"onset": onset_picture(result)}
    return drawn if result.pilot is None else drawn | {"pilot": pilot_picture(result.pilot)}


def onset_picture(result: OnsetResult) -> bytes:
    """onset.png: measured points over the predicted curve and its parts, and the local exponents below."""
    main = result.main
    figure, (above, below) = new_figure(2, 1, (8.0, 8.0))
    t = np.array([point.t for point in main.points])
    _losses(above, result, t)
    _exponents(below, main, t)
    for axis in (above, below):
        axis.axvline(result.crossover, color="0.35", lw=1.2, ls="-.", label=f"crossover: {result.crossover:.2g}")
        _runs(axis, result.realistic, t)
        _validity(axis, main, t)
        axis.legend(frameon=False, fontsize=8, loc="best")
    above.set(ylabel="utility loss  (nats of KL per response)")
    return png_of(figure)


def _losses(axis: Axes, result: OnsetResult, t: np.ndarray) -> None:
    main = result.main
    fine = np.array([(point.t, point.utility_loss) for point in main.curve])
    axis.loglog(fine[:, 0], fine[:, 1], "-", color=DARK, lw=2, label="predicted, in the limit of small steps")
    predicted = [point.predicted for point in main.points]
    axis.loglog(t, predicted, "_", color=DARK, ms=14, mew=1.5, label="predicted, these steps")
    axis.loglog(fine[:, 0], fine[:, 0] ** 2 / 2 * main.leak**2, "--", color=MID, label="leak part, slope 2")
    axis.loglog(fine[:, 0], fine[:, 0] ** 4 / 8 * main.quartic**2, ":", color=MID, lw=2,
                label="quartic part, slope 4")  # fmt: skip
    measured = np.array([point.utility_loss for point in main.points])
    ends = np.array([point.interval or (point.utility_loss, point.utility_loss) for point in main.points])
    errors = np.maximum([measured - ends[:, 0], ends[:, 1] - measured], 0)
    axis.errorbar(t, measured, errors, fmt="o", color=DARK, mfc="white", capsize=3, label="measured")
    if "probe" in result.sets:
        other = [point.utility_loss for point in result.sets["probe"].points]
        axis.loglog(t, other, "s", color=LIGHT, mfc="none", label="measured, on the samples whose overlap is removed")
    if main.floor > 0:
        axis.axhline(main.floor, color="0.5", lw=1, ls=(0, (5, 5)), label=f"rounding alone: {main.floor:.1e}")
    positive = [value for value in (*measured, *fine[:, 1]) if value > 0]
    if positive:
        axis.set_ylim(min(positive) / 5, max(positive) * 20)


def _exponents(axis: Axes, main: SetOnset, t: np.ndarray) -> None:
    measured = [point.exponent for point in main.points]
    predicted = [point.predicted_exponent for point in main.points]
    for exponents, style, label in ((measured, "o", "measured"), (predicted, "_", "predicted, these steps")):
        values = [np.nan if exponent is None else exponent for exponent in exponents]
        axis.semilogx(t, values, style, color=DARK, mfc="white", ms=8 if style == "o" else 14, label=label)
    for law in (2, 4):
        axis.axhline(law, color="0.7", lw=1)
    axis.set(xlabel="t = learning rate × steps", ylabel="exponent  d log loss / d log t")


def _runs(axis: Axes, runs: Sequence[UsualRun], t: np.ndarray) -> None:
    inside = [run for run in runs if t[0] / 3 <= run.t <= t[-1] * 3]
    for run in inside:
        axis.axvline(run.t, color=LIGHT, lw=3, alpha=0.6, label=f"{run.learning_rate:g} × {run.steps}")
    further = [run for run in runs if run not in inside]
    if further and axis.get_xlabel():
        told = ", ".join(f"{run.learning_rate:g} × {run.steps}: {run.crossovers:.2g} $t_c$" for run in further)
        axis.set_title(f"not shown: {told}", fontsize=8)


def _validity(axis: Axes, main: SetOnset, t: np.ndarray) -> None:
    start = main.validity.ten_percent
    if start is not None:
        axis.axvspan(start, t[-1] * 1.2, color="0.9", zorder=0, label="more than 10 % off")


def pilot_picture(pilot: PilotResult) -> bytes:
    """pilot.png: utility loss along the real optimiser's steps, the forecasts, and what happened."""
    figure, axis = new_figure(1, 1, (8.0, 5.0))
    for of_pilot, style, label in ((True, "o", "pilot steps"), (False, "s", "full run")):
        points = [point for point in pilot.points if point.pilot == of_pilot and point.accumulated > 0]
        if points:
            axis.loglog([point.accumulated for point in points], [point.utility_loss for point in points], style,
                        color=DARK, mfc="white" if of_pilot else DARK, label=label)  # fmt: skip
    start, end = pilot.last_step.accumulated, pilot.accumulated
    dashes: tuple[str | tuple[int, tuple[int, int]], ...] = ("-", (0, (6, 1)), "--", ":", "-.")
    for (name, forecast), dash in zip(pilot.forecasts.items(), dashes, strict=False):
        first = forecast.value * (start / end) ** forecast.exponent
        axis.loglog([start, end], [first, forecast.value], ls=dash, color=MID, label=f"{name}: {forecast.value:.3g}")
        if forecast.low is not None and forecast.high is not None:
            above = min(forecast.high, 1e3 * forecast.value) - forecast.value
            spread = [[forecast.value - forecast.low], [above]]
            axis.errorbar([end], [forecast.value], spread, color=MID, capsize=4)
    axis.set(xlabel="accumulated learning rate", ylabel="utility loss  (nats of KL per response)")
    if axis.get_legend_handles_labels()[0]:
        axis.legend(frameon=False, fontsize=8)
    else:
        axis.text(0.5, 0.5, "no step of a learning rate above 0", ha="center", va="center", transform=axis.transAxes)
    return png_of(figure)
