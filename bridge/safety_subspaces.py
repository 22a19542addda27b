"""Is there a part of the weights that carries safety alone? Project fine-tunes onto bases, and measure what is left.

    python -m bridge.safety_subspaces --settings offline

Experiments 1 to 3 of "Safety Subspaces are Not Distinct" (arXiv 2505.14185). Writes a run folder: manifest.json,
settings.toml, safety_subspaces.json, tables.md, tables.csv, figure2.png, figure3.png, figure4.png, by_energy.png,
energy.png, report.html, records/ (every response of every model), finetunes/ (a run folder of bridge.finetune for each
fine-tune), and energy/ and mso/ (run folders of bridge.subspaces).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bridge.suites.safety_subspaces.settings import SHIPPED, read_settings
from commands.cli import run_command
from commands.options import Out, command_of

MEMORY_ADVICE = "lower batch_size of [utility] and [harmfulness], or micro_batch_size of [finetune], in the settings"


def main(
    settings: Annotated[
        str, typer.Option(help=f"A TOML file, or settings that come with the package: {', '.join(SHIPPED)}.")
    ] = "offline",
    out: Out = None,
) -> int:
    """Fine-tune an aligned model, project the changes of its weights, and measure utility and harmfulness of each part.

    The bases are singular vectors of the alignment update (the aligned model's weights minus its base's) and random
    ones. The same command again goes on where it was stopped. The exit code is 1 if a judge did not answer on some
    items; the same command asks again.
    """
    read = read_settings(settings)
    from bridge.suites.safety_subspaces.run import run  # torch takes a while: wrong input should not wait for it

    return 1 if run(read, Path(settings).stem, out).unanswered else 0


if __name__ == "__main__":
    run_command(command_of(main), MEMORY_ADVICE)
