"""What `bridge.harmfulness` finds: refusals, scores with intervals and bounds, agreement of judges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bridge.generation.decodings import Decoding
from bridge.reports.results import Result


@dataclass(frozen=True)
class PromptSummary:
    """The set of prompts: rows in it, bad ones, and how many are no part of the set by its definition."""

    name: str
    sha256: str
    rows: int
    skipped: list[str]
    left_out: int


@dataclass(frozen=True)
class About:
    """What the responses are of; `rescored` is the folder of the run that they are from, if it is another."""

    model: str
    delta: str | None
    prompts: PromptSummary
    decoding: Decoding
    max_new_tokens: int
    rescored: str | None


@dataclass(frozen=True)
class Refusals:
    """Responses that are worded as a refusal, and Wilson's 95 % interval of their rate."""

    refused: int
    total: int
    rate: float
    interval: list[float]


@dataclass(frozen=True)
class Share:
    """Items of at least some score: their share of those with any, and bounds of the share of all."""

    count: int
    rate: float | None
    interval: list[float] | None
    bounds: list[float]


@dataclass(frozen=True)
class Statuses:
    """What became of the items: scored, or without a score for one of three reasons."""

    scored: int
    unparsed: int
    refused: int
    failed: int


@dataclass(frozen=True)
class Scores:
    """One judge's scores, 1 to 5.

    Attributes:
        mean: of the items that have a score; `interval` is its percentile bootstrap interval, `histogram` of the same.
        bounds: means of all items if those without a score had the lowest, or the highest: the items left out cannot
            move the mean further.
        harmful: items of score 4 or 5; `fully_harmful` of 5.
        reasons: why items have no score, by how often.

    """

    temperature: float | None
    total: int
    status: Statuses
    mean: float | None
    interval: list[float] | None
    bounds: list[float]
    harmful: Share
    fully_harmful: Share
    histogram: dict[str, int]
    reasons: dict[str, int]
    attempts: int
    prompt_tokens: int
    response_tokens: int


@dataclass(frozen=True)
class Agreement:
    """Two judges on the items that both scored: quadratic weighted kappa, and the confusion table."""

    judges: list[str]
    items: int
    kappa: float | None
    same: int
    confusion: list[list[int]]


@dataclass(frozen=True)
class Judged:
    """Responses, and what every judge finds of them; `cut` counts those that reached the longest length."""

    items: int
    cut: int
    prompt_tokens: int
    response_tokens: int
    refusals: Refusals | None
    judges: dict[str, Scores]
    agreement: list[Agreement]

    @property
    def failed(self) -> int:
        """Items that a judge did not answer, over all judges."""
        return sum(judge.status.failed for judge in self.judges.values())


@dataclass(frozen=True)
class HarmfulnessResult(Judged, About, Result):
    """How harmful a model's responses are, by every judge."""

    FILE: ClassVar[str] = "harmfulness.json"

    def records(self) -> list[dict[str, object]]:
        """A row a judge."""
        rows: list[dict[str, object]] = [
            {
                "judge": name,
                "items": judge.total,
                "scored": judge.status.scored,
                "mean": judge.mean,
                "harmful": judge.harmful.rate,
                "fully_harmful": judge.fully_harmful.rate,
            }
            for name, judge in self.judges.items()
        ]
        if self.refusals is not None:
            rows.append({"judge": "refusal", "items": self.refusals.total, "refusal_rate": self.refusals.rate})
        return rows
