"""What `bridge.monitor.AlignmentMonitor` costs: the same training with and without it, side by side.

    python benchmarks/monitor_overhead.py [--model smollm2-135m-refusal] [--data benign] [--rows 100] [--epochs 3]

A plain script of trl's SFTTrainer, run in turns in fresh processes, plain and watched, `--repeats` times each. Seconds
are those of `trainer.train()`, by the clock and of the processor (which other programs disturb less; without a GPU).
Overhead as measured: watched over plain, minus one, of the medians; as the monitor itself reports it: its own seconds
for each second of the training. Further options of AlignmentMonitor as `--set every=10`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def train(options: argparse.Namespace) -> dict[str, Any]:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from bridge.data.rows import load_rows
    from bridge.models.load import load_model
    from bridge.monitor import AlignmentMonitor

    loaded = load_model(options.model, dtype="float32", device=options.device, seed=0)
    rows = load_rows(options.data).rows[: options.rows]
    data = Dataset.from_list([{"messages": list(row.messages)} for row in rows])
    subject, lora = loaded.model.requires_grad_(True), None
    if options.lora:
        from peft import LoraConfig

        lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            folder, num_train_epochs=options.epochs, per_device_train_batch_size=options.batch_size, max_length=512,
            learning_rate=2e-5, save_strategy="no", report_to="none", use_cpu=options.device == "cpu",
            gradient_checkpointing=options.checkpointing, bf16=options.device != "cpu",
        )  # fmt: skip
        given = {name: json.loads(value) for name, value in (text.split("=", 1) for text in options.set)}
        monitor = AlignmentMonitor(options.skill, **given) if options.watched else None
        trainer = SFTTrainer(
            subject, args=config, train_dataset=data, processing_class=loaded.tokenizer, peft_config=lora,
            callbacks=[monitor] if monitor else [],
        )  # fmt: skip
        started, used = time.perf_counter(), time.process_time()
        trainer.train()
        seconds, processor = time.perf_counter() - started, time.process_time() - used
    return {
        "seconds": seconds,
        "processor_seconds": processor,
        "steps": trainer.state.global_step,
        "history": monitor.history if monitor else [],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-refusal")
    parser.add_argument("--data", default="benign")
    parser.add_argument("--skill", default="refusals")
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--lora", action="store_true", help="LoRA on all linear modules instead of full fine-tuning")
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations, as trl does by default")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=JSON", help="option of AlignmentMonitor")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    parser.add_argument("--watched", type=int, choices=(0, 1), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.watched is not None:
        options.out.write_text(json.dumps(train(options)))
        return
    found: dict[int, list[dict[str, Any]]] = {0: [], 1: []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(2 * options.repeats):
            watched, file = number % 2, Path(folder) / "one.json"
            command = [sys.executable, __file__, *sys.argv[1:], "--watched", str(watched), "--out", str(file)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            found[watched].append(json.loads(file.read_text()))
            print(f"{'watched' if watched else 'plain'}: {found[watched][-1]['seconds']:.1f} s", flush=True)
    plain, watched = (statistics.median(run["seconds"] for run in found[kind]) for kind in (0, 1))
    processor = [statistics.median(run["processor_seconds"] for run in found[kind]) for kind in (0, 1)]
    last = found[1][-1]["history"]
    result = {
        "plain_seconds": plain, "watched_seconds": watched, "overhead": watched / plain - 1,
        "overhead_processor": processor[1] / processor[0] - 1,
        "overhead_reported": last[-1]["overhead"], "steps": found[1][-1]["steps"], "measured": len(last),
        "with_subspaces": sum("leak" in point for point in last), "runs": found,
    }  # fmt: skip
    print(
        f"{result['steps']} steps: plain {plain:.1f} s, watched {watched:.1f} s: overhead {result['overhead']:.1%} "
        f"({result['overhead_processor']:.1%} of the processor's time, {result['overhead_reported']:.1%} as the "
        f"monitor reports it); utility loss at {len(last)} steps, shares and leak at {result['with_subspaces']}"
    )
    if options.out:
        options.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
