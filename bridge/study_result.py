"""study.json: the fine-tunes, and how each predictor ranks their damage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from bridge.study_predictors import PREDICTORS, STAGES, Predictor
from bridge.study_settings import StudySettings
from commands.store import SCHEMA_VERSION
from theory.rank_correlation import Advantage, RankCorrelation, advantage, rank_correlation

OUTCOMES = {"utility_loss": "utility loss", "lost_refusals": "lost refusals"}
"""What is to be predicted, with the name that people read."""
EVERY = "all"
LEAST_ROWS, LEAST_SETS = 4, 3
"""With fewer fine-tunes or sets no correlation is taken."""

Row = Mapping[str, Any]


def assemble(settings: StudySettings, rows: Sequence[Row]) -> dict[str, Any]:
    """The content of study.json.

    Args:
        settings: the study.
        rows: fine-tunes, done, failed or still to come, with their predictors and outcomes by key.

    """
    groups = [EVERY, *(settings.methods if len(settings.methods) > 1 else ())]
    return {
        "schema_version": SCHEMA_VERSION,
        "title": settings.title,
        "model": settings.model,
        "skill": settings.skill_options()["skill"],
        "refusals": settings.overlap_options().get("refusals"),
        "methods": list(settings.methods),
        "seeds": list(settings.seeds),
        "sets": [each.name for each in settings.sets],
        "left_out": list(settings.left_out),
        "pilot_steps": settings.pilot_steps,
        "resamples": settings.resamples,
        "predictors": [asdict(each) for each in PREDICTORS if _known(rows, each.key)],
        "rows": list(rows),
        "correlations": {
            outcome: {
                group: correlations(
                    [row for row in rows if group in (EVERY, row["method"])], outcome, settings.resamples, settings.seed
                )
                for group in groups
            }
            for outcome in OUTCOMES
        },
    }


def correlations(rows: Sequence[Row], outcome: str, resamples: int, seed: int) -> dict[str, dict[str, Any]]:
    """Rank correlations of every predictor with an outcome, and what each has over the best trivial one.

    The best trivial predictor is the one of those known by the same time whose correlation is largest in size, on the
    very fine-tunes that it is judged on: chosen in hindsight, which favours it. Intervals resample whole sets.
    """
    found: dict[str, dict[str, Any]] = {}
    for each in PREDICTORS:
        usable = [row for row in rows if has(row, each.key, outcome)]
        measured = _correlate(usable, each.key, outcome, resamples, seed)
        if measured is None:
            continue
        found[each.key] = {**asdict(measured), "best_trivial": None}
        if not each.trivial and measured.spearman is not None:
            found[each.key]["best_trivial"] = _against_trivial(usable, each, outcome, resamples, seed)
    return found


def has(row: Row, key: str, outcome: str) -> bool:
    """Whether a fine-tune has both a predictor and an outcome."""
    return row["predictors"].get(key) is not None and outcome in row["outcomes"]


def _known(rows: Sequence[Row], key: str) -> bool:
    return any(row["predictors"].get(key) is not None for row in rows)


def _correlate(rows: Sequence[Row], key: str, outcome: str, resamples: int, seed: int) -> RankCorrelation | None:
    if len(rows) < LEAST_ROWS or len({row["set"] for row in rows}) < LEAST_SETS:
        return None
    values, damage, clusters = _values(rows, key), _damage(rows, outcome), _clusters(rows)
    return rank_correlation(values, damage, clusters, resamples=resamples, seed=seed)


def _against_trivial(
    rows: Sequence[Row], each: Predictor, outcome: str, resamples: int, seed: int
) -> dict[str, Any] | None:
    """The comparison with the best trivial predictor that is known of all these fine-tunes; None if there is none."""
    best: tuple[float, str] | None = None
    for other in PREDICTORS:
        in_time = other.trivial and STAGES.index(other.stage) <= STAGES.index(each.stage)
        if not in_time or not all(has(row, other.key, outcome) for row in rows):
            continue
        measured = _correlate(rows, other.key, outcome, 0, seed)
        if measured is not None and measured.spearman is not None:
            size = abs(measured.spearman)
            best = (size, other.key) if best is None or size > best[0] else best
    if best is None:
        return None
    found: Advantage = advantage(
        _values(rows, each.key), _values(rows, best[1]), _damage(rows, outcome), _clusters(rows),
        resamples=resamples, seed=seed,
    )  # fmt: skip
    return {"predictor": best[1], "spearman": found.sign * best[0], **asdict(found), "better": found.better}


def _values(rows: Sequence[Row], key: str) -> Float[np.ndarray, " N"]:
    return np.array([row["predictors"][key] for row in rows], dtype=np.float64)


def _damage(rows: Sequence[Row], outcome: str) -> Float[np.ndarray, " N"]:
    return np.array([row["outcomes"][outcome]["value"] for row in rows], dtype=np.float64)


def _clusters(rows: Sequence[Row]) -> Int[np.ndarray, " N"]:
    names = sorted({row["set"] for row in rows})
    return np.array([names.index(row["set"]) for row in rows])
