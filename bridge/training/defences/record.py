"""What a defence saw and did at the steps of a fine-tune."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bridge.estimators.probe import root_mean_square


@dataclass(frozen=True)
class StepRecord:
    """What a defence saw and did at one optimizer step.

    step: from 1. update_squared: |delta|^2 of the optimizer's own update. inside: |P delta|^2 / |delta|^2. leak: root
    mean square over the probe of s_i . delta at the anchor; leak_left: the same of the update that was applied,
    kept (delta - projected P delta), by the gram, as in exact arithmetic; leak_applied: the same measured, with the
    rounding of the weights and of P delta in it. projected: the share of P delta that was taken out; kept: the share
    of what remained that was applied (below 1 only where a budget could not be kept otherwise). rank: of the subspace.
    utility_loss: mean over the probe after the step, in nats a response. What was not computed at a step is None.
    """

    step: int
    update_squared: float
    inside: float | None = None
    leak: float | None = None
    leak_left: float | None = None
    projected: float = 0.0
    kept: float = 1.0
    rank: int | None = None
    utility_loss: float | None = None
    leak_applied: float | None = None


def summary(records: Sequence[StepRecord]) -> Mapping[str, Any]:
    """What happened over all steps: shares of the updates' squares, leaks, and how often a budget bound.

    "inside": of the squared updates that were projected, the share inside the subspace; "leak" and "leak_left": root
    mean squares over those steps; "measured": over those of them where "leak_applied" was measured, their number
    "steps", "leak" and "leak_applied"; "steps_projected", "steps_held_back": how many were projected, and how many were
    shortened besides; "rank": the smallest and largest of the subspace. None where there was no such step.
    """
    seen = [record for record in records if record.inside is not None]
    total = sum(record.update_squared for record in seen)
    ranks = [record.rank for record in seen if record.rank is not None]
    return {
        "inside": sum((r.inside or 0.0) * r.update_squared for r in seen) / total if total else None,
        "leak": root_mean_square(np.array([r.leak for r in seen])) if seen else None,
        "leak_left": root_mean_square(np.array([r.leak_left for r in seen])) if seen else None,
        "measured": _measured([record for record in seen if record.leak_applied is not None]),
        "steps_projected": sum(record.projected > 0 for record in records),
        "steps_held_back": sum(record.kept < 1 for record in records),
        "rank": [min(ranks), max(ranks)] if ranks else None,
    }


def _measured(records: Sequence[StepRecord]) -> dict[str, Any] | None:
    if not records:
        return None
    leaks = {name: np.array([getattr(record, name) for record in records]) for name in ("leak", "leak_applied")}
    return {"steps": len(records)} | {name: root_mean_square(values) for name, values in leaks.items()}
