"""Measure what a model can do: generated answers to problems with a number as their answer, compared exactly.

    python -m bridge.utility --model smollm2-135m --delta runs/finetune/A --data gsm8k

Writes a run folder: manifest.json, settings.toml, records.jsonl, utility.json and report.html.
"""

from __future__ import annotations

from bridge.experiments.utility.settings import Settings
from bridge.models.names import resolve
from commands.cli import run_command
from commands.options import Out, command_of

MEMORY_ADVICE = "lower --batch-size first, then --max-new-tokens or --shots"


def main(settings: Settings, out: Out = None) -> None:
    r"""Let MODEL solve problems and count the answers that are right.

    The number is looked for in \boxed{}, behind "####", behind "The answer is", and last of all anywhere: the last
    number of the answer. It must equal the set's own exactly. An answer without a number is wrong, and counted
    apart; so is one that was cut. The same command again goes on with a run that was stopped.
    """
    settings.check()
    resolve(settings.model)
    from bridge.experiments.utility.run import run  # torch takes a second or two: wrong input should not wait for it

    run(settings, out)


if __name__ == "__main__":
    run_command(command_of(main, "bridge.utility"), MEMORY_ADVICE)
