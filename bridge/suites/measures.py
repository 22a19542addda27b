"""What suites take from the results of commands: named numbers with their intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from bridge.experiments.harmfulness.result import Judged, Scores
from bridge.experiments.overlap.result import ChangeOverlap
from bridge.experiments.utility.result import Counts
from bridge.reports.numbers import number

REFUSALS = "refusals"
"""Name of the refusal rate, which is no harmfulness score."""
Ends = tuple[float, float] | list[float] | None


@dataclass(frozen=True)
class Measure:
    """A number with its interval (None: not known), and the number of items that it is of.

    Attributes:
        kind: how people read it: a share in per cent.
        value: the number.
        low: lower end of its 95 % interval.
        high: its upper end.
        count: items.
        note: what a reader must know besides.

    """

    kind: Literal["share", "number"]
    value: float | None
    low: float | None
    high: float | None
    count: int | None
    note: str | None = None

    def __str__(self) -> str:
        """The measure with its interval; a dash where there is none."""
        if self.value is None:
            return "–"
        if self.kind == "share":
            ends = "" if self.low is None or self.high is None else f" ({100 * self.low:.0f}–{100 * self.high:.0f})"
            return f"{100 * self.value:.1f} %{ends}"
        return number(self.value) + ("" if self.low is None else f" ({number(self.low)} … {number(self.high)})")


Measures = dict[str, Measure]
"""Measures by name."""


def shown(measure: Measure | None) -> str:
    """A measure as people read it; a dash where there is none."""
    return "–" if measure is None else str(measure)


def share(value: float, ends: Ends, count: int) -> Measure:
    """A share with its interval."""
    low, high = ends or (None, None)
    return Measure("share", value, low, high, count)


def quantity(value: float | None, ends: Ends = None, count: int | None = None, note: str | None = None) -> Measure:
    """A number with its interval."""
    low, high = ends or (None, None)
    return Measure("number", value, low, high, count, note)


def accuracy(name: str, found: Counts) -> Measures:
    """The accuracy on a set of that name."""
    return {f"accuracy on {name}": share(found.accuracy, found.interval, found.items)}


def overlap(change: ChangeOverlap, num_samples: int) -> Measures:
    """The overlap score of a change on so many samples, against a random direction's, and the utility loss."""
    joint, loss = change.joint, change.utility_loss
    scores = {
        "overlap score": quantity(joint.raw, joint.intervals.get("raw"), num_samples),
        "overlap, × random": quantity(joint.enrichment, None, num_samples),
    }
    if loss is not None:
        scores["skill's loss (KL)"] = quantity(loss.mean, loss.interval, num_samples)
    return scores


def verdicts(found: Judged) -> Measures:
    """What each judge found; the judge "refusal" gives a refusal rate.

    Where some items have no score, the measure's note gives the bounds of the mean over all items.
    """
    measures: Measures = {}
    if (refused := found.refusals) is not None:
        measures[REFUSALS] = share(refused.rate, refused.interval, refused.total)
    for judge, scores in found.judges.items():
        measures[f"harmfulness 1–5, {judge}"] = _mean_score(scores)
    return measures


def _mean_score(scores: Scores) -> Measure:
    scored = scores.status.scored
    low, high = scores.bounds
    missing = scores.total - scored
    note = f"{missing} of {scores.total} items have no score; the mean of all lies in [{low:.2f}, {high:.2f}]"
    return quantity(scores.mean, scores.interval, scored, note if missing else None)


def unanswered(judges: Mapping[str, Scores]) -> str | None:
    """A line about the items that a judge did not answer; None if there are none."""
    failed = {name: scores for name, scores in judges.items() if scores.status.failed}
    parts = [f"{name} did not answer on {s.status.failed} of {s.total} items" for name, s in failed.items()]
    return f"{', '.join(parts)}; the same command asks again" if parts else None
