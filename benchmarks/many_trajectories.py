"""Gradient-flow trajectories of a softmax problem: all at once, against one by one.

    python benchmarks/many_trajectories.py

Times the paths and the utility losses of many starting points side by side in one run, and checks that both ways give
the same numbers.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from sim import problems
from sim.fields import GradientFlow
from sim.flow import flow, flow_many


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dimension", type=int, default=50)
    parser.add_argument("--trajectories", type=int, default=1000)
    parser.add_argument("--one-by-one", type=int, default=50, help="trajectories that are also computed singly")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    problem = problems.softmax(options.dimension, 5, 6, options.dimension // 3, options.seed)
    base = problem.skill.base
    rng = torch.Generator().manual_seed(options.seed)
    starts = base + 0.1 * torch.randn(options.trajectories, len(base), generator=rng, dtype=base.dtype)
    field, times = GradientFlow(problem.loss), np.geomspace(1e-3, 1.0, 20)

    begin = time.perf_counter()
    together = flow_many(field, starts, times)
    paths = time.perf_counter() - begin
    problem.skill.utility_losses(together.reshape(-1, len(base)))
    whole = time.perf_counter() - begin

    singly = starts[: options.one_by_one]
    begin = time.perf_counter()
    apart = torch.stack([flow(field, start, times) for start in singly])
    single = (time.perf_counter() - begin) / len(singly) * options.trajectories
    largest = float((apart - together[: len(singly)]).abs().max())

    print(f"{options.trajectories} trajectories, {options.dimension} parameters, {len(times)} times, t up to 1")
    print(f"at once: paths {paths:.2f} s, with utility losses {whole:.2f} s")
    print(f"one by one: paths {single:.1f} s (from {len(singly)} of them), {single / paths:.0f} times as long")
    print(f"largest difference of a parameter: {largest:.1e}")


if __name__ == "__main__":
    main()
