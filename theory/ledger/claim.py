"""What an entry of the ledger is: a claim, what is true of it, and a check that a machine runs.

A claim is checked on concrete cases. ``check(case)`` returns the :class:`Slack`, the signed distance by which
the claim (in its corrected form, where it needed one) holds there. Cases come from named parameters, so that
whatever a check found can be said in one line and built again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

import numpy as np

Point = dict[str, int | float]
MAX_SEED = 2**32 - 1  # of a case


class Verdict(StrEnum):
    """What is true of a claim as printed."""

    HOLDS = "holds"
    CORRECTED = "corrected"
    REFUTED = "refuted"
    VACUOUS = "vacuous"

    @property
    def words(self) -> str:
        """The verdict as a sentence has it."""
        return "holds after correction" if self is Verdict.CORRECTED else self.value


@dataclass(frozen=True)
class Slack:
    """The signed distance by which a statement holds on one case.

    Attributes:
        value: positive where an inequality holds with room; an identity has at most 0.
        tolerance: how far below 0 the value may be.
        reason: why the tolerance is what it is.
        part: which part of the statement, where it has several.
    """

    value: float
    tolerance: int | float
    reason: str
    part: str = ""

    def __post_init__(self) -> None:
        """A tolerance without a reason is no tolerance."""
        if not (isinstance(self.reason, str) and isinstance(self.part, str) and self.tolerance >= 0):
            raise ValueError(f"a slack needs a tolerance from 0 and the reason for it, got {self}")

    @property
    def margin(self) -> float:
        """``value + tolerance``: negative, or not a number, where the statement fails."""
        return self.value + self.tolerance

    @property
    def holds(self) -> bool:
        """Whether the statement holds within its tolerance."""
        return self.margin >= 0


def equal(left: Any, right: Any, tolerance: int | float, reason: str, *, scale: Any = None, part: str = "") -> Slack:
    """The slack of an identity: minus the largest difference over the scale.

    Fractions are subtracted exactly, so that a tolerance of 0 means equality.

    Args:
        left: a number or an array of any shape.
        right: what it should be.
        tolerance: allowed difference in units of the scale.
        reason: why.
        scale: positive unit; None for the largest magnitude on either side.
        part: which part of the statement.
    """
    a, b = np.asarray(left), np.asarray(right)
    if a.shape != b.shape:
        raise ValueError(f"the two sides of an identity must have one shape, got {a.shape} and {b.shape}")
    difference = _largest(a - b)
    unit = max(_largest(a), _largest(b)) if scale is None else scale
    return Slack(_relative(-difference, unit), tolerance, reason, part)


def exact(left: Any, right: Any, *, part: str = "") -> Slack:
    """The slack of an identity between integers or Fractions, with no tolerance."""
    return equal(left, right, 0.0, "exact arithmetic: no rounding", part=part)


def at_least(left: Any, right: Any, tolerance: int | float, reason: str, *, scale: Any = None, part: str = "") -> Slack:
    """The slack of ``left >= right``: ``(left - right) / scale``; arguments as :func:`equal`, for numbers."""
    difference = left - right
    unit = max(abs(left), abs(right)) if scale is None else scale
    return Slack(_relative(difference, unit), tolerance, reason, part)


def worst(*slacks: Slack) -> Slack:
    """The slack with the smallest margin; one that is not a number is worse than any."""
    return min(slacks, key=lambda slack: -math.inf if math.isnan(slack.margin) else slack.margin)


def _relative(difference: Any, unit: Any) -> float:
    """The difference over the unit; not 0 unless the difference is, even where a float would underflow."""
    if difference == 0:
        return 0.0
    return float(difference / unit) or (math.ulp(0.0) if difference > 0 else -math.ulp(0.0))


def _largest(values: Any) -> Any:
    """The largest magnitude; not a number if any is not."""
    magnitudes = np.asarray(np.abs(values))
    return magnitudes.max() if magnitudes.size else 0


@dataclass(frozen=True)
class Parameter:
    """A number that a case is built from.

    Attributes:
        name: keyword of the builder.
        low: smallest value.
        high: largest value, included.
        kind: "integer", "uniform", or "log" for uniform in the logarithm.
    """

    name: str
    low: int | float
    high: int | float
    kind: Literal["integer", "uniform", "log"] = "integer"

    def at(self, position: float) -> int | float:
        """The value at a position in [0, 1] of the range."""
        if self.kind == "integer":
            return min(int(self.low) + int(position * (self.high - self.low + 1)), int(self.high))
        if self.kind == "uniform":
            return self.low + position * (self.high - self.low)
        return float(self.low * (self.high / self.low) ** position)


@dataclass(frozen=True)
class Example:
    """A named case with what is to be seen on it.

    Attributes:
        name: a few words.
        text: what the case is and what happens, in Markdown with LaTeX.
        case: builds it.
    """

    name: str
    text: str
    case: Callable[[], Any]


@dataclass(frozen=True)
class Claim:
    """One entry of the ledger.

    Attributes:
        key: the paper's number, or ours ("Q1").
        title: a few words.
        source: where it is printed.
        statement: as printed, in Markdown with LaTeX.
        hypotheses: what it assumes.
        verdict: what is true of it.
        why: one line.
        derivation: proof of what is true.
        check: the slack of the true statement on a case.
        build: makes a case from a random generator and the parameters.
        parameters: what the builder takes, with ranges.
        evidence: what the check computes, and how independent that is of the statement.
        correction: the true statement, where the printed one is not it.
        printed: the slack of the printed statement, where that differs.
        counterexamples: cases on which the printed statement fails.
        accepted: random cases on which the printed statement is right.
        boundary: cases on which the true statement is tight.
        tightness: how small the slack is there.
    """

    key: str
    title: str
    source: str
    statement: str
    hypotheses: tuple[str, ...]
    verdict: Verdict
    why: str
    derivation: str
    evidence: str
    check: Callable[[Any], Slack]
    build: Callable[..., Any]
    parameters: tuple[Parameter, ...] = ()
    correction: str = ""
    printed: Callable[[Any], Slack] | None = None
    counterexamples: tuple[Example, ...] = ()
    accepted: Callable[[np.random.Generator], Any] | None = None
    boundary: tuple[Example, ...] = ()
    tightness: float = 0.0

    def draw(self, rng: np.random.Generator) -> Point:
        """A random point of the parameters, with a seed for what they leave open."""
        point: Point = {parameter.name: parameter.at(rng.random()) for parameter in self.parameters}
        return point | {"seed": int(rng.integers(MAX_SEED + 1))}

    def case(self, point: Mapping[str, int | float]) -> Any:
        """The case at a point, the same at every call."""
        values = dict(point)
        rng = np.random.default_rng(int(values.pop("seed")))
        return self.build(rng, **values)


@dataclass(frozen=True)
class Outcome:
    """What the checks of one claim found.

    Attributes:
        claim: the claim.
        examples: how many random cases were checked.
        worst: the slack with the smallest margin.
        point: the parameters of its case.
        failures: how many cases failed.
    """

    claim: Claim
    examples: int
    worst: Slack
    point: Point
    failures: int


def check_claim(claim: Claim, examples: int, seed: int) -> Outcome:
    """Check a claim on random cases, the same for the same seed and key.

    Raises:
        ValueError: if ``examples`` is not positive.
    """
    if examples < 1:
        raise ValueError(f"a check needs at least one example, got {examples}")
    rng = np.random.default_rng([seed, *claim.key.encode()])
    outcomes = [check_point(claim, claim.draw(rng)) for _ in range(examples)]
    lowest = worst(*(outcome.worst for outcome in outcomes))
    point = next(outcome.point for outcome in outcomes if outcome.worst is lowest)
    return Outcome(claim, examples, lowest, point, sum(outcome.failures for outcome in outcomes))


def check_point(claim: Claim, point: Point) -> Outcome:
    """Check a claim on the case at one point."""
    slack = claim.check(claim.case(point))
    return Outcome(claim, 1, slack, point, int(not slack.holds))
