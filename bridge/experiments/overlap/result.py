"""What `bridge.overlap` finds: the overlap score of every change with a skill, and what the change did to the skill."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from bridge.reports.results import Result
from theory.overlap_score import OverlapScore
from theory.random_projection import ProjectedScore
from theory.statistics import FisherKind


@dataclass(frozen=True)
class Mean:
    """A mean over the samples, its standard error over prompts, and a 95 % bootstrap interval; None: not known."""

    mean: float
    standard_error: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class WholeMotion:
    """How a change moves the policy at first order, over every parameter that it changes.

    Attributes:
        overlap_score: mean of (s . dW)², from the responses' tokens.
        overlap_score_exact: the same, exact over the vocabulary; half of it is the utility loss at second order.
        mean_first_derivative: mean of s . dW.

    """

    overlap_score: Mean
    overlap_score_exact: Mean
    mean_first_derivative: Mean


@dataclass(frozen=True)
class SignsEstimate(ProjectedScore):
    """The paper's estimate of an overlap score, by random signs, beside the law that it follows."""

    estimate: float

    @property
    def ratio(self) -> float | None:
        """Estimate over the exact score; None where that is zero."""
        return self.estimate / self.exact if self.exact else None


@dataclass(frozen=True)
class SignsEstimates:
    """The paper's estimates of one change's score.

    Attributes:
        dim: dimensions of the projection.
        joint: of all modules, each with its own projection (the paper's).
        joint_one_projection: of all modules by one projection.
        blocks: by module.

    """

    dim: int
    joint: SignsEstimate
    joint_one_projection: SignsEstimate
    blocks: dict[str, SignsEstimate]


@dataclass(frozen=True)
class Refusals:
    """How many of a set's prompts are refused, with Wilson's 95 % interval of the rate."""

    set: str
    rate: float
    interval: tuple[float, float]
    refused: int
    total: int


@dataclass(frozen=True)
class ChangeOverlap:
    """The overlap of one weight change with the skill.

    Attributes:
        source: where the change is from.
        kind: how it is known.
        squared_norm: |dW|² over every parameter that it moves.
        squared_norm_share: the part of it in theta.
        joint: the score over all modules of theta.
        cross_module_share: share of that score that no single module has; None where the score is zero.
        sum_of_modules: of the modules' own scores.
        cross_block_share: share that no single block has.
        all_parameters: over every parameter that it moves, embeddings and norms included.
        layers: scores by block of the model, without intervals.
        blocks: by module.
        utility_loss: measured, KL in nats a response, exact over the vocabulary; None where it was not measured.
        utility_loss_sampled: the same from the responses' tokens.
        rademacher: the paper's estimates; None where they were not asked for.
        refusals: of the changed model; None where they were not counted.

    """

    source: str
    kind: Literal["full", "lora"]
    squared_norm: float
    squared_norm_share: float
    joint: OverlapScore
    cross_module_share: float | None
    sum_of_modules: float
    cross_block_share: float | None
    all_parameters: WholeMotion
    layers: dict[str, OverlapScore]
    blocks: dict[str, OverlapScore]
    utility_loss: Mean | None = None
    utility_loss_sampled: Mean | None = None
    rademacher: SignsEstimates | None = None
    refusals: Refusals | None = None

    @property
    def second_order_loss(self) -> float:
        """The utility loss at second order, in nats a response: half the exact score over all parameters."""
        return self.all_parameters.overlap_score_exact.mean / 2


@dataclass(frozen=True)
class Ranking:
    """Spearman's rank correlation of numbers of the changes with their measured utility loss; None: not defined."""

    count: int
    with_utility_loss: dict[str, float | None]


@dataclass(frozen=True)
class OverlapResult(Result):
    """The overlap of some weight changes with a skill of one model.

    Attributes:
        dtype: of the model's parameters.
        rank: d, of the top eigenspace.
        ranking: None below three changes, or where the utility loss was not measured.
        deltas: by label of the change.
        base_refusals: of the model before any change; None where they were not counted.

    """

    FILE: ClassVar[str] = "overlap.json"

    model: str
    skill: str
    fisher: FisherKind
    dtype: str
    num_samples: int
    num_parameters: int
    rank: int
    ranking: Ranking | None
    deltas: dict[str, ChangeOverlap]
    base_refusals: Refusals | None = None

    def records(self) -> list[dict[str, object]]:
        """A row a change, numbers in full."""
        return [
            {
                "change": label,
                "kind": change.kind,
                "norm": math.sqrt(change.squared_norm),
                "score": change.joint.raw,
                "score_per_squared_norm": change.joint.normalised,
                "score_over_random": change.joint.enrichment,
                "cross_module_share": change.cross_module_share,
                "second_order_loss": change.second_order_loss,
                "utility_loss": change.utility_loss.mean if change.utility_loss else None,
                "refusal_rate": change.refusals.rate if change.refusals else None,
                "score_by_random_signs": change.rademacher.joint.estimate if change.rademacher else None,
            }
            for label, change in self.deltas.items()
        ]
