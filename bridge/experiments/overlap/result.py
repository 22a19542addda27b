"""overlap.json: what the inner products say of every change, put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from bridge.data.samples import Sample
from bridge.deltas.weight_delta import WeightDelta
from bridge.estimators.theta import Subject
from bridge.models.blocks import group_by_block
from commands.store import SCHEMA_VERSION
from theory.overlap_score import cross_module_share, overlap_score
from theory.resampling import bootstrap_weights, percentile_interval
from theory.statistics import FisherKind, ScoreStatistics


@dataclass(frozen=True)
class Question:
    """What decides how the inner products are read."""

    rank: int
    resamples: int
    seed: int
    groups: Int[np.ndarray, " N"]  # samples of one prompt are resampled together


def statistics(
    subject: Subject,
    samples: Sequence[Sample],
    products: Mapping[str, Mapping[str, np.ndarray]],
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


def assemble(
    deltas: Mapping[str, WeightDelta],
    modules: Mapping[str, Mapping[str, ScoreStatistics]],
    motion: Mapping[str, Mapping[str, np.ndarray]],
    losses: Mapping[str, Mapping[str, np.ndarray]],
    question: Question,
) -> dict[str, Any]:
    """The content of overlap.json, without what the options say.

    Args:
        deltas: the changes by label.
        modules: score statistics by label and module.
        motion: by label, derivatives along the whole change ("first", "variance": `bridge.estimators.first_order`).
        losses: by label, utility loss of every sample; empty where it was not measured.
        question: rank and resampling.

    """
    found = {
        label: _one(delta, modules[label], motion[label], losses.get(label), question)
        for label, delta in deltas.items()
    }
    first = next(iter(found.values()))["joint"]
    return {
        "schema_version": SCHEMA_VERSION,
        "num_samples": first["num_samples"],
        "num_parameters": first["dimension"],
        "rank": question.rank,
        "ranking": _ranking(list(found.values())),
        "deltas": found,
    }


def _ranking(entries: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Spearman's rank correlation of each number with the measured utility loss; None below three changes."""
    from scipy.stats import spearmanr

    losses = [entry["utility_loss"]["mean"] for entry in entries if "utility_loss" in entry]
    if len(losses) != len(entries) or len(losses) < 3:
        return None
    predictors = {
        "norm of the change": [entry["squared_norm"] for entry in entries],
        "score": [entry["joint"]["raw"] for entry in entries],
        "score exact over tokens": [entry["all_parameters"]["overlap_score_exact"]["mean"] for entry in entries],
        "score per squared norm": [entry["joint"]["normalised"] for entry in entries],
        "score against random": [entry["joint"]["enrichment"] for entry in entries],
        "sum of the modules' scores": [entry["sum_of_modules"] for entry in entries],
    }
    return {
        "count": len(losses),
        "with_utility_loss": {
            name: float(spearmanr(values, losses).statistic) if _ranked(values) and _ranked(losses) else None
            for name, values in predictors.items()
        },
    }


def _ranked(values: Sequence[float | None]) -> bool:
    """Whether values can be ranked: they are there, and not all the same."""
    return None not in values and len(set(values)) > 1


def _one(
    delta: WeightDelta,
    modules: Mapping[str, ScoreStatistics],
    motion: Mapping[str, np.ndarray],
    losses: Mapping[str, np.ndarray] | None,
    question: Question,
) -> dict[str, Any]:
    def score(blocks: Sequence[ScoreStatistics], resamples: int) -> dict[str, Any]:
        return overlap_score(
            blocks, question.rank, groups=question.groups, resamples=resamples, seed=question.seed
        ).as_dict()

    layers = group_by_block(list(modules))
    every = list(modules.values())
    joint = score(every, question.resamples)
    crossed = cross_module_share(every)
    by_layer = [sum((modules[n] for n in names[1:]), start=modules[names[0]]) for names in layers.values()]
    total = delta.squared_norm()
    entry: dict[str, Any] = {
        "source": delta.label,
        "kind": delta.kind,
        "squared_norm": total,
        "squared_norm_share": joint["squared_norm"] / total if total else 0.0,
        "joint": joint,
        "cross_module_share": crossed.share,
        "sum_of_modules": crossed.within,
        "cross_block_share": cross_module_share(by_layer).share,
        "all_parameters": _all_parameters(motion, question),
        "layers": {name: score([modules[n] for n in names], 0) for name, names in layers.items()},
        "blocks": {name: score([stats], 0) for name, stats in modules.items()},
    }
    if losses is not None:
        entry["utility_loss"] = _mean(losses["utility_loss"], question)
        entry["utility_loss_sampled"] = _mean(losses["sampled"], question)
    return entry


def _all_parameters(motion: Mapping[str, np.ndarray], question: Question) -> dict[str, Any]:
    """Scores over every parameter that the change moves: from the drawn tokens, and exact over the vocabulary."""
    return {
        "overlap_score": _mean(motion["first"] ** 2, question),
        "overlap_score_exact": _mean(motion["variance"], question),
        "mean_first_derivative": _mean(motion["first"], question),
    }


def _mean(values: Float[np.ndarray, " N"], question: Question) -> dict[str, Any]:
    """Mean over the samples, its standard error over prompts, and a bootstrap interval."""
    weights = np.full(len(values), 1 / len(values))
    prompts = np.unique(question.groups)
    means = np.array([values[question.groups == prompt].mean() for prompt in prompts])
    error = float(means.std(ddof=1) / np.sqrt(len(means))) if len(means) > 1 else None
    draws = bootstrap_weights(weights, question.resamples, question.seed, question.groups) @ values
    ends = percentile_interval(draws, 0.95) if len(draws) else None
    return {"mean": float(values.mean()), "standard_error": error, "interval": list(ends) if ends else None}
