"""Watch the sensitive subspace turn, and compare with how far it can turn by the theorem of Davis and Kahan.

    python -m sim.rotation --plot

Proposition B.1 of the paper bounds the turn by ``2 L_F dist / gap``; the best bound from the change of the Fisher
matrix alone is about half of it, is reached, and says nothing once the eigenvalues may have met. Theorem B.3 subtracts
the turn from the drift into the sensitive directions; what it bounds is not the utility loss.
"""

from __future__ import annotations

from typing import Annotated

import typer

from commands.errors import UserError
from commands.options import chosen
from sim.session import Json, Out, Output, Plot, Result, Seed, Table, app, run

CASES = ("softmax", "parabola", "circle", "crossing", "avoided")


def main(
    cases: Annotated[str, typer.Option(help=f"Comma-separated, of {', '.join(CASES)}.")] = ",".join(CASES),
    sharpness: Annotated[float, typer.Option(help="lambda of all cases but softmax.")] = 4.0,
    coupling: Annotated[float, typer.Option(help="gamma of the case parabola.")] = 3.0,
    curvature: Annotated[float, typer.Option(help="kappa, the model's curvature in the case parabola.")] = 0.5,
    gap: Annotated[float, typer.Option(help="Between the eigenvalues that meet, over lambda.")] = 0.4,
    mixing: Annotated[float, typer.Option(help="What keeps them apart in the case avoided, over lambda.")] = 0.02,
    dimension: Annotated[int, typer.Option(help="Parameters of parabola and of softmax.")] = 12,
    rank: Annotated[int, typer.Option(help="d of the case softmax.")] = 2,
    horizon: Annotated[float, typer.Option(help="Longest time that is simulated.")] = 1.0,
    seed: Seed = 0,
    plot: Plot = False,
    json: Json = False,
    out: Out = None,
) -> None:
    """Follow the top eigenspace of the Fisher matrix along gradient flow on five cases."""
    names = chosen("--cases", cases, CASES)
    if not 1e-2 <= horizon <= 1e3:  # earlier, rounding shows
        raise UserError(f"--horizon must lie in 0.01..1000, got {horizon}")
    if not 0 < gap < 1:
        raise UserError(f"--gap must lie between 0 and 1, the size of the larger eigenvalue, got {gap}")
    if not 0 < mixing < 1 - gap:
        raise UserError(f"--mixing must lie between 0 and 1 - gap = {1 - gap:g}, got {mixing}")
    dials = {"sharpness": sharpness, "coupling": coupling, "curvature": curvature, "dimension": dimension}
    others = {"rank": rank, "gap": gap, "mixing": mixing, "horizon": horizon, "seed": seed}

    def compute(progress) -> Result:  # type: ignore[no-untyped-def]
        from sim.experiments import rotation  # torch takes a second or two to import
        from sim.problems import Dials

        return rotation.compute(names, rotation.Options(Dials(**dials), **others), progress)  # type: ignore[arg-type]

    run("rotation", {"cases": names, **dials, **others}, compute, tables, Output(plot, json, out))


def tables(result: Result) -> list[Table]:
    """How far the subspace turned over its bounds, and Theorem B.3's drift over its own."""
    turned, drifted = [], []
    for name, case in result["cases"].items():
        ratio, drift = case["largest_ratio"], case["drift"]
        turned.append(
            [
                name, case["gap"], case["lipschitz"], case["largest_rotation"], ratio["proposition"],
                ratio["davis_kahan"], ratio["sharp"], case["first_order_constant"], case["vacuous_from"],
            ]
        )  # fmt: skip
        over = drift["rate"] / drift["sharp_bound"] if drift["sharp_bound"] > 0 else None
        drifted.append(
            [
                name, drift["coupling"] / 2, drift["rho"], drift["rho_sharp"], drift["bound"], drift["sharp_bound"],
                drift["rate"], over, drift["onset_coefficient"] / 2,
            ]
        )  # fmt: skip
    first = (
        "case", "gap", "L_F", "largest |P-P*|", "/ (2 L_F dist/gap)", "/ (2 e/gap)", "/ sharp bound",
        "|P-P*| / (e/gap), start", "2 L_F dist/gap > 1 from t =",
    )  # fmt: skip
    second = (
        "case", "gamma/2", "rho (paper)", "rho (sharp)", "gamma/2 - rho", "gamma/2 - rho sharp", "drift/t^2",
        "/ sharp bound", "gamma_star/2",
    )  # fmt: skip
    notes = [f"{name}: {case['note']}" for name, case in result["cases"].items()]
    return [
        Table("Turn of the sensitive subspace; the largest of measured / bound, e = |F - F*|", first, turned, notes),
        Table(
            "Drift |F^1/2 P(theta(t)) (theta(t) - theta*)| as t -> 0 (Theorem B.3)",
            second,
            drifted,
            ["a negative bound says nothing; sqrt(2 utility loss)/t^2 tends to gamma_star/2, whatever the drift does"],
        ),
    ]


if __name__ == "__main__":
    app(main)
