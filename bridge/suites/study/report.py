"""What people see of a run of `bridge.study`: tables as Markdown and CSV, the pictures, the page, the terminal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bridge.reports import console
from bridge.reports.numbers import number
from bridge.reports.pages import write_page
from bridge.reports.results import pictures_of, tables_of
from bridge.reports.tables import Table, csv_text, plain
from bridge.suites.study import pictures
from bridge.suites.study.predictors import BY_KEY, WHEN, Predictor
from bridge.suites.study.readings import NAMES, interval, notes, readings
from bridge.suites.study.result import (
    OUTCOMES,
    POOLED,
    WITHIN,
    Correlation,
    Interval,
    Outcome,
    OutcomeName,
    StudyResult,
    StudyRow,
)
from bridge.suites.study.settings import StudySettings
from commands.store import write_atomically

_WIDTH = 200  # of the terminal's tables, in characters
_SHOWN = ("predicted_loss", "pilot_loss", "forecast", "update_norm", "score")  # predictors beside the fine-tunes

pictures_of.register(pictures.pictures)


@tables_of.register
def tables(result: StudyResult) -> list[Table]:
    """The correlations of each outcome, within methods and by each, the fine-tunes themselves, and what is pooled."""
    parts = [
        (group, _correlations(result, outcome, group))
        for outcome, groups in result.correlations.items()
        for group, measured in groups.items()
        if measured
    ]
    pooled = [table for group, table in parts if group == POOLED]
    return [*(table for group, table in parts if group != POOLED), _finetunes(result), *pooled]


def _correlations(result: StudyResult, outcome: OutcomeName, group: str) -> Table:
    measured, several = result.correlations[outcome][group], POOLED in result.correlations[outcome]
    total = sum(group in (WITHIN, POOLED, row.method) for row in result.rows)
    where = f"{NAMES.get(group, group)} fine-tunes alone"
    if group == WITHIN:
        where = "within methods" if several else "all fine-tunes"
    elif group == POOLED:
        where = "pooled over the methods: what only tells them apart counts too"
    rows = []
    for key, entry in measured.items():
        each = BY_KEY[key]
        cells = [each.name, WHEN[each.stage], _shown(entry.spearman, entry.spearman_interval)]
        cells += [_shown(entry.kendall, entry.kendall_interval), f"{entry.count} of {total}"]
        rows.append([*cells, *([] if group == POOLED else [_over_trivial(each, entry)])])
    headings = ["predictor", "known", "ρ", "τ", "fine-tunes"]
    headings += [] if group == POOLED else ["ρ over the best trivial one"]
    return Table(f"{OUTCOMES[outcome].capitalize()}: rank correlations, {where}", headings, rows, 2)


def _over_trivial(each: Predictor, entry: Correlation) -> str:
    rival = entry.best_trivial
    if rival is None or rival.difference is None:
        return "trivial" if each.trivial else "–"
    return f"{rival.difference:+.2f}{interval(rival.interval)} over {BY_KEY[rival.predictor].name}"


def _shown(value: float | None, ends: Interval | None) -> str:
    return "–" if value is None else f"{value:+.2f}{interval(ends)}"


def _finetunes(result: StudyResult) -> Table:
    refused = any(row.outcomes.refusals is not None for row in result.rows)
    keys = [key for key in _SHOWN if any(each.key == key for each in result.predictors)]
    headings = ["set", "method", "seed", "status", "steps", "loss, first → last", "utility loss"]
    headings += [*(["refused"] if refused else []), *(BY_KEY[key].name for key in keys)]
    rows = [_finetune(row, refused, keys) for row in result.rows]
    return Table("The fine-tunes", headings, rows, 4)


def _finetune(row: StudyRow, refused: bool, keys: list[str]) -> list[str]:
    trained = row.training
    losses = "–" if trained.steps is None else f"{number(trained.first_loss)} → {number(trained.last_loss)}"
    cells = [row.set, row.method, str(row.seed), row.status, str(trained.steps or "–"), losses]
    cells += [_outcome(row.outcomes.utility_loss, number)]
    cells += [_outcome(row.outcomes.refusals, lambda share: f"{share:.0%}")] if refused else []
    return [*cells, *(number(row.predictors.get(key)) for key in keys)]


def _outcome(outcome: Outcome | None, show: Callable[[float | None], str]) -> str:
    if outcome is None:
        return "–"
    ends = "" if outcome.low is None else f" ({show(outcome.low)} … {show(outcome.high)})"
    return f"{show(outcome.value)}{ends}"


def write_tables(result: StudyResult, folder: Path) -> None:
    """Write study.json, study.md and study.csv, each whole."""
    result.write(folder)
    write_atomically(folder / "study.md", markdown(result).encode())
    write_atomically(folder / "study.csv", csv_text(result.records()).encode())


def markdown(result: StudyResult) -> str:
    """study.md."""
    lines = [f"# {plain(result.title)}", "", *(f"{plain(line)}\n" for line in readings(result))]
    for table in tables(result):
        lines += [f"## {plain(table.caption)}", "", *table.markdown(), ""]
    return "\n".join([*lines, *(f"- {plain(note)}" for note in notes(result))]) + "\n"


def write(result: StudyResult, settings: StudySettings, folder: Path) -> None:
    """Write the pictures and report.html."""
    options = settings.identity()
    del options["title"]
    options["sets"] = {each.name: each.data for each in settings.sets}
    write_page(
        folder,
        "suites/study/report.html",
        pictures.pictures(result),
        result=result,
        settings=options,
        readings=readings(result),
        notes=notes(result),
        tables=tables(result),
        outcomes=OUTCOMES,
        when=WHEN,
    )


def print_result(result: StudyResult, folder: Path) -> None:
    """Print the tables and what they say to standard output, and where the report is."""
    console.print_tables(tables(result), (*readings(result), *notes(result)), _WIDTH)
    print(f"\n{folder / 'report.html'}")
