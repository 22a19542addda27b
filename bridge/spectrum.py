"""Measure the spectrum of the Fisher information of one or several skills, exactly and against its nulls.

    python -m bridge.spectrum --model qwen3-1.7b --skill refusals --skill gsm8k

Writes a run folder: manifest.json, spectrum.json, statistics.npz, samples.jsonl, spectrum.png, growth.png, blocks.png
and report.html.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from bridge.experiments.spectrum.settings import Settings
from bridge.models.names import resolve
from commands.cli import run_command
from commands.options import command_of

MEMORY_ADVICE = "lower --batch-size first, then --memory or --max-length"


def main(
    model: Annotated[
        str, typer.Option(help="Alias, hub name, local folder, GGUF file, or random:ALIAS.")
    ] = "smollm2-135m",
    skill: Annotated[
        list[str] | None, typer.Option(help="A skill: refusals, NAME, NAME=FILE or FILE.jsonl; may be repeated.")
    ] = None,
    num_skill: Annotated[int, typer.Option(help="Rows of each skill (the paper takes 100).")] = 64,
    fisher: Annotated[
        Literal["sampled", "empirical"],
        typer.Option(help="Responses drawn from the model (what the theory means), or the data's (the paper's)."),
    ] = "sampled",
    draws: Annotated[int, typer.Option(help="Responses drawn at each prompt (sampled Fisher).")] = 1,
    max_new_tokens: Annotated[int, typer.Option(help="Longest response drawn.")] = 64,
    rank: Annotated[int, typer.Option(help="d, for the stability of the top-d eigenspace.")] = 10,
    modules: Annotated[
        str | None,
        typer.Option(help="Regular expression for the linear modules that make up theta. (default: all in the blocks)"),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16 or float64. (default: float32)")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:N. (default: the GPU if there is one)")] = None,
    batch_size: Annotated[int, typer.Option(help="Rows computed at a time.")] = 4,
    memory: Annotated[float, typer.Option(help="GiB for what is kept between passes.")] = 4.0,
    max_length: Annotated[int, typer.Option(help="Longest row in tokens; longer ones are cut on the right.")] = 512,
    subsets: Annotated[int, typer.Option(help="Random subsets of each size, for the growth of the rank.")] = 20,
    seed: Annotated[int, typer.Option(help="Of the choice of rows, the draws, the subsets and the splits.")] = 0,
    skip_bad_rows: Annotated[bool, typer.Option("--skip-bad-rows", help="Leave out bad rows and say so.")] = False,
    out: Annotated[Path | None, typer.Option(help="Run folder. (default: runs/spectrum/MODEL-HASH)")] = None,
) -> None:
    """Measure the spectrum of a skill's Fisher information, and what of its decay means low rank.

    The eigenvalues come from the exact inner products of all scores, without projection. Beside them stand what the
    norms of the scores alone would give, the effective rank as the number of samples grows, and how far two halves
    of the samples agree on the sharp directions.
    """
    settings = Settings(
        model=model, skill=tuple(skill or ["refusals"]), num_skill=num_skill, fisher=fisher, draws=draws,
        max_new_tokens=max_new_tokens, rank=rank, modules=modules, dtype=dtype, device=device, batch_size=batch_size,
        memory=memory, max_length=max_length, subsets=subsets, seed=seed, skip_bad_rows=skip_bad_rows,
    )  # fmt: skip
    settings.check()
    resolve(model)
    from bridge.experiments.spectrum.run import (
        run,  # torch takes a second or two to import: wrong input should not wait for it
    )

    run(settings, out)


if __name__ == "__main__":
    run_command(command_of(main), MEMORY_ADVICE)
