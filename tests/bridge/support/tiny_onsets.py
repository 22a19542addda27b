"""Runs of `bridge.onset` on tiny random models: their options."""

from __future__ import annotations

from pathlib import Path


def onset_options(folder: Path, out: Path, *more: str) -> list[str]:
    """Command-line options of a tiny run; later ones win."""
    return [
        *("--model", str(folder / "model"), "--skill", str(folder / "skill.jsonl")),
        *("--finetune", str(folder / "finetune.jsonl"), "--num-skill", "4", "--num-finetune", "5", "--num-probe", "3"),
        *("--max-new-tokens", "6", "--max-length", "64", "--batch-size", "3", "--adam-batch-size", "2"),
        *("--bootstrap", "20", "--curvature-iterations", "2", "--at", "0.03,0.1,0.3", "--learning-rate", "1"),
        *("--dtype", "float64", "--device", "cpu", "--out", str(out), *more),
    ]
