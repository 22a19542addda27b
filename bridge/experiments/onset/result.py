"""What `bridge.onset` finds: the measured onset beside its prediction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from bridge.reports.results import Result
from bridge.training.pilot import PilotResult
from theory.local_slopes import Stretch

SetName = Literal["skill", "probe"]
"""The samples on which the damage is measured, and those whose overlap is removed."""
Interval = tuple[float, float]
"""Ends of a 95 % interval."""
TEN_PERCENT, FACTOR_TWO = 1.1, 2.0
"""Ratios of measured and predicted loss at which the two have parted."""


@dataclass(frozen=True)
class OnsetPoint:
    """One time t on the path, as it was measured and as it was predicted.

    Attributes:
        t: learning rate times steps.
        crossovers: the same in crossovers.
        steps: really taken.
        learning_rate: of the last of them.
        acceleration_share: of the flow's acceleration that these steps have.
        finetuning_loss: there.
        distance: norm of the change of the weights.
        leak_part: of the predicted loss, t^2 / 2 times leak^2.
        cross_part: its terms in t^3.
        quartic_part: t^4 / 8 times the quartic part squared.
        higher_part: what further terms add.
        utility_loss: measured, nats per response.
        interval: of it.
        predicted: the whole predicted loss.
        ratio: measured over predicted; None where nothing is predicted.
        ratio_interval: of it.
        exponent: local exponent of the measured loss; None where it cannot be read.
        predicted_exponent: of the predicted one.
        above_floor: whether rounding leaves the measured loss readable.

    """

    t: float
    crossovers: float
    steps: int
    learning_rate: float
    acceleration_share: float
    finetuning_loss: float
    distance: float
    leak_part: float
    cross_part: float
    quartic_part: float
    higher_part: float
    utility_loss: float
    interval: Interval | None
    predicted: float
    ratio: float | None
    ratio_interval: Interval | None
    exponent: float | None
    predicted_exponent: float | None
    above_floor: bool


@dataclass(frozen=True)
class CurvePoint:
    """The predicted loss of the flow at a time."""

    t: float
    utility_loss: float


@dataclass(frozen=True)
class Validity:
    """The times at which measured and predicted loss part for good, by a tenth and by a factor of two."""

    ten_percent: float | None
    factor_two: float | None


@dataclass(frozen=True)
class SetOnset:
    """The onset on one set of samples.

    Attributes:
        num_samples: N.
        leak: root mean square speed of the policy, exact over the vocabulary.
        onset_coefficient: gamma*, over the sampled tokens.
        quartic: root mean square of the second derivative over the vocabulary.
        crossover: 2 leak / quartic.
        crossover_of_the_scores: 2 leak / gamma*.
        cross: mean of the terms in t^3 of the flow.
        floor: the loss that rounding the weights makes alone.
        round_trip: the loss of the model put back from its copy.
        points: in the order of their times.
        curve: the prediction in the limit of small steps.
        stretches: times with exponents of one kind.
        validity: until when the prediction holds.

    """

    num_samples: int
    leak: float
    onset_coefficient: float
    quartic: float
    crossover: float | None
    crossover_of_the_scores: float | None
    cross: float
    floor: float
    round_trip: float
    points: list[OnsetPoint]
    curve: list[CurvePoint]
    stretches: list[Stretch]
    validity: Validity


@dataclass(frozen=True)
class Curvature:
    """What a few Lanczos iterations say of the leading curvature of the fine-tuning loss.

    along_start: along the path; value: the largest found, which no largest eigenvalue is below; residual: one lies
    within this of it; limit: 2 / value, beyond which an expansion at the start cannot hold.
    """

    along_start: float
    value: float
    residual: float
    iterations: int
    limit: float | None


@dataclass(frozen=True)
class Left:
    """Share of a set's exact leak that the removal of the overlap left, with its interval."""

    share: float | None
    interval: Interval | None


@dataclass(frozen=True)
class RemovedOverlap:
    """What the removal of the overlap took from the velocity.

    Attributes:
        rank: d, the directions removed.
        samples: those that they are of.
        condition: largest over smallest of their eigenvalues.
        share: of the velocity's square that was taken.
        leak_before: root mean square of s_i . v over the same samples.
        leak_after: the same, afterwards.
        motion_before: by set the exact leak before.
        left: by set what is left of it.
        difference: interval of the skill's share less the probe's.

    """

    rank: int
    samples: int
    condition: float
    share: float
    leak_before: float
    leak_after: float
    motion_before: dict[SetName, float]
    left: dict[SetName, Left]
    difference: Interval | None


@dataclass(frozen=True)
class UsualRun:
    """A run as people make it, placed on the path's time axis."""

    learning_rate: float
    steps: int
    t: float
    crossovers: float
    place: Literal["beyond the expansion", "not measured so far"] | None


@dataclass(frozen=True)
class OnsetResult(Result):
    """How the damage of a fine-tune sets in.

    Attributes:
        finetuning_loss: at the start, nats per response token.
        largest_rate: of the small steps.
        crossover: where the leak part and the quartic part are equal, on the skill's samples.
        sets: by name; the probe's where the overlap was removed.
        curvature: where it was asked for.
        acceleration_along_velocity: v . a of the flow.
        removed: where the overlap was removed.
        realistic: usual runs.
        pilot: the real optimiser's steps, where there were any.
        readings: what the numbers say, in sentences.

    """

    FILE: ClassVar[str] = "onset.json"

    model: str
    skill: str
    finetune: str
    optimizer: Literal["sgd", "adamw"]
    method: Literal["full", "lora"]
    dtype: str
    finetuning_loss: float
    largest_rate: float
    crossover: float
    sets: dict[SetName, SetOnset]
    curvature: Curvature | None
    acceleration_along_velocity: float
    removed: RemovedOverlap | None
    realistic: list[UsualRun]
    pilot: PilotResult | None
    readings: list[str]

    @property
    def main(self) -> SetOnset:
        """The onset on the skill's samples."""
        return self.sets["skill"]

    def records(self) -> list[dict[str, object]]:
        """A row a time, on the skill's samples."""
        return [dict(vars(point)) for point in self.main.points]
