"""Measure whether the sensitivity subspaces of several skills are distinct: the overlap of their Fisher information.

    python -m bridge.fisher_overlap --model smollm2-135m-refusal --skill refusals --skill arithmetic --skill benign

The question of "Safety Subspaces are Not Distinct" (arXiv 2505.14185), asked of the subspaces of "The Geometry of
Alignment Collapse" (arXiv 2602.15799). Writes a run folder: manifest.json, settings.toml, fisher_overlap.json,
statistics.npz, samples.jsonl, overlap.png, relative.png, energy.png, blocks.png and report.html.
"""

from __future__ import annotations

from bridge.experiments.fisher_overlap.settings import Settings
from bridge.models.names import resolve
from commands.cli import run_command
from commands.options import Out, command_of

MEMORY_ADVICE = "lower --batch-size first, then --memory or --max-length"


def main(settings: Settings, out: Out = None) -> None:
    """Measure how far the sensitive directions of several skills overlap, and how far they could.

    The principal angles come from the exact inner products of all skills' scores, without projection. Beside the
    overlap of two skills stand its ceiling, the overlap of two halves of one skill, its floor, that of unrelated
    scores, and a test that exchanges the skills' samples; with and without the skills' mean scores.
    """
    settings.check()
    resolve(settings.model)
    from bridge.experiments.fisher_overlap.run import run  # torch takes a second or two: wrong input should not wait

    run(settings, out)


if __name__ == "__main__":
    run_command(command_of(main, "bridge.fisher_overlap"), MEMORY_ADVICE)
