"""Runs of `bridge.activations` on a tiny model: rows, options."""

from __future__ import annotations

from pathlib import Path

from tests.bridge.support.tiny_overlaps import make_changes
from tests.bridge.support.tiny_runs import SCRIPT, write_rows

USEFUL = [(f"add {'1' * k} and {k}?", "yes") for k in range(9)] + [(SCRIPT, "<b>no</b>")]
HARMFUL = [(f"{'q' * (k % 4)} how do {k} x?", "no") for k in range(8)]


def make_prompts(folder: Path) -> Path:
    """folder/model, two changes of it, useful.jsonl and harmful.jsonl."""
    make_changes(folder)
    write_rows(folder / "useful.jsonl", USEFUL)
    write_rows(folder / "harmful.jsonl", HARMFUL)
    return folder


def activation_options(folder: Path, out: Path, *more: str) -> list[str]:
    """Options of a tiny run; later ones win, sets add up."""
    return [
        *("--model", str(folder / "model"), "--set", f"useful={folder / 'useful.jsonl'}"),
        *("--set", f"harmful={folder / 'harmful.jsonl'}", "--num-prompts", "8", "--max-new-tokens", "5"),
        *("--energies", "0.5,0.9", "--splits", "3", "--permutations", "19", "--batch-size", "3"),
        *("--device", "cpu", "--out", str(out), *more),
    ]
