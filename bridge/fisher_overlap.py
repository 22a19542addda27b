"""Measure whether the sensitivity subspaces of several skills are distinct: the overlap of their Fisher information.

    python -m bridge.fisher_overlap --model smollm2-135m-refusal --skill refusals --skill arithmetic --skill benign

The question of "Safety Subspaces are Not Distinct" (arXiv 2505.14185), asked of the subspaces of "The Geometry of
Alignment Collapse" (arXiv 2602.15799). Writes a run folder: manifest.json, fisher_overlap.json, statistics.npz,
samples.jsonl, overlap.png, relative.png, energy.png, blocks.png and report.html.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from bridge.experiments.fisher_overlap.settings import Settings
from bridge.models.names import resolve
from commands.cli import run_command
from commands.options import command_of

MEMORY_ADVICE = "lower --batch-size first, then --memory or --max-length"


def main(
    model: Annotated[
        str, typer.Option(help="Alias, hub name, local folder, GGUF file, or random:ALIAS.")
    ] = "smollm2-135m-refusal",
    skill: Annotated[
        list[str] | None,
        typer.Option(
            help="A skill: refusals, NAME, NAME=FILE or FILE.jsonl; give two or more. (default: refusals, arithmetic "
            "and benign)"
        ),
    ] = None,
    num_skill: Annotated[int, typer.Option(help="Rows of each skill.")] = 64,
    fisher: Annotated[
        Literal["sampled", "empirical"],
        typer.Option(help="Responses drawn from the model (what the theory means), or the data's."),
    ] = "sampled",
    draws: Annotated[int, typer.Option(help="Responses drawn at each prompt (sampled Fisher).")] = 1,
    max_new_tokens: Annotated[int, typer.Option(help="Longest response drawn.")] = 64,
    rank: Annotated[int, typer.Option(help="d, the number of directions that the table and the verdict are of.")] = 10,
    energy: Annotated[
        list[float] | None,
        typer.Option(help="Also compare at the ranks that hold this share of the trace; may be repeated. (0.5, 0.9)"),
    ] = None,
    modules: Annotated[
        str | None,
        typer.Option(help="Regular expression for the linear modules that make up theta. (default: all in the blocks)"),
    ] = None,
    splits: Annotated[int, typer.Option(help="Random splits of every skill into halves, for the ceiling.")] = 50,
    jackknife: Annotated[int, typer.Option(help="Blocks of prompts left out in turn, for the intervals.")] = 10,
    permutations: Annotated[int, typer.Option(help="Exchanges of the skills' labels, for the test; 0 for none.")] = 500,
    simulations: Annotated[int, typer.Option(help="Sets of unrelated scores drawn, for the floor.")] = 20,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16 or float64. (default: float32)")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:N. (default: the GPU if there is one)")] = None,
    batch_size: Annotated[int, typer.Option(help="Rows computed at a time.")] = 4,
    memory: Annotated[float, typer.Option(help="GiB for what is kept between passes.")] = 4.0,
    max_length: Annotated[int, typer.Option(help="Longest row in tokens; longer ones are cut on the right.")] = 512,
    seed: Annotated[int, typer.Option(help="Of the choice of rows, the draws, the splits and the simulations.")] = 0,
    skip_bad_rows: Annotated[bool, typer.Option("--skip-bad-rows", help="Leave out bad rows and say so.")] = False,
    out: Annotated[Path | None, typer.Option(help="Run folder. (default: runs/fisher_overlap/MODEL-HASH)")] = None,
) -> None:
    """Measure how far the sensitive directions of several skills overlap, and how far they could.

    The principal angles come from the exact inner products of all skills' scores, without projection. Beside the
    overlap of two skills stand its ceiling, the overlap of two halves of one skill, its floor, that of unrelated
    scores, and a test that exchanges the skills' samples; with and without the skills' mean scores.
    """
    settings = Settings(
        model=model, skill=tuple(skill or ["refusals", "arithmetic", "benign"]), num_skill=num_skill, fisher=fisher,
        draws=draws, max_new_tokens=max_new_tokens, rank=rank, energy=tuple(energy or [0.5, 0.9]), modules=modules,
        splits=splits, jackknife=jackknife, permutations=permutations, simulations=simulations, dtype=dtype,
        device=device, batch_size=batch_size, memory=memory, max_length=max_length, seed=seed,
        skip_bad_rows=skip_bad_rows,
    )  # fmt: skip
    settings.check()
    resolve(model)
    from bridge.experiments.fisher_overlap.run import (
        run,  # torch takes a second or two to import: wrong input should not wait
    )

    run(settings, out)


if __name__ == "__main__":
    run_command(command_of(main), MEMORY_ADVICE)
