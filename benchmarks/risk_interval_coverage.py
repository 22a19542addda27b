"""How often the intervals of `python -m bridge.risk` hold what sets of one source cost on average, on made-up rows.

    python benchmarks/risk_interval_coverage.py [--sets 120] [--resamples 200] [--seed 0] [--json FILE]

Rows are a common gradient plus noise of their own in 300 dimensions, samples of the skill have scores of an
anisotropic Gaussian. "mean": the size of a component of the common gradient, the noise's being 1; "heavy": rows of
very different size; "tokens": rows of 1 to 19 tokens. For each: the relative spread (half of the central 68 %) of the
utility loss at equal progress over sets and samples of the source; that of the resamples of one of them
(`theory.risk.resampled_motion`); and the share of the nominal 95 % intervals that hold the average.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from commands.store import write_atomically
from theory.resampling import bootstrap_weights, percentile_interval
from theory.risk import EQUALS, Equal, RowParts, motion, resampled_motion

DIMENSIONS, SAMPLES, LEVEL = 300, 64, 0.95
CASES = [
    (kind, rows, mean)
    for kind in ("plain", "heavy", "tokens")
    for rows, mean in ((100, 0.05), (100, 0.15), (100, 0.5), (30, 0.15), (8, 0.3))
]


def draw(rng: np.random.Generator, common: np.ndarray, kind: str, rows: int) -> RowParts:
    """Inner products of one set and one draw of the skill's samples."""
    noise, tokens = rng.standard_normal((rows, DIMENSIONS)), np.ones(rows, dtype=np.int64)
    if kind == "heavy":
        noise *= np.exp(0.7 * rng.standard_normal((rows, 1)))
    if kind == "tokens":
        tokens = rng.integers(1, 20, rows)
    scores = common * tokens[:, None] + noise * np.sqrt(tokens)[:, None]
    skill = rng.standard_normal((SAMPLES, DIMENSIONS)) * np.sqrt(np.linspace(0.01, 3, DIMENSIONS))
    return RowParts(skill @ scores.T, scores @ scores.T, scores @ scores.T, tokens)


def spread(values: np.ndarray) -> float:
    """Half of the central 68 %."""
    return float(np.nanquantile(values, 0.84) - np.nanquantile(values, 0.16)) / 2


def case(kind: str, rows: int, mean: float, options: argparse.Namespace) -> list[dict]:
    """Rows of the table, one for each way to make sets equal."""
    rng = np.random.default_rng(options.seed)
    common = mean * rng.standard_normal(DIMENSIONS)
    sets = [draw(rng, common, kind, rows) for _ in range(options.sets)]
    drawn = []
    for k, parts in enumerate(sets):
        weights = bootstrap_weights(np.full(SAMPLES, 1 / SAMPLES), options.resamples, k)
        drawn.append(resampled_motion(parts, weights, (k, 0)))
    found = []
    for equal in EQUALS:
        values = np.array([motion(parts, parts.every_row).per_progress(equal)[0] for parts in sets])
        found.append({"kind": kind, "rows": rows, "mean": mean, "equal": equal} | compare(values, drawn, equal))
    return found


def compare(values: np.ndarray, drawn: list, equal: Equal) -> dict[str, float]:
    """True and resampled relative spread, and the coverage of the average."""
    average, held = values.mean(), 0
    for motions in drawn:
        interval = percentile_interval(motions.per_progress(equal), LEVEL)
        held += interval is not None and interval[0] <= average <= interval[1]
    resampled = np.median([spread(motions.per_progress(equal)) for motions in drawn])
    return {
        "spread": spread(values) / average, "resampled": float(resampled / average), "coverage": held / len(drawn),
    }  # fmt: skip


def main() -> None:
    """Print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=120, help="sets of each source (default: 120)")
    parser.add_argument("--resamples", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the rows here too")
    options = parser.parse_args()
    table = []
    print(f"{'rows':>14}{'':6}{'mean':>6}  {'equal':6}{'spread':>8}{'resampled':>11}{'coverage':>10}")
    for kind, rows, mean in CASES:
        for row in case(kind, rows, mean, options):
            table.append(row)
            print(
                f"{rows:14}{' ' + kind:7}{mean:5}  {row['equal']:6}{row['spread']:8.3f}{row['resampled']:11.3f}"
                f"{row['coverage']:10.2f}",
                flush=True,
            )
    if options.json:
        write_atomically(options.json, (json.dumps(table, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
