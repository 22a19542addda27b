"""Which number predicts the damage of a fine-tune? Fine-tune on many sets, and rank what was known by what happened.

    python -m bridge.study --settings offline --files DIR

Writes a run folder: manifest.json, settings.toml, study.json, study.csv, study.md, utility_loss.png,
lost_refusals.png, report.html, sets/ (the rows of every fine-tune), before/ (what is known before training) and rows/
(a folder for every fine-tune, with the run folders of the commands that measured it).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bridge.suites.study.settings import SHIPPED, read_settings
from commands.cli import run_command
from commands.options import Out, command_of

MEMORY_ADVICE = "lower micro_batch_size of [finetune], or batch_size and memory of [skill], in the settings file"


def main(
    settings: Annotated[
        str, typer.Option(help=f"A TOML file, or settings that come with the package: {', '.join(SHIPPED)}.")
    ] = "offline",
    files: Annotated[
        Path | None,
        typer.Option(help="The folder of the settings' local files. (default: sets in local files are left out)"),
    ] = None,
    out: Out = None,
) -> int:
    """Fine-tune a model on sets, by LoRA and in full, and correlate what was known with the damage done.

    Known before the training, after a few pilot steps, and after the training; the damage is the utility loss of a
    skill and the refusals lost. Every number's rank correlation with it has an interval, and is compared with the best
    of those that cost nothing. Fine-tunes appear in study.md, study.csv and study.json as they finish; one that fails
    is listed with its reason and the others go on (the exit code is 1 then). The same command again goes on where it
    was stopped, and tries failed ones again.
    """
    read = read_settings(settings, files)
    from bridge.suites.study.run import run  # torch takes a second or two: wrong input should not wait for it

    return 0 if run(read, Path(settings).stem, out).done else 1


if __name__ == "__main__":
    run_command(command_of(main), MEMORY_ADVICE)
