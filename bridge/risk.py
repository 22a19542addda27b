"""Rank fine-tuning sets by the damage they would do to a skill, before any training, and name the rows that do it.

    python -m bridge.risk --model smollm2-135m-refusal --candidates A.jsonl B.jsonl gsm8k=C.jsonl

Writes a run folder: manifest.json, risk.json, rows.jsonl, statistics.npz, samples.jsonl, risk.png, rows.png and
report.html; with --clean also a copy of a set without its worst rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from bridge.experiments.labels import labelled_candidates
from bridge.experiments.risk.settings import Settings
from bridge.models.names import resolve
from commands.cli import run_command
from commands.options import command_of, require

MEMORY_ADVICE = "lower --batch-size first, then --memory, --num-rows or --max-length"


def main(
    more: Annotated[list[str] | None, typer.Argument(metavar="[SET]...", help="Further candidates.")] = None,
    candidates: Annotated[
        list[str] | None,
        typer.Option(help="[LABEL=]SET to train on: benign, gsm8k, gsm8k=FILE, FILE.jsonl; several may follow."),
    ] = None,
    model: Annotated[
        str, typer.Option(help="Alias, hub name, local folder, GGUF file, or random:ALIAS.")
    ] = "smollm2-135m-refusal",
    skill: Annotated[str, typer.Option(help="What to protect: refusals, NAME=FILE or FILE.jsonl.")] = "refusals",
    num_skill: Annotated[int, typer.Option(help="Rows of the skill, whose prompts the model answers itself.")] = 64,
    draws: Annotated[int, typer.Option(help="Responses drawn at each prompt.")] = 1,
    max_new_tokens: Annotated[int, typer.Option(help="Longest response drawn.")] = 64,
    num_rows: Annotated[
        int, typer.Option(help="Rows of each candidate, chosen at random (all of a smaller one); 0 for all.")
    ] = 100,
    optimizer: Annotated[
        Literal["adamw", "sgd"], typer.Option(help="AdamW's preconditioned descent, or plain gradient descent.")
    ] = "adamw",
    adam_batch_size: Annotated[
        int,
        typer.Option(help="Rows in a batch of AdamW, whose gradients' squares scale it; fewer in a set of few rows."),
    ] = 8,
    equal: Annotated[
        Literal["norm", "loss"],
        typer.Option(help="Rank at the same norm of the update, or at the same decrease of each set's own loss."),
    ] = "norm",
    distance: Annotated[float, typer.Option(help="That norm.")] = 0.1,
    loss_decrease: Annotated[float, typer.Option(help="That decrease, in nats per response token.")] = 0.01,
    worst_by: Annotated[
        Literal["effect", "contribution"],
        typer.Option(
            help="The worst rows: those without which the set costs least at equal progress, or the largest shares of "
            "its leak."
        ),
    ] = "effect",
    clean: Annotated[int, typer.Option(help="Write a copy of a candidate without its worst N rows.")] = 0,
    clean_candidate: Annotated[
        str | None, typer.Option(help="The label of that candidate. (default: the only one)")
    ] = None,
    clean_out: Annotated[
        Path | None, typer.Option(help="That copy. (default: cleaned.jsonl in the run folder)")
    ] = None,
    modules: Annotated[
        str | None,
        typer.Option(help="Regular expression for the linear modules that make up theta. (default: all in the blocks)"),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16 or float64. (default: float32)")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:N. (default: the GPU if there is one)")] = None,
    batch_size: Annotated[int, typer.Option(help="Rows computed at a time.")] = 4,
    memory: Annotated[float, typer.Option(help="GiB for what is kept between passes.")] = 4.0,
    max_length: Annotated[int, typer.Option(help="Longest row in tokens; longer ones are cut on the right.")] = 512,
    bootstrap: Annotated[int, typer.Option(help="Resamples for intervals and probabilities; 0 for none.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the choice of rows, the draws and the resamples.")] = 0,
    skip_bad_rows: Annotated[bool, typer.Option("--skip-bad-rows", help="Leave out bad rows and say so.")] = False,
    out: Annotated[Path | None, typer.Option(help="Run folder. (default: runs/risk/MODEL-HASH)")] = None,
) -> None:
    """Rank candidate sets by the utility loss that fine-tuning MODEL on them would cost a skill, before any training.

    The loss is predicted at second order where every set has made the same fine-tuning progress, with intervals, the
    probability that each set is the worst, and predictors that cost nothing beside it. Every row's share is exact. The
    same command again goes on with a run that was stopped.
    """
    sets = labelled_candidates([*(candidates or []), *(more or [])])
    if clean and clean_candidate is None and len(sets) == 1:
        (clean_candidate,) = sets
    settings = Settings(
        model=model, candidates=sets, skill=skill, num_skill=num_skill, draws=draws, max_new_tokens=max_new_tokens,
        num_rows=num_rows, optimizer=optimizer, adam_batch_size=adam_batch_size, equal=equal, distance=distance,
        loss_decrease=loss_decrease, worst_by=worst_by, clean=clean, clean_candidate=clean_candidate, modules=modules,
        dtype=dtype, device=device, batch_size=batch_size, memory=memory, max_length=max_length, bootstrap=bootstrap,
        seed=seed, skip_bad_rows=skip_bad_rows,
    )  # fmt: skip
    settings.check()
    require(clean_out is None or clean > 0, "clean_out", "--clean N with it, the number of rows to leave out", "none")
    resolve(model)
    from bridge.experiments.risk.run import (
        run,  # torch takes a second or two to import: wrong input should not wait for it
    )

    run(settings, out, clean_out)


if __name__ == "__main__":
    run_command(command_of(main), MEMORY_ADVICE)
