"""The table of `bridge.table1` as Markdown, as CSV, and on the terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from bridge.reports.tables import markdown_line, plain, shown
from bridge.suites.measures import REFUSALS

_WHAT = ("model", "method", "set")


def _columns(rows: Sequence[Mapping[str, Any]], part: str) -> list[str]:
    """Names of the measures in one part of the rows, in the order of their first appearance."""
    return list(dict.fromkeys(name for row in rows for name in row[part]))


def table_of(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells as text: what was done, each measure before and after, the change, the status."""
    rows = found["rows"]
    both = list(dict.fromkeys(_columns(rows, "before") + _columns(rows, "after")))
    change = _columns(rows, "change")
    headings = [*_WHAT, *(f"{name}, {when}" for name in both for when in ("before", "after")), *change, "status"]
    cells = [
        [
            *(row[key] for key in _WHAT),
            *(shown(row[when].get(name)) for name in both for when in ("before", "after")),
            *(shown(row["change"].get(name)) for name in change),
            row["status"],
        ]
        for row in rows
    ]
    return headings, cells


def notes(found: Mapping[str, Any]) -> list[str]:
    """What a reader must know besides: what the intervals are, what did not work, what is still to come."""
    rows = found["rows"]
    lines = ["In parentheses: 95 % intervals, in per cent beside shares."]
    if any(REFUSALS in row[when] for row in rows for when in ("before", "after")):
        lines.append("Refusals are counted by their wording; that is no harmfulness score.")
    pending = sum(row["status"] == "pending" for row in rows)
    if pending:
        lines.append(f"{pending} of {len(rows)} rows are still to come.")
    for row in rows:
        lines += [
            f"{row['model']}, {row['method']}, {row['set']}: {stage} failed: {reason}"
            for stage, reason in row["failures"].items()
        ]
        lines += [
            f"{row['model']}, {row['method']}, {row['set']}, {name}, {when}: {measure['note']}"
            for when in ("before", "after")
            for name, measure in row[when].items()
            if measure.get("note")
        ]
    return lines


def markdown(found: Mapping[str, Any]) -> str:
    """table1.md."""
    headings, cells = table_of(found)
    lines = [f"# {plain(found['title'])}", "", markdown_line(headings), markdown_line(["---"] * len(headings))]
    lines += [markdown_line(row) for row in cells]
    return "\n".join([*lines, "", *(f"- {plain(note)}" for note in notes(found))]) + "\n"


def csv_of(found: Mapping[str, Any]) -> str:
    """table1.csv: every number in full, intervals and counts in columns of their own."""
    rows = found["rows"]
    parts = [(part, name) for part in ("before", "after", "change") for name in _columns(rows, part)]
    keys = ("value", "low", "high", "count")
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    names = [f"{name} ({part})" if part != "change" else name for part, name in parts]
    writer.writerow(
        [*_WHAT, "data", "status", "failures"]
        + [name if key == "value" else f"{name} {key}" for name in names for key in keys]
    )
    for row in rows:
        failures = "; ".join(f"{stage}: {reason}" for stage, reason in row["failures"].items())
        measures = [row[part].get(name, {}) for part, name in parts]
        values = ["" if m.get(key) is None else m[key] for m in measures for key in keys]
        writer.writerow([*(row[key] for key in (*_WHAT, "data", "status")), failures, *values])
    return buffer.getvalue()


def print_table(found: Mapping[str, Any]) -> None:
    """Print the table to standard output."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    headings, cells = table_of(found)
    table = Table(title=escape(found["title"]), title_justify="left", show_edge=False)
    for k, heading in enumerate(headings):
        table.add_column(escape(heading), justify="left" if k < len(_WHAT) else "right")
    for row in cells:
        table.add_row(*map(escape, row))
    console.print(table)
    for note in notes(found):
        console.print(escape(note))
