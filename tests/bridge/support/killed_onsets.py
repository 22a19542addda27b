"""Kills tiny runs of `bridge.onset` everywhere, for `kill_server`."""

from __future__ import annotations

from pathlib import Path

from bridge.onset import MEMORY_ADVICE
from bridge.onset import main as command
from tests.bridge.support.killing import At, Killed, kill_everywhere
from tests.bridge.support.tiny_onsets import onset_options

COMPARED = ("settings.toml", "onset.json", "onset.png", "pilot.png", "report.html", "samples.jsonl", "statistics.npz")
MOMENTS = {
    "after probe-scores-0.npz", "after lanczos.safetensors", "before position.safetensors",
    "after point-0-skill-loss-0-0.npz", "after pilot-1.json", "after whole.json",
}  # fmt: skip


def main(folder: Path) -> None:
    more = ("--remove-overlap", "--at", "0.1,0.3", "--learning-rate", "0.015", "--pilot-steps", "3")
    killed = Killed(
        main=command,
        advice=MEMORY_ADVICE,
        arguments=lambda out: onset_options(folder, out, *more, "--pilot-batch-size", "2"),
        compared=COMPARED,
        watch=_watch,
        skip=lambda moment: moment not in MOMENTS,
        often=(25, 30),
    )
    kill_everywhere(killed, folder)


def _watch(at: At) -> None:
    from bridge.estimators import checkpoints
    from bridge.training import sft

    checkpoints._SAVE_EVERY_SECONDS = -1.0  # every step is a checkpoint
    sft._SAVE_EVERY_SECONDS, sft._SAVE_SHARE = -1.0, float("inf")
