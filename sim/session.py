"""What the simulator's commands share: their options, the run folder, the table and the picture."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from commands.cli import run_command
from commands.errors import UserError
from commands.options import command_of
from commands.progress import Progress
from commands.store import RunFolder, short_hash, write_atomically, write_json

Plot = Annotated[bool, typer.Option("--plot", help="Draw the picture into the run folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of the table.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Out = Annotated[Path | None, typer.Option(help="Run folder. (default: runs/sim.COMMAND/HASH of the settings)")]

_MEMORY_ADVICE = "lower the dimension or the number of trajectories"
_MAX_SEED = 2**32 - 1

Result = dict[str, Any]


@dataclass(frozen=True)
class Output:
    """Where a command's result goes.

    Attributes:
        plot: draw the picture.
        json: print JSON, not the table.
        out: the run folder, or None for the default.
    """

    plot: bool
    json: bool
    out: Path | None


@dataclass(frozen=True)
class Table:
    """What a person reads: predicted against measured.

    Attributes:
        title: one line.
        columns: headings.
        rows: one list of cells a line; floats are shown to five digits, None as a dash.
        notes: lines under the table.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    notes: Sequence[str] = ()


def run(
    name: str,
    settings: Mapping[str, Any],
    compute: Callable[[Progress], Result],
    tables: Callable[[Result], Sequence[Table]],
    output: Output,
) -> None:
    """Compute (or read what the same command computed before), write, print.

    The folder gets manifest.json, NAME.json and, if asked for, NAME.png.

    Args:
        name: of the command, "quartic" for sim.quartic.
        settings: everything that decides the numbers.
        compute: makes the result, strict JSON.
        tables: what to print of it.
        output: where it goes.

    Raises:
        UserError: if the folder cannot be used, or the settings are impossible.
    """
    seed = settings["seed"]
    if not 0 <= seed <= _MAX_SEED:
        raise UserError(f"--seed must lie in 0..{_MAX_SEED}, got {seed}")
    path = output.out or Path("runs") / f"sim.{name}" / short_hash(dict(settings))
    progress = Progress(quiet=output.json)
    new = not path.exists() or (path.is_dir() and not any(path.iterdir()))
    found = compute(progress) if new else None  # errors of the input leave nothing behind
    folder = RunFolder(path, f"sim.{name}", settings)
    try:
        file = path / f"{name}.json"
        if not (folder.complete and file.exists()):
            write_json(file, found or compute(progress))
            folder.finish()
        result: Result = json.loads(file.read_text())
        if output.plot:
            figure = importlib.import_module(f"figures.{name}")  # matplotlib only where a picture is drawn
            write_atomically(path / f"{name}.png", figure.draw(result))
    finally:
        folder.close()
    if output.json:
        print(json.dumps(result, indent=1))
        return
    for table in tables(result):
        _print(table)
    print(f"{'picture: ' + str(path / f'{name}.png') if output.plot else 'result: ' + str(file)}")


def app(main: Callable[..., None]) -> None:
    """Run one command, errors of the user's input in one line."""
    run_command(command_of(main), _MEMORY_ADVICE)


def _print(table: Table) -> None:
    from rich.console import Console
    from rich.table import Table as RichTable

    shown = RichTable(title=table.title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for i, column in enumerate(table.columns):
        shown.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    for row in table.rows:
        shown.add_row(*(_cell(cell) for cell in row))
    console = Console(width=None if Console().is_terminal else 140, highlight=False, markup=False)
    console.print(shown)
    for note in table.notes:
        console.print(note)
    console.print()


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def finite(value: float) -> float | None:
    """The number, or None where JSON has none."""
    return float(value) if abs(value) < float("inf") else None
