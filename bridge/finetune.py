"""Fine-tune a model on a set of conversations, by LoRA or in full, and keep exactly what changed.

    python -m bridge.finetune --model smollm2-135m --data gsm8k --method lora

Writes a run folder: manifest.json, settings.toml, samples.jsonl, adapter/ (LoRA) or model/ and delta.safetensors
(full), delta.json, finetune.json, loss.png and report.html. With a defence, --defend, also skill.jsonl and
defence.png: every update is projected off the directions that a skill is sensitive to
(`bridge.training.defences.defence`).
"""

from __future__ import annotations

from typing import Annotated

import typer

from bridge.experiments.finetune.settings import Settings
from bridge.models.names import resolve
from bridge.training.presets import describe
from commands.cli import run_command
from commands.options import Out, command_of

MEMORY_ADVICE = "lower --micro-batch-size or --max-length, take --method lora, or add --set gradient_checkpointing=true"


def main(
    settings: Settings,
    out: Out = None,
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
    if show_preset is not None:
        print(describe(show_preset))
        return
    settings.check()
    resolve(settings.model)
    from bridge.experiments.finetune.run import run  # torch takes a second or two: wrong input should not wait for it

    run(settings, out)


if __name__ == "__main__":
    run_command(command_of(main, "bridge.finetune"), MEMORY_ADVICE)
