"""Subspaces of weight updates: energy kept by bases of the alignment update, projections, overlaps of updates.

    python -m bridge.subspaces energy --alignment runs/align/A --task runs/finetune/B --task runs/finetune/C
    python -m bridge.subspaces project --alignment runs/align/A --task runs/finetune/B --scheme orthogonal
    python -m bridge.subspaces mso --alignment runs/align/A --update B=runs/finetune/B --update C=runs/finetune/C

After "Safety Subspaces are Not Distinct" (arXiv 2505.14185). Weights are read tensor by tensor; no model is loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from bridge.experiments.labels import labelled_deltas
from bridge.experiments.subspaces.settings import (
    _DTYPES,
    _SIDES,
    BASES,
    ENERGIES,
    FRACTIONS,
    EnergySettings,
    MsoSettings,
    ProjectSettings,
    numbers,
)
from commands.cli import run_command
from commands.options import chosen, command_of

MEMORY_ADVICE = "give --dtype float32 or --modules blocks"


# ------------------------------------------------------------------------------------------------ options

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True, help=__doc__)

_Alignment = Annotated[
    str | None,
    typer.Option(help="The alignment update: a run folder of bridge.align, an adapter, or a delta.safetensors."),
]
_Aligned = Annotated[
    str | None,
    typer.Option(help="The aligned model, from which the fine-tunes start: alias, hub name or local folder."),
]
_Base = Annotated[str | None, typer.Option(help="The model it was aligned from: the update is the difference.")]
_Side = Annotated[
    _SIDES,
    typer.Option(
        help="Left singular vectors (the paper's), or right ones, of weights as stored: left is the output side of "
        "torch.nn.Linear, but the input side of GPT-2's Conv1D."
    ),
]
_Modules = Annotated[
    Literal["all", "blocks"], typer.Option(help="All matrices, embeddings included, or those of the numbered blocks.")
]
_Seed = Annotated[int, typer.Option(help="Of the random draws; repeat i has the seed SEED + i.")]
_Dtype = Annotated[_DTYPES, typer.Option(help="Of the decompositions.")]
_Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:N. (default: the GPU if there is one)")]
_DELTA_HELP = (
    "[LABEL=]PATH of a weight change of the aligned model: a run folder of bridge.finetune, an adapter, a "
    "delta.safetensors, or the folder of the changed model; may be repeated."
)


@app.command("energy")
def energy(
    task: Annotated[list[str] | None, typer.Option(help=_DELTA_HELP)] = None,
    alignment: _Alignment = None,
    aligned: _Aligned = None,
    base: _Base = None,
    side: _Side = "left",
    fractions: Annotated[str, typer.Option(help="Ranks as fractions of min(M, N).")] = FRACTIONS,
    bases: Annotated[str, typer.Option(help="Which bases, separated by commas.")] = BASES,
    repeats: Annotated[int, typer.Option(help="Draws of each random basis.")] = 5,
    modules: _Modules = "all",
    seed: _Seed = 0,
    dtype: _Dtype = "float64",
    device: _Device = None,
    out: Annotated[Path | None, typer.Option(help="Run folder. (default: runs/subspaces-energy/HASH)")] = None,
) -> None:
    """How much of the energy of task updates the subspaces of the alignment update keep, and their cosines.

    One decomposition of every matrix serves all fractions and bases. Beside every energy stands what an isotropic
    update would keep.
    """
    settings = EnergySettings(
        alignment=alignment, aligned=aligned, base=base, updates=labelled_deltas(task or [], "task"), side=side,
        modules=modules, seed=seed, dtype=dtype, device=device, fractions=numbers("fractions", fractions),
        bases=tuple(dict.fromkeys(chosen("--bases", bases, BASES.split(",")))), repeats=repeats,
    )  # fmt: skip
    settings.check()
    from bridge.experiments.subspaces.energy import (
        run,  # torch takes a second or two to import: wrong input should not wait
    )

    run(settings, out)


@app.command("project")
def project(
    task: Annotated[str, typer.Option(help=_DELTA_HELP.removesuffix("; may be repeated.") + ".")],
    alignment: _Alignment = None,
    aligned: _Aligned = None,
    base: _Base = None,
    basis: Annotated[Literal["top-k", "random-k", "random"], typer.Option(help="Which basis.")] = "top-k",
    fraction: Annotated[float, typer.Option(help="Rank as a fraction of min(M, N).")] = 0.5,
    scheme: Annotated[
        Literal["parallel", "orthogonal"], typer.Option(help="The part inside the subspace, or the rest.")
    ] = "parallel",
    side: _Side = "left",
    vectors: Annotated[
        Literal["keep", "drop"],
        typer.Option(
            help="Norms, biases, and matrices left out by --modules, which no basis projects: kept whole in either "
            "part (parallel plus orthogonal then hold them twice), or dropped from both."
        ),
    ] = "keep",
    modules: _Modules = "all",
    save_model: Annotated[bool, typer.Option("--save-model", help="Write the moved model's folder, too.")] = False,
    seed: _Seed = 0,
    dtype: _Dtype = "float64",
    device: _Device = None,
    out: Annotated[Path | None, typer.Option(help="Run folder. (default: runs/subspaces-project/HASH)")] = None,
) -> None:
    """Write the part of a task update inside, or outside, a subspace of the alignment update.

    The run folder is a change of weights that every other command takes (--delta); LoRA stays an adapter.
    """
    settings = ProjectSettings(
        alignment=alignment, aligned=aligned, base=base, updates=labelled_deltas([task], "task"), side=side,
        modules=modules, seed=seed, dtype=dtype, device=device, basis=basis, fraction=fraction, scheme=scheme,
        vectors=vectors, save_model=save_model,
    )  # fmt: skip
    settings.check()
    from bridge.experiments.subspaces.project import run

    run(settings, out)


@app.command("mso")
def mso(
    update: Annotated[list[str] | None, typer.Option(help=_DELTA_HELP)] = None,
    alignment: _Alignment = None,
    aligned: _Aligned = None,
    base: _Base = None,
    side: _Side = "left",
    energies: Annotated[str, typer.Option(help="Energy fractions that choose the ranks.")] = ENERGIES,
    permutations: Annotated[int, typer.Option(help="Permutations for the intervals of chance; 0 for none.")] = 20,
    modules: _Modules = "all",
    seed: _Seed = 0,
    dtype: _Dtype = "float64",
    device: _Device = None,
    out: Annotated[Path | None, typer.Option(help="Run folder. (default: runs/subspaces-mso/HASH)")] = None,
) -> None:
    """Mode subspace overlap of every pair of updates over energy fractions, against chance.

    An update and its negative have the same subspaces: the sign of an update does not enter.
    """
    settings = MsoSettings(
        alignment=alignment, aligned=aligned, base=base, updates=labelled_deltas(update or [], "update"), side=side,
        modules=modules, seed=seed, dtype=dtype, device=device, energies=numbers("energies", energies),
        permutations=permutations,
    )  # fmt: skip
    settings.check()
    from bridge.experiments.subspaces.mso import run

    run(settings, out)


if __name__ == "__main__":
    run_command(command_of(app), MEMORY_ADVICE)
