"""Measure how far weight changes moved into a skill's sensitive directions: the exact overlap score, and the damage.

    python -m bridge.overlap --model smollm2-135m-refusal --delta runs/finetune/A --delta runs/finetune/B

Writes a run folder: manifest.json, settings.toml, overlap.json, statistics.npz, samples.jsonl, scores.png, modules.png,
damage.png and report.html; with --refusals also refusals.jsonl.
"""

from __future__ import annotations

from bridge.experiments.overlap.settings import Settings
from bridge.models.names import resolve
from commands.cli import run_command
from commands.options import Out, command_of

MEMORY_ADVICE = "lower --batch-size first, then --memory or --max-length"


def main(settings: Settings, out: Out = None) -> None:
    """Measure the overlap score of weight changes with a skill, exactly, and what they did to the skill.

    The score is dW^T F dW over all modules jointly, LoRA from its factors; beside it stand the score of a random
    direction of the same norm in every module, the share of the terms between modules, and the utility loss that the
    change really caused. The same command again goes on with a run that was stopped.
    """
    settings.check()
    resolve(settings.model)
    from bridge.experiments.overlap.run import run  # torch takes a second or two: wrong input should not wait for it

    run(settings, out)


if __name__ == "__main__":
    run_command(command_of(main, "bridge.overlap"), MEMORY_ADVICE)
