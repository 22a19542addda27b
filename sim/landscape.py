"""Figure 1 of the paper as a measured picture: a valley, and a path that starts along it and leaves.

    python -m sim.landscape --plot

The valley floor is where the skill is untouched. Gradient flow starts tangent to it and bends away; the straight line
leaves it too, because the valley bends; a projection that follows the parameters stays on the floor.
"""

from __future__ import annotations

from typing import Annotated

import typer

from commands.errors import UserError
from sim.session import Json, Out, Output, Plot, Result, Seed, Table, app, run


def main(
    sharpness: Annotated[float, typer.Option(help="lambda: how steep the valley is.")] = 4.0,
    coupling: Annotated[float, typer.Option(help="gamma: how the update bends.")] = 3.0,
    curvature: Annotated[float, typer.Option(help="beta: how the valley bends, either way.")] = -1.0,
    horizon: Annotated[float, typer.Option(help="Longest time that is simulated.")] = 1.0,
    resolution: Annotated[int, typer.Option(help="Points of the grid a side.")] = 101,
    seed: Seed = 0,
    plot: Plot = False,
    json: Json = False,
    out: Out = None,
) -> None:
    """Follow four updates over the landscape of a skill with two parameters; nothing here is random."""
    if not 1e-3 <= horizon <= 1e3:  # earlier, rounding shows
        raise UserError(f"--horizon must lie in 0.001..1000, got {horizon}")
    if not 2 <= resolution <= 1000:
        raise UserError(f"--resolution must lie in 2..1000, got {resolution}")
    options = {
        "sharpness": sharpness, "coupling": coupling, "curvature": curvature, "horizon": horizon,
        "resolution": resolution,
    }  # fmt: skip

    def compute(progress) -> Result:  # type: ignore[no-untyped-def]
        from sim.experiments import landscape  # torch takes a second or two to import

        return landscape.compute(landscape.Options(**options), progress)  # type: ignore[arg-type]

    run("landscape", {**options, "seed": seed}, compute, tables, Output(plot, json, out))


def tables(result: Result) -> list[Table]:
    """The onset of every path, measured against predicted, and where it ends."""
    rows = []
    for name, path in result["paths"].items():
        measured, predicted, paper = (path[k] for k in ("coefficient", "predicted_coefficient", "paper_coefficient"))
        rows.append(
            [
                name, path["leak"], path["coupling"], path["onset_coefficient"], measured,
                measured / predicted if measured is not None else None,
                measured / paper if measured is not None and paper else None,
                path["end"]["utility_loss"], path["end"]["fine_tuning_loss"],
            ]
        )  # fmt: skip
    columns = (
        "path", "leak", "gamma", "gamma_star", "t^4 coefficient", "/ (gamma_star^2/8)", "/ paper (gamma^2/8)",
        "utility loss at the end", "fine-tuning loss",
    )  # fmt: skip
    end = next(iter(result["paths"].values()))["end"]["t"]
    return [Table("Four paths from the valley floor", columns, rows, [f"{result['note']}; t up to {end:.3g}"])]


if __name__ == "__main__":
    app(main)
