"""What `bridge.estimate_aic` costs in units of plain forward-and-backward passes over the same rows.

    python benchmarks/cost_of_estimate_aic.py --finetune gsm8k=FILE [--num 16 32 64]

For every number of rows, in one run of this script: plain passes (loss over all positions, gradients of all
parameters, the default attention kernels) before and after the command, and the command itself as a fresh
process, whose manifest tells the time of its stages and its peak memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from bridge.data.samples import Sample
from bridge.estimators.batches import make_batches
from bridge.models.load import LoadedModel, load_model


def plain_passes(loaded: LoadedModel, samples: list[Sample], batch_size: int) -> float:
    """Seconds for one forward and backward pass over the samples."""
    model = loaded.model.requires_grad_(True)
    batches = make_batches(samples, batch_size, int(loaded.tokenizer.pad_token_id), loaded.device)
    start = time.perf_counter()
    for batch in batches:
        labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
        model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels, use_cache=False
        ).loss.backward()
        model.zero_grad()
    if loaded.device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(options: argparse.Namespace, num: int, out: Path) -> dict:
    command = [sys.executable, "-m", "bridge.estimate_aic", "--model", options.model, "--finetune", options.finetune]
    command += ["--skill", options.skill, "--num-skill", str(num), "--num-finetune", str(num), "--out", str(out)]
    command += ["--batch-size", str(options.batch_size), *options.more]
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads((out / "manifest.json").read_text()) | {"process_seconds": time.perf_counter() - start}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--skill", default="refusals")
    parser.add_argument("--finetune", default="benign")
    parser.add_argument("--num", type=int, nargs="+", default=[64], help="rows of each set")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--keep", type=Path, help="folder in which the runs are kept; must hold none of them yet")
    options, options.more = parser.parse_known_args()
    loaded = load_model(options.model)
    print("| rows of each set | tokens | plain passes (s) | command (s) | ratio | peak memory (GiB) |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    breakdowns = []
    for num in options.num:
        with tempfile.TemporaryDirectory() as folder:
            out = (options.keep or Path(folder)) / f"rows-{num}"
            manifest = measure(options, num, out)
            samples = [Sample.from_json(line) for line in (out / "samples.jsonl").read_text().splitlines()]
        plain_passes(loaded, samples[:8], options.batch_size)  # warm-up
        plain = sum(plain_passes(loaded, samples, options.batch_size) for _ in range(2)) / 2
        total, peak = manifest["process_seconds"], manifest["peak_memory_bytes"] / 2**30
        tokens = sum(len(s.input_ids) for s in samples)
        print(f"| {num} | {tokens} | {plain:.1f} | {total:.1f} | {total / plain:.2f} | {peak:.1f} |", flush=True)
        breakdowns.append((num, plain, manifest["stage_seconds"], total))
    for num, plain, stages, total in breakdowns:
        print(f"\nStages with {num} rows of each set, in plain passes over all rows:")
        for name, seconds in (stages | {"start, loading, writing": total - sum(stages.values())}).items():
            print(f"  {name:<36} {seconds:8.1f} s {seconds / plain:6.2f}")


if __name__ == "__main__":
    main()
