"""Kills tiny runs of `bridge.activations`, for `kill_server`."""

from __future__ import annotations

from pathlib import Path

from bridge.activations import MEMORY_ADVICE
from bridge.activations import main as command
from tests.bridge.support.killing import Killed, kill_everywhere
from tests.bridge.support.tiny_activations import activation_options

MOMENTS = {  # one of each stage
    "after set-0-responses-0.json", "after set-1-states-0.npz", "after overlaps-1.npz", "after activations.npz",
    "before activations.json", "after report.html",
}  # fmt: skip
COMPARED = (
    "activations.json", "activations.npz", "prompts.jsonl", "energies.png", "layers.png", "report.html",
)  # fmt: skip


def main(folder: Path) -> None:
    killed = Killed(
        main=command,
        advice=MEMORY_ADVICE,
        arguments=lambda out: activation_options(folder, out, "--token", "generated", "--batch-size", "4"),
        compared=COMPARED,
        watch=lambda at: None,
        skip=lambda moment: moment not in MOMENTS,
        often=(5, 15),
    )
    kill_everywhere(killed, folder)
