"""Exact spectra and overlap scores of all modules against the paper's route by Rademacher projection.

    python benchmarks/against_rademacher.py [--num 100] [--modules-timed 7] [--dim 4096]

The paper projects every sample's score of every module to 4,096 dimensions with a random sign matrix and takes
spectra and overlap scores there. Both routes need the scores; the exact one contracts them, the other one
multiplies them by 4,096 signs a parameter. The projection is timed for the modules of one block and
extrapolated to all by the number of parameters; the scores' own cost is counted once for each route.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from bridge import measure, models, taps
from bridge.data import ChatFormat, Sample, encode_rows, load_rows
from commands.progress import Progress
from commands.store import RunFolder
from theory.spectra import spectrum

COLUMNS = 8192  # parameters whose signs are drawn at a time


def exact_route(subject: measure.Subject, samples: list[Sample], delta: dict) -> tuple[float, float]:
    """Seconds for spectra and overlap scores of all modules, and the joint overlap score."""
    update = measure.Update(delta, delta, dict.fromkeys(delta, 0.0), 0.0)
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(folder) / "run", "benchmark", {})
        start = time.perf_counter()
        found = measure.measure_scores(subject, samples, update, "empirical", run, Progress(quiet=True))
        for stats in found.values():
            spectrum(stats)
        scores = {name: float(np.mean(stats.velocity**2)) for name, stats in found.items()}
        seconds = time.perf_counter() - start
        run.close()
    return seconds, sum(scores.values())


def gradients_only(subject: measure.Subject, samples: list[Sample], block: str, names: list[str]) -> dict:
    """Scores (N, n) of the modules of one block, as both routes form them."""
    batches = subject.batches(samples)
    tape = taps.record(subject.model, [block], batches)
    pairs: dict[str, list] = {name: [] for name in names}
    for entry in tape.records[block]:
        modules = {name: subject.modules[name] for name in names}
        for name, (x, delta) in taps._tap(subject.model.get_submodule(block), modules, entry).items():
            pairs[name].append(torch.bmm(delta.transpose(1, 2), x).flatten(1))
    return {name: torch.cat(parts) for name, parts in pairs.items()}


# Eight signs for each value of a byte: drawing bytes and looking them up is the quickest way to many signs.
SIGNS = ((torch.arange(256)[:, None] >> torch.arange(8)) & 1).float() * 2 - 1


def project(rows: torch.Tensor, dim: int, generator: torch.Generator) -> tuple[torch.Tensor, float]:
    """Rows (N, n) times a (n, dim) matrix of random signs / sqrt(dim), and the seconds of the products alone."""
    out, seconds = torch.zeros(rows.shape[0], dim), 0.0
    for k in range(0, rows.shape[1], COLUMNS):
        part = rows[:, k : k + COLUMNS]
        drawn = torch.randint(0, 256, (part.shape[1], dim // 8), generator=generator, dtype=torch.int32)
        signs = torch.nn.functional.embedding(drawn, SIGNS).view(part.shape[1], dim)
        start = time.perf_counter()
        out += part @ signs
        seconds += time.perf_counter() - start
    return out / dim**0.5, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=100)
    parser.add_argument("--dim", type=int, default=4096)
    parser.add_argument("--modules-timed", type=int, default=7, help="of the middle block")
    options = parser.parse_args()
    loaded = models.load("smollm2-135m", device="cpu")
    modules = taps.select_modules(loaded.model)
    subject = measure.Subject(loaded.model, modules, int(loaded.tokenizer.pad_token_id), 4, 4 * 2**30)
    samples = list(encode_rows(load_rows("refusals"), ChatFormat(loaded.tokenizer), options.num, 512, 0).samples)
    generator = torch.Generator().manual_seed(0)
    delta = {n: torch.randn(m.weight.shape, generator=generator) * 1e-3 for n, m in modules.items()}

    exact, _ = exact_route(subject, samples, delta)
    blocks = taps.group_by_block(list(modules))
    block = list(blocks)[len(blocks) // 2]
    names = blocks[block][: options.modules_timed]
    scores = gradients_only(subject, samples, block, names)
    seconds, products, parameters = 0.0, 0.0, 0
    for name in names:
        start = time.perf_counter()
        # The change of the weights is projected by the same signs as the scores.
        both, alone = project(torch.cat([scores[name], delta[name].flatten()[None]]), options.dim, generator)
        low, moved = both[:-1], both[-1]
        torch.linalg.eigvalsh(low @ low.T / options.num)
        (low @ moved).square().mean()
        products += alone
        seconds += time.perf_counter() - start
        parameters += scores[name].shape[1]
    total = sum(m.weight.numel() for m in modules.values())
    projected = seconds * total / parameters
    print(f"N = {options.num}, {len(modules)} modules, {total:,} parameters, {torch.get_num_threads()} threads")
    print(f"exact, all modules (scores, spectra, overlap scores):           {exact:8.1f} s")
    print(f"projection to {options.dim}, {len(names)} modules timed:                      {seconds:8.1f} s")
    print(f"projection, extrapolated to all modules (without the scores):   {projected:8.1f} s")
    print(f"  of which products, with signs free of charge:                 {projected * products / seconds:8.1f} s")
    print(f"projection / exact, scores free of charge for the projection:   {projected / exact:8.1f}")
    print(
        f"  with signs free of charge too:                                {projected * products / seconds / exact:8.1f}"
    )


if __name__ == "__main__":
    main()
