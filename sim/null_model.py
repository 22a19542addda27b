"""What a random direction would do: overlap with a subspace, and utility loss, against Theorem 4.1.

    python -m sim.null_model --plot

The energy that a rank-d subspace of R^n catches of a random direction is Beta distributed, and the concentration bound
holds. The utility loss is not small for that reason: with F = I it is eta^2/2 in every direction, n/d times the claim.
"""

from __future__ import annotations

from typing import Annotated

import typer

from commands.errors import UserError
from sim.session import Json, Out, Output, Plot, Result, Seed, Table, app, run

_MOST = 10**6  # of n, and of directions
_MOST_NUMBERS = 10**9  # random numbers in all, some ten seconds
_MOST_ENTRIES = 5 * 10**7  # of a basis, n x d


def main(
    pairs: Annotated[
        str, typer.Option(help="n:d, dimension and rank of the subspaces.")
    ] = "20:2,200:10,1000:50,5000:100",
    draws: Annotated[int, typer.Option(help="Random directions for each pair.")] = 10_000,
    rank: Annotated[int, typer.Option(help="d of the utility losses.")] = 100,
    dimensions: Annotated[str, typer.Option(help="n of the utility losses.")] = "200,1000,10000,100000",
    loss_draws: Annotated[int, typer.Option(help="Random directions for each of them.")] = 200,
    eps: Annotated[float, typer.Option(help="Relative deviation that the theorem allows.")] = 0.5,
    seed: Seed = 0,
    plot: Plot = False,
    json: Json = False,
    out: Out = None,
) -> None:
    """Draw random directions, and compare overlap and utility loss with the theorem."""
    shapes = [_pair(text) for text in pairs.split(",")]
    sizes = [_count("dimensions", text, _MOST) for text in dimensions.split(",")]
    for name, value in (("draws", draws), ("loss-draws", loss_draws)):
        if not 2 <= value <= _MOST:
            raise UserError(f"--{name} must lie in 2..{_MOST}, got {value}")
    if not 1 <= rank <= min(sizes):
        raise UserError(f"--rank must lie in 1..{min(sizes)}, the smallest of --dimensions, got {rank}")
    if not 0 < eps < 1:
        raise UserError(f"--eps must lie between 0 and 1, got {eps}")
    _check_size("draws", draws, [n for n, _ in shapes])
    _check_size("loss-draws", loss_draws, sizes)
    for option, entries in (("pairs", max(n * d for n, d in shapes)), ("rank", max(sizes) * rank)):
        if entries > _MOST_ENTRIES:
            raise UserError(
                f"--{option} asks for a basis of n x d = {entries:.3g} numbers, at most {_MOST_ENTRIES:.3g}"
            )
    settings = {
        "pairs": [list(shape) for shape in shapes], "draws": draws, "rank": rank, "dimensions": sizes,
        "loss_draws": loss_draws, "eps": eps, "seed": seed,
    }  # fmt: skip

    def compute(progress) -> Result:  # type: ignore[no-untyped-def]
        from sim.experiments import null_model

        return null_model.compute(shapes, draws, rank, sizes, loss_draws, eps, seed, progress)

    run("null_model", settings, compute, tables, Output(plot, json, out))


def _pair(text: str) -> tuple[int, int]:
    n, colon, d = text.partition(":")
    if not colon:
        raise UserError(f"--pairs takes n:d, as 1000:50, got {text!r}")
    dimension = _count("pairs", n, _MOST)
    return dimension, _count("pairs", d, dimension - 1)


def _count(option: str, text: str, most: int) -> int:
    if not text.strip().isdecimal() or not 1 <= int(text) <= most:
        raise UserError(f"--{option} takes whole numbers in 1..{most}, got {text!r}")
    return int(text)


def _check_size(option: str, draws: int, dimensions: list[int]) -> None:
    if draws * sum(dimensions) > _MOST_NUMBERS:
        most = _MOST_NUMBERS // sum(dimensions)
        raise UserError(f"--{option} must be at most {most} in these dimensions, got {draws}")


def tables(result: Result) -> list[Table]:
    """Measured energies against the exact law, and utility losses against the claim."""
    overlap = []
    for found in result["overlap"]:
        at, deviations = found["deviations"]["eps"].index(0.5), found["deviations"]
        overlap.append(
            [
                found["dimension"], found["rank"], found["mean"] / found["predicted_mean"],
                found["standard_deviation"] / found["predicted_standard_deviation"], found["ks_distance"],
                found["ks_p_value"], *(deviations[key][at] for key in ("measured", "exact", "chernoff")),
            ]
        )  # fmt: skip
    cost = [
        [
            found["dimension"], found["rank"], found["tail"], found["mean"], found["mean"] / found["predicted_mean"],
            found["mean"] / found["claim"], found["above_claim"], found["above_corrected"], found["allowed"],
        ]
        for found in result["utility_loss"]
    ]  # fmt: skip
    first = (
        "n", "d", "mean / (d/n)", "deviation / exact", "KS distance", "p value",
        "off by half: measured", "exact", "Chernoff bound",
    )  # fmt: skip
    second = (
        "n", "d", "tail", "mean loss", "/ eta^2 Tr F/(2n)", "/ claim", "above claim", "above equation (9)", "allowed",
    )  # fmt: skip
    draws = result["overlap"][0]["draws"]
    return [
        Table(f"Energy |P g|^2 of {draws} random directions, against Beta(d/2, (n-d)/2)", first, overlap),
        Table(
            f"Utility loss of random steps, eta = {result['step']}; F has d eigenvalues 1 and n - d equal to tail",
            second,
            cost,
            [
                f"claim: eta^2 (d/n) (1 + eps), eps = {result['eps']}, as printed in Theorem 4.1 (2); with tail 1, "
                "F = I, every loss is eta^2/2",
                "equation (9): eta^2/2 ((1 + eps) d/n + tail); above and allowed are shares of the directions",
            ],
        ),
    ]


if __name__ == "__main__":
    app(main)
