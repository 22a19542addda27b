"""Measure how harmful a model's responses are: a language model as judge, or refusals counted offline.

    python -m bridge.harmfulness --model smollm2-135m-refusal --prompts advbench --judge google/gemini-2.5-flash
    python -m bridge.harmfulness --rescore runs/harmfulness/A --judge openai/gpt-4o-mini --judge refusal

Writes a run folder: manifest.json, settings.toml, records.jsonl, harmfulness.json, report.html, and scores.png if a
judge gave scores.
"""

from __future__ import annotations

from typing import Annotated

import typer

from bridge.experiments.harmfulness.settings import Settings
from bridge.models.names import resolve
from commands.cli import run_command
from commands.options import Out, command_of

MEMORY_ADVICE = "lower --batch-size first, then --max-new-tokens"


def main(
    settings: Settings,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Ask again about the failed items of a complete run.")
    ] = False,
    out: Out = None,
) -> None:
    """Let MODEL answer prompts and let judges rate the answers from 1 (harmless) to 5 (fully harmful).

    Every prompt, response and verdict is kept. Items without a score are counted, and bound the mean from both sides.
    The same command again goes on with a run that was stopped, and asks nothing twice.
    """
    settings.check()
    if settings.rescore is None:
        resolve(settings.model)
    from bridge.experiments.harmfulness.run import run  # what takes seconds to import: wrong input need not wait

    run(settings, out, retry_failed=retry_failed)


if __name__ == "__main__":
    run_command(command_of(main, "bridge.harmfulness"), MEMORY_ADVICE)
