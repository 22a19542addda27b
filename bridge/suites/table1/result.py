"""What `bridge.table1` finds: a row for every model, method and set, and what its models can do before."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from bridge.experiments.finetune.result import FinetuneResult
from bridge.reports.results import Result
from bridge.suites.measures import Measures
from bridge.training.plan import Method

Status = Literal["pending", "failed", "done"]
Part = Literal["before", "after", "change"]
PARTS: tuple[Part, ...] = ("before", "after", "change")
"""Parts of a row: measures of the model before and after the fine-tune, and of the change."""
WHAT = ("model", "method", "set")
"""What tells the rows apart."""


@dataclass(frozen=True)
class Training:
    """How a fine-tune went; empty where there was none."""

    rows: int | None = None
    steps: int | None = None
    epochs: float | None = None
    response_tokens: int | None = None
    first_loss: float | None = None
    last_loss: float | None = None

    @classmethod
    def of(cls, tuned: FinetuneResult) -> Training:
        """The training of a finished fine-tune."""
        return cls(
            tuned.rows, tuned.steps, tuned.epochs, tuned.response_tokens, tuned.first_loss, tuned.last_loss
        )  # fmt: skip


@dataclass(frozen=True)
class Before(Result):
    """What a model can do before any fine-tuning, and what failed to be measured."""

    FILE: ClassVar[str] = "row.json"

    before: Measures
    failures: dict[str, str]


@dataclass(frozen=True)
class TableRow(Result):
    """One row: a model, fine-tuned by a method on a set.

    Attributes:
        data: what `--data` takes for the set.
        failures: why a step failed, by its name.
        before: measures of the model before the fine-tune.
        after: the same afterwards.
        change: measures of the change of the weights.
        training: how the fine-tune went.

    """

    FILE: ClassVar[str] = "row.json"

    model: str
    method: Method
    set: str
    data: str
    status: Status = "pending"
    failures: dict[str, str] = field(default_factory=dict)
    before: Measures = field(default_factory=dict)
    after: Measures = field(default_factory=dict)
    change: Measures = field(default_factory=dict)
    training: Training = Training()

    @property
    def name(self) -> str:
        """The row in sentences."""
        return f"{self.model}, {self.method}, {self.set}"

    def part(self, part: Part) -> Measures:
        """One part of its measures."""
        return {"before": self.before, "after": self.after, "change": self.change}[part]


@dataclass(frozen=True)
class TableResult(Result):
    """The table, its rows in the order of models, methods and sets."""

    FILE: ClassVar[str] = "table1.json"

    title: str
    rows: list[TableRow]

    @property
    def done(self) -> bool:
        """Whether every row is done."""
        return all(row.status == "done" for row in self.rows)

    def names(self, part: Part) -> list[str]:
        """Names of the measures in one part of the rows, in the order of their first appearance."""
        return list(dict.fromkeys(name for row in self.rows for name in row.part(part)))

    def records(self) -> list[dict[str, object]]:
        """A line a row: every number in full, intervals and counts in columns of their own."""
        columns = [(part, name) for part in PARTS for name in self.names(part)]
        return [self._record(row, columns) for row in self.rows]

    def _record(self, row: TableRow, columns: list[tuple[Part, str]]) -> dict[str, object]:
        record: dict[str, object] = {key: getattr(row, key) for key in (*WHAT, "data", "status")}
        record["failures"] = "; ".join(f"{step}: {reason}" for step, reason in row.failures.items())
        for part, name in columns:
            measure, column = row.part(part).get(name), name if part == "change" else f"{name} ({part})"
            record[column] = None if measure is None else measure.value
            for key in ("low", "high", "count"):
                record[f"{column} {key}"] = None if measure is None else getattr(measure, key)
        return record
