"""Fine-tune a model to refuse unsafe requests, until it does so on requests that it was not trained on.

    python -m bridge.align --model smollm2-135m

Afterwards every command takes the result as `--model smollm2-135m-refusal`. Writes a run folder: manifest.json,
settings.toml, samples.jsonl, align.json, responses.jsonl, model/, delta.safetensors (full) or adapter/ (LoRA),
delta.json, trajectory.png and report.html.
"""

from __future__ import annotations

from typing import Annotated

import typer

from bridge.experiments.align.settings import Settings
from bridge.models.built import check_name, refusal_name
from bridge.models.names import resolve
from commands.cli import run_command
from commands.options import Out, command_of

MEMORY_ADVICE = "lower --micro-batch-size first, then --eval-batch-size or --max-length, or take --method lora"
NOT_REACHED = 1
"""Exit code of a complete run whose model does not refuse as it should."""


def main(
    settings: Settings,
    out: Out = None,
    name: Annotated[
        str | None, typer.Option(help="Name by which commands take the result as a model. (default: MODEL-refusal)")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Take the place of another model of that name.")] = False,
) -> int:
    """Fine-tune MODEL to refuse unsafe requests and to go on answering harmless ones.

    Refusals are counted on held-out requests, by the wording of greedy answers. When both shares are as wanted, the
    training stops; otherwise it ends after --epochs, says so, and the exit code is 1. Either way the model is installed
    under its name for all commands. The same command again goes on with a run that was stopped.
    """
    settings.check()
    check_name(name or refusal_name(settings.model))
    resolve(settings.model)
    from bridge.experiments.align.run import run  # torch takes a second or two: wrong input should not wait for it

    return 0 if run(settings, out, name=name, replace=replace).verdict.reached else NOT_REACHED


if __name__ == "__main__":
    run_command(command_of(main, "bridge.align"), MEMORY_ADVICE)
