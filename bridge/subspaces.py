"""Subspaces of weight updates: energy kept by bases of the alignment update, projections, overlaps of updates.

    python -m bridge.subspaces energy --alignment runs/align/A --task runs/finetune/B --task runs/finetune/C
    python -m bridge.subspaces project --alignment runs/align/A --task runs/finetune/B --scheme orthogonal
    python -m bridge.subspaces mso --alignment runs/align/A --update B=runs/finetune/B --update C=runs/finetune/C

After "Safety Subspaces are Not Distinct" (arXiv 2505.14185). Weights are read tensor by tensor; no model is loaded.
Each writes a run folder: manifest.json, settings.toml, its result as JSON, report.html and pictures; `project` has the
projected change instead of pictures.
"""

from __future__ import annotations

from bridge.experiments.subspaces.settings import EnergySettings, MsoSettings, ProjectSettings
from commands.cli import run_command
from commands.options import Out, app_of, command_of

MEMORY_ADVICE = "give --dtype float32 or --modules blocks"


def energy(settings: EnergySettings, out: Out = None) -> None:
    """Measure how much of the energy of task updates subspaces of the alignment update keep, and cosines.

    One decomposition of every matrix serves all fractions and bases. Beside every energy stands what an isotropic
    update would keep.
    """
    settings.check()
    from bridge.experiments.subspaces.energy import run  # torch takes a second or two: wrong input should not wait

    run(settings, out)


def project(settings: ProjectSettings, out: Out = None) -> None:
    """Write the part of a task update inside, or outside, a subspace of the alignment update.

    The run folder is a change of weights that every other command takes (--delta); LoRA stays an adapter.
    """
    settings.check()
    from bridge.experiments.subspaces.project import run

    run(settings, out)


def mso(settings: MsoSettings, out: Out = None) -> None:
    """Mode subspace overlap of every pair of updates over energy fractions, against chance.

    An update and its negative have the same subspaces: the sign of an update does not enter.
    """
    settings.check()
    from bridge.experiments.subspaces.mso import run

    run(settings, out)


if __name__ == "__main__":
    parts = app_of({"energy": energy, "project": project, "mso": mso}, "bridge.subspaces", __doc__)
    run_command(command_of(parts), MEMORY_ADVICE)
