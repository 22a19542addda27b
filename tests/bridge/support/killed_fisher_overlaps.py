"""Kills tiny runs of `bridge.fisher_overlap` everywhere, for `kill_server`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bridge.fisher_overlap import MEMORY_ADVICE
from bridge.fisher_overlap import main as command
from tests.bridge.support.killing import Killed, kill_everywhere, like_another

PICTURES = ("overlap.png", "relative.png", "energy.png", "blocks.png")
COMPARED = ("fisher_overlap.json", "samples.jsonl", "statistics.npz", "report.html", *PICTURES)
ALIKE = ("after manifest.json", "after skill-0-responses-0.json", "after samples.jsonl")  # to the next moment
BEFORE = ("before fisher_overlap.json",)  # elsewhere the moment before a rename is like the last


def options(folder: Path, out: Path, *more: str) -> Sequence[str]:
    """Options of a tiny run on `make_workplace`'s model and rows; later ones win."""
    skills = [text for name in ("skill", "finetune") for text in ("--skill", str(folder / f"{name}.jsonl"))]
    numbers = {
        "num-skill": 6, "rank": 2, "max-new-tokens": 6, "max-length": 64, "batch-size": 3, "splits": 2, "jackknife": 5,
        "permutations": 9, "simulations": 2,
    }  # fmt: skip
    given = [text for name, value in numbers.items() for text in (f"--{name}", str(value))]
    return ["--model", str(folder / "model"), *skills, *given, "--device", "cpu", "--out", str(out), *more]


def main(folder: Path) -> None:
    killed = Killed(
        main=command,
        advice=MEMORY_ADVICE,
        arguments=lambda out: options(folder, out, "--memory", "1e-6"),
        compared=COMPARED,
        watch=lambda at: None,
        skip=like_another(lambda m: m in ALIKE or (m.startswith("before") and m not in BEFORE)),
        often=(4, 11),
    )
    kill_everywhere(killed, folder)
