"""Exact overlap scores of all modules against the paper's random projection of a tenth of them, side by side.

    python benchmarks/overlap_against_rademacher.py [--num 64] [--dim 4096] [--blocks 5 15 25] [--json FILE]

The weight change is AdamW's first step on benign rows plus a small random change of rank 8. Both routes load nothing,
form the scores themselves and are timed in one run: the exact one for every module, with gram matrices, nulls and
spectra; the projection for the modules of the named blocks.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

from bridge.data.chat import ChatFormat
from bridge.data.encode import encode_rows
from bridge.data.rows import load_rows
from bridge.data.samples import Sample
from bridge.estimators import curvature, rademacher, taps
from bridge.estimators import scores as measure
from bridge.estimators import theta as estimators_theta
from bridge.models import blocks as models_blocks
from bridge.models.load import load_model
from commands.progress import Progress
from commands.store import RunFolder
from theory.overlap_score import cross_module_share, overlap_score
from theory.random_projection import projected_score
from theory.statistics import ScoreStatistics

LEARNING_RATE, RANK, TOP = 1e-5, 8, 10


class Clock:
    """Wall and processor seconds since it was made; other work on the machine stretches mostly the former."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        return {"wall": time.perf_counter() - self._wall, "cpu": time.process_time() - self._cpu}


def weight_change(subject: estimators_theta.Subject, samples: list[Sample]) -> dict[str, Tensor]:
    """AdamW's first step on the samples, -lr g / (|g| + 1e-8), and a tenth of its norm at random, of rank 8."""
    for weight in subject.weights.values():
        weight.requires_grad_(True)
    total = curvature.zeros_like(subject.weights)
    for batch in subject.batches(samples):
        curvature.add_gradient(total, subject.model, subject.weights, batch)
    generator = torch.Generator().manual_seed(0)
    for name, gradient in total.items():
        subject.weights[name].requires_grad_(False)
        step = -LEARNING_RATE * gradient / (gradient.abs() + curvature.ADAM_EPSILON)
        rows, columns = gradient.shape
        low = torch.randn(rows, RANK, generator=generator) @ torch.randn(RANK, columns, generator=generator)
        total[name] = step + low * (0.1 * step.norm() / low.norm())
    return total


def exact_route(subject: estimators_theta.Subject, samples: list[Sample], delta: dict[str, Tensor]) -> dict:
    """Seconds, and statistics, of all modules."""
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(folder) / "run", "benchmark", {})
        clock = Clock()
        found = measure.measure_products(subject, samples, {"delta": delta.get}, run, Progress(quiet=True))
        labels = tuple(sample.id for sample in samples)
        modules = {name: _statistics(arrays, delta[name], labels) for name, arrays in found.items()}
        scores = {name: overlap_score([stats], TOP) for name, stats in modules.items()}
        joint = overlap_score(list(modules.values()), TOP)
        seconds = clock.read()
        run.close()
    return {"seconds": seconds, "modules": modules, "scores": scores, "joint": joint}


def _statistics(arrays: dict, delta: Tensor, labels: tuple[str, ...]) -> ScoreStatistics:
    squared = curvature.inner_product(delta, delta)
    nothing = {"acceleration": 0 * arrays["delta"], "acceleration_squared": 0.0, "velocity_dot_acceleration": 0.0}
    return ScoreStatistics(
        arrays["gram"],
        arrays["delta"],
        velocity_squared=squared,
        dimension=delta.numel(),
        fisher="empirical",
        labels=labels,
        **nothing,
    )


def projected_route(
    subject: estimators_theta.Subject, samples: list[Sample], delta: dict[str, Tensor], blocks: list[str], dim: int
) -> tuple[dict[str, float], dict[str, rademacher.Projection]]:
    """Seconds, and projections, of the modules of some blocks."""
    clock = Clock()
    batches = subject.batches(samples)
    tape = taps.record(subject.model, blocks, batches)
    found: dict[str, rademacher.Projection] = {}
    for block in blocks:
        modules = {name: module for name, module in subject.modules.items() if models_blocks.block_of(name) == block}
        found |= rademacher.project_block(
            subject.model, block, modules, tape.records.pop(block), batches, [delta.get], dim, 0, subject.chunk_bytes
        )
    for projection in found.values():
        projection.products.square().mean()
    return clock.read(), found


def compare(exact: dict, found: dict[str, rademacher.Projection], dim: int) -> list[dict]:
    """One row a projected module, and two for all of them jointly."""
    rows = []
    for name, projection in found.items():
        rows.append(_row(name, [exact["modules"][name]], projection.products[0], dim))
    held = [exact["modules"][name] for name in found]
    products = torch.stack([projection.products[0] for projection in found.values()]).sum(0)
    rows.append(_row("jointly, one projection a module", held, products, dim))
    whole = list(found.values())
    together = sum(whole[1:], whole[0]).products[0]
    rows.append(_row("jointly, one projection of all", held, together, dim, shared=True))
    return rows


def _row(name: str, blocks: list[ScoreStatistics], products: Tensor, dim: int, shared: bool = False) -> dict:
    law = projected_score(blocks, dim, shared=shared)
    estimate = float(products.square().mean())
    return {
        "name": name,
        "exact": law.exact,
        "estimate": estimate,
        "ratio": estimate / law.exact,
        "floor": law.floor,
        "expected": law.mean,
        "sd": law.sd,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=64)
    parser.add_argument("--dim", type=int, default=4096)
    parser.add_argument("--blocks", type=int, nargs="+", default=[5, 15, 25], help="projected blocks, of 30")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    options = parser.parse_args()
    loaded = load_model("smollm2-135m", device="cpu")
    modules = taps.select_modules(loaded.model)
    subject = estimators_theta.Subject(loaded.model, modules, int(loaded.tokenizer.pad_token_id), 4, 4 * 2**30)
    chat = ChatFormat(loaded.tokenizer)
    samples = list(encode_rows(load_rows("refusals"), chat, options.num, 512, 0).samples)
    delta = weight_change(subject, list(encode_rows(load_rows("benign"), chat, 8, 512, 0).samples))
    blocks = list(models_blocks.group_by_block(list(modules)))
    exact = exact_route(subject, samples, delta)
    seconds, found = projected_route(subject, samples, delta, [blocks[k] for k in options.blocks], options.dim)
    rows = compare(exact, found, options.dim)
    cross, joint = cross_module_share(list(exact["modules"].values())), exact["joint"]
    print(f"N = {options.num}, {sum(len(s.input_ids) for s in samples):,} tokens, {torch.get_num_threads()} threads")
    for what, spent in (
        (f"exact, all {len(modules)} modules", exact["seconds"]),
        (f"projection to {options.dim}, {len(found)} modules", seconds),
    ):
        print(f"{what:40} {spent['wall']:8.1f} s, {spent['cpu']:8.1f} processor seconds")
    print(f"joint score {joint.raw:.6g}, {joint.enrichment:.4g} times its null; {cross.share:.1%} between modules\n")
    print(f"{'module':40} {'exact':>11} {'estimate':>11} {'ratio':>9} {'floor':>11} {'expected':>11} {'sd':>9}")
    for row in rows:
        numbers = f"{row['exact']:11.4g} {row['estimate']:11.4g} {row['ratio']:9.3g} {row['floor']:11.4g}"
        print(f"{row['name'].removeprefix('model.layers.'):40} {numbers} {row['expected']:11.4g} {row['sd']:9.3g}")
    if options.json:
        result = {"exact_seconds": exact["seconds"], "projected_seconds": seconds, "joint": joint.as_dict()}
        options.json.write_text(json.dumps(result | {"between_modules": cross.share, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
