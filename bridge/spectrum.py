"""Measure the spectrum of the Fisher information of one or several skills, exactly and against its nulls.

    python -m bridge.spectrum --model qwen3-1.7b --skill refusals --skill gsm8k

Writes a run folder: manifest.json, settings.toml, spectrum.json, statistics.npz, samples.jsonl, spectrum.png,
growth.png, blocks.png and report.html.
"""

from __future__ import annotations

from bridge.experiments.spectrum.settings import Settings
from bridge.models.names import resolve
from commands.cli import run_command
from commands.options import Out, command_of

MEMORY_ADVICE = "lower --batch-size first, then --memory or --max-length"


def main(settings: Settings, out: Out = None) -> None:
    """Measure the spectrum of a skill's Fisher information, and what of its decay means low rank.

    The eigenvalues come from the exact inner products of all scores, without projection. Beside them stand what the
    norms of the scores alone would give, the effective rank as the number of samples grows, and how far two halves
    of the samples agree on the sharp directions.
    """
    settings.check()
    resolve(settings.model)
    from bridge.experiments.spectrum.run import run  # torch takes a second or two: wrong input should not wait for it

    run(settings, out)


if __name__ == "__main__":
    run_command(command_of(main, "bridge.spectrum"), MEMORY_ADVICE)
