"""Kills tiny runs of `bridge.safety_subspaces`; `python -m tests.bridge.killed_experiments WORKPLACE`."""

from __future__ import annotations

import sys
from pathlib import Path

from bridge.safety_subspaces import MEMORY_ADVICE
from bridge.safety_subspaces import main as command
from tests.bridge.killed_finetunes import import_everything
from tests.bridge.killed_sequences import kill_sequence
from tests.bridge.tiny_experiments import write_experiment

MOMENTS = {"after useful-finetuned.json", "tick of models measured"}
TOP = """fractions = [0.5]
energies = [0.5]
bases = ["top-k", "random"]
schemes = ["orthogonal"]
contamination = 0
"""


def main(folder: Path) -> None:
    import_everything()
    import scipy.stats  # noqa: F401 - every fork would import it anew

    from bridge import safety_subspaces_run, subspaces_energy, subspaces_mso  # noqa: F401

    settings = write_experiment(folder, "killed.toml", top=TOP)
    kill_sequence(command, MEMORY_ADVICE, settings, folder, MOMENTS, (60, 60))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
