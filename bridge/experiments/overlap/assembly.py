"""What the inner products say of every change, put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Float, Int

from bridge.data.samples import Sample
from bridge.deltas.weight_delta import WeightDelta
from bridge.estimators.theta import Subject
from bridge.evaluation.refusals import refusal_rate
from bridge.experiments.overlap.result import (
    ChangeOverlap,
    Mean,
    Ranking,
    Refusals,
    SignsEstimate,
    SignsEstimates,
    WholeMotion,
)
from bridge.models.blocks import group_by_block
from theory.overlap_score import OverlapScore, cross_module_share, overlap_score
from theory.random_projection import projected_score
from theory.resampling import bootstrap_weights, percentile_interval
from theory.statistics import FisherKind, ScoreStatistics

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Question:
    """What decides how the inner products are read."""

    rank: int
    resamples: int
    seed: int
    groups: Int[np.ndarray, " N"]  # samples of one prompt are resampled together

    def score(self, blocks: Sequence[ScoreStatistics], resamples: int = 0) -> OverlapScore:
        """The score of some modules jointly; without intervals unless there are resamples."""
        return overlap_score(blocks, self.rank, groups=self.groups, resamples=resamples, seed=self.seed)

    def mean(self, values: Float[np.ndarray, " N"]) -> Mean:
        """Mean over the samples, its standard error over prompts, and a bootstrap interval."""
        weights = np.full(len(values), 1 / len(values))
        prompts = np.unique(self.groups)
        means = np.array([values[self.groups == prompt].mean() for prompt in prompts])
        error = float(means.std(ddof=1) / np.sqrt(len(means))) if len(means) > 1 else None
        draws = bootstrap_weights(weights, self.resamples, self.seed, self.groups) @ values
        return Mean(float(values.mean()), error, percentile_interval(draws, 0.95) if len(draws) else None)


@dataclass(frozen=True)
class Measured:
    """What was measured of one change, N samples each.

    Attributes:
        modules: score statistics by module.
        motion: derivatives along the whole change ("first", "variance": `bridge.estimators.first_order`).
        losses: "utility_loss" and "sampled"; None where they were not measured.
        signs: the paper's estimates, where they were asked for.
        answers: the changed model's, where there were prompts.

    """

    modules: Mapping[str, ScoreStatistics]
    motion: Arrays
    losses: Arrays | None = None
    signs: SignsEstimates | None = None
    answers: Sequence[str] | None = None


def statistics(
    subject: Subject,
    samples: Sequence[Sample],
    products: Mapping[str, Arrays],
    delta: WeightDelta,
    label: str,
    fisher: FisherKind,
) -> dict[str, ScoreStatistics]:
    """Score statistics of every module with the change as velocity; there is no acceleration."""
    labels = tuple(sample.id for sample in samples)
    return {
        name: ScoreStatistics(
            gram=arrays["gram"],
            velocity=arrays[label],
            acceleration=np.zeros(len(labels)),
            velocity_squared=delta.squared_norm(f"{name}.weight") if delta.moves(f"{name}.weight") else 0.0,
            acceleration_squared=0.0,
            velocity_dot_acceleration=0.0,
            dimension=subject.weights[name].numel(),
            fisher=fisher,
            labels=labels,
        )
        for name, arrays in products.items()
    }


def assemble(delta: WeightDelta, measured: Measured, question: Question, prompts: str | None) -> ChangeOverlap:
    """What overlap.json says of one change; `prompts` is the name of the set at which refusals are counted."""
    modules, motion, losses = measured.modules, measured.motion, measured.losses
    layers = group_by_block(list(modules))
    every = list(modules.values())
    joint = question.score(every, question.resamples)
    crossed = cross_module_share(every)
    by_layer = [sum((modules[n] for n in names[1:]), start=modules[names[0]]) for names in layers.values()]
    total = delta.squared_norm()
    return ChangeOverlap(
        source=delta.label,
        kind=delta.kind,
        squared_norm=total,
        squared_norm_share=joint.squared_norm / total if total else 0.0,
        joint=joint,
        cross_module_share=crossed.share,
        sum_of_modules=crossed.within,
        cross_block_share=cross_module_share(by_layer).share,
        all_parameters=WholeMotion(
            overlap_score=question.mean(motion["first"] ** 2),
            overlap_score_exact=question.mean(motion["variance"]),
            mean_first_derivative=question.mean(motion["first"]),
        ),
        layers={name: question.score([modules[n] for n in names]) for name, names in layers.items()},
        blocks={name: question.score([stats]) for name, stats in modules.items()},
        utility_loss=None if losses is None else question.mean(losses["utility_loss"]),
        utility_loss_sampled=None if losses is None else question.mean(losses["sampled"]),
        rademacher=measured.signs,
        refusals=None if prompts is None or measured.answers is None else count_refusals(prompts, measured.answers),
    )


def count_refusals(prompts: str, answers: Sequence[str]) -> Refusals:
    """Count the refusals among the answers at a set's prompts."""
    rate = refusal_rate(answers)
    return Refusals(prompts, rate.rate, (rate.low, rate.high), rate.refused, rate.total)


def rank_changes(changes: Sequence[ChangeOverlap]) -> Ranking | None:
    """Rank correlation of each number with the measured utility loss; None below three changes, or without losses."""
    from scipy.stats import spearmanr

    losses = [change.utility_loss.mean for change in changes if change.utility_loss is not None]
    if len(losses) != len(changes) or len(losses) < 3:
        return None
    predictors: dict[str, list[float | None]] = {
        "norm of the change": [change.squared_norm for change in changes],
        "score": [change.joint.raw for change in changes],
        "score exact over tokens": [change.all_parameters.overlap_score_exact.mean for change in changes],
        "score per squared norm": [change.joint.normalised for change in changes],
        "score against random": [change.joint.enrichment for change in changes],
        "sum of the modules' scores": [change.sum_of_modules for change in changes],
    }
    found = {
        name: float(spearmanr(values, losses).statistic) if _ranked(values) and _ranked(losses) else None
        for name, values in predictors.items()
    }
    return Ranking(len(losses), found)


def _ranked(values: Sequence[float | None]) -> bool:
    """Whether values can be ranked: they are there, and not all the same."""
    return None not in values and len(set(values)) > 1


def signs_estimates(
    modules: Mapping[str, ScoreStatistics],
    own: Mapping[str, Float[np.ndarray, " N"]],
    together: Float[np.ndarray, " N"],
    dim: int,
) -> SignsEstimates:
    """The estimate of one change's score beside the exact one, what it is on average, and its floor.

    Args:
        modules: exact statistics by module, with the change as velocity.
        own: products by module, each with its own projection (the paper's).
        together: products of one projection of all modules.
        dim: dimensions of the projection.

    """
    every = list(modules.values())
    return SignsEstimates(
        dim=dim,
        joint=_beside(every, sum(own.values(), np.zeros(len(together))), dim),
        joint_one_projection=_beside(every, together, dim, shared=True),
        blocks={name: _beside([stats], own[name], dim) for name, stats in modules.items()},
    )


def _beside(
    blocks: Sequence[ScoreStatistics], products: Float[np.ndarray, " N"], dim: int, shared: bool = False
) -> SignsEstimate:
    law = projected_score(blocks, dim, shared=shared)
    return SignsEstimate(**asdict(law), estimate=float(np.mean(products**2)))
