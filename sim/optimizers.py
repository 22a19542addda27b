"""Compare optimisers on one problem: what each does to leak, onset coefficient and crossover.

    python -m sim.optimizers --plot

Discrete steps, schedules and momentum change the onset coefficient; noise acts as a leak. A preconditioner, a sign
and an adapter on the input side turn the update itself into the sensitive directions: where the gradient has no
overlap, the update has.
"""

from __future__ import annotations

import math
from typing import Annotated

import typer

from commands.errors import UserError
from sim.session import Json, Out, Output, Plot, Result, Seed, Table, app, run


def main(
    width: Annotated[int, typer.Option(help="The parameters are a width x width matrix.")] = 5,
    steps: Annotated[int, typer.Option(help="K of the discrete optimisers.")] = 8,
    overlap: Annotated[float, typer.Option(help="epsilon of the gradient with the sharpest direction.")] = 1e-4,
    horizon: Annotated[float, typer.Option(help="Time that is simulated: learning rate x steps.")] = 0.2,
    momentum: Annotated[float, typer.Option(help="mu of heavy ball.")] = 0.9,
    noise: Annotated[float, typer.Option(help="Standard deviation of a gradient's coordinate in SGD.")] = 3e-4,
    decay: Annotated[float, typer.Option(help="c of weight decay.")] = 1e-4,
    lora_rank: Annotated[int, typer.Option(help="r of the adapters.")] = 2,
    trials: Annotated[int, typer.Option(help="Gradients of the sign-step experiment, in each dimension.")] = 8000,
    seed: Seed = 0,
    plot: Plot = False,
    json: Json = False,
    out: Out = None,
) -> None:
    """Train with eleven optimisers, and measure what Adam's first step leaks."""
    _check("width", width, 4, 8)
    _check("steps", steps, 2, 32)
    if overlap != 0:
        _check("overlap", overlap, 1e-5, 1, "0 or lie")
    _check("horizon", horizon, 1e-2, 1)
    if not 0 <= momentum < 1:
        raise UserError(f"--momentum must lie in [0, 1), got {momentum}")
    _check("noise", noise, 0, 1)
    _check("decay", decay, 0, 1)
    _check("lora-rank", lora_rank, 1, width)
    _check("trials", trials, 80, 10**6)
    settings = {
        "width": width, "steps": steps, "overlap": overlap, "horizon": horizon, "momentum": momentum, "noise": noise,
        "decay": decay, "lora_rank": lora_rank, "trials": trials, "seed": seed,
    }  # fmt: skip

    def compute(progress) -> Result:  # type: ignore[no-untyped-def]
        from sim.experiments import optimizers  # torch takes a second or two to import

        return optimizers.compute(optimizers.Options(**settings), progress)  # type: ignore[arg-type]

    run("optimizers", settings, compute, tables, Output(plot, json, out))


def _check(option: str, value: int | float, low: int | float, high: int | float, verb: str = "lie") -> None:
    if not low <= value <= high:
        raise UserError(f"--{option} must {'be ' if verb != 'lie' else ''}{verb} in {low:.7g}..{high:.7g}, got {value}")


def tables(result: Result) -> list[Table]:
    """Leak, coefficient and crossover of each optimiser, and the share of a sign step."""
    rows = []
    for name, found in result["optimizers"].items():
        leak, coefficient = found["measured_leak"], found["coefficient"]
        rows.append(
            [
                name,
                found["leak"],
                leak / found["leak"] if found["leak"] else None,
                found["onset_coefficient"],
                coefficient / found["predicted_coefficient"] if coefficient is not None else None,
                found["predicted_crossover"],
                found["crossover"],
                found["end"]["utility_loss"],
            ]
        )
    end = next(iter(result["optimizers"].values()))["end"]["t"]
    columns = (
        "optimiser", "leak", "measured /", "onset coeff.", "t^4 coeff. /", "crossover", "measured", "utility loss",
    )  # fmt: skip
    notes = [
        result["note"],
        f"measured / and t^4 coeff. /: over the prediction, gamma_star^2/8 for the latter; utility loss at t = {end:g}",
        "no t^4 coefficient: the leak hides the onset; no measured crossover: it lies beyond the end",
    ]
    signs = [
        [s["dimension"], s["rank"], s["rank"] / s["dimension"], s["share"], s["standard_error"], s["predicted_share"]]
        for s in result["sign_step"]
    ]
    heads = ("dimension n", "rank d", "chance d/n", "share of chance", "standard error", "predicted")
    limit = [f"F g = 0 for each of the gradients; predicted: arcsine law, 1 - 2/pi = {1 - 2 / math.pi:.4f} for large n"]
    return [
        Table("Optimisers on one problem", columns, rows, notes),
        Table("Adam's first step: overlap energy of the update where the gradient has none", heads, signs, limit),
    ]


if __name__ == "__main__":
    app(main)
