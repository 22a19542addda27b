"""Kills tiny runs of `estimate_aic` everywhere, for `kill_server`."""

from __future__ import annotations

from pathlib import Path

from bridge.estimate_aic import MEMORY_ADVICE
from bridge.estimate_aic import main as command
from tests.bridge.support.killing import At, Killed, kill_everywhere, like_another
from tests.bridge.support.tiny_runs import options

BEFORE = ("before velocity.safetensors", "before aic.json")  # elsewhere the moment before a rename is like the last
PICTURES = ("spectrum.png", "coupling.png", "prediction.png")
COMPARED = ("aic.json", "samples.jsonl", "statistics.npz", "report.html", *PICTURES)


def main(folder: Path, optimizer: str) -> None:
    more = ("--optimizer", optimizer, "--adam-batch-size", "2", "--batch-size", "3")
    killed = Killed(
        main=command,
        advice=MEMORY_ADVICE,
        arguments=lambda out: options(folder, *more, "--out", str(out)),
        compared=COMPARED,
        watch=_watch,
        skip=like_another(lambda moment: moment.startswith("before") and moment not in BEFORE),
    )
    kill_everywhere(killed, folder)


def _watch(at: At) -> None:
    from bridge.estimators import checkpoints

    checkpoints._SAVE_EVERY_SECONDS = -1.0  # every step is a checkpoint
