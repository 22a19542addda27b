"""Kills tiny runs of `bridge.align` everywhere, for `kill_server`."""

from __future__ import annotations

from pathlib import Path

from bridge.align import MEMORY_ADVICE
from bridge.align import main as command
from tests.bridge.support import killed_finetunes
from tests.bridge.support.killing import At, Killed, kill_everywhere
from tests.bridge.support.tiny_aligns import align_options

COMPARED = (
    *killed_finetunes.RESULTS["full"],
    *("settings.toml", "delta.json", "samples.jsonl", "align.json", "responses.jsonl", "trajectory.png", "report.html"),
)
# Where a process dies; `bridge.finetune`'s own test kills inside the training.
MOMENTS = {
    "after answers-0-refusals-1.json", "after answers-6-benign-0.json", "before count-9.json", "before model",
    "after align.json",
}  # fmt: skip


def main(folder: Path) -> None:
    killed = Killed(
        main=command,
        advice=MEMORY_ADVICE,
        arguments=lambda out: align_options(folder, "--name", out.name, out=out),
        compared=COMPARED,
        watch=_watch,
        skip=lambda moment: moment not in MOMENTS,
        often=(20, 15),
    )
    kill_everywhere(killed, folder)


def _watch(at: At) -> None:
    """Every step is a checkpoint."""
    from bridge.training import sft

    sft._SAVE_EVERY_SECONDS, sft._SAVE_SHARE = -1.0, float("inf")
