"""The options of `bridge.utility`, and what they must satisfy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from bridge.experiments.options import Answers
from commands.settings import Option

HELDOUT = {"gsm8k": "gsm8k-test", "math": "math-test", "arithmetic": "arithmetic-heldout"}
"""Sets whose name means their training rows elsewhere, and what of them is asked here."""


@dataclass(frozen=True, kw_only=True)
class Settings(Answers):
    """The options that decide a run's numbers; batch size decides their rounding only."""

    data: Annotated[
        str, Option("Problems: gsm8k, math or arithmetic (their held-out rows), metamathqa, NAME=FILE or FILE.jsonl.")
    ] = "gsm8k"
    num: Annotated[int, Option("Problems, drawn by the seed; 0 for all."), Ge(0)] = 200
    shots: Annotated[int, Option("Solved problems put before each, drawn from the set's other rows."), Ge(0)] = 0
