"""Fine-tune models on sets by LoRA and in full, and measure each before and after: a table that fills row by row.

    python -m bridge.table1 --settings offline

Writes a run folder: manifest.json, settings.toml, table1.md, table1.csv, table1.json, and a folder for every row with
the run folders of the commands that filled it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bridge.suites.table1.settings import SHIPPED, read_settings
from commands.cli import run_command
from commands.options import Out, command_of

MEMORY_ADVICE = "lower batch_size of the command in the settings file that ran out of it"


def main(
    settings: Annotated[
        str, typer.Option(help=f"A TOML file, or settings that come with the package: {', '.join(SHIPPED)}.")
    ] = "offline",
    out: Out = None,
) -> int:
    """Fill a table of models, methods and sets: harmfulness and utility before and after, the update, its overlap.

    Rows appear in table1.md, table1.csv and table1.json as they finish. A row that fails is listed with its reason
    and the others go on; the exit code is 1 then. The same command again goes on where it was stopped, and tries
    failed rows again.
    """
    read = read_settings(settings)
    from bridge.suites.table1.run import run  # torch takes a second or two: wrong input should not wait for it

    return 0 if run(read, Path(settings).stem, out).done else 1


if __name__ == "__main__":
    run_command(command_of(main), MEMORY_ADVICE)
