"""The table of `bridge.table1` as Markdown, as CSV, and on the terminal."""

from __future__ import annotations

from pathlib import Path

from bridge.reports import console
from bridge.reports.results import tables_of
from bridge.reports.tables import Table, csv_text, plain
from bridge.suites.measures import REFUSALS, shown
from bridge.suites.table1.result import WHAT, TableResult
from commands.store import write_atomically

_WIDTH = 200  # of the terminal's table, in characters


@tables_of.register
def tables(result: TableResult) -> list[Table]:
    """The table: what was done, each measure before and after, the change, the status."""
    both = list(dict.fromkeys([*result.names("before"), *result.names("after")]))
    change = result.names("change")
    headings = [*WHAT, *(f"{name}, {when}" for name in both for when in ("before", "after")), *change, "status"]
    cells = [
        [
            row.model,
            row.method,
            row.set,
            *(shown(part.get(name)) for name in both for part in (row.before, row.after)),
            *(shown(row.change.get(name)) for name in change),
            row.status,
        ]
        for row in result.rows
    ]
    return [Table(result.title, headings, cells, len(WHAT))]


def notes(result: TableResult) -> list[str]:
    """What a reader must know besides: what the intervals are, what did not work, what is still to come."""
    lines = ["In parentheses: 95 % intervals, in per cent beside shares."]
    if any(REFUSALS in part for row in result.rows for part in (row.before, row.after)):
        lines.append("Refusals are counted by their wording; that is no harmfulness score.")
    pending = sum(row.status == "pending" for row in result.rows)
    if pending:
        lines.append(f"{pending} of {len(result.rows)} rows are still to come.")
    for row in result.rows:
        lines += [f"{row.name}: {step} failed: {reason}" for step, reason in row.failures.items()]
        lines += [
            f"{row.name}, {name}, {when}: {measure.note}"
            for when, part in (("before", row.before), ("after", row.after))
            for name, measure in part.items()
            if measure.note
        ]
    return lines


def write(result: TableResult, folder: Path) -> None:
    """Write table1.json, table1.csv and table1.md, each whole."""
    result.write(folder)
    write_atomically(folder / "table1.csv", csv_text(result.records()).encode())
    write_atomically(folder / "table1.md", markdown(result).encode())


def markdown(result: TableResult) -> str:
    """table1.md."""
    (table,) = tables(result)
    lines = [f"# {plain(table.caption)}", "", *table.markdown()]
    return "\n".join([*lines, "", *(f"- {plain(note)}" for note in notes(result))]) + "\n"


def print_result(result: TableResult, folder: Path) -> None:
    """Print the table to standard output, and where it is."""
    console.print_tables(tables(result), notes(result), _WIDTH)
    print(f"\n{folder / 'table1.md'}")
