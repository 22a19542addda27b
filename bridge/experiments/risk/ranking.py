"""The risk of candidate sets and of their rows, from the inner products that were measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from bridge.data.conversations import transcript
from bridge.data.rows import Row
from bridge.estimators.row_attribution import RowProducts
from bridge.experiments.risk.result import (
    CandidateRisk,
    CleanedSet,
    Cleaning,
    Interval,
    Predicted,
    RiskResult,
    RowRisk,
    Trivial,
)
from bridge.experiments.risk.settings import Settings
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
class _Drawn:
    """Motion of one set for other prompts and other rows, and for other prompts alone; one value a resample."""

    both: Motion
    these_rows: Motion


_Worst = tuple[float | None, float | None]  # the probabilities by both, and by these rows


def assemble(candidates: Mapping[str, Candidate], skill: Skill, settings: Settings) -> RiskResult:
    """The result but for what was cleaned."""
    count = len(skill.labels)
    weights = bootstrap_weights(np.full(count, 1 / count), settings.bootstrap, settings.seed, skill.groups)
    drawn = {
        label: _Drawn(
            both=resampled_motion(candidate.parts, weights, (settings.seed, k)),
            these_rows=resampled_motion(candidate.parts, weights),
        )
        for k, (label, candidate) in enumerate(candidates.items())
    }
    worst = {equal: _worst(drawn, equal, settings) for equal in EQUALS}
    risks = {
        label: _risk(candidate, skill, weights, drawn[label], {e: worst[e][label] for e in EQUALS}, settings)
        for label, candidate in candidates.items()
    }
    orders = _orders(risks, settings)
    return RiskResult(
        model=settings.model,
        skill=settings.skill,
        fisher="sampled",
        optimizer=settings.optimizer,
        num_samples=count,
        num_parameters=sum(skill.sizes.values()),
        equal=settings.equal,
        progress=settings.progress,
        worst_by=settings.worst_by,
        ranking=orders["predicted"],
        orders=orders,
        candidates=risks,
        rows=[row for label, candidate in candidates.items() for row in _rows(label, candidate, settings)],
    )


def _worst(drawn: Mapping[str, _Drawn], equal: Equal, settings: Settings) -> dict[str, _Worst]:
    """By label the probabilities that the set is the worst."""

    def shares(motions: Sequence[Motion]) -> list[float | None]:
        values = np.stack([moved.per_progress(equal) for moved in motions])
        found = probability_worst(values) if settings.bootstrap else np.full(len(values), np.nan)
        return [_plain(share) for share in found]

    both = shares([motions.both for motions in drawn.values()])
    these_rows = shares([motions.these_rows for motions in drawn.values()])
    return dict(zip(drawn, zip(both, these_rows, strict=True), strict=True))


def _risk(
    candidate: Candidate,
    skill: Skill,
    weights: Float[np.ndarray, "B N"],
    drawn: _Drawn,
    worst: Mapping[Equal, _Worst],
    settings: Settings,
) -> CandidateRisk:
    parts = candidate.parts
    whole = motion(parts, parts.every_row)
    null = overlap_score(_statistics(candidate, skill), min(10, parts.num_samples), resamples=0)
    tokens = int(parts.tokens.sum())
    exact = float(candidate.variance.mean())
    return CandidateRisk(
        source=candidate.source,
        num_rows=parts.num_rows,
        set_rows=candidate.set_rows,
        tokens=tokens,
        leak_squared=float(whole.leak_squared[0]),
        leak_squared_interval=_interval(drawn.both.leak_squared),
        leak_squared_exact=exact,
        leak_squared_exact_interval=_interval(weights @ candidate.variance),
        squared_norm=float(whole.squared_norm[0]),
        decrease=float(whole.decrease[0]),
        null_mean=null.null_mean,
        enrichment=null.enrichment,
        log_p_value=null.log_p_value,
        sharpest=null.sharpest,
        top_share=null.top_share,
        trivial=Trivial(
            gradient_norm=math.sqrt(candidate.gradient_squared),
            mean_loss=float(candidate.losses.sum()) / tokens,
            mean_tokens=tokens / parts.num_rows,
        ),
        predicted={
            equal: _predicted(whole, drawn, exact, equal, settings.progress[equal], worst[equal]) for equal in EQUALS
        },
    )


def _statistics(candidate: Candidate, skill: Skill) -> list[ScoreStatistics]:
    """Score statistics of every module with the set's velocity; there is no acceleration."""
    products = candidate.products
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


def _predicted(whole: Motion, drawn: _Drawn, exact: float, equal: Equal, progress: float, worst: _Worst) -> Predicted:
    """Utility loss at one definition of equal progress."""
    scale = progress**2 / 2
    unit = float(whole.per_progress(equal)[0])
    leak = float(whole.leak_squared[0])
    return Predicted(
        time=_plain(whole.time(equal, progress)[0]),
        leak_squared_per_progress=_plain(unit),
        utility_loss=_plain(scale * unit),
        utility_loss_exact=_plain(scale * unit * exact / leak) if leak > 0 else None,
        interval=_interval(scale * drawn.both.per_progress(equal)),
        interval_these_rows=_interval(scale * drawn.these_rows.per_progress(equal)),
        probability_worst=worst[0],
        probability_worst_these_rows=worst[1],
    )


def _orders(risks: Mapping[str, CandidateRisk], settings: Settings) -> dict[str, list[str]]:
    """Labels from the most to the least risky by each predictor."""
    every = list(risks.values())

    def losses(equal: Equal) -> list[float | None]:
        return [risk.predicted[equal].utility_loss for risk in every]

    def exact_losses(equal: Equal) -> list[float | None]:
        return [risk.predicted[equal].utility_loss_exact for risk in every]

    columns: dict[str, list[float | None]] = {
        "predicted": losses(settings.equal),
        "equal norm": losses("norm"),
        "equal loss decrease": losses("loss"),
        "equal norm, exact over tokens": exact_losses("norm"),
        "equal loss decrease, exact over tokens": exact_losses("loss"),
        "leak": [risk.leak_squared for risk in every],
        "times random": [risk.enrichment for risk in every],
        "gradient norm": [risk.trivial.gradient_norm for risk in every],
        "mean loss": [risk.trivial.mean_loss for risk in every],
        "length": [risk.trivial.mean_tokens for risk in every],
    }
    labels = list(risks)
    return {
        name: [labels[k] for k in order_by([math.nan if value is None else value for value in values])]
        for name, values in columns.items()
    }


def _interval(values: Float[np.ndarray, " B"]) -> Interval | None:
    return percentile_interval(values, 0.95) if len(values) else None


def _plain(value: float | np.floating) -> float | None:
    return float(value) if math.isfinite(value) else None


# -------------------------------------------------------------------------------------------------- rows


def _rows(label: str, candidate: Candidate, settings: Settings) -> list[RowRisk]:
    """A set's rows in the order of their ranks, the worst first."""
    parts = candidate.parts
    shares = attribution(parts)
    leak = shares.contribution.sum()
    effects = {equal: removal_effects(parts, equal) for equal in EQUALS}
    by_contribution = {row: rank for rank, row in enumerate(order_by(shares.contribution.tolist()), start=1)}
    rows = []
    for rank, k in enumerate(worst_rows(parts, settings), start=1):
        row = candidate.rows[k]
        rows.append(
            RowRisk(
                candidate=label,
                file=row.source,
                line=row.line,
                rank=rank,
                rank_contribution=by_contribution[k],
                contribution=float(shares.contribution[k]),
                share=_plain(shares.contribution[k] / leak) if leak > 0 else None,
                own=float(shares.own[k]),
                leave_one_out=float(shares.leave_one_out[k]),
                effect={equal: _plain(effects[equal][k]) for equal in EQUALS},
                tokens=int(parts.tokens[k]),
                loss=float(candidate.losses[k]),
                prompt=transcript(row.messages[:-1])[:_TEXT],
                answer=row.messages[-1]["content"][:_TEXT],
            )
        )
    return rows


def worst_rows(parts: RowParts, settings: Settings) -> list[int]:
    """Rows from the worst on: by what leaving one out saves at equal progress, or by their share of the leak."""
    if settings.worst_by == "contribution":
        return order_by(attribution(parts).contribution.tolist())
    return order_by((-removal_effects(parts, settings.equal)).tolist())


def removed_lines(candidate: Candidate, settings: Settings) -> list[int]:
    """Lines of the worst rows, as many as are to be left out."""
    return [candidate.rows[k].line for k in worst_rows(candidate.parts, settings)[: settings.clean]]


def cleaned(label: str, candidate: Candidate, skill: Skill, settings: Settings, sha256: str) -> CleanedSet:
    """What leaving out the worst rows does to the prediction, beside leaving out any.

    "after" is for the same samples that chose the rows, M held; "held_out" is the mean over two halves of the skill's
    samples of the change on one half without the rows that the other half calls worst.
    """
    parts = candidate.parts
    removed = worst_rows(parts, settings)[: settings.clean]
    random = random_removals(parts, settings.clean, _REMOVALS, settings.seed)
    predicted: dict[Equal, Cleaning] = {}
    for equal in EQUALS:
        scale = settings.progress[equal] ** 2 / 2
        before, after = (scale * _subset(parts, rows, equal) for rows in ([], removed))
        control = scale * random.per_progress(equal)
        predicted[equal] = Cleaning(
            before=_plain(before),
            after=_plain(after),
            change=_plain(after / before - 1) if before > 0 else None,
            held_out_change=_plain(_held_out(parts, skill, settings, equal)),
            random_change=_plain(control.mean() / before - 1) if before > 0 else None,
            random_interval=_interval(control / before - 1) if before > 0 else None,
        )
    return CleanedSet(
        candidate=label,
        removed=removed_lines(candidate, settings),
        kept_rows=parts.num_rows - settings.clean,
        removed_token_share=float(parts.tokens[removed].sum() / parts.tokens.sum()),
        random_draws=_REMOVALS,
        predicted=predicted,
        sha256=sha256,
    )


def _subset(parts: RowParts, removed: Sequence[int], equal: Equal) -> float:
    weights = parts.every_row
    weights[0, list(removed)] = 0.0
    return float(motion(parts, weights).per_progress(equal)[0])


def _held_out(parts: RowParts, skill: Skill, settings: Settings, equal: Equal) -> float:
    """Change on samples that had no part in choosing the rows; NaN with a single prompt."""
    halves = half_weights(np.full(parts.num_samples, 1.0), 1, settings.seed, skill.groups)
    if halves is None:
        return math.nan
    first, second = (
        RowParts(parts.skill[half[0] > 0], parts.decrease, parts.norm, parts.tokens) for half in halves
    )  # fmt: skip
    changes = []
    for choosing, judging in ((first, second), (second, first)):
        before = _subset(judging, [], equal)
        after = _subset(judging, worst_rows(choosing, settings)[: settings.clean], equal)
        changes.append(after / before - 1 if before > 0 else math.nan)
    return float(np.mean(changes))
