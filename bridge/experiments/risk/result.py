"""What `bridge.risk` finds: the predicted damage of every candidate set, and of each of its rows."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal

from bridge.reports.results import Result
from commands.errors import UserError
from commands.store import write_atomically
from theory.risk import Equal

Interval = tuple[float, float]
"""Ends of a 95 % interval."""


@dataclass(frozen=True)
class Predicted:
    """A set's utility loss where all sets have made the same progress; None where the set makes none.

    Attributes:
        time: learning rate times steps until then.
        leak_squared_per_progress: leak^2 at unit progress.
        utility_loss: nats per response, at second order.
        utility_loss_exact: the same with the vocabulary summed exactly.
        interval: over other prompts of the skill and other rows of the same source.
        interval_these_rows: over other prompts alone.
        probability_worst: that the set costs most, over both.
        probability_worst_these_rows: over other prompts alone.

    """

    time: float | None
    leak_squared_per_progress: float | None
    utility_loss: float | None
    utility_loss_exact: float | None
    interval: Interval | None
    interval_these_rows: Interval | None
    probability_worst: float | None
    probability_worst_these_rows: float | None


@dataclass(frozen=True)
class Trivial:
    """Predictors that cost next to nothing: norm of the mean gradient, mean loss a token, response tokens a row."""

    gradient_norm: float
    mean_loss: float
    mean_tokens: float


@dataclass(frozen=True)
class CandidateRisk:
    """What one set would do, along the velocity v of a fine-tune on it.

    Attributes:
        source: the set, as it was given.
        num_rows: rows that were measured.
        set_rows: rows of the whole set.
        tokens: response tokens of the measured rows.
        leak_squared: v^T F v.
        leak_squared_interval: over other prompts and other rows.
        leak_squared_exact: the same with the vocabulary summed exactly.
        leak_squared_exact_interval: over other prompts.
        squared_norm: |v|^2.
        decrease: rate at which the set's own loss falls.
        null_mean: leak^2 of a direction that is random in every module, with the norm of v there.
        enrichment: leak^2 over that.
        log_p_value: logarithm of the probability of a random direction's leak^2 to be as large.
        sharpest: largest eigenvalue of F.
        top_share: part of leak^2 in the ten sharpest directions.
        trivial: what costs nothing to know.
        predicted: utility loss by what is equal among the sets.

    """

    source: str
    num_rows: int
    set_rows: int
    tokens: int
    leak_squared: float
    leak_squared_interval: Interval | None
    leak_squared_exact: float
    leak_squared_exact_interval: Interval | None
    squared_norm: float
    decrease: float
    null_mean: float
    enrichment: float | None
    log_p_value: float | None
    sharpest: float
    top_share: float | None
    trivial: Trivial
    predicted: dict[Equal, Predicted]


@dataclass(frozen=True)
class Cleaning:
    """Predicted utility loss of a set before and after its worst rows are left out, and the relative changes.

    `after` and `change` are of the samples that chose the rows, `held_out_change` of others; `random_change` is the
    mean over as many rows chosen at random, with its interval.
    """

    before: float | None
    after: float | None
    change: float | None
    held_out_change: float | None
    random_change: float | None
    random_interval: Interval | None


@dataclass(frozen=True)
class CleanedSet:
    """The copy of a set without its worst rows: the lines left out, the share of the tokens on them, its sha256."""

    candidate: str
    removed: list[int]
    kept_rows: int
    removed_token_share: float
    random_draws: int
    predicted: dict[Equal, Cleaning]
    sha256: str


@dataclass(frozen=True)
class RowRisk:
    """One row of a candidate, by its file and line.

    Attributes:
        candidate: the set's label.
        file: where the row stands.
        line: counted from 1.
        rank: 1 for the set's worst row.
        rank_contribution: 1 for its largest contribution.
        contribution: the row's part in leak^2; all parts add up to it, and some are negative.
        share: the same over leak^2.
        own: leak^2 of the row alone.
        leave_one_out: by how much leak^2 falls without the row.
        effect: relative change of the set's utility loss without the row, by what is equal.
        tokens: of the response.
        loss: of the response, nats.
        prompt: how it begins.
        answer: how it begins.

    """

    candidate: str
    file: str
    line: int
    rank: int
    rank_contribution: int
    contribution: float
    share: float | None
    own: float
    leave_one_out: float
    effect: dict[Equal, float | None]
    tokens: int
    loss: float
    prompt: str
    answer: str


@dataclass(frozen=True)
class RiskResult(Result):
    """The risk of some fine-tuning sets for a skill of one model.

    Attributes:
        equal: what is the same where the sets are ranked, `progress` how much of it.
        ranking: labels, the riskiest first; `orders` the same by other predictors.
        candidates: by label.
        cleaned: the copy that was written, if one was asked for.
        rows: of all candidates, each set's worst first; they stand in a file of their own.

    """

    FILE: ClassVar[str] = "risk.json"
    ROWS: ClassVar[str] = "rows.jsonl"

    model: str
    skill: str
    fisher: Literal["sampled"]
    optimizer: Literal["sgd", "adamw"]
    num_samples: int
    num_parameters: int
    equal: Equal
    progress: dict[Equal, float]
    worst_by: Literal["effect", "contribution"]
    ranking: list[str]
    orders: dict[str, list[str]]
    candidates: dict[str, CandidateRisk]
    cleaned: CleanedSet | None = None
    rows: list[RowRisk] = field(default_factory=list)

    def to_dict(self) -> dict[str, object]:
        """The result as JSON has it, but for the rows."""
        return {name: value for name, value in super().to_dict().items() if name != "rows"}

    def write(self, folder: Path) -> None:
        """Write the rows and the result into a folder."""
        lines = [json.dumps(asdict(row), ensure_ascii=False, allow_nan=False) + "\n" for row in self.rows]
        write_atomically(folder / self.ROWS, "".join(lines).encode())
        super().write(folder)

    @classmethod
    def read(cls, folder: Path) -> RiskResult:
        """Read the result of a complete run, with its rows.

        Raises:
            UserError: one of the two files is not there, or not of these fields.

        """
        return replace(super().read(folder), rows=_read_rows(folder / cls.ROWS))

    def rows_of(self, label: str) -> list[RowRisk]:
        """One candidate's rows, the worst first."""
        return [row for row in self.rows if row.candidate == label]

    def records(self) -> list[dict[str, object]]:
        """A row a set, the riskiest first, numbers in full."""
        return [self._record(label, self.candidates[label]) for label in self.ranking]

    def _record(self, label: str, risk: CandidateRisk) -> dict[str, object]:
        predicted = risk.predicted[self.equal]
        low, high = predicted.interval or (None, None)
        return {
            "set": label,
            "rows": risk.num_rows,
            "utility_loss": predicted.utility_loss,
            "low": low,
            "high": high,
            "probability_worst": predicted.probability_worst,
            "utility_loss_exact": predicted.utility_loss_exact,
            "leak_squared": risk.leak_squared,
            "enrichment": risk.enrichment,
            **asdict(risk.trivial),
        }


def _read_rows(path: Path) -> list[RowRisk]:
    from pydantic import TypeAdapter, ValidationError

    adapter = TypeAdapter(RowRisk)
    try:
        return [adapter.validate_json(line) for line in path.read_bytes().splitlines()]
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); delete the folder and run again") from error
    except ValidationError as error:
        raise UserError(
            f"{path} is not as this version writes it: {error.errors(include_url=False)[0]['msg']}"
        ) from error
