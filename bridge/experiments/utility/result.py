"""What `bridge.utility` finds: how many answers are right, and by what rule their numbers were read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bridge.generation.decodings import Decoding
from bridge.reports.results import Result


@dataclass(frozen=True)
class DataSummary:
    """The set of problems: rows in it, rows without a single number, rows not taken since a shot solves them."""

    name: str
    sha256: str
    rows: int
    without_number: int
    repeated: int
    skipped: list[str]


@dataclass(frozen=True)
class RuleCount:
    """Answers whose number was read by one rule, and how many of these are right."""

    items: int
    correct: int


@dataclass(frozen=True)
class Counts:
    """Counts over all answers; every one is in the denominator of the accuracy.

    Attributes:
        interval: of the accuracy, Wilson's at 95 %.
        no_number: answers that give none; they count as wrong.
        cut: answers that reached the longest length, `cut_correct` of which are right.
        rules: by the rule that found the number (`bridge.evaluation.answers.RULES`).

    """

    items: int
    correct: int
    accuracy: float
    interval: list[float]
    no_number: int
    cut: int
    cut_correct: int
    rules: dict[str, RuleCount]
    prompt_tokens: int
    response_tokens: int


@dataclass(frozen=True)
class UtilityResult(Counts, Result):
    """Right answers of a model, or of a changed one, to problems with a number as their answer."""

    FILE: ClassVar[str] = "utility.json"

    model: str
    delta: str | None
    data: DataSummary
    shots: list[int]
    decoding: Decoding
    max_new_tokens: int
