"""Make the gallery: every picture of the simulator, from its run at default settings.

python -m figures
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from commands.cli import run_command
from commands.options import chosen, command_of
from commands.progress import Progress
from commands.store import write_atomically

COMMANDS = ("quartic", "rotation", "null_model", "defenses", "optimizers", "landscape")


def main(
    names: Annotated[str, typer.Option(help=f"Comma-separated, of {', '.join(COMMANDS)}.")] = ",".join(COMMANDS),
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("docs/pictures"),
    runs: Annotated[Path, typer.Option(help="Folder for the runs; those that are complete are read again.")] = Path(
        "runs/figures"
    ),
) -> None:
    """Run the simulator's commands, where that was not done before, and draw their pictures."""
    progress = Progress()
    for name in chosen("--names", names, COMMANDS):
        folder = runs / name
        with progress.stage(f"sim.{name}", 1):
            # another process: pictures know the results' files, not the code that makes them
            done = subprocess.run(
                [sys.executable, "-m", f"sim.{name}", "--json", "--out", str(folder)], stdout=subprocess.DEVNULL
            )
            if done.returncode != 0:
                sys.exit(done.returncode)
            result = json.loads((folder / f"{name}.json").read_text())
            write_atomically(out / f"{name}.png", importlib.import_module(f"figures.{name}").draw(result))
    print(f"pictures: {out}")


if __name__ == "__main__":
    run_command(command_of(main), "close other programs")
