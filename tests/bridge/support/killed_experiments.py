"""Kills tiny runs of `bridge.safety_subspaces`, for `kill_server`."""

from __future__ import annotations

from pathlib import Path

from bridge.safety_subspaces import MEMORY_ADVICE
from bridge.safety_subspaces import main as command
from tests.bridge.support.killed_sequences import kill_sequence
from tests.bridge.support.tiny_experiments import write_experiment

MOMENTS = {"after useful-finetuned.json", "tick of models measured"}
TOP = """fractions = [0.5]
energies = [0.5]
bases = ["top-k", "random"]
schemes = ["orthogonal"]
contamination = 0
"""


def main(folder: Path) -> None:
    settings = write_experiment(folder, "killed.toml", top=TOP)
    kill_sequence(command, MEMORY_ADVICE, settings, folder, MOMENTS, (60, 60))
