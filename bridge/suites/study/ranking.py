"""How each predictor of a study ranks the damage of its fine-tunes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Float, Int

from bridge.suites.study.predictors import BY_KEY, PREDICTORS, STAGES, Predictor, Stage
from bridge.suites.study.result import (
    OUTCOMES,
    POOLED,
    WITHIN,
    Contest,
    Correlation,
    Correlations,
    OutcomeName,
    Ranks,
    Rival,
    StudyResult,
    StudyRow,
)
from bridge.suites.study.settings import StudySettings
from theory.rank_correlation import Advantage, RankCorrelation, advantage, rank_correlation

LEAST_ROWS, LEAST_SETS = 4, 3
"""With fewer fine-tunes or sets no correlation is taken."""
SETS_TO_SHOW = 5
"""With fewer sets nothing is shown, whatever the interval: a random order of four sets is the right one in 1 of 24."""
LEAST_SHARE = 0.75
"""Share of the measured fine-tunes on which a predictor must be known to be compared with others of its time."""

_ROUNDING = 1e-9  # a correlation of so little is 0


@dataclass(frozen=True)
class Ranking:
    """What correlations are taken with, and how: `pooled` ranks fine-tunes by different methods among each other."""

    outcome: OutcomeName
    resamples: int
    seed: int
    pooled: bool = False


def assemble(settings: StudySettings, rows: Sequence[StudyRow]) -> StudyResult:
    """The study's result from its fine-tunes: done, failed, or still to come."""
    ranks = evaluate(rows, settings.resamples, settings.seed)
    return StudyResult(
        title=settings.title,
        model=settings.model,
        skill=settings.skill_settings().skill,
        refusals=settings.overlap.settings().refusals,
        methods=list(settings.methods),
        seeds=list(settings.seeds),
        sets=[each.name for each in settings.sets],
        left_out=[each.name for each in settings.left_out],
        pilot_steps=settings.pilot_steps,
        resamples=settings.resamples,
        predictors=[each for each in PREDICTORS if _known(rows, each.key)],
        rows=list(rows),
        correlations=ranks.correlations,
        contests=ranks.contests,
    )


def groups_of(rows: Sequence[StudyRow]) -> dict[str, list[StudyRow]]:
    """The fine-tunes by group: within methods, by one method each where there are several, and pooled then."""
    methods = list(dict.fromkeys(row.method for row in rows))
    groups = {WITHIN: list(rows)}
    if len(methods) > 1:
        groups |= {method: [row for row in rows if row.method == method] for method in methods}
        groups[POOLED] = list(rows)
    return groups


def evaluate(rows: Sequence[StudyRow], resamples: int, seed: int) -> Ranks:
    """Correlations and contests by outcome and group; pooled, nothing is compared."""
    groups = groups_of(rows)
    found = Ranks({}, {})
    for outcome in OUTCOMES:
        hows = {group: Ranking(outcome, resamples, seed, group == POOLED) for group in groups}
        found.correlations[outcome] = {group: correlations(some, hows[group]) for group, some in groups.items()}
        contests = {
            group: {stage: contest(some, stage, hows[group]) for stage in STAGES}
            for group, some in groups.items()
            if group != POOLED
        }
        found.contests[outcome] = {
            group: {stage: entry for stage, entry in entries.items() if entry is not None}
            for group, entries in contests.items()
        }
    return found


def correlations(rows: Sequence[StudyRow], how: Ranking) -> Correlations:
    """Rank correlations of every predictor with an outcome, and what each has over the best trivial one.

    Fine-tunes are ranked among those by the same method, unless pooled. The best trivial predictor is the one of those
    known by the same time whose correlation is largest in size, on the very fine-tunes that it is judged on: chosen in
    hindsight, which favours it. A trivial one that is constant within every method ranks nothing there and is no
    rival; pooled, nothing is compared. Intervals resample whole sets.
    """
    usable = {each.key: [row for row in rows if row.has(each.key, how.outcome)] for each in PREDICTORS}
    found = {each.key: _entry(usable[each.key], each, how) for each in PREDICTORS}
    return {key: entry for key, entry in found.items() if entry is not None}


def contest(rows: Sequence[StudyRow], stage: Stage, how: Ranking) -> Contest | None:
    """Which predictor of a time that is not trivial ranks an outcome best, all on the same fine-tunes.

    Those take part that are known on `LEAST_SHARE` of the measured fine-tunes and not constant; the fine-tunes are
    those on which all of them are known. None where nobody takes part.
    """
    measured = [row for row in rows if row.is_measured(how.outcome)]
    here = [each for each in PREDICTORS if each.stage == stage and not each.trivial and _known(measured, each.key)]
    least = LEAST_SHARE * len(measured)
    inside = [each for each in here if sum(row.has(each.key, how.outcome) for row in measured) >= least]
    common = [row for row in measured if all(row.has(each.key, how.outcome) for each in inside)]
    tried = {each.key: _correlate(common, each.key, how) for each in inside}
    sizes = {key: one.spearman for key, one in tried.items() if one is not None and one.spearman is not None}
    best = max(sizes, key=lambda key: sizes[key], default=None)
    entry = None if best is None else _entry(common, BY_KEY[best], how)
    if best is None or entry is None:
        return None
    return Contest(
        count=len(common),
        of=len(rows),
        predictors=list(sizes),
        shown_to_rank=[key for key, one in tried.items() if one is not None and _is_shown(one)],
        absent=[each.key for each in here if each not in inside],
        best=best,
        spearman=entry.spearman,
        spearman_interval=entry.spearman_interval,
        best_trivial=entry.best_trivial,
    )


def _known(rows: Sequence[StudyRow], key: str) -> bool:
    return any(not math.isnan(row.predictor(key)) for row in rows)


def _correlate(rows: Sequence[StudyRow], key: str, how: Ranking) -> RankCorrelation | None:
    if len(rows) < LEAST_ROWS or len({row.set for row in rows}) < LEAST_SETS:
        return None
    return rank_correlation(
        _values(rows, key), _damage(rows, how), _sets(rows), _strata(rows, how), resamples=how.resamples, seed=how.seed
    )


def _entry(rows: Sequence[StudyRow], each: Predictor, how: Ranking) -> Correlation | None:
    """One predictor's correlations, on fine-tunes that all have it; None if these are too few."""
    measured = _correlate(rows, each.key, how)
    if measured is None:
        return None
    compared = not each.trivial and not how.pooled and measured.spearman is not None
    rival = _against_trivial(rows, each, how, measured.clusters >= SETS_TO_SHOW) if compared else None
    return Correlation(**asdict(measured), shown=_is_shown(measured), best_trivial=rival)


def _is_shown(measured: RankCorrelation) -> bool:
    ends = measured.spearman_interval
    return measured.clusters >= SETS_TO_SHOW and ends is not None and ends[0] > _ROUNDING


def _against_trivial(rows: Sequence[StudyRow], each: Predictor, how: Ranking, enough: bool) -> Rival | None:
    """The comparison with the best trivial predictor that is known of all these fine-tunes; None if there is none.

    enough: whether there are sets enough to show which of the two is better.
    """
    best: tuple[float, str] | None = None
    for other in PREDICTORS:
        in_time = other.trivial and STAGES.index(other.stage) <= STAGES.index(each.stage)
        if not in_time or not all(row.has(other.key, how.outcome) for row in rows):
            continue
        measured = _correlate(rows, other.key, Ranking(how.outcome, 0, how.seed, how.pooled))
        if measured is not None and measured.spearman is not None:
            size = abs(measured.spearman)
            best = (size, other.key) if best is None or size > best[0] else best
    if best is None:
        return None
    found: Advantage = advantage(
        _values(rows, each.key), _values(rows, best[1]), _damage(rows, how), _sets(rows), _strata(rows, how),
        resamples=how.resamples, seed=how.seed,
    )  # fmt: skip
    return Rival(
        predictor=best[1],
        spearman=found.sign * best[0],
        **asdict(found),
        better=enough and found.better,
        worse=enough and found.worse,
    )


def _values(rows: Sequence[StudyRow], key: str) -> Float[np.ndarray, " N"]:
    return np.array([row.predictor(key) for row in rows], dtype=np.float64)


def _damage(rows: Sequence[StudyRow], how: Ranking) -> Float[np.ndarray, " N"]:
    return np.array([row.damage(how.outcome) for row in rows], dtype=np.float64)


def _sets(rows: Sequence[StudyRow]) -> Int[np.ndarray, " N"]:
    """Which rows are of the same set, as numbers."""
    return _numbers([row.set for row in rows])


def _strata(rows: Sequence[StudyRow], how: Ranking) -> Int[np.ndarray, " N"] | None:
    """Which are by the same method, unless the methods are pooled."""
    return None if how.pooled else _numbers([row.method for row in rows])


def _numbers(labels: Sequence[str]) -> Int[np.ndarray, " N"]:
    names = sorted(set(labels))
    return np.array([names.index(label) for label in labels])
