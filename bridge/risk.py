"""Rank fine-tuning sets by the damage they would do to a skill, before any training, and name the rows that do it.

    python -m bridge.risk --model smollm2-135m-refusal --candidates A.jsonl B.jsonl gsm8k=C.jsonl

Writes a run folder: manifest.json, settings.toml, risk.json, rows.jsonl, statistics.npz, samples.jsonl, risk.png,
rows.png and report.html; with --clean also a copy of a set without its worst rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bridge.experiments.risk.settings import Settings
from bridge.models.names import resolve
from commands.cli import run_command
from commands.options import Out, command_of, require

MEMORY_ADVICE = "lower --batch-size first, then --memory, --num-rows or --max-length"


def main(
    settings: Settings,
    more: Annotated[list[str] | None, typer.Argument(metavar="[SET]...", help="Further candidates.")] = None,
    clean_out: Annotated[
        Path | None, typer.Option(help="The cleaned copy. (default: cleaned.jsonl in the run folder)")
    ] = None,
    out: Out = None,
) -> None:
    """Rank candidate sets by the utility loss that fine-tuning MODEL on them would cost a skill, before any training.

    The loss is predicted at second order where every set has made the same fine-tuning progress, with intervals, the
    probability that each set is the worst, and predictors that cost nothing beside it. Every row's share is exact. The
    same command again goes on with a run that was stopped.
    """
    settings = settings.with_candidates(more or [])
    settings.check()
    wanted = "--clean N with it, the number of rows to leave out"
    require(clean_out is None or settings.clean > 0, "clean_out", wanted, "none")
    resolve(settings.model)
    from bridge.experiments.risk.run import run  # torch takes a second or two: wrong input should not wait for it

    run(settings, out, clean_out=clean_out)


if __name__ == "__main__":
    run_command(command_of(main, "bridge.risk"), MEMORY_ADVICE)
