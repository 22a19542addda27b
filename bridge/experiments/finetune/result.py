"""What `bridge.finetune` finds: its log step by step, the change of the weights, and what came of a defence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bridge.data.mixtures import Part
from bridge.reports.results import Result
from bridge.training.defences.plan import DefencePlan
from bridge.training.defences.record import DefenceSummary, StepRecord
from bridge.training.plan import Method, Plan, UpdateSummary


@dataclass(frozen=True)
class MeanLoss:
    """A mean over the responses, in nats a response, its standard error (None for one response), and their number."""

    mean: float
    standard_error: float | None
    responses: int


@dataclass(frozen=True)
class SkillLoss:
    """A loss on the defence's probe, and on the responses held out, if there are any."""

    probe: MeanLoss
    held_out: MeanLoss | None


@dataclass(frozen=True)
class DefenceResult(DefencePlan):
    """What came of a defence, after its plan.

    Attributes:
        trained_modules: how many linear modules were trained.
        trained_weights: how many weights they have.
        utility_loss: divergence of the trained policy from the base's.
        quadratic_loss: half the mean square change of log-probability, the leading order of the same.
        loss_reached: mean negative log-likelihood of the training rows, in nats per response token.
        summary: of the steps.
        steps: what the defence saw and did at each.
        extra_seconds: that it took.
        extra_share: the same over the seconds of the training without it.

    """

    trained_modules: int
    trained_weights: int
    utility_loss: SkillLoss
    quadratic_loss: SkillLoss
    loss_reached: float
    summary: DefenceSummary
    steps: list[StepRecord]
    extra_seconds: float
    extra_share: float


@dataclass(frozen=True)
class FinetuneResult(Result):
    """A fine-tune: what it was trained on and how, its log, and the change of the weights.

    Attributes:
        rows: that were trained on; `parts` says of which sets they are.
        skipped: a line for each bad row that was left out.
        steps: of the optimizer.
        epochs: passes over the rows.
        tokens: read in all.
        response_tokens: of these, the trained ones.
        losses: of every step's batch before the step, in nats per response token where the plan asks for a likelihood.
        learning_rates: of every step.
        gradient_norms: of every step, before clipping.
        seconds: of training.
        defence: None where nothing was defended or measured.

    """

    FILE: ClassVar[str] = "finetune.json"

    model: str
    data: str
    method: Method
    rows: int
    parts: list[Part]
    skipped: list[str]
    plan: Plan
    steps: int
    epochs: float
    tokens: int
    response_tokens: int
    first_loss: float
    last_loss: float
    update: UpdateSummary
    losses: list[float]
    learning_rates: list[float]
    gradient_norms: list[float]
    seconds: float
    defence: DefenceResult | None

    def records(self) -> list[dict[str, object]]:
        """A row a step."""
        steps = zip(self.losses, self.learning_rates, self.gradient_norms, strict=True)
        return [
            {"step": step, "loss": loss, "learning_rate": rate, "gradient_norm": norm}
            for step, (loss, rate, norm) in enumerate(steps, start=1)
        ]
