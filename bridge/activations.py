"""Measure how far the hidden states of two or more sets of prompts share their subspaces, layer by layer.

    python -m bridge.activations --model smollm2-135m-refusal --set useful=arithmetic --set harmful=refusals-heldout

Writes a run folder: manifest.json, settings.toml, activations.json, activations.npz (the states), prompts.jsonl,
energies.png, layers.png and report.html.
"""

from __future__ import annotations

from bridge.experiments.activations.settings import Settings
from bridge.models.names import resolve
from commands.cli import run_command
from commands.options import Out, command_of

MEMORY_ADVICE = "lower --batch-size first, then --max-new-tokens"


def main(settings: Settings, out: Out = None) -> None:
    """Compare the subspaces of sets of prompts in the hidden states of MODEL, at every layer.

    The overlap of two sets stands beside that of two halves of one set, at equal numbers of prompts, beside chance,
    and beside what it is when the prompts' labels are drawn anew. The same command again goes on with a run that was
    stopped.
    """
    settings.check()
    resolve(settings.model)
    from bridge.experiments.activations.run import run  # torch takes seconds: wrong input should not wait for it

    run(settings, out)


if __name__ == "__main__":
    run_command(command_of(main, "bridge.activations"), MEMORY_ADVICE)
