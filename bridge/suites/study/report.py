"""What people see of a run of `bridge.study`: tables as Markdown and CSV, the pictures, the page, the terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bridge.reports.numbers import number
from bridge.reports.pages import render_page
from bridge.reports.tables import Table, markdown_line, plain
from bridge.suites.study.pictures import pictures
from bridge.suites.study.predictors import BY_KEY, WHEN, Predictor
from bridge.suites.study.readings import NAMES, interval, notes, readings
from bridge.suites.study.result import OUTCOMES, POOLED, WITHIN
from commands.store import write_atomically

Found = Mapping[str, Any]
_WHAT = ("set", "method", "seed")


def tables(found: Found) -> list[Table]:
    """The correlations of each outcome, within methods and by each, the fine-tunes themselves, and what is pooled."""
    parts = [
        (group, _correlations(found, outcome, group))
        for outcome, groups in found["correlations"].items()
        for group, measured in groups.items()
        if measured
    ]
    pooled = [table for group, table in parts if group == POOLED]
    return [*(table for group, table in parts if group != POOLED), _finetunes(found), *pooled]


def _correlations(found: Found, outcome: str, group: str) -> Table:
    measured, several = found["correlations"][outcome][group], POOLED in found["correlations"][outcome]
    total = sum(group in (WITHIN, POOLED, row["method"]) for row in found["rows"])
    where = f"{NAMES.get(group, group)} fine-tunes alone"
    if group == WITHIN:
        where = "within methods" if several else "all fine-tunes"
    elif group == POOLED:
        where = "pooled over the methods: what only tells them apart counts too"
    rows = []
    for key, entry in measured.items():
        each = BY_KEY[key]
        shown = [_shown(entry[name], entry[f"{name}_interval"]) for name in ("spearman", "kendall")]
        cells = [each.name, WHEN[each.stage], *shown, f"{entry['count']} of {total}"]
        rows.append([*cells, *([] if group == POOLED else [_over_trivial(each, entry)])])
    headings = ["predictor", "known", "ρ", "τ", "fine-tunes"]
    headings += [] if group == POOLED else ["ρ over the best trivial one"]
    return Table(f"{OUTCOMES[outcome].capitalize()}: rank correlations, {where}", headings, rows, 2)


def _over_trivial(each: Predictor, entry: Mapping[str, Any]) -> str:
    rival = entry["best_trivial"]
    if rival is None or rival["difference"] is None:
        return "trivial" if each.trivial else "–"
    return f"{rival['difference']:+.2f}{interval(rival['interval'])} over {BY_KEY[rival['predictor']].name}"


def _shown(value: float | None, ends: Sequence[float] | None) -> str:
    return "–" if value is None else f"{value:+.2f}{interval(ends)}"


def _finetunes(found: Found) -> Table:
    refused = any("refusals" in row["outcomes"] for row in found["rows"])
    keys = [key for key in ("predicted_loss", "pilot_loss", "forecast", "update_norm", "score") if _any(found, key)]
    headings = [*_WHAT, "status", "steps", "loss, first → last", "utility loss", *(["refused"] if refused else [])]
    rows = []
    for row in found["rows"]:
        trained, outcomes = row["training"], row["outcomes"]
        losses = f"{number(trained['first_loss'])} → {number(trained['last_loss'])}" if trained else "–"
        cells = [*(str(row[key]) for key in _WHAT), row["status"], str(trained.get("steps", "–")), losses]
        cells += [_outcome(outcomes, "utility_loss", number)]
        cells += [_outcome(outcomes, "refusals", lambda share: f"{share:.0%}")] if refused else []
        rows.append([*cells, *(number(row["predictors"].get(key)) for key in keys)])
    return Table("The fine-tunes", [*headings, *(BY_KEY[key].name for key in keys)], rows, 4)


def _any(found: Found, key: str) -> bool:
    return any(each["key"] == key for each in found["predictors"])


def _outcome(outcomes: Mapping[str, Any], key: str, show: Any) -> str:
    if key not in outcomes:
        return "–"
    each = outcomes[key]
    ends = "" if each["low"] is None else f" ({show(each['low'])} … {show(each['high'])})"
    return f"{show(each['value'])}{ends}"


def write_tables(found: Found, folder: Path) -> None:
    """Write study.md and study.csv, each whole."""
    write_atomically(folder / "study.md", markdown(found).encode())
    write_atomically(folder / "study.csv", csv_of(found).encode())


def markdown(found: Found) -> str:
    """study.md."""
    lines = [f"# {plain(found['title'])}", "", *(f"{plain(line)}\n" for line in readings(found))]
    for table in tables(found):
        lines += [f"## {plain(table.caption)}", "", markdown_line(table.headings)]
        lines += [markdown_line(["---"] * len(table.headings)), *map(markdown_line, table.rows), ""]
    return "\n".join([*lines, *(f"- {plain(note)}" for note in notes(found))]) + "\n"


def csv_of(found: Found) -> str:
    """study.csv: one line a fine-tune, every number in full."""
    buffer = io.StringIO()
    lines = list(_records(found))
    names = list(dict.fromkeys(name for line in lines for name in line))
    writer = csv.DictWriter(buffer, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()


def _records(found: Found) -> Iterator[dict[str, Any]]:
    predictors = [each["key"] for each in found["predictors"]]
    for row in found["rows"]:
        record = {key: row[key] for key in (*_WHAT, "data", "status")}
        record["failures"] = "; ".join(f"{step}: {reason}" for step, reason in row["failures"].items())
        record |= row["training"]
        for key, outcome in row["outcomes"].items():
            ends = {f"{key}_{end}": outcome[end] for end in ("low", "high", "count")}
            record |= {name: "" if value is None else value for name, value in ({key: outcome["value"]} | ends).items()}
        values = {key: row["predictors"].get(key) for key in predictors}
        yield record | {key: "" if value is None else value for key, value in values.items()}


def write_page(found: Found, settings: Mapping[str, Any], folder: Path) -> None:
    """Write the pictures and report.html."""
    drawn = pictures(found)
    for name, png in drawn.items():
        write_atomically(folder / f"{name}.png", png)
    page = render_page(
        "suites/study/report.html",
        drawn,
        found=found,
        settings=settings,
        readings=readings(found),
        notes=notes(found),
        tables=tables(found),
        outcomes=OUTCOMES,
        when=WHEN,
    )
    write_atomically(folder / "report.html", page)


def print_tables(found: Found) -> None:
    """Print the tables and what they say to standard output."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as RichTable

    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    for each in tables(found):
        table = RichTable(title=escape(each.caption), title_justify="left", show_edge=False)
        for k, heading in enumerate(each.headings):
            table.add_column(escape(heading), justify="left" if k < each.words else "right")
        for row in each.rows:
            table.add_row(*map(escape, row))
        console.print(table)
        console.print()
    for line in (*readings(found), *notes(found)):
        console.print(escape(line))
