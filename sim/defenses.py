"""Compare defences: what each keeps of the utility, and what it costs in fine-tuning loss.

    python -m sim.defenses --plot

A projector fixed at the start leaves a quartic loss, and can do harm where there was none. One that follows the
parameters keeps the policy where it is, as long as the rank of the Fisher matrix does not change; renewed every R of
K steps it lets through ``(R/K)^2`` of the static loss.
"""

from __future__ import annotations

import math
from typing import Annotated

import typer

from commands.errors import UserError
from sim.session import Json, Out, Output, Plot, Result, Seed, Table, app, run

_MOST_STEPS = 10_000
_LEAST_HORIZON = 0.01
_MOST_STRENGTH = 1e6


def main(
    dimension: Annotated[int, typer.Option(help="Parameters of the softmax problem.")] = 12,
    rank: Annotated[
        int | None, typer.Option(help="d of its projector. (default: the rank of its Fisher matrix)")
    ] = None,
    sharpness: Annotated[float, typer.Option(help="lambda on the circle and where the rank varies.")] = 4.0,
    curvature: Annotated[float, typer.Option(help="kappa of the problem whose rank varies.")] = 1.0,
    steps: Annotated[int, typer.Option(help="K, steps of tracked gradient descent.")] = 100,
    horizon: Annotated[float, typer.Option(help="Time that is simulated: learning rate x steps.")] = 1.0,
    refresh: Annotated[str, typer.Option(help="R: the projector is renewed every R steps.")] = "1,2,5,10,50",
    strengths: Annotated[str, typer.Option(help="mu of the trust regions.")] = "10,1000",
    seed: Seed = 0,
    plot: Plot = False,
    json: Json = False,
    out: Out = None,
) -> None:
    """Fine-tune under no defence, static and tracked projections and trust regions, on three problems."""
    if not 6 <= dimension <= 200:
        raise UserError(f"--dimension must lie in 6..200, got {dimension}")
    for name, value, most in (("sharpness", sharpness, 1e6), ("curvature", curvature, 1e3), ("horizon", horizon, 3)):
        if not 0 < value <= most:
            raise UserError(f"--{name} must be positive and at most {most:g}, got {value}")
    if horizon < _LEAST_HORIZON:
        raise UserError(f"--horizon must be at least {_LEAST_HORIZON}, for losses above rounding, got {horizon}")
    if not 1 <= steps <= _MOST_STEPS:
        raise UserError(f"--steps must lie in 1..{_MOST_STEPS}, got {steps}")
    intervals = [int(r) for r in _numbers("refresh", refresh, 1, steps, "--steps", whole=True)]
    mus = _numbers("strengths", strengths, 0, _MOST_STRENGTH, f"{_MOST_STRENGTH:g}")
    settings = {
        "dimension": dimension, "rank": rank, "sharpness": sharpness, "curvature": curvature, "steps": steps,
        "horizon": horizon, "refresh": intervals, "strengths": mus, "seed": seed,
    }  # fmt: skip

    def compute(progress) -> Result:  # type: ignore[no-untyped-def]
        from sim.experiments import defenses  # torch takes a second or two to import

        return defenses.compute(defenses.Options(**settings), progress)  # type: ignore[arg-type]

    run("defenses", settings, compute, tables, Output(plot, json, out))


def _numbers(option: str, text: str, low: int, high: int | float, bound: str, whole: bool = False) -> list[int | float]:
    """The numbers of a comma-separated list, without repetition.

    Raises:
        UserError: if an entry is no number in the range.
    """
    found: list[int | float] = []
    for entry in text.split(","):
        try:
            value: int | float = int(entry) if whole else float(entry)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            kind = "whole numbers" if whole else "numbers"
            raise UserError(f"--{option} takes {kind} from {low} to {bound}, comma-separated, got {entry.strip()!r}")
        if value not in found:
            found.append(value)
    return found


def tables(result: Result) -> list[Table]:
    """One table a problem, and the refresh law."""
    shown = [_problem(name, problem) for name, problem in result["problems"].items()]
    rows = [
        [name, law["refresh"], law["steps"], law["predicted"], law["measured"], law["measured"] / law["predicted"]]
        for name, problem in result["problems"].items()
        for law in problem["refresh_law"] or []
    ]
    if rows:
        law_time = next(law["horizon"] for p in result["problems"].values() for law in p["refresh_law"] or [])
        columns = ("problem", "R", "K", "predicted loss", "measured", "measured / predicted")
        notes = [f"predicted: T^4 (R/K)^2 E[h^2]/8, here at T = {law_time:g}"]
        shown.append(Table("Tracked gradient descent, refreshed every R of K steps", columns, rows, notes))
    return shown


def _problem(name: str, problem: Result) -> Table:
    rows: list[list[object]] = []
    for defence, found in problem["defenses"].items():
        predicted, measured = found["predicted_coefficient"], found["coefficient"]
        ratio = measured / predicted if predicted else None
        losses = [found["largest_utility_loss"], found["end"]["fine_tuning_loss"]]
        rows.append([defence, found["leak"], found["onset_coefficient"], predicted, measured, ratio, *losses])
    for found in problem["tracked_descent"]:
        end = found["end"]
        name_of = f"descent, R = {found['refresh']}"
        rows.append([name_of, None, None, None, None, None, found["largest_utility_loss"], end["fine_tuning_loss"]])
    columns = (
        "defence", "leak", "onset coefficient", "gamma_star^2/8", "t^4 coefficient", "/ predicted",
        "largest utility loss", "fine-tuning loss",
    )  # fmt: skip
    t = problem["defenses"]["none"]["end"]["t"]
    notes = [
        f"{problem['note']}; projector of rank {problem['rank']}; t up to {t:g}",
        "descent: tracked projection in steps, the projector renewed every R",
    ]
    return Table(f"Defences on the problem {name!r}", columns, rows, notes)


if __name__ == "__main__":
    app(main)
