"""Measure the alignment instability condition of a model under a planned fine-tune.

    python -m bridge.estimate_aic --model qwen3-1.7b --skill refusals --finetune gsm8k

Writes a run folder: manifest.json, settings.toml, samples.jsonl, statistics.npz, aic.json, spectrum.png, coupling.png,
prediction.png and report.html.
"""

from __future__ import annotations

from bridge.experiments.estimate_aic.settings import Settings
from bridge.models.names import resolve
from commands.cli import run_command
from commands.options import Out, command_of

MEMORY_ADVICE = "lower --batch-size first, then --memory or --max-length"


def main(settings: Settings, out: Out = None) -> None:
    """Measure the alignment instability condition of MODEL before it is fine-tuned.

    How sharp is the skill (sharpness, tail, effective rank), how much of the update lies in its sharp
    directions (overlap, leak), how fast it bends into them (coupling, onset coefficient), and what that does
    to the skill by the end of the run (crossover, regime, predicted utility loss). The same command again goes
    on with a run that was stopped.
    """
    settings.check()
    resolve(settings.model)
    from bridge.experiments.estimate_aic.run import run  # torch takes seconds: wrong input should not wait for it

    run(settings, out)


if __name__ == "__main__":
    run_command(command_of(main, "bridge.estimate_aic"), MEMORY_ADVICE)
