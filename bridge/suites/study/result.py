"""What `bridge.study` finds: the fine-tunes with what was known of them, and how each number ranks their damage."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import ClassVar, Literal

from bridge.experiments.finetune.result import FinetuneResult
from bridge.experiments.overlap.result import OverlapResult, Refusals
from bridge.reports.results import Result
from bridge.suites.study.predictors import Predictor, Stage, Values
from bridge.suites.study.settings import CHANGE
from bridge.training.plan import Method
from theory.rank_correlation import RankCorrelation

Status = Literal["pending", "failed", "done"]
OutcomeName = Literal["utility_loss", "lost_refusals"]
OUTCOMES: dict[OutcomeName, str] = {"utility_loss": "utility loss", "lost_refusals": "lost refusals"}
"""What is to be predicted, with the name that people read."""
WITHIN, POOLED = "within_methods", "pooled"
"""Groups of correlations: fine-tunes ranked among those by their own method, and all ranked together."""
Interval = tuple[float, float]
"""Ends of a 95 % interval."""


@dataclass(frozen=True)
class Training:
    """How a fine-tune went; empty where there was none."""

    rows: int | None = None
    steps: int | None = None
    response_tokens: int | None = None
    first_loss: float | None = None
    last_loss: float | None = None

    @classmethod
    def of(cls, tuned: FinetuneResult) -> Training:
        """The training of a finished fine-tune."""
        return cls(tuned.rows, tuned.steps, tuned.response_tokens, tuned.first_loss, tuned.last_loss)


@dataclass(frozen=True)
class Outcome:
    """A measured number with its interval (None: not known), and the number of samples or prompts that it is of."""

    value: float | None
    low: float | None
    high: float | None
    count: int

    @classmethod
    def of(cls, refused: Refusals) -> Outcome:
        """The rate of refusals."""
        low, high = refused.interval
        return cls(refused.rate, low, high, refused.total)


@dataclass(frozen=True)
class Outcomes:
    """What a fine-tune did; None: not measured.

    Attributes:
        utility_loss: of the skill, in nats a response.
        refusals: rate of the tuned model.
        base_refusals: rate of the model before.
        lost_refusals: the difference.

    """

    utility_loss: Outcome | None = None
    refusals: Outcome | None = None
    base_refusals: Outcome | None = None
    lost_refusals: Outcome | None = None

    @classmethod
    def of(cls, found: OverlapResult) -> Outcomes:
        """The damage that the overlap of the change came with."""
        change, before = found.deltas[CHANGE], found.base_refusals
        if change.utility_loss is None:
            raise ValueError("the utility loss was not measured")
        low, high = change.utility_loss.interval or (None, None)
        loss = Outcome(change.utility_loss.mean, low, high, found.num_samples)
        if change.refusals is None or before is None:
            return cls(loss)
        lost = Outcome(before.rate - change.refusals.rate, None, None, change.refusals.total)
        return cls(loss, Outcome.of(change.refusals), Outcome.of(before), lost)

    def known(self) -> dict[str, Outcome]:
        """Those that were measured, by name."""
        named = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: outcome for name, outcome in named.items() if outcome is not None}


@dataclass(frozen=True)
class StudyRow(Result):
    """One fine-tune: a set, a method and a seed, what was known of it, and what it did.

    Attributes:
        data: what `--data` takes for the set.
        failures: why a step failed, by its name.
        training: how it went.
        outcomes: the damage.
        predictors: by key; None where a predictor says nothing of this fine-tune.

    """

    FILE: ClassVar[str] = "row.json"

    set: str
    data: str
    method: Method
    seed: int
    status: Status = "pending"
    failures: dict[str, str] = field(default_factory=dict)
    training: Training = Training()
    outcomes: Outcomes = Outcomes()
    predictors: Values = field(default_factory=dict)

    def damage(self, outcome: OutcomeName) -> float:
        """An outcome; NaN where it was not measured."""
        found = getattr(self.outcomes, outcome)
        return math.nan if found is None or found.value is None else found.value

    def predictor(self, key: str) -> float:
        """A predictor; NaN where it is not known."""
        value = self.predictors.get(key)
        return math.nan if value is None else value

    def is_measured(self, outcome: OutcomeName) -> bool:
        """Whether the outcome is there, and a number."""
        return not math.isnan(self.damage(outcome))

    def has(self, key: str, outcome: OutcomeName) -> bool:
        """Whether there are both a predictor and an outcome."""
        return not math.isnan(self.predictor(key)) and self.is_measured(outcome)


@dataclass(frozen=True)
class Rival:
    """The best trivial predictor beside another one, on the same fine-tunes; see `theory.rank_correlation.Advantage`.

    better, worse: whether the other predictor is shown to be.
    """

    predictor: str
    spearman: float
    difference: float | None
    interval: Interval | None
    sign: int
    count: int
    better: bool
    worse: bool


@dataclass(frozen=True)
class Correlation(RankCorrelation):
    """A predictor's rank correlations with an outcome; shown: the whole interval lies above 0, of sets enough."""

    shown: bool
    best_trivial: Rival | None


@dataclass(frozen=True)
class Contest:
    """Which predictor of a time that is not trivial ranks an outcome best, all on the same fine-tunes.

    Attributes:
        count: of these fine-tunes.
        of: those of the group, with those still to come.
        predictors: keys of those that take part.
        shown_to_rank: of those shown to have a positive correlation.
        absent: of those known on too few.
        best: the one with the largest correlation.
        spearman: its correlation.
        spearman_interval: of that.
        best_trivial: what it is compared with.

    """

    count: int
    of: int
    predictors: list[str]
    shown_to_rank: list[str]
    absent: list[str]
    best: str
    spearman: float | None
    spearman_interval: Interval | None
    best_trivial: Rival | None


Correlations = dict[str, Correlation]
"""By the predictor's key."""


@dataclass(frozen=True)
class Ranks:
    """How predictors rank the damage, by outcome and group; pooled, nothing is compared."""

    correlations: dict[OutcomeName, dict[str, Correlations]]
    contests: dict[OutcomeName, dict[str, dict[Stage, Contest]]]


@dataclass(frozen=True)
class StudyResult(Ranks, Result):
    """The study.

    Attributes:
        skill: what is protected.
        refusals: the set whose refusals are counted, if there is one.
        left_out: sets whose local files were not given.
        predictors: those that are known of any fine-tune.

    """

    FILE: ClassVar[str] = "study.json"

    title: str
    model: str
    skill: str
    refusals: str | None
    methods: list[Method]
    seeds: list[int]
    sets: list[str]
    left_out: list[str]
    pilot_steps: int
    resamples: int
    predictors: list[Predictor]
    rows: list[StudyRow]

    @property
    def done(self) -> bool:
        """Whether every fine-tune is done."""
        return all(row.status == "done" for row in self.rows)

    def records(self) -> list[dict[str, object]]:
        """A row a fine-tune, every number in full."""
        return [self._record(row) for row in self.rows]

    def _record(self, row: StudyRow) -> dict[str, object]:
        record: dict[str, object] = {
            "set": row.set, "method": row.method, "seed": row.seed, "data": row.data, "status": row.status,
            "failures": "; ".join(f"{step}: {reason}" for step, reason in row.failures.items()),
        }  # fmt: skip
        record |= {name: value for name, value in asdict(row.training).items() if value is not None}
        for name, outcome in row.outcomes.known().items():
            ends = {f"{name}_{end}": getattr(outcome, end) for end in ("low", "high", "count")}
            record |= {name: outcome.value, **ends}
        return record | {each.key: row.predictors.get(each.key) for each in self.predictors}
