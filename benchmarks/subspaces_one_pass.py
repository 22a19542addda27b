"""All fractions and bases of task updates in one pass against one SVD per fraction, side by side, and the peak memory.

    python benchmarks/subspaces_one_pass.py --alignment runs/align/A --task runs/finetune/B --task runs/finetune/C

The one pass is `python -m bridge.subspaces energy` itself, its reading, checks and files included, in a child process
whose peak memory is the kernel's. The other route is what the published code does: for every task, fraction and basis
it decomposes the alignment update again (and draws again, once a repeat); it is timed on some fractions and some
matrices of every shape, then scaled to all of them: its time does not depend on the rank beyond the final product.
Both must give the same energies for Top-K where both were computed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

from bridge.deltas.bases import matrix_names, rank_of
from bridge.deltas.open import open_delta
from bridge.deltas.weight_delta import WeightDelta
from bridge.experiments.subspaces.settings import FRACTIONS

DECOMPOSED = ("top-k", "random-k")  # by the published code again and again; Random costs both routes only its draws


def one_pass(options: argparse.Namespace, out: Path) -> dict[str, float]:
    """Wall and processor seconds, and peak bytes, of the command."""
    tasks = [text for k, task in enumerate(options.task) for text in ("--task", f"{k}={task}")]
    command = [sys.executable, "-m", "bridge.subspaces", "energy", "--alignment", options.alignment, *tasks]
    command += ["--fractions", options.fractions, "--repeats", str(options.repeats), "--dtype", options.dtype]
    start = time.perf_counter()
    subprocess.run([*command, "--device", "cpu", "--out", str(out)], check=True, stdout=subprocess.DEVNULL)
    wall, usage = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    scale = 1 if sys.platform == "darwin" else 1024
    return {"wall": wall, "cpu": usage.ru_utime + usage.ru_stime, "peak_bytes": float(usage.ru_maxrss * scale)}


def repeated(
    alignment: WeightDelta, task: WeightDelta, name: str, fraction: float, kind: str, dtype: torch.dtype
) -> float:
    """Energy kept of one task in one matrix at one fraction, everything from the start."""
    update, moved = alignment.dense(name, dtype), task.dense(name, dtype)
    rank = rank_of(fraction, *update.shape)
    vectors = torch.linalg.svd(update, full_matrices=False).U
    if kind == "random-k":
        vectors = vectors[:, torch.randperm(vectors.shape[1])[:rank]]
    inside = vectors[:, :rank] @ (vectors[:, :rank].T @ moved)
    return float((inside.norm() / moved.norm()) ** 2)


def svd_per_fraction(options: argparse.Namespace, found: dict) -> dict[str, float]:
    """Seconds of the other route, scaled from what was timed; and its largest difference from the one pass."""
    alignment, task = open_delta(options.alignment), open_delta(options.task[0])
    fractions = [float(text) for text in options.fractions.split(",")]
    timed = fractions[:: max(1, len(fractions) // options.timed_fractions)][: options.timed_fractions]
    by_shape: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for name in matrix_names(alignment):
        if name in found["tasks"]["0"]["tensors"]:
            by_shape[alignment.shape(name)].append(name)
    wall, measured, difference = 0.0, 0.0, 0.0
    for names in by_shape.values():
        used, seconds = names[: options.timed_matrices], 0.0
        for name in used:
            for fraction in timed:
                for kind in DECOMPOSED:
                    start = time.perf_counter()
                    kept = repeated(alignment, task, name, fraction, kind, getattr(torch, options.dtype))
                    weight = 1 if kind == "top-k" else options.repeats
                    seconds += weight * (time.perf_counter() - start)
                    if kind == "top-k":
                        pass_one = found["tasks"]["0"]["tensors"][name]["bases"]["top-k"]["kept"]
                        difference = max(difference, abs(kept - pass_one[fractions.index(fraction)]))
        measured += seconds
        wall += seconds * len(names) / len(used) * len(fractions) / len(timed) * len(options.task)
    return {"wall": wall, "measured": measured, "difference": difference, "fractions": float(len(timed))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alignment", required=True)
    parser.add_argument("--task", required=True, action="append")
    parser.add_argument("--fractions", default=",".join(map(str, FRACTIONS)))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float64")
    parser.add_argument("--timed-fractions", type=int, default=2, help="fractions that the slow route is timed on")
    parser.add_argument("--timed-matrices", type=int, default=1, help="matrices of every shape, the same")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        fast = one_pass(options, Path(place) / "run")
        found = json.loads((Path(place) / "run" / "energy.json").read_text())
    slow = svd_per_fraction(options, found)
    result = {"one_pass": fast, "svd_per_fraction": slow, "ratio": slow["wall"] / fast["wall"],
              "threads": torch.get_num_threads(), "cores": os.cpu_count()}  # fmt: skip
    tasks, count = len(options.task), len(options.fractions.split(","))
    print(f"{tasks} updates, {count} fractions, 3 bases, {options.repeats} draws of the random ones, {options.dtype}")
    print(f"one pass:             {fast['wall']:9.1f} s, peak {fast['peak_bytes'] / 2**30:.2f} GiB (whole command)")
    print(
        f"one SVD per fraction: {slow['wall']:9.1f} s, scaled from {slow['measured']:.1f} s measured (Top-K and "
        f"Random-K alone, without reading what the command reads to check, and without Random)"
    )
    print(f"ratio {result['ratio']:.1f}; largest difference of Top-K energies {slow['difference']:.2g}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    if not np.isfinite(slow["difference"]):
        raise SystemExit("the two routes cannot be compared")


if __name__ == "__main__":
    main()
