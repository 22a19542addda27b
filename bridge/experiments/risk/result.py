"""risk.json and rows.jsonl: what the inner products say of every candidate set and of its rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from bridge.data.conversations import transcript
from bridge.data.rows import Row
from bridge.estimators.row_attribution import RowProducts
from commands.store import SCHEMA_VERSION
from theory.overlap_score import overlap_score
from theory.resampling import bootstrap_weights, half_weights, percentile_interval
from theory.risk import (
    EQUALS,
    Equal,
    Motion,
    RowParts,
    attribution,
    motion,
    order_by,
    probability_worst,
    random_removals,
    removal_effects,
    resampled_motion,
)
from theory.statistics import ScoreStatistics

WorstBy = Literal["effect", "contribution"]
_REMOVALS = 1000  # random removals that a cleaned set is compared with
_TEXT = 160  # characters of a prompt and of an answer in rows.jsonl


@dataclass(frozen=True)
class Candidate:
    """What was measured of one set.

    rows: those that were measured, R of them; set_rows: rows of the whole set; losses: (R,) summed over each row's
    tokens; gradient_squared: |g|^2 of the mean token loss; variance: (N,) sum_t Var_t(z') on the skill's samples.
    """

    source: str
    rows: tuple[Row, ...]
    set_rows: int
    products: RowProducts
    losses: Float[np.ndarray, " R"]
    gradient_squared: float
    variance: Float[np.ndarray, " N"]

    @property
    def parts(self) -> RowParts:
        """Inner products of the rows."""
        return self.products.parts


@dataclass(frozen=True)
class Skill:
    """The skill's samples: their names, which were drawn at one prompt, and the modules' grams and sizes."""

    labels: tuple[str, ...]
    groups: Int[np.ndarray, " N"]
    gram: Mapping[str, Float[np.ndarray, "N N"]]
    sizes: Mapping[str, int]


@dataclass(frozen=True)
class Question:
    """What decides how the inner products are read. `progress`: the distance, and the decrease in nats a token."""

    equal: Equal
    progress: Mapping[Equal, float]
    worst_by: WorstBy
    resamples: int
    seed: int


def assemble(candidates: Mapping[str, Candidate], skill: Skill, question: Question) -> dict[str, Any]:
    """The content of risk.json, without what the options say and without what was cleaned."""
    weights = _skill_weights(skill, question)
    drawn = {
        label: {
            "both": resampled_motion(one.parts, weights, (question.seed, k)),
            "these_rows": resampled_motion(one.parts, weights),
        }
        for k, (label, one) in enumerate(candidates.items())
    }
    found = {label: _one(one, skill, weights, drawn[label], question) for label, one in candidates.items()}
    for equal in EQUALS:
        _add_probabilities(found, drawn, equal, question)
    orders = _orders(found, question)
    return {
        "schema_version": SCHEMA_VERSION,
        "num_samples": len(skill.labels),
        "num_parameters": sum(skill.sizes.values()),
        "equal": question.equal,
        "progress": dict(question.progress),
        "worst_by": question.worst_by,
        "ranking": orders["predicted"],
        "orders": orders,
        "candidates": found,
    }


def _skill_weights(skill: Skill, question: Question) -> Float[np.ndarray, "B N"]:
    count = len(skill.labels)
    return bootstrap_weights(np.full(count, 1 / count), question.resamples, question.seed, skill.groups)


def _one(
    one: Candidate,
    skill: Skill,
    weights: Float[np.ndarray, "B N"],
    drawn: Mapping[str, Motion],
    question: Question,
) -> dict[str, Any]:
    parts = one.parts
    whole = motion(parts, parts.every_row)
    null = overlap_score(_statistics(one, skill), min(10, parts.num_samples), resamples=0)
    tokens = int(parts.tokens.sum())
    exact = float(one.variance.mean())
    return {
        "source": one.source,
        "num_rows": parts.num_rows,
        "set_rows": one.set_rows,
        "tokens": tokens,
        "leak_squared": float(whole.leak_squared[0]),
        "leak_squared_interval": _interval(drawn["both"].leak_squared),
        "leak_squared_exact": exact,
        "leak_squared_exact_interval": _interval(weights @ one.variance),
        "squared_norm": float(whole.squared_norm[0]),
        "decrease": float(whole.decrease[0]),
        "null_mean": null.null_mean,
        "enrichment": null.enrichment,
        "log_p_value": null.log_p_value,
        "sharpest": null.sharpest,
        "top_share": null.top_share,
        "trivial": {
            "gradient_norm": math.sqrt(one.gradient_squared),
            "mean_loss": float(one.losses.sum()) / tokens,
            "mean_tokens": tokens / parts.num_rows,
        },
        "predicted": {
            equal: _predicted(whole, drawn, exact, equal, question.progress[equal]) for equal in EQUALS
        },
    }  # fmt: skip


def _statistics(one: Candidate, skill: Skill) -> list[ScoreStatistics]:
    """Score statistics of every module with the set's velocity; there is no acceleration."""
    products = one.products
    return [
        ScoreStatistics(
            gram=gram,
            velocity=products.velocity[name],
            acceleration=np.zeros(len(skill.labels)),
            velocity_squared=products.squared_norm[name],
            acceleration_squared=0.0,
            velocity_dot_acceleration=0.0,
            dimension=skill.sizes[name],
            fisher="sampled",
            labels=skill.labels,
        )
        for name, gram in skill.gram.items()
    ]


def _predicted(
    whole: Motion, drawn: Mapping[str, Motion], exact: float, equal: Equal, progress: float
) -> dict[str, Any]:
    """Utility loss at one definition of equal progress; None where the set makes none."""
    scale = progress**2 / 2
    each = float(whole.per_progress(equal)[0])
    leak = float(whole.leak_squared[0])
    return {
        "time": _plain(whole.time(equal, progress)[0]),
        "leak_squared_per_progress": _plain(each),
        "utility_loss": _plain(scale * each),
        "utility_loss_exact": _plain(scale * each * exact / leak) if leak > 0 else None,
        "interval": _interval(scale * drawn["both"].per_progress(equal)),
        "interval_these_rows": _interval(scale * drawn["these_rows"].per_progress(equal)),
    }


def _add_probabilities(
    found: dict[str, dict[str, Any]],
    drawn: Mapping[str, Mapping[str, Motion]],
    equal: Equal,
    question: Question,
) -> None:
    """The probability that each set is the worst, over both resamples and for these very rows."""
    for key, kind in (("probability_worst", "both"), ("probability_worst_these_rows", "these_rows")):
        values = np.stack([motions[kind].per_progress(equal) for motions in drawn.values()])
        shares = probability_worst(values) if question.resamples else np.full(len(values), np.nan)
        for entry, share in zip(found.values(), shares, strict=True):
            entry["predicted"][equal][key] = _plain(share)


def _orders(found: Mapping[str, dict[str, Any]], question: Question) -> dict[str, list[str]]:
    """Labels from the most to the least risky by each predictor."""

    def predicted(equal: Equal, key: str) -> list[float | None]:
        return [entry["predicted"][equal][key] for entry in found.values()]

    columns: dict[str, list[float | None]] = {
        "predicted": predicted(question.equal, "utility_loss"),
        "equal norm": predicted("norm", "utility_loss"),
        "equal loss decrease": predicted("loss", "utility_loss"),
        "equal norm, exact over tokens": predicted("norm", "utility_loss_exact"),
        "equal loss decrease, exact over tokens": predicted("loss", "utility_loss_exact"),
        "leak": [entry["leak_squared"] for entry in found.values()],
        "times random": [entry["enrichment"] for entry in found.values()],
    }
    for key, name in (("gradient_norm", "gradient norm"), ("mean_loss", "mean loss"), ("mean_tokens", "length")):
        columns[name] = [entry["trivial"][key] for entry in found.values()]
    labels = list(found)
    return {
        name: [labels[k] for k in order_by([math.nan if value is None else value for value in values])]
        for name, values in columns.items()
    }


def _interval(values: Float[np.ndarray, " B"]) -> list[float] | None:
    ends = percentile_interval(values, 0.95) if len(values) else None
    return None if ends is None else list(ends)


def _plain(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None


# -------------------------------------------------------------------------------------------------- rows


def row_records(candidates: Mapping[str, Candidate], question: Question) -> list[dict[str, Any]]:
    """One record a row: each set's in the order of its ranks, the worst first."""
    return [record for label, one in candidates.items() for record in _records(label, one, question)]


def _records(label: str, one: Candidate, question: Question) -> list[dict[str, Any]]:
    parts = one.parts
    shares = attribution(parts)
    leak = shares.contribution.sum()
    effects = {equal: removal_effects(parts, equal) for equal in EQUALS}
    by_contribution = {row: rank for rank, row in enumerate(order_by(shares.contribution.tolist()), start=1)}
    out = []
    for rank, k in enumerate(worst_rows(parts, question), start=1):
        row = one.rows[k]
        out.append(
            {
                "candidate": label,
                "file": row.source,
                "line": row.line,
                "rank": rank,
                "rank_contribution": by_contribution[k],
                "contribution": float(shares.contribution[k]),
                "share": _plain(shares.contribution[k] / leak) if leak > 0 else None,
                "own": float(shares.own[k]),
                "leave_one_out": float(shares.leave_one_out[k]),
                "effect": {equal: _plain(effects[equal][k]) for equal in EQUALS},
                "tokens": int(parts.tokens[k]),
                "loss": float(one.losses[k]),
                "prompt": transcript(row.messages[:-1])[:_TEXT],
                "answer": row.messages[-1]["content"][:_TEXT],
            }
        )
    return out


def worst_rows(parts: RowParts, question: Question) -> list[int]:
    """Rows from the worst on: by what leaving one out saves at equal progress, or by their share of the leak."""
    if question.worst_by == "contribution":
        return order_by(attribution(parts).contribution.tolist())
    return order_by((-removal_effects(parts, question.equal)).tolist())


def cleaned(label: str, one: Candidate, count: int, skill: Skill, question: Question) -> dict[str, Any]:
    """What leaving out the worst `count` rows does to the prediction, beside leaving out any.

    "after" is for the same samples that chose the rows, M held; "held_out" is the mean over two halves of the skill's
    samples of the change on one half without the rows that the other half calls worst.
    """
    parts = one.parts
    removed = worst_rows(parts, question)[:count]
    random = random_removals(parts, count, _REMOVALS, question.seed)
    predicted: dict[str, Any] = {}
    for equal in EQUALS:
        scale = question.progress[equal] ** 2 / 2
        before, after = (scale * _subset(parts, rows, equal) for rows in ([], removed))
        control = scale * random.per_progress(equal)
        predicted[equal] = {
            "before": _plain(before),
            "after": _plain(after),
            "change": _plain(after / before - 1) if before > 0 else None,
            "held_out_change": _plain(_held_out(parts, count, skill, question, equal)),
            "random_change": _plain(control.mean() / before - 1) if before > 0 else None,
            "random_interval": _interval(control / before - 1) if before > 0 else None,
        }
    return {
        "candidate": label,
        "removed": [one.rows[k].line for k in removed],
        "kept_rows": parts.num_rows - count,
        "removed_token_share": float(parts.tokens[removed].sum() / parts.tokens.sum()),
        "random_draws": _REMOVALS,
        "predicted": predicted,
    }


def _subset(parts: RowParts, removed: Sequence[int], equal: Equal) -> float:
    weights = parts.every_row
    weights[0, list(removed)] = 0.0
    return float(motion(parts, weights).per_progress(equal)[0])


def _held_out(parts: RowParts, count: int, skill: Skill, question: Question, equal: Equal) -> float:
    """Change on samples that had no part in choosing the rows; NaN with a single prompt."""
    halves = half_weights(np.full(parts.num_samples, 1.0), 1, question.seed, skill.groups)
    if halves is None:
        return math.nan
    first, second = (
        RowParts(parts.skill[half[0] > 0], parts.decrease, parts.norm, parts.tokens) for half in halves
    )  # fmt: skip
    changes = []
    for choosing, judging in ((first, second), (second, first)):
        before = _subset(judging, [], equal)
        after = _subset(judging, worst_rows(choosing, question)[:count], equal)
        changes.append(after / before - 1 if before > 0 else math.nan)
    return float(np.mean(changes))
