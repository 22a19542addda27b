"""What the intervals of `bridge.study` can show: simulated studies of nine sets, two methods and two seeds.

    python benchmarks/study_power.py [--studies 300] [--sets 9]

Every set has a predictor and a damage, normal with a given correlation; its four fine-tunes add noise of their own, and
a level that differs by method. For each correlation: Spearman's rho within methods in the limit of many sets, the share
of the studies whose 95 % interval lies above 0 (a predictor that is shown to rank), and the share whose interval holds
that limit.
"""

from __future__ import annotations

import argparse

import numpy as np

from theory.rank_correlation import rank_correlation

CORRELATIONS = (0.0, 0.4, 0.6, 0.8, 0.9, 0.95)
METHODS, SEEDS, NOISE, LEVELS = 2, 2, 0.3, 3.0


def study(rng: np.random.Generator, sets: int, correlation: float) -> tuple[np.ndarray, ...]:
    """Predictor, damage, set and method of every fine-tune."""
    shared = rng.multivariate_normal([0, 0], [[1, correlation], [correlation, 1]], size=sets)
    numbers = np.repeat(np.arange(sets), METHODS * SEEDS)
    methods = np.tile(np.repeat(np.arange(METHODS), SEEDS), sets)
    own = NOISE * rng.normal(size=(len(numbers), 2))
    predictor, damage = (shared[numbers] + own + LEVELS * methods[:, None]).T
    return predictor, damage, numbers, methods


def rho(predictor: np.ndarray, damage: np.ndarray, sets: np.ndarray, methods: np.ndarray) -> float:
    found = rank_correlation(predictor, damage, sets, methods, resamples=0, seed=0).spearman
    assert found is not None
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=300)
    parser.add_argument("--sets", type=int, default=9)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(f"{options.sets} sets: correlation of the sets, rho in the limit, shown to rank, interval holds the limit")
    for correlation in CORRELATIONS:
        rng = np.random.default_rng([options.seed, round(100 * correlation)])
        limit = np.mean([rho(*study(rng, 400, correlation)) for _ in range(20)])
        ends = np.array(
            [
                rank_correlation(
                    *study(rng, options.sets, correlation), resamples=options.resamples, seed=number
                ).spearman_interval
                for number in range(options.studies)
            ]
        )
        shown, held = (ends[:, 0] > 0).mean(), ((ends[:, 0] <= limit) & (limit <= ends[:, 1])).mean()
        print(f"{correlation:4.2f} {limit:6.2f} {shown:8.0%} {held:8.0%}", flush=True)


if __name__ == "__main__":
    main()
