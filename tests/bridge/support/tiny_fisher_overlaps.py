"""Tiny runs of `bridge.fisher_overlap`: their options, and the files that they leave."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

PICTURES = ("overlap.png", "relative.png", "energy.png", "blocks.png")
COMPARED = ("fisher_overlap.json", "samples.jsonl", "statistics.npz", "report.html", *PICTURES)


def options(folder: Path, out: Path, *more: str) -> Sequence[str]:
    """Options of a tiny run on `make_workplace`'s model and rows; later ones win."""
    skills = [text for name in ("skill", "finetune") for text in ("--skill", str(folder / f"{name}.jsonl"))]
    numbers = {
        "num-skill": 6, "rank": 2, "max-new-tokens": 6, "max-length": 64, "batch-size": 3, "splits": 2, "jackknife": 5,
        "permutations": 9, "simulations": 2,
    }  # fmt: skip
    given = [text for name, value in numbers.items() for text in (f"--{name}", str(value))]
    return ["--model", str(folder / "model"), *skills, *given, "--device", "cpu", "--out", str(out), *more]
