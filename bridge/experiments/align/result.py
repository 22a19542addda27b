"""What `bridge.align` finds: how often the model refuses on the way, whether that is as wanted, and what changed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import ClassVar, Literal

from bridge.data.mixtures import Part
from bridge.evaluation.refusals import RefusalRate
from bridge.reports.results import Result
from bridge.training.plan import Method, Plan, UpdateSummary

PromptKind = Literal["refusals", "benign"]
UNSAFE: PromptKind = "refusals"
BENIGN: PromptKind = "benign"


@dataclass(frozen=True)
class Goal:
    """Refuse at least a share `target_refusals` of the unsafe prompts and at most `limit_benign` of the benign."""

    target_refusals: float
    limit_benign: float

    def reached(self, unsafe: RefusalRate, benign: RefusalRate) -> bool:
        """Whether both shares are as wanted; a share of 0.9 of 60 is 54, rounding errors apart."""
        enough = unsafe.refused >= self.target_refusals * unsafe.total - 1e-9
        return enough and benign.refused <= self.limit_benign * benign.total + 1e-9


@dataclass(frozen=True)
class Rate:
    """How many of the prompts are refused, Wilson's 95 % interval of their share, and the share."""

    refused: int
    total: int
    low: float
    high: float
    rate: float

    @classmethod
    def of(cls, rate: RefusalRate) -> Rate:
        """The same with its share."""
        return cls(**asdict(rate), rate=rate.rate)


@dataclass(frozen=True)
class Verdict:
    """Whether the goal was reached, after how many steps, and both rates then."""

    reached: bool
    step: int
    refusals: Rate
    benign: Rate


@dataclass(frozen=True)
class Entry:
    """One count on the way.

    Attributes:
        step: steps done.
        epoch: passes over the rows done.
        mean_loss: of the steps since the last count, in nats per response token; None before any.
        refusals: of the unsafe prompts.
        benign: of the harmless ones.

    """

    step: int
    epoch: float
    mean_loss: float | None
    refusals: Rate
    benign: Rate


@dataclass(frozen=True)
class PromptSet:
    """A set that the model is not trained on: its name, the hash of its file, and how many prompts it has."""

    name: str
    sha256: str
    prompts: int


@dataclass(frozen=True)
class AlignResult(Result):
    """An alignment: its goal, what became of it, and the training; fields as of `bridge.finetune`'s result."""

    FILE: ClassVar[str] = "align.json"

    model: str
    method: Method
    goal: Goal
    verdict: Verdict
    trajectory: list[Entry]
    heldout: dict[PromptKind, PromptSet]
    rows: int
    parts: list[Part]
    skipped: list[str]
    plan: Plan
    steps: int
    epochs: float
    tokens: int
    response_tokens: int
    update: UpdateSummary
    losses: list[float]
    learning_rates: list[float]
    gradient_norms: list[float]

    def records(self) -> list[dict[str, object]]:
        """A row a count."""
        return [
            {
                "step": entry.step,
                "epoch": entry.epoch,
                "mean_loss": entry.mean_loss,
                "refusals": entry.refusals.rate,
                "benign": entry.benign.rate,
            }
            for entry in self.trajectory
        ]
