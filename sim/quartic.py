"""Watch the utility loss set in, and compare exponent, coefficient and crossover with what the theory predicts.

    python -m sim.quartic --plot

The paper predicts ``gamma^2 t^4 / 8``; what happens is ``gamma_star^2 t^4 / 8``, after a quadratic start where the
update leaks.
"""

from __future__ import annotations

from typing import Annotated

import typer

from commands.errors import UserError
from commands.options import chosen
from sim.session import Json, Out, Output, Plot, Result, Seed, Table, app, run

CASES = ("coupled", "curved", "circle", "leaky", "tail", "softmax", "mlp", "transformer")


def main(
    cases: Annotated[str, typer.Option(help=f"Comma-separated, of {', '.join(CASES)}.")] = ",".join(CASES),
    sharpness: Annotated[float, typer.Option(help="lambda of the dialled cases and the circle.")] = 4.0,
    coupling: Annotated[float, typer.Option(help="gamma of the dialled cases.")] = 3.0,
    overlap: Annotated[float, typer.Option(help="epsilon of the case leaky.")] = 1e-4,
    tail: Annotated[float, typer.Option(help="Second eigenvalue of the case tail.")] = 1e-7,
    curvature: Annotated[float, typer.Option(help="beta, the model's curvature in the case curved.")] = 4.0,
    dimension: Annotated[int, typer.Option(help="Parameters of the dialled cases and of softmax.")] = 12,
    horizon: Annotated[float, typer.Option(help="Longest time that is simulated.")] = 1.0,
    seed: Seed = 0,
    plot: Plot = False,
    json: Json = False,
    out: Out = None,
) -> None:
    """Simulate the onset of the utility loss on eight cases, and compare it with the paper and with the truth."""
    names = chosen("--cases", cases, CASES)
    if not 1e-3 <= horizon <= 1e3:  # earlier, rounding shows
        raise UserError(f"--horizon must lie in 0.001..1000, got {horizon}")
    if dimension > 1000:
        raise UserError(f"--dimension must be at most 1000, got {dimension}")
    dials = {
        "sharpness": sharpness, "overlap": overlap, "coupling": coupling,
        "curvature": curvature, "tail": tail, "dimension": dimension,
    }  # fmt: skip
    settings = {"cases": names, **dials, "horizon": horizon, "seed": seed}

    def compute(progress) -> Result:  # type: ignore[no-untyped-def]
        from sim.experiments import quartic  # torch takes a second or two to import
        from sim.problems import Dials

        return quartic.compute(names, Dials(**dials), horizon, seed, progress)  # type: ignore[arg-type]

    run("quartic", settings, compute, tables, Output(plot, json, out))


def tables(result: Result) -> list[Table]:
    """Exponents and coefficients, measured against predicted, and what the paper has instead."""
    rows = []
    for name, case in result["cases"].items():
        measured, predicted, paper = (case[k] for k in ("coefficient", "predicted_coefficient", "paper_coefficient"))
        rows.append(
            [
                name,
                case["exponent"],
                measured,
                measured / predicted if predicted else None,
                measured / paper if paper else None,
                case["crossover"],
                case["crossover"] / case["predicted_crossover"] if case["crossover"] else None,
                case["end"]["utility_loss"],
            ]
        )
    columns = (
        "case", "exponent", "t^4 coefficient", "/ (gamma_star^2/8)", "/ paper (gamma^2/8)",
        "crossover", "/ predicted", "loss at the end",
    )  # fmt: skip
    notes = [f"{name}: {case['note']}; t up to {case['end']['t']:.3g}" for name, case in result["cases"].items()]
    return [Table("Onset of the utility loss along gradient flow", columns, rows, notes)]


if __name__ == "__main__":
    app(main)
