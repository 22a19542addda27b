"""What a defence saw and did at the steps of a fine-tune."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


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
    inside: float | None
    leak: float | None
    leak_left: float | None
    projected: float
    kept: float
    rank: int | None
    utility_loss: float | None
    leak_applied: float | None

    @classmethod
    def untouched(cls, step: int, update_squared: float, utility_loss: float | None = None) -> StepRecord:
        """A step whose update was applied as it was, with nothing known of its leak."""
        return cls(step, update_squared, None, None, None, 0.0, 1.0, None, utility_loss, None)


@dataclass(frozen=True)
class MeasuredLeak:
    """Root mean squares of `leak` and `leak_applied` over the steps at which the latter was measured."""

    steps: int
    leak: float
    leak_applied: float


@dataclass(frozen=True)
class DefenceSummary:
    """What happened over all steps; None where there was no step of the kind.

    Attributes:
        inside: of the squared updates that were projected, the share inside the subspace.
        leak: root mean square over those steps.
        leak_left: the same of what was left.
        measured: over those of them at which `leak_applied` was measured.
        steps_projected: how many steps were projected.
        steps_held_back: how many were shortened besides.
        rank: the smallest and the largest of the subspace.

    """

    inside: float | None
    leak: float | None
    leak_left: float | None
    measured: MeasuredLeak | None
    steps_projected: int
    steps_held_back: int
    rank: tuple[int, int] | None


def summary(records: Sequence[StepRecord]) -> DefenceSummary:
    """What happened over all steps: shares of the updates' squares, leaks, and how often a budget bound."""
    seen = [record for record in records if record.inside is not None]
    total = sum(record.update_squared for record in seen)
    ranks = [record.rank for record in seen if record.rank is not None]
    measured = [record for record in seen if record.leak_applied is not None]
    return DefenceSummary(
        inside=sum((r.inside or 0.0) * r.update_squared for r in seen) / total if total else None,
        leak=_root_mean_square([r.leak for r in seen]),
        leak_left=_root_mean_square([r.leak_left for r in seen]),
        measured=_measured(measured),
        steps_projected=sum(record.projected > 0 for record in records),
        steps_held_back=sum(record.kept < 1 for record in records),
        rank=(min(ranks), max(ranks)) if ranks else None,
    )


def _measured(records: Sequence[StepRecord]) -> MeasuredLeak | None:
    leak = _root_mean_square([record.leak for record in records])
    applied = _root_mean_square([record.leak_applied for record in records])
    return None if leak is None or applied is None else MeasuredLeak(len(records), leak, applied)


def _root_mean_square(values: Sequence[float | None]) -> float | None:
    """Root of the mean square; None of nothing."""
    return float(np.sqrt(np.mean(np.array(values, dtype=float) ** 2))) if values else None
