"""From the overlaps of all layers to the result of `bridge.activations`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bridge.experiments.activations.prompts import Ended, Prompts
from bridge.experiments.activations.result import (
    ActivationsResult,
    Answered,
    CentredPair,
    Halves,
    LayerOverlap,
    MeanOverlap,
    Relabelled,
    SetOverlap,
    SetPair,
    SetSummary,
)
from bridge.experiments.activations.settings import Settings
from theory.activation_overlap import PairOverlap, Plan, mean_of, pairs, relabelling_p_value, share_of_ceiling
from theory.resampling import percentile_interval

_SHOWN_TOKENS = 3


@dataclass(frozen=True)
class Measured:
    """What the stages of a run measured.

    Attributes:
        chosen: the prompts of every set.
        ended: for each set and prompt the token that was measured.
        overlaps: by centring, for each layer the overlaps of every pair of sets.
        plan: splits and relabellings.
        layers: those that are summed up.
        shape: (layers, prompts, hidden size) of the first set's states.
        dtype: of the model.

    """

    chosen: Sequence[Prompts]
    ended: Sequence[Sequence[Ended]]
    overlaps: Mapping[str, Sequence[Sequence[PairOverlap]]]
    plan: Plan
    layers: Sequence[int]
    shape: tuple[int, ...]
    dtype: str


def assemble(measured: Measured, settings: Settings) -> ActivationsResult:
    """The content of activations.json."""
    blocks, chosen = measured.shape[0] - 1, measured.chosen
    return ActivationsResult(
        model=settings.model,
        delta=settings.delta,
        dtype=measured.dtype,
        token=settings.token,
        blocks=blocks,
        hidden_size=measured.shape[2],
        summed_layers=list(measured.layers),
        summed_depths=[round(layer / blocks, 4) for layer in measured.layers],
        energies=list(settings.energies),
        rows_in_half=measured.plan.rows_in_half,
        splits=settings.splits,
        permutations=settings.permutations,
        sets={p.label: _summary(p, ends) for p, ends in zip(chosen, measured.ended, strict=True)},
        pairs=[
            SetPair(
                sets=[chosen[a].label, chosen[b].label],
                shared_prompts=len(set(chosen[a].ids) & set(chosen[b].ids)),
                uncentred=_pair([layer[q] for layer in measured.overlaps["uncentred"]], measured.layers),
                centred=_pair([layer[q] for layer in measured.overlaps["centred"]], measured.layers),
            )
            for q, (a, b) in enumerate(pairs(len(chosen)))
        ],
    )


def _summary(prompts: Prompts, ends: Sequence[Ended]) -> SetSummary:
    answered = None
    if ends[0].response is not None:
        answered = Answered(
            empty=sum(end.written == 0 for end in ends),
            finished=sum(end.finished for end in ends),
            cut=sum(not end.finished for end in ends),
            mean_tokens=float(np.mean([end.written for end in ends])),
        )
    return SetSummary(
        name=prompts.source.name,
        sha256=prompts.source.sha256,
        rows=len(prompts.source.rows),
        prompts=len(prompts.rows),
        repeated=prompts.repeated,
        skipped=[*prompts.source.skipped, *prompts.skipped],
        different_tokens=len({end.ids[-1] for end in ends}),
        commonest_tokens=Counter(end.token for end in ends).most_common(_SHOWN_TOKENS),
        responses=answered,
    )


def _pair(by_layer: Sequence[PairOverlap], layers: Sequence[int]) -> CentredPair:
    """One pair of sets, states centred or not."""
    used = [layer for layer in layers if by_layer[layer].defined]
    mean = mean_of([by_layer[layer] for layer in used])
    return CentredPair(
        mean=None if mean is None else MeanOverlap(**_numbers_of(mean), layers=used, permuted=_relabelled(mean)),
        layers=[
            LayerOverlap(**_numbers_of(overlap), layer=number, permuted=_relabelled(overlap))
            for number, overlap in enumerate(by_layer)
        ],
        without_directions=[number for number, overlap in enumerate(by_layer) if not overlap.defined],
    )


def _numbers_of(overlap: PairOverlap) -> dict[str, Any]:
    """The fields of a `SetOverlap`."""
    ceilings = overlap.self_half.mean(1)
    plain = SetOverlap(
        ranks=overlap.ranks.tolist(),
        overlap=_numbers(overlap.overlap),
        chance=_numbers(overlap.chance),
        half=Halves(
            overlap=_numbers(overlap.cross_half.mean(0)),
            interval=_intervals(overlap.cross_half),
            ceilings=[_numbers(ceiling) for ceiling in ceilings],
            ceiling_intervals=[_intervals(own) for own in overlap.self_half],
            share_of_ceiling=_numbers(share_of_ceiling(overlap)),
            chance=_numbers(overlap.chance_half),
        ),
        mean_share=overlap.mean_share.tolist(),
        mean_cosine=_number(float(overlap.mean_cosine)),
    )
    return vars(plain)


def _relabelled(overlap: PairOverlap) -> Relabelled | None:
    if not len(overlap.permuted):
        return None
    over_energies = (np.array([overlap.tested.mean()]), overlap.permuted.mean(1, keepdims=True))
    return Relabelled(
        tested=_numbers(overlap.tested),
        mean=_numbers(overlap.permuted.mean(0)),
        interval=_intervals(overlap.permuted),
        p_value=_numbers(relabelling_p_value(overlap.tested, overlap.permuted)),
        p_value_over_energies=_numbers(relabelling_p_value(*over_energies))[0],
    )


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _numbers(values: np.ndarray) -> list[float | None]:
    return [_number(value) for value in values.tolist()]


def _intervals(draws: np.ndarray) -> list[list[float] | None]:
    """The central 95 % of draws (R, E), for each of E."""
    ends = [percentile_interval(column, 0.95) for column in draws.T]
    return [None if end is None else list(end) for end in ends]
