"""Kills tiny runs of `bridge.risk` everywhere, for `kill_server`."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from bridge.risk import MEMORY_ADVICE
from bridge.risk import main as command
from tests.bridge.support.killing import Killed, kill_everywhere
from tests.bridge.support.tiny_runs import FINETUNE_ROWS, SKILL_ROWS, make_workplace, write_rows

PICTURES = ("risk.png", "rows.png")
COMPARED = ("settings.toml", "risk.json", "rows.jsonl", "samples.jsonl", "statistics.npz", "report.html", *PICTURES)
MOMENTS = {  # numbers as #: of moments that are alike the first is tried
    "after set-#-velocity.safetensors",
    "tick of scores of the rows",
    "after set-#-rows-#.npz",
    "before set-#.npz",
    "after set-#.npz",
    "after risk.json",
    "before cleaned.jsonl",
    "after cleaned.jsonl",
}


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


def main(folder: Path) -> None:
    more = ("--clean", "2", "--clean-candidate", "other", "--memory", "1e-6")
    killed = Killed(
        main=command,
        advice=MEMORY_ADVICE,
        arguments=lambda out: risk_options(folder, out, *more),
        compared=(*COMPARED, "cleaned.jsonl"),
        watch=lambda at: None,
        skip=_not_to_be_tried(),
        often=(9, 20),
    )
    kill_everywhere(killed, folder)


def _not_to_be_tried() -> Callable[[str], bool]:
    """Whether a moment is none of `MOMENTS`, or alike one that was tried."""
    left = set(MOMENTS)

    def skip(moment: str) -> bool:
        kind = re.sub(r"\d+", "#", moment)
        if kind not in left:
            return True
        left.discard(kind)
        return False

    return skip
