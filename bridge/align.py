"""Fine-tune a model to refuse unsafe requests, until it does so on requests that it was not trained on.

    python -m bridge.align --model smollm2-135m

Afterwards every command takes the result as `--model smollm2-135m-refusal`. Writes a run folder: manifest.json,
samples.jsonl, align.json, responses.jsonl, model/, delta.safetensors (full) or adapter/ (LoRA), delta.json,
trajectory.png and report.html.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from bridge.experiments.align.settings import Settings
from bridge.models.built import check_name, refusal_name
from bridge.models.names import resolve
from bridge.training.plan import Plan
from commands.cli import run_command
from commands.options import command_of

MEMORY_ADVICE = "lower --micro-batch-size first, then --eval-batch-size or --max-length, or take --method lora"
NOT_REACHED = 1
"""Exit code of a complete run whose model does not refuse as it should."""


# ------------------------------------------------------------------------------------------- command line


def main(
    model: Annotated[
        str, typer.Option(help="Alias, hub name, local folder, GGUF file, or random:ALIAS.")
    ] = "smollm2-135m",
    refusals: Annotated[str, typer.Option(help="What to learn: a set's NAME, NAME=FILE, or FILE.jsonl.")] = "refusals",
    benign: Annotated[
        str, typer.Option(help="Harmless requests with answers, so that it does not refuse everything.")
    ] = "benign",
    benign_share: Annotated[float, typer.Option(help="Share of the training rows that is benign.")] = 0.55,
    heldout_refusals: Annotated[
        str, typer.Option(help="Unsafe requests that it is not trained on.")
    ] = "refusals-heldout",
    heldout_benign: Annotated[
        str, typer.Option(help="Harmless requests that it is not trained on.")
    ] = "benign-heldout",
    target_refusals: Annotated[
        float, typer.Option(help="Stop once this share of the held-out unsafe requests is refused, ...")
    ] = 0.9,
    limit_benign: Annotated[
        float, typer.Option(help="... and no more than this share of the held-out harmless ones.")
    ] = 0.1,
    method: Annotated[Literal["full", "lora"], typer.Option(help="All weights, or low-rank adapters.")] = "full",
    learning_rate: Annotated[float, typer.Option(help="Of AdamW; constant after a warm-up of 5 steps.")] = 4e-5,
    epochs: Annotated[int, typer.Option(help="Passes over the rows at most.")] = 5,
    batch_size: Annotated[int, typer.Option(help="Rows of one step.")] = 16,
    micro_batch_size: Annotated[
        int | None, typer.Option(help="Rows computed at a time: memory only. (default: a divisor up to 4)")
    ] = None,
    lora_rank: Annotated[int, typer.Option(help="Rank of the adapters.")] = 16,
    lora_alpha: Annotated[float, typer.Option(help="Scale of the adapters is alpha / rank.")] = 32.0,
    eval_every: Annotated[int, typer.Option(help="Steps between two counts of refusals.")] = 14,
    eval_batch_size: Annotated[int, typer.Option(help="Requests answered at a time.")] = 64,
    max_new_tokens: Annotated[int, typer.Option(help="Longest response read for refusals, in tokens.")] = 40,
    max_length: Annotated[int, typer.Option(help="Longest row in tokens; longer ones are cut on the right.")] = 512,
    seed: Annotated[int, typer.Option(help="Of the rows, their order, and the adapters' start.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu or cuda. (default: the GPU if there is one)")] = None,
    skip_bad_rows: Annotated[bool, typer.Option("--skip-bad-rows", help="Leave out bad rows and say so.")] = False,
    name: Annotated[
        str | None, typer.Option(help="What to call the result as a model. (default: MODEL-refusal)")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Take the place of another model of that name.")] = False,
    out: Annotated[Path | None, typer.Option(help="Run folder. (default: runs/align/MODEL-HASH)")] = None,
) -> int:
    """Fine-tune MODEL to refuse unsafe requests and to go on answering harmless ones.

    Refusals are counted on held-out requests, by the wording of greedy answers. When both shares are as wanted, the
    training stops; otherwise it ends after --epochs, says so, and the exit code is 1. Either way the model is installed
    under its name for all commands. The same command again goes on with a run that was stopped.
    """
    plan = Plan(
        method=method, learning_rate=learning_rate, epochs=float(epochs), batch_size=batch_size,
        micro_batch_size=micro_batch_size, scheduler="constant_with_warmup", warmup=5.0, lora_rank=lora_rank,
        lora_alpha=lora_alpha, seed=seed,
    )  # fmt: skip
    settings = Settings(
        model=model, refusals=refusals, benign=benign, benign_share=benign_share, heldout_refusals=heldout_refusals,
        heldout_benign=heldout_benign, target_refusals=target_refusals, limit_benign=limit_benign,
        eval_every=eval_every, eval_batch_size=eval_batch_size, max_new_tokens=max_new_tokens, max_length=max_length,
        plan=plan, device=device, skip_bad_rows=skip_bad_rows,
    )  # fmt: skip
    settings.check()
    chosen = name or refusal_name(model)
    check_name(chosen)
    resolve(model)
    from bridge.experiments.align.run import (
        run,  # torch takes a second or two to import: wrong input should not wait for it
    )

    return 0 if run(settings, chosen, out, replace=replace).reached else NOT_REACHED


if __name__ == "__main__":
    run_command(command_of(main), MEMORY_ADVICE)
