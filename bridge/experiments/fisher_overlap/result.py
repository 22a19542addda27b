"""What `bridge.fisher_overlap` finds: the overlaps of pairs of skills, beside their floors and ceilings."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar, Generic, Literal, TypeVar

from bridge.reports.results import Result
from theory.statistics import FisherKind

LEAST_CEILING = 0.1  # below it nine tenths of the directions are chance at this N
DISTINCT, SHARED = 0.25, 0.75  # of the relative overlap: below, and above
Verdict = Literal["distinct", "partly shared", "shared"]  # of a relative overlap below, between and above these

Value = TypeVar("Value")
Maybe = TypeVar("Maybe")
Count = TypeVar("Count")


@dataclass(frozen=True)
class Compared(Generic[Value, Maybe]):
    """How far the top directions of two skills, a and b, overlap: mode subspace overlaps, and shares of Fisher traces.

    Attributes:
        overlap: of all samples of a and of b.
        cross: of half of a's samples with half of b's, mean over the splits.
        own_a, own_b: of two halves of one skill: the most that so few samples can show.
        b_in_a: share of the Fisher trace of half of b in the subspace of half of a.
        a_in_b: the other way round.
        a_in_a, b_in_b: share of the trace of one half of a skill in the subspace of its other half.
        floor: `cross` of unrelated scores.
        ceiling: `cross` of two skills that are one.
        relative: where `cross` lies between floor (0) and ceiling (1); None where the ceiling is not above the floor.

    """

    overlap: Value
    cross: Value
    own_a: Value
    own_b: Value
    b_in_a: Value
    a_in_b: Value
    a_in_a: Value
    b_in_b: Value
    floor: Value
    ceiling: Value
    relative: Maybe


@dataclass(frozen=True)
class Numbers(Compared[Value, Maybe], Generic[Value, Maybe, Count]):
    """The same of the whole model, with 95 % intervals: at several ranks (`Curves`), or at one of them (`Point`).

    Attributes:
        *_low, *_high: ends of the block jackknife's intervals, over prompts.
        *_splits_low, *_splits_high: between these lie 95 % of the splits.
        b_in_a_all, a_in_b_all: shares of the trace by all samples.
        rank_a, rank_b: directions that take part.
        floor_high: the largest overlap of a simulation of unrelated scores.
        random: overlap of random subspaces of these ranks.
        random_in_a, random_in_b: share of any trace in a random subspace of the rank that a's, or b's, has.
        relative_b_in_a, relative_a_in_b: shares of traces over those in the own held-out subspace, less chance.
        p_value: how often samples whose labels are exchanged overlap as little; None without permutations.
        exchanged, exchanged_low, exchanged_high: the overlap of such samples.

    """

    b_in_a_all: Value
    a_in_b_all: Value
    rank_a: Count
    rank_b: Count
    floor_high: Value
    random: Value
    random_in_a: Value
    random_in_b: Value
    cross_low: Value
    cross_high: Value
    own_a_low: Value
    own_a_high: Value
    own_b_low: Value
    own_b_high: Value
    b_in_a_low: Value
    b_in_a_high: Value
    a_in_b_low: Value
    a_in_b_high: Value
    a_in_a_low: Value
    a_in_a_high: Value
    b_in_b_low: Value
    b_in_b_high: Value
    ceiling_low: Value
    ceiling_high: Value
    relative_low: Maybe
    relative_high: Maybe
    relative_b_in_a: Maybe
    relative_b_in_a_low: Maybe
    relative_b_in_a_high: Maybe
    relative_a_in_b: Maybe
    relative_a_in_b_low: Maybe
    relative_a_in_b_high: Maybe
    cross_splits_low: Value
    cross_splits_high: Value
    own_a_splits_low: Value
    own_a_splits_high: Value
    own_b_splits_low: Value
    own_b_splits_high: Value
    p_value: Value | None = None
    exchanged: Value | None = None
    exchanged_low: Value | None = None
    exchanged_high: Value | None = None


BlockNumbers = Compared[float, float | None]
"""At the rank of the verdict, over the parameters of one block; the floor is that of random subspaces."""
Curves = Numbers[list[float], list[float | None], list[int]]
Point = Numbers[float, float | None, int]


def is_weak(point: Point) -> bool:
    """Whether half of a skill does not clearly find its own other half again."""
    return point.ceiling < LEAST_CEILING or min(point.own_a_low, point.own_b_low) <= point.floor_high


def not_excluded(point: Point) -> list[Verdict]:
    """The verdicts that the interval of the relative overlap reaches; all of them where it says nothing."""
    low, high = point.relative_low, point.relative_high
    if is_weak(point) or point.relative is None or low is None or high is None:
        return ["distinct", "partly shared", "shared"]
    reached: dict[Verdict, bool] = {
        "distinct": low < DISTINCT,
        "partly shared": low <= SHARED and high >= DISTINCT,
        "shared": high > SHARED,
    }
    return [verdict for verdict, here in reached.items() if here]


@dataclass(frozen=True)
class PairNumbers:
    """Two skills, with or without their mean scores.

    Attributes:
        cosines: of the principal angles of their top directions, all samples.
        mean_score_cosine: of the angle of their mean scores; None where one is zero.
        at_rank: at 1, 2, ... directions.
        at_energy: at the ranks that hold a share of each skill's trace.

    """

    cosines: list[float]
    mean_score_cosine: float | None
    at_rank: Curves
    at_energy: Curves

    def at(self, rank: int) -> Point:
        """The numbers at one rank."""
        return _point(self.at_rank, rank - 1)

    def at_share(self, number: int) -> Point:
        """The numbers at one of the shares of the trace."""
        return _point(self.at_energy, number)


def _point(curves: Curves, number: int) -> Point:
    lists = ((field.name, getattr(curves, field.name)) for field in fields(curves))
    values: dict[str, Any] = {name: None if part is None else part[number] for name, part in lists}
    return Point(**values)


@dataclass(frozen=True)
class PairOverlap(PairNumbers):
    """The same with what it says at the rank that was asked for.

    Attributes:
        verdict: the only one that the numbers do not exclude, if there is one.
        not_excluded: those that they do not.

    """

    verdict: Literal["distinct", "partly shared", "shared", "undetermined"]
    not_excluded: list[Verdict]


@dataclass(frozen=True)
class Pair:
    """Two skills by name, the prompts that both have, and their overlap with their mean scores and without."""

    a: str
    b: str
    shared_prompts: int
    uncentred: PairOverlap
    centred: PairOverlap

    @property
    def by_mean(self) -> dict[str, PairOverlap]:
        """By what was done with the mean scores."""
        return {"kept": self.uncentred, "removed": self.centred}


@dataclass(frozen=True)
class SkillNumbers:
    """One skill's Fisher information, with or without its mean score.

    Attributes:
        trace: of it.
        effective_rank: participation ratio of its eigenvalues.
        top_share: share of the trace in the top 1, 2, ... directions.
        rank_by_energy: directions that hold each share of the trace.

    """

    trace: float
    effective_rank: float
    top_share: list[float]
    rank_by_energy: list[int]


@dataclass(frozen=True)
class Skill:
    """One skill's samples and their scores."""

    num_samples: int
    num_prompts: int
    root_mean_square_norm: float
    mean_score_share: float
    uncentred: SkillNumbers
    centred: SkillNumbers


@dataclass(frozen=True)
class Layer:
    """One block of the model: by pair, the overlaps over its parameters."""

    num_parameters: int
    uncentred: list[BlockNumbers]
    centred: list[BlockNumbers]

    @property
    def by_mean(self) -> dict[str, list[BlockNumbers]]:
        """By what was done with the mean scores."""
        return {"kept": self.uncentred, "removed": self.centred}


@dataclass(frozen=True)
class FisherOverlapResult(Result):
    """The overlaps of the sharp directions of some skills of one model.

    Attributes:
        rank: d, of the verdicts.
        ranks: of the curves.
        energies: shares of a skill's trace, for ranks of its own.
        level: of the intervals.
        splits, permutations, simulations: how often each was drawn.
        layers: by block of the model.

    """

    FILE: ClassVar[str] = "fisher_overlap.json"

    model: str
    fisher: FisherKind
    num_parameters: int
    rank: int
    ranks: list[int]
    energies: list[float]
    level: float
    splits: int
    permutations: int
    simulations: int
    skills: dict[str, Skill]
    pairs: list[Pair]
    layers: dict[str, Layer]

    def records(self) -> list[dict[str, object]]:
        """Two rows a pair, with the mean scores and without them, numbers in full."""
        rows: list[dict[str, object]] = []
        for pair in self.pairs:
            for mean, overlap in pair.by_mean.items():
                point = overlap.at(self.rank)
                rows.append(
                    {
                        "a": pair.a,
                        "b": pair.b,
                        "mean_scores": mean,
                        "overlap": point.overlap,
                        "across_halves": point.cross,
                        "within_a": point.own_a,
                        "within_b": point.own_b,
                        "floor": point.floor,
                        "relative": point.relative,
                        "relative_low": point.relative_low,
                        "relative_high": point.relative_high,
                        "p_value": point.p_value,
                        "verdict": overlap.verdict,
                    }
                )
        return rows
