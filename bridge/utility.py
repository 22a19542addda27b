"""Measure what a model can do: generated answers to problems with a number as their answer, compared exactly.

    python -m bridge.utility --model smollm2-135m --delta runs/finetune/A --data gsm8k

Writes a run folder: manifest.json, records.jsonl, utility.json and report.html.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bridge.experiments.utility.settings import make_settings
from bridge.generation.decodings import DECODINGS
from bridge.models.names import resolve
from commands.cli import run_command
from commands.options import command_of

MEMORY_ADVICE = "lower --batch-size first, then --max-new-tokens or --shots"


def main(
    model: Annotated[
        str, typer.Option(help="Alias, hub name, local folder, GGUF file, or random:ALIAS.")
    ] = "smollm2-135m",
    delta: Annotated[
        str | None,
        typer.Option(
            help="A change of the model's weights: a run folder of bridge.finetune, an adapter, a delta.safetensors, "
            "or the folder of the changed model."
        ),
    ] = None,
    data: Annotated[
        str,
        typer.Option(
            help="Problems: gsm8k, math or arithmetic (their held-out rows), metamathqa, NAME=FILE or FILE.jsonl."
        ),
    ] = "gsm8k",
    num: Annotated[int, typer.Option(help="Problems, drawn by the seed; 0 for all.")] = 200,
    shots: Annotated[int, typer.Option(help="Solved problems put before each, drawn from the set's other rows.")] = 0,
    preset: Annotated[str, typer.Option(help=f"How answers are decoded: {', '.join(DECODINGS)}.")] = "aic",
    max_new_tokens: Annotated[int | None, typer.Option(help="Longest answer. (default: preset)")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16 or float64. (default: float32)")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:N. (default: the GPU if there is one)")] = None,
    batch_size: Annotated[int, typer.Option(help="Problems answered at a time.")] = 16,
    seed: Annotated[int, typer.Option(help="Of the choice of problems and of sampling.")] = 0,
    skip_bad_rows: Annotated[bool, typer.Option("--skip-bad-rows", help="Leave out bad rows and say so.")] = False,
    out: Annotated[Path | None, typer.Option(help="Run folder. (default: runs/utility/MODEL-HASH)")] = None,
) -> None:
    r"""Let MODEL solve problems and count the answers that are right.

    The number is looked for in \boxed{}, behind "####", behind "The answer is", and last of all anywhere: the last
    number of the answer. It must equal the set's own exactly. An answer without a number is wrong, and counted
    apart; so is one that was cut. The same command again goes on with a run that was stopped.
    """
    settings = make_settings(
        {
            "model": model, "delta": delta, "data": data, "num": num, "shots": shots, "preset": preset,
            "max_new_tokens": max_new_tokens, "dtype": dtype, "device": device, "batch_size": batch_size,
            "seed": seed, "skip_bad_rows": skip_bad_rows,
        }
    )  # fmt: skip
    resolve(model)
    from bridge.experiments.utility.run import (
        run,  # torch takes a second or two to import: wrong input should not wait for it
    )

    run(settings, out)


if __name__ == "__main__":
    run_command(command_of(main), MEMORY_ADVICE)
