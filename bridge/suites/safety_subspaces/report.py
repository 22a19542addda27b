"""What people see of a run of `bridge.safety_subspaces`: tables, pictures, the page, and the terminal."""

from __future__ import annotations

from pathlib import Path

from bridge.reports.console import print_tables
from bridge.reports.pages import write_page
from bridge.reports.tables import csv_text
from bridge.suites.safety_subspaces.pictures import pictures
from bridge.suites.safety_subspaces.readings import readings
from bridge.suites.safety_subspaces.result import SafetySubspacesResult
from bridge.suites.safety_subspaces.settings import USEFUL, ExperimentSettings
from bridge.suites.safety_subspaces.tables import markdown, notes, tables, updates_table
from commands.store import write_atomically


def write(result: SafetySubspacesResult, settings: ExperimentSettings, folder: Path) -> None:
    """Write tables.md, tables.csv, the pictures and report.html."""
    write_atomically(folder / "tables.md", markdown(result).encode())
    write_atomically(folder / "tables.csv", csv_text(result.records()).encode())
    write_page(
        folder,
        "suites/safety_subspaces/report.html",
        pictures(result),
        result=result,
        settings=settings.identity(),
        readings=readings(result),
        tables=tables(result),
        updates=updates_table(result),
        notes=notes(result),
        others=result.others(USEFUL),
    )


def print_result(result: SafetySubspacesResult, folder: Path) -> None:
    """Print the tables and what they say to standard output, and where the report is."""
    print_tables(tables(result), (*readings(result), *result.unanswered))
    print(f"\n{folder / 'report.html'}")
