"""A tiny model with its skill and two candidates, the options of `bridge.risk` on them, and the files of a run."""

from __future__ import annotations

from pathlib import Path

from tests.bridge.support.tiny_runs import FINETUNE_ROWS, SKILL_ROWS, make_workplace, write_rows

COMPARED = (
    "settings.toml",
    "risk.json",
    "rows.jsonl",
    "samples.jsonl",
    "statistics.npz",
    "report.html",
    "risk.png",
    "rows.png",
)


def make_candidates(folder: Path) -> Path:
    """A tiny model with its skill, and two candidates: a.jsonl, and b.jsonl with rows like the skill's."""
    make_workplace(folder, "llama")
    write_rows(folder / "a.jsonl", FINETUNE_ROWS)
    write_rows(folder / "b.jsonl", [*SKILL_ROWS[1:], *FINETUNE_ROWS[:2]])
    return folder


def risk_options(folder: Path, out: Path, *more: str) -> list[str]:
    """Options of a tiny run; later ones win."""
    return [
        *("--candidates", str(folder / "a.jsonl"), f"other={folder / 'b.jsonl'}"),
        *("--model", str(folder / "model"), "--skill", str(folder / "skill.jsonl"), "--num-skill", "6"),
        *("--max-new-tokens", "6", "--max-length", "64", "--bootstrap", "40", "--batch-size", "3"),
        *("--device", "cpu", "--out", str(out), *more),
    ]
