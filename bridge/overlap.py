"""Measure how far weight changes moved into a skill's sensitive directions: the exact overlap score, and the damage.

    python -m bridge.overlap --model smollm2-135m-refusal --delta runs/finetune/A --delta runs/finetune/B

Writes a run folder: manifest.json, overlap.json, statistics.npz, samples.jsonl, scores.png, modules.png, damage.png and
report.html.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from bridge.experiments.labels import labelled_deltas
from bridge.experiments.overlap.settings import Settings
from bridge.models.names import resolve
from commands.cli import run_command
from commands.options import command_of

MEMORY_ADVICE = "lower --batch-size first, then --memory or --max-length"


def main(
    model: Annotated[
        str, typer.Option(help="The model before the change: alias, hub name, local folder, GGUF file, random:ALIAS.")
    ] = "smollm2-135m-refusal",
    delta: Annotated[
        list[str] | None,
        typer.Option(
            help="[LABEL=]PATH of a weight change: a run folder of bridge.finetune, an adapter, a delta.safetensors, "
            "or the folder of the changed model; may be repeated."
        ),
    ] = None,
    skill: Annotated[str, typer.Option(help="The skill to protect: refusals, NAME=FILE or FILE.jsonl.")] = "refusals",
    num_skill: Annotated[int, typer.Option(help="Rows of the skill (the paper takes 100).")] = 64,
    fisher: Annotated[
        Literal["sampled", "empirical"],
        typer.Option(help="Responses drawn from the model (what the theory means), or the data's (the paper's)."),
    ] = "sampled",
    draws: Annotated[int, typer.Option(help="Responses drawn at each prompt (sampled Fisher).")] = 1,
    max_new_tokens: Annotated[int, typer.Option(help="Longest response drawn.")] = 64,
    rank: Annotated[int, typer.Option(help="d, for the part of the change in the top-d eigenspace.")] = 10,
    modules: Annotated[
        str | None,
        typer.Option(help="Regular expression for the linear modules that make up theta. (default: all in the blocks)"),
    ] = None,
    utility_loss: Annotated[
        bool, typer.Option(help="Measure the utility loss of each changed model on the skill (token-exact KL).")
    ] = True,
    refusals: Annotated[
        str | None, typer.Option(help="A set of prompts: generate with each changed model, and count refusals.")
    ] = None,
    estimator: Annotated[
        Literal["exact", "rademacher"],
        typer.Option(help="rademacher: beside the exact score, the paper's own estimate by random signs."),
    ] = "exact",
    dim: Annotated[int, typer.Option(help="Dimensions of that projection (the paper: 4,096).")] = 4096,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16 or float64. (default: float32)")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:N. (default: the GPU if there is one)")] = None,
    batch_size: Annotated[int, typer.Option(help="Rows computed at a time.")] = 4,
    memory: Annotated[float, typer.Option(help="GiB for what is kept between passes.")] = 4.0,
    max_length: Annotated[int, typer.Option(help="Longest row in tokens; longer ones are cut on the right.")] = 512,
    bootstrap: Annotated[int, typer.Option(help="Resamples for the intervals; 0 for none.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the choice of rows, the draws, the resamples and the signs.")] = 0,
    skip_bad_rows: Annotated[bool, typer.Option("--skip-bad-rows", help="Leave out bad rows and say so.")] = False,
    out: Annotated[Path | None, typer.Option(help="Run folder. (default: runs/overlap/MODEL-HASH)")] = None,
) -> None:
    """Measure the overlap score of weight changes with a skill, exactly, and what they did to the skill.

    The score is dW^T F dW over all modules jointly, LoRA from its factors; beside it stand the score of a random
    direction of the same norm in every module, the share of the terms between modules, and the utility loss that the
    change really caused. The same command again goes on with a run that was stopped.
    """
    settings = Settings(
        model=model, delta=labelled_deltas(delta or []), skill=skill, num_skill=num_skill, fisher=fisher, draws=draws,
        max_new_tokens=max_new_tokens, rank=rank, modules=modules, utility_loss=utility_loss, refusals=refusals,
        estimator=estimator, dim=dim, dtype=dtype, device=device, batch_size=batch_size, memory=memory,
        max_length=max_length, bootstrap=bootstrap, seed=seed, skip_bad_rows=skip_bad_rows,
    )  # fmt: skip
    settings.check()
    resolve(model)
    from bridge.experiments.overlap.run import (
        run,  # torch takes a second or two to import: wrong input should not wait for it
    )

    run(settings, out)


if __name__ == "__main__":
    run_command(command_of(main), MEMORY_ADVICE)
