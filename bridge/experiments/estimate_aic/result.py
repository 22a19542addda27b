"""What `bridge.estimate_aic` finds: the AIC quantities of a planned fine-tune, block by block, and its prediction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bridge.reports.results import Result
from theory.aic import Regime
from theory.statistics import FisherKind


@dataclass(frozen=True)
class BlockEstimate:
    """The AIC quantities of one block of parameters (`theory.aic.Estimate`), and the norm of its gradient.

    The onset needs the whole path, since cross-module terms do not split: it is of the whole model alone.

    Attributes:
        intervals: percentile bootstrap intervals (low, high), by the quantity's name.
        bootstrap_bias: mean over the resamples minus the estimate, by the quantity's name.
        nulls: what random directions would give, by name (`theory.nulls.null_values`).

    """

    fisher: FisherKind
    num_samples: int
    dimension: int
    rank: int
    numerical_rank: int
    eigenvalues: list[float]
    sharpness: float
    tail: float
    gap: float
    overlap: float
    coupling: float
    leak: float
    velocity_norm: float
    acceleration_norm: float
    effective_rank: float
    split_half_overlap: float | None
    mean_score_share: float
    nulls: dict[str, float | None]
    intervals: dict[str, list[float]]
    bootstrap_bias: dict[str, float | None]
    gradient_norm: float

    @property
    def biased(self) -> list[str]:
        """Quantities whose bootstrap bias is more than half their interval's width."""
        found = ((name, self.bootstrap_bias.get(name), ends) for name, ends in self.intervals.items())
        return [name for name, bias, (low, high) in found if bias is not None and abs(bias) > (high - low) / 2]


@dataclass(frozen=True)
class LossAt:
    """A predicted utility loss, in nats a response, at time t; None where it is beyond all numbers."""

    t: float
    utility_loss: float | None


@dataclass(frozen=True)
class WholeEstimate(BlockEstimate):
    """The same of the whole model, with what the output distributions give, and the prediction.

    Attributes:
        onset_coefficient: γ*, from the scores.
        crossover: 2 leak / γ*.
        correlation: of l' and l''.
        horizon: learning rate x steps.
        window: up to which t the expansion at the start can be trusted; None for no end.
        regime: in which the run ends.
        utility_loss_at_horizon: predicted, in nats a response.
        leak_exact, onset_exact, quartic_exact, crossover_exact: exact over the vocabulary.
        predicted_loss: over time, from the scores to second order.
        predicted_loss_exact: over time, from the output distributions.

    """

    onset_coefficient: float | None
    crossover: float | None
    correlation: float | None
    horizon: float
    window: float | None
    regime: Regime
    utility_loss_at_horizon: float
    leak_exact: float
    onset_exact: float
    quartic_exact: float
    crossover_exact: float | None
    predicted_loss: list[LossAt]
    predicted_loss_exact: list[LossAt]

    @property
    def mostly_leak(self) -> bool:
        """Whether more than half of γ* (in square) is leak², which cancels against other terms of order t⁴."""
        return self.leak_exact**4 > (self.onset_coefficient or 0.0) ** 2 / 2


@dataclass(frozen=True)
class Checks:
    """Independent routes to the same numbers: largest |s.v - l'| over its root mean square."""

    first_derivative_disagreement: float


@dataclass(frozen=True)
class PlannedRun:
    """The fine-tune that was asked about."""

    skill: str
    finetune: str
    learning_rate: float
    steps: int


@dataclass(frozen=True)
class AicResult(Result):
    """The alignment instability condition of a model under a planned fine-tune.

    Attributes:
        rank: d.
        finetuning_loss: now, in nats a response token.
        layers: estimates by block of the model.
        blocks: estimates by module.
        plan: the fine-tune that was asked about; None in results of before it was kept.
        squared_norms: (N,) |s_i|^2 over the whole model; None in results of before they were kept.

    """

    FILE: ClassVar[str] = "aic.json"

    model: str
    fisher: FisherKind
    num_samples: int
    rank: int
    finetuning_loss: float
    whole_model: WholeEstimate
    layers: dict[str, BlockEstimate]
    blocks: dict[str, BlockEstimate]
    checks: Checks
    plan: PlannedRun | None = None
    squared_norms: list[float] | None = None

    @property
    def leak(self) -> float:
        """Speed of the policy from the first step, from the scores."""
        return self.whole_model.leak

    @property
    def predicted_loss(self) -> float:
        """The utility loss predicted at the end of the planned run, in nats a response."""
        return self.whole_model.utility_loss_at_horizon

    def records(self) -> list[dict[str, object]]:
        """A row a module, the whole model first: leak, coupling, overlap and what they are compared with."""
        parts = {"whole model": self.whole_model, **self.blocks}
        return [
            {
                "module": name,
                "parameters": block.dimension,
                "leak": block.leak,
                "leak_random": block.nulls.get("leak_random"),
                "coupling": block.coupling,
                "overlap": block.overlap,
                "overlap_random": block.nulls.get("overlap_random"),
                "sharpness": block.sharpness,
                "effective_rank": block.effective_rank,
                "gradient_norm": block.gradient_norm,
            }
            for name, block in parts.items()
        ]
