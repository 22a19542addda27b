"""What people see of a run of `bridge.safety_subspaces`: tables, pictures, the page, and the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bridge.reports.pages import render_page
from bridge.suites.safety_subspaces.pictures import pictures
from bridge.suites.safety_subspaces.readings import readings
from bridge.suites.safety_subspaces.tables import csv_of, markdown, notes, tables, updates_table
from commands.store import write_atomically


def write(found: Mapping[str, Any], settings: Mapping[str, Any], folder: Path) -> None:
    """Write tables.md, tables.csv, the pictures and report.html."""
    drawn = pictures(found)
    for name, png in drawn.items():
        write_atomically(folder / f"{name}.png", png)
    write_atomically(folder / "tables.md", markdown(found).encode())
    write_atomically(folder / "tables.csv", csv_of(found).encode())
    page = render_page(
        "suites/safety_subspaces/report.html",
        drawn,
        found=found,
        settings=settings,
        readings=readings(found),
        tables=tables(found),
        updates=updates_table(found),
        notes=notes(found),
        others=[name for name in found["updates"] if name != "useful"],
    )
    write_atomically(folder / "report.html", page)


def print_tables(found: Mapping[str, Any]) -> None:
    """Print the tables and what they say to standard output."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    for each in tables(found):
        table = Table(title=escape(each.caption), title_justify="left", show_edge=False)
        for k, heading in enumerate(each.headings):
            table.add_column(escape(heading), justify="left" if k < each.words else "right")
        for row in each.rows:
            table.add_row(*map(escape, row))
        console.print(table)
        console.print()
    for line in (*readings(found), *found["unanswered"]):
        console.print(escape(line))
