"""Measure how far the hidden states of two or more sets of prompts share their subspaces, layer by layer.

    python -m bridge.activations --model smollm2-135m-refusal --set useful=arithmetic --set harmful=refusals-heldout

Writes a run folder: manifest.json, activations.json, activations.npz (the states), prompts.jsonl, energies.png,
layers.png and report.html.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from bridge.experiments.activations.settings import ENERGIES, SETS, Settings, energy_fractions
from bridge.experiments.labels import labelled_sets
from bridge.models.names import resolve
from commands.cli import run_command
from commands.options import command_of

MEMORY_ADVICE = "lower --batch-size first, then --max-new-tokens"


def main(
    model: Annotated[
        str, typer.Option(help="Alias, hub name, local folder, GGUF file, or random:ALIAS.")
    ] = "smollm2-135m-refusal",
    delta: Annotated[
        str | None,
        typer.Option(
            help="A change of the model's weights: a run folder of bridge.finetune, an adapter, a delta.safetensors, "
            "or the folder of the changed model."
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="[LABEL=]SET of prompts: a known set, NAME=FILE or FILE.jsonl; to be given twice or more. "
            f"(default: {' and '.join(SETS)})",
        ),
    ] = None,
    num_prompts: Annotated[int, typer.Option(help="Prompts of each set, drawn by the seed; 0 for all.")] = 60,
    token: Annotated[
        Literal["prompt", "generated"],
        typer.Option(help="Whose states: the prompt's last token, or the last one of the model's greedy response."),
    ] = "prompt",
    max_new_tokens: Annotated[int, typer.Option(help="Longest response (--token generated).")] = 32,
    energies: Annotated[str, typer.Option(help="Energy fractions that the subspaces hold, with commas.")] = ",".join(
        map(str, ENERGIES)
    ),
    layers: Annotated[
        str | None,
        typer.Option(help="Layers to sum up, such as 20-27,30; 0: embeddings. (default: those at 65 to 90 % depth)"),
    ] = None,
    splits: Annotated[int, typer.Option(help="Random splits of every set into two halves.")] = 20,
    permutations: Annotated[int, typer.Option(help="Relabellings of the prompts; 0 for no test.")] = 199,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16 or float64. (default: float32)")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:N. (default: the GPU if there is one)")] = None,
    batch_size: Annotated[int, typer.Option(help="Prompts computed at a time.")] = 16,
    seed: Annotated[int, typer.Option(help="Of the choice of prompts, the splits and the relabellings.")] = 0,
    skip_bad_rows: Annotated[bool, typer.Option("--skip-bad-rows", help="Leave out bad rows and say so.")] = False,
    out: Annotated[Path | None, typer.Option(help="Run folder. (default: runs/activations/MODEL-HASH)")] = None,
) -> None:
    """Compare the subspaces of sets of prompts in the hidden states of MODEL, at every layer.

    The overlap of two sets stands beside that of two halves of one set, at equal numbers of prompts, beside chance,
    and beside what it is when the prompts' labels are drawn anew. The same command again goes on with a run that was
    stopped.
    """
    settings = Settings(
        model=model, delta=delta, sets=labelled_sets(list(set_ or SETS)), num_prompts=num_prompts, token=token,
        max_new_tokens=max_new_tokens, energies=energy_fractions(energies), layers=layers, splits=splits,
        permutations=permutations, dtype=dtype, device=device, batch_size=batch_size, seed=seed,
        skip_bad_rows=skip_bad_rows,
    )  # fmt: skip
    settings.check()
    resolve(model)
    from bridge.experiments.activations.run import (
        run,  # torch takes a second or two to import: wrong input should not wait for it
    )

    run(settings, out)


if __name__ == "__main__":
    run_command(command_of(main), MEMORY_ADVICE)
