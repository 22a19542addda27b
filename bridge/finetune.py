"""Fine-tune a model on a set of conversations, by LoRA or in full, and keep exactly what changed.

    python -m bridge.finetune --model smollm2-135m --data gsm8k --method lora

Writes a run folder: manifest.json, samples.jsonl, adapter/ (LoRA) or model/ and delta.safetensors (full), delta.json,
finetune.json, loss.png and report.html. With a defence, --defend, also skill.jsonl and defence.png: every update is
projected off the directions that a skill is sensitive to (`bridge.training.defences.defence`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from bridge.experiments.finetune.settings import make_settings
from bridge.models.names import resolve
from bridge.training.defences.plan import Kind
from bridge.training.presets import DEFAULT_PRESET, PRESETS, describe
from commands.cli import run_command
from commands.options import command_of

MEMORY_ADVICE = "lower --micro-batch-size or --max-length, take --method lora, or add --set gradient_checkpointing=true"


# ------------------------------------------------------------------------------------------- command line


def main(
    model: Annotated[
        str, typer.Option(help="Alias, hub name, local folder, GGUF file, or random:ALIAS.")
    ] = "smollm2-135m",
    data: Annotated[str, typer.Option(help="What to train on: a set's NAME, NAME=FILE, or FILE.jsonl.")] = "benign",
    method: Annotated[Literal["lora", "full"], typer.Option(help="Low-rank adapters, or all weights.")] = "lora",
    rows: Annotated[int, typer.Option(help="Rows to train on, drawn by the seed; 0 for all.")] = 100,
    mix: Annotated[str | None, typer.Option(help="A second set to mix in.")] = None,
    share: Annotated[float, typer.Option(help="Share of --rows that is of the second set.")] = 0.0,
    preset: Annotated[str, typer.Option(help=f"Defaults of what follows: {', '.join(PRESETS)}.")] = DEFAULT_PRESET,
    learning_rate: Annotated[float | None, typer.Option(help="Highest of the schedule. (default: preset)")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the rows. (default: preset)")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Optimizer steps, in place of --epochs.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows of one step. (default: preset)")] = None,
    micro_batch_size: Annotated[
        int | None, typer.Option(help="Rows computed at a time: memory only. (default: a divisor up to 4)")
    ] = None,
    lora_rank: Annotated[int | None, typer.Option(help="Rank of the adapters. (default: preset)")] = None,
    lora_alpha: Annotated[float | None, typer.Option(help="Scale is alpha / rank. (default: preset)")] = None,
    lora_dropout: Annotated[float | None, typer.Option(help="Before the adapters. (default: preset)")] = None,
    lora_targets: Annotated[
        str | None,
        typer.Option(help="Regular expression for the modules that get an adapter. (default: all in the blocks)"),
    ] = None,
    max_length: Annotated[int, typer.Option(help="Longest row in tokens; longer ones are cut on the right.")] = 512,
    seed: Annotated[int, typer.Option(help="Of the rows, their order, and the adapters' start.")] = 0,
    override: Annotated[
        list[str] | None,
        typer.Option("--set", help="NAME=VALUE of any field of TrainingArguments; may be repeated."),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Of the weights: float32 or float64. (default: float32)")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda. (default: the GPU if there is one)")] = None,
    defend: Annotated[
        Kind, typer.Option(help="Project each update off what the skill is sensitive to: at the base, or tracked.")
    ] = "none",
    refresh: Annotated[
        int | None, typer.Option(help="Steps between two subspaces of tracked and budget. (default: 1)")
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help="d, the directions that are projected out. (default: all of the probe)")
    ] = None,
    max_utility_loss: Annotated[
        float | None, typer.Option(help="Of --defend budget, in nats a response of the probe.")
    ] = None,
    skill: Annotated[
        str | None,
        typer.Option(help="What to defend: refusals, or FILE.jsonl; with --defend none, to measure only."),
    ] = None,
    num_skill: Annotated[
        int | None, typer.Option(help="Responses of the model that make the defence's probe. (default: 48)")
    ] = None,
    held_out: Annotated[
        int | None, typer.Option(help="Further responses, on which the defence is judged. (default: 48)")
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Longest of these responses. (default: 32)")] = None,
    measure_every: Annotated[
        int | None,
        typer.Option(help="Steps between two measurements of the probe's utility loss. (default: 5; budget: 1)"),
    ] = None,
    probe_batch_size: Annotated[
        int | None, typer.Option(help="Responses of the probe computed at a time. (default: 4)")
    ] = None,
    probe_memory: Annotated[
        float | None, typer.Option(help="GiB for what the probe keeps between passes. (default: 2)")
    ] = None,
    skip_bad_rows: Annotated[bool, typer.Option("--skip-bad-rows", help="Leave out bad rows and say so.")] = False,
    out: Annotated[Path | None, typer.Option(help="Run folder. (default: runs/finetune/MODEL-HASH)")] = None,
    show_preset: Annotated[
        str | None, typer.Option(help="Print a preset's values with their sources, and end.")
    ] = None,
) -> None:
    """Fine-tune MODEL on DATA and write the change of its weights.

    The loss covers the response tokens only. The weights are trained in float32, whatever the model was stored in.
    The same command again goes on with a run that was stopped, and gives the same weights to the last bit.

    --defend keeps a skill: static projects every update off the sensitive subspace of the base, tracked off that of
    the weights at the last refresh, budget only as much as keeps the measured utility loss within
    --max-utility-loss. While a defence or --skill is given, full fine-tuning trains the linear modules of the blocks
    alone: embeddings, norms and biases are frozen.
    """
    given = dict(locals())  # every option by its name
    if show_preset is not None:
        print(describe(show_preset))
        return
    settings = make_settings(given)
    resolve(model)
    from bridge.experiments.finetune.run import (
        run,  # torch takes a second or two to import: wrong input should not wait for it
    )

    run(settings, out)


if __name__ == "__main__":
    run_command(command_of(main), MEMORY_ADVICE)
