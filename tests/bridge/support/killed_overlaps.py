"""Kills tiny runs of `bridge.overlap` everywhere, for `kill_server`."""

from __future__ import annotations

from pathlib import Path

from bridge.overlap import MEMORY_ADVICE
from bridge.overlap import main as command
from tests.bridge.support.killing import Killed, kill_everywhere, like_another
from tests.bridge.support.tiny_overlaps import overlap_options

PICTURES = ("scores.png", "modules.png", "damage.png")
COMPARED = ("overlap.json", "samples.jsonl", "refusals.jsonl", "statistics.npz", "report.html", *PICTURES)
BEFORE = ("before overlap.json",)  # elsewhere the moment before a rename is like the last


def main(folder: Path) -> None:
    more = ("--refusals", str(folder / "prompts.jsonl"), "--estimator", "rademacher", "--dim", "16", "--memory", "1e-6")
    killed = Killed(
        main=command,
        advice=MEMORY_ADVICE,
        arguments=lambda out: overlap_options(folder, out, *more),
        compared=COMPARED,
        watch=lambda at: None,
        skip=like_another(lambda moment: moment.startswith("before") and moment not in BEFORE),
        often=(3, 25),
    )
    kill_everywhere(killed, folder)
