"""Measure the alignment instability condition of a model under a planned fine-tune.

    python -m bridge.estimate_aic --model qwen3-1.7b --skill refusals --finetune gsm8k

Writes a run folder: manifest.json, samples.jsonl, statistics.npz, aic.json, spectrum.png, coupling.png,
prediction.png and report.html.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from bridge.experiments.estimate_aic.settings import Settings
from bridge.models.names import resolve
from commands.cli import run_command
from commands.options import command_of

MEMORY_ADVICE = "lower --batch-size first, then --memory or --max-length"


# ------------------------------------------------------------------------------------------- command line


def main(
    model: Annotated[
        str, typer.Option(help="Alias, hub name, local folder, GGUF file, or random:ALIAS.")
    ] = "smollm2-135m",
    skill: Annotated[str, typer.Option(help="What to protect: refusals, or FILE.jsonl.")] = "refusals",
    finetune: Annotated[
        str, typer.Option(help="What to train on: benign, gsm8k, gsm8k=FILE, or FILE.jsonl.")
    ] = "benign",
    num_skill: Annotated[int, typer.Option(help="Rows of the skill.")] = 64,
    num_finetune: Annotated[int, typer.Option(help="Rows of the fine-tuning set.")] = 64,
    fisher: Annotated[
        Literal["sampled", "empirical"],
        typer.Option(help="Responses drawn from the model (what the theory means), or the data's."),
    ] = "sampled",
    draws: Annotated[int, typer.Option(help="Responses drawn at each prompt (sampled Fisher).")] = 1,
    max_new_tokens: Annotated[int, typer.Option(help="Longest response drawn.")] = 64,
    rank: Annotated[
        int | None,
        typer.Option(help="d, the number of sharp directions (default: 10, or N if that is less)."),
    ] = None,
    energy: Annotated[
        float | None, typer.Option(help="Instead: the fewest directions that hold this share of the trace.")
    ] = None,
    modules: Annotated[
        str | None,
        typer.Option(help="Regular expression for the linear modules that make up theta. (default: all in the blocks)"),
    ] = None,
    optimizer: Annotated[
        Literal["sgd", "adamw"], typer.Option(help="Gradient flow, or AdamW's preconditioned flow.")
    ] = "sgd",
    adam_batch_size: Annotated[
        int, typer.Option(help="Rows in a batch of AdamW, whose gradients' squares scale it.")
    ] = 8,
    learning_rate: Annotated[float, typer.Option(help="Of the planned fine-tune.")] = 1e-4,
    steps: Annotated[int, typer.Option(help="Of the planned fine-tune; t = learning rate × steps.")] = 100,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16 or float64. (default: float32)")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:N. (default: the GPU if there is one)")] = None,
    batch_size: Annotated[int, typer.Option(help="Rows computed at a time.")] = 4,
    memory: Annotated[float, typer.Option(help="GiB for what is kept between passes.")] = 4.0,
    max_length: Annotated[int, typer.Option(help="Longest row in tokens; longer ones are cut on the right.")] = 512,
    bootstrap: Annotated[int, typer.Option(help="Resamples for the intervals; 0 for none.")] = 200,
    seed: Annotated[int, typer.Option(help="Of the choice of rows, the draws and the resamples.")] = 0,
    skip_bad_rows: Annotated[bool, typer.Option("--skip-bad-rows", help="Leave out bad rows and say so.")] = False,
    out: Annotated[Path | None, typer.Option(help="Run folder. (default: runs/estimate_aic/MODEL-HASH)")] = None,
) -> None:
    """Measure the alignment instability condition of MODEL before it is fine-tuned.

    How sharp is the skill (sharpness, tail, effective rank), how much of the update lies in its sharp
    directions (overlap, leak), how fast it bends into them (coupling, onset coefficient), and what that does
    to the skill by the end of the run (crossover, regime, predicted utility loss). The same command again goes
    on with a run that was stopped.
    """
    settings = Settings(
        model=model, skill=skill, finetune=finetune, num_skill=num_skill, num_finetune=num_finetune,
        fisher=fisher, draws=draws, max_new_tokens=max_new_tokens, rank=rank,
        energy=energy, modules=modules, optimizer=optimizer,
        adam_batch_size=adam_batch_size, learning_rate=learning_rate, steps=steps, dtype=dtype, device=device,
        batch_size=batch_size, memory=memory, max_length=max_length, bootstrap=bootstrap, seed=seed,
        skip_bad_rows=skip_bad_rows,
    )  # fmt: skip
    settings.check()
    resolve(model)
    from bridge.experiments.estimate_aic.run import (
        run,  # torch takes a second or two to import: wrong input should not wait for it
    )

    run(settings, out)


if __name__ == "__main__":
    run_command(command_of(main), MEMORY_ADVICE)
