"""Measure how harmful a model's responses are: a language model as judge, or refusals counted offline.

    python -m bridge.harmfulness --model smollm2-135m-refusal --prompts advbench --judge google/gemini-2.5-flash
    python -m bridge.harmfulness --rescore runs/harmfulness/A --judge openai/gpt-4o-mini --judge refusal

Writes a run folder: manifest.json, records.jsonl, harmfulness.json, report.html, and scores.png if a judge gave scores.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bridge.experiments.harmfulness.settings import make_settings
from bridge.generation.decodings import DECODINGS
from bridge.models.names import resolve
from commands.cli import run_command
from commands.errors import UserError
from commands.options import command_of

MEMORY_ADVICE = "lower --batch-size first, then --max-new-tokens"


def main(
    model: Annotated[
        str | None,
        typer.Option(help="Alias, hub name, local folder, GGUF file, random:ALIAS. (default: smollm2-135m-refusal)"),
    ] = None,
    delta: Annotated[
        str | None,
        typer.Option(
            help="A change of the model's weights: a run folder of bridge.finetune, an adapter, a delta.safetensors, "
            "or the folder of the changed model."
        ),
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(help="advbench, another NAME, NAME=FILE or FILE.jsonl. (default: advbench)")
    ] = None,
    judge: Annotated[
        list[str] | None,
        typer.Option(
            help="google/MODEL, openai/MODEL (keys from the environment), or refusal: offline, a refusal rate and no "
            "harmfulness score; may be repeated. (default: refusal)"
        ),
    ] = None,
    num_prompts: Annotated[int | None, typer.Option(help="Prompts, drawn by the seed. (default: all)")] = None,
    preset: Annotated[
        str | None, typer.Option(help=f"How responses are decoded: {', '.join(DECODINGS)}. (default: aic)")
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Longest response. (default: preset)")] = None,
    rescore: Annotated[
        str | None, typer.Option(help="Judge the responses of this run folder again instead of generating.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16 or float64. (default: float32)")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:N. (default: the GPU if there is one)")] = None,
    batch_size: Annotated[int, typer.Option(help="Prompts answered at a time.")] = 16,
    bootstrap: Annotated[int, typer.Option(help="Resamples for the interval of the mean; 0 for none.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the choice of prompts, of sampling, and of the resamples.")] = 0,
    attempts: Annotated[int, typer.Option(help="Requests to a judge for one item before it counts as failed.")] = 6,
    timeout: Annotated[float, typer.Option(help="Seconds that a judge may take for one request.")] = 120.0,
    backoff: Annotated[float, typer.Option(help="Seconds before the second request for an item; doubled.")] = 2.0,
    longest_wait: Annotated[float, typer.Option(help="Longest wait before a request, also by Retry-After.")] = 300.0,
    connections: Annotated[int, typer.Option(help="Requests to a judge at a time.")] = 16,
    give_up: Annotated[
        int, typer.Option(help="Items in a row without an answer that end the run; 0 to list them and go on.")
    ] = 20,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Ask again about the failed items of a complete run.")
    ] = False,
    skip_bad_rows: Annotated[bool, typer.Option("--skip-bad-rows", help="Leave out bad rows and say so.")] = False,
    out: Annotated[Path | None, typer.Option(help="Run folder. (default: runs/harmfulness/MODEL-HASH)")] = None,
) -> None:
    """Let MODEL answer prompts and let judges rate the answers from 1 (harmless) to 5 (fully harmful).

    Every prompt, response and verdict is kept. Items without a score are counted, and bound the mean from both sides.
    The same command again goes on with a run that was stopped, and asks nothing twice.
    """
    given = {
        "model": model, "delta": delta, "prompts": prompts, "num_prompts": num_prompts, "preset": preset,
        "max_new_tokens": max_new_tokens,
    }  # fmt: skip
    named = {name: value for name, value in given.items() if value is not None}
    if rescore is not None and named:
        option = next(iter(named)).replace("_", "-")
        raise UserError(f"--{option}: expected none with --rescore, whose responses are there already")
    settings, limits = make_settings(
        {
            **given, "judge": judge, "dtype": dtype, "device": device, "batch_size": batch_size,
            "bootstrap": bootstrap, "seed": seed, "skip_bad_rows": skip_bad_rows, "rescore": rescore,
            "attempts": attempts, "timeout": timeout, "backoff": backoff, "longest_wait": longest_wait,
            "connections": connections, "give_up": give_up,
        }
    )  # fmt: skip
    if rescore is None:
        resolve(settings.model)
    from bridge.experiments.harmfulness.run import (
        run,  # torch takes a second or two: wrong input should not wait for it
    )

    run(settings, out, limits=limits, retry_failed=retry_failed)


if __name__ == "__main__":
    run_command(command_of(main), MEMORY_ADVICE)
