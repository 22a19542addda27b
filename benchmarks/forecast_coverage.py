"""How often the interval of `theory.damage_forecast.forecast_end` holds the last of eight measurements: made-up curves.

    python benchmarks/forecast_coverage.py [--draws 150] [--seed 0] [--json FILE]

Curves are functions of s, the accumulated learning rate as a share of the whole; every measurement is multiplied by
exp(noise * normal). For each curve, schedule, noise and number of points seen: the share of the draws in which the
last measurement lay in the nominal 90 % interval, and the median ratio of the interval's ends.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from commands.store import write_atomically
from theory.damage_forecast import forecast_end

STEPS, POINTS = 200, 8
NOISES, SEEN = (0.01, 0.1, 0.3), (3, 4, 6)
CURVES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "power 0.5": lambda s: s**0.5,
    "power 1": lambda s: s,
    "power 2": lambda s: s**2,
    "break from 2 to 0.8": lambda s: np.where(s < 0.3, (s / 0.3) ** 2, (s / 0.3) ** 0.8),
    "saturating early": lambda s: 1 - np.exp(-4 * s**1.5),
    "saturating late": lambda s: s**2 / (s**2 + 0.5**2),
    "over a floor": lambda s: 0.01 + s**2,
    "healing": lambda s: s**2 * np.exp(-2 * s),
    "accelerating": lambda s: s**2 + 10 * s**6,
}


def accumulated() -> dict[str, np.ndarray]:
    """S after every step, by the schedule's name."""
    step = np.arange(STEPS)
    rates = {
        "linear": 1 - step / STEPS,
        "constant": np.ones(STEPS),
        "warm-up": np.where(step < STEPS // 10, step / (STEPS // 10), (STEPS - step) / (STEPS - STEPS // 10)),
    }
    return {name: np.cumsum(rate) for name, rate in rates.items()}


def coverage(
    curve: np.ndarray, times: np.ndarray, noise: float, seen: int, draws: int, seed: int
) -> tuple[float, float]:
    """Share of the draws whose last measurement is in the interval, and the interval's median high / low."""
    rng, hits, widths = np.random.default_rng(seed), 0, []
    for _ in range(draws):
        losses = curve * np.exp(noise * rng.standard_normal(len(curve)))
        found = forecast_end(times[:seen], losses[:seen], times[-1])
        if found is None:
            raise ValueError("expected a forecast from three points")
        hits += found.low <= losses[-1] <= found.high
        widths.append(found.high / found.low)
    return hits / draws, float(np.median(widths))


def main() -> None:
    """Print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=150, help="curves in each cell (default: 150)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the rows here too")
    options = parser.parse_args()
    where = np.arange(1, POINTS + 1) * STEPS // POINTS - 1
    cells = [(noise, seen) for noise in NOISES for seen in SEEN]
    print(f"{'noise / points seen':32}" + "".join(f"{noise:>7.0%}/{seen}" for noise, seen in cells))
    rows: list[dict[str, Any]] = []
    for name, curve in CURVES.items():
        for schedule, whole in accumulated().items():
            losses, times = curve(whole / whole[-1])[where], whole[where]
            found = [coverage(losses, times, *cell, options.draws, options.seed) for cell in cells]
            for (noise, seen), (share, width) in zip(cells, found, strict=True):
                rows.append({"curve": name, "schedule": schedule, "noise": noise, "seen": seen}
                            | {"coverage": share, "width": width})  # fmt: skip
            print(f"{name + ', ' + schedule:32}" + "".join(f"{share:9.2f}" for share, _ in found), flush=True)
    shares = sorted(row["coverage"] for row in rows)
    print(f"smallest {shares[0]:.2f}, median {shares[len(shares) // 2]:.2f}, largest {shares[-1]:.2f}")
    if options.json:
        write_atomically(options.json, (json.dumps(rows, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
