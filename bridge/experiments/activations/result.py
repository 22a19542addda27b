"""activations.json: what the overlaps of all layers say, put together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.experiments.activations.prompts import Ended, Prompts
from commands.store import SCHEMA_VERSION
from theory.activation_overlap import PairOverlap, Plan, mean_of, pairs, relabelling_p_value, share_of_ceiling
from theory.resampling import percentile_interval

if TYPE_CHECKING:
    from bridge.experiments.activations.settings import Settings

CENTRINGS = ("uncentred", "centred")
_SHOWN_TOKENS = 3


def assemble(
    chosen: Sequence[Prompts],
    ended: Sequence[Sequence[Ended]],
    overlaps: Mapping[str, Sequence[Sequence[PairOverlap]]],
    plan: Plan,
    layers: Sequence[int],
    settings: Settings,
    shape: tuple[int, ...],
) -> dict[str, Any]:
    """The content of activations.json, without what the options say of the model.

    Args:
        chosen: the prompts of every set.
        ended: for each set and prompt the token that was measured.
        overlaps: by centring, for each layer the overlaps of every pair of sets.
        plan: splits and relabellings.
        layers: those that are summed up.
        settings: the options.
        shape: (layers, prompts, hidden size) of the first set's states.

    """
    blocks = shape[0] - 1
    return {
        "schema_version": SCHEMA_VERSION,
        "blocks": blocks,
        "hidden_size": shape[2],
        "summed_layers": list(layers),
        "summed_depths": [round(layer / blocks, 4) for layer in layers],
        "energies": list(settings.energies),
        "rows_in_half": plan.rows_in_half,
        "splits": settings.splits,
        "permutations": settings.permutations,
        "sets": {p.label: _about(p, ends) for p, ends in zip(chosen, ended, strict=True)},
        "pairs": [
            {
                "sets": [chosen[a].label, chosen[b].label],
                "shared_prompts": len(set(chosen[a].ids) & set(chosen[b].ids)),
                **{name: _pair([layer[q] for layer in overlaps[name]], layers) for name in CENTRINGS},
            }
            for q, (a, b) in enumerate(pairs(len(chosen)))
        ],
    }


def _about(prompts: Prompts, ends: Sequence[Ended]) -> dict[str, Any]:
    """A set: where it is from, what was left out, which tokens were measured."""
    tokens = Counter(end.token for end in ends)
    about: dict[str, Any] = {
        "name": prompts.source.name,
        "sha256": prompts.source.sha256,
        "rows": len(prompts.source.rows),
        "prompts": len(prompts.rows),
        "repeated": prompts.repeated,
        "skipped": [*prompts.source.skipped, *prompts.skipped],
        "different_tokens": len({end.ids[-1] for end in ends}),
        "commonest_tokens": [[token, count] for token, count in tokens.most_common(_SHOWN_TOKENS)],
    }
    if ends[0].response is not None:
        about["responses"] = {
            "empty": sum(end.written == 0 for end in ends),
            "finished": sum(end.finished for end in ends),
            "cut": sum(not end.finished for end in ends),
            "mean_tokens": float(np.mean([end.written for end in ends])),
        }
    return about


def _pair(by_layer: Sequence[PairOverlap], layers: Sequence[int]) -> dict[str, Any]:
    """One pair of sets, states centred or not: the mean over the layers that are summed up, and every layer."""
    used = [layer for layer in layers if by_layer[layer].defined]
    mean = mean_of([by_layer[layer] for layer in used])
    return {
        "mean": None if mean is None else {"layers": used, **_entry(mean)},
        "layers": [{"layer": number, **_entry(overlap)} for number, overlap in enumerate(by_layer)],
        "without_directions": [number for number, overlap in enumerate(by_layer) if not overlap.defined],
    }


def _entry(found: PairOverlap) -> dict[str, Any]:
    """The numbers of one layer, or of a mean over layers; a list has one number for each energy fraction."""
    ceilings = found.self_half.mean(1)
    entry: dict[str, Any] = {
        "ranks": found.ranks.tolist(),
        "overlap": _numbers(found.overlap),
        "chance": _numbers(found.chance),
        "half": {
            "overlap": _numbers(found.cross_half.mean(0)),
            "interval": _intervals(found.cross_half),
            "ceilings": [_numbers(ceiling) for ceiling in ceilings],
            "ceiling_intervals": [_intervals(own) for own in found.self_half],
            "share_of_ceiling": _numbers(share_of_ceiling(found)),
            "chance": _numbers(found.chance_half),
        },
        "mean_share": found.mean_share.tolist(),
        "mean_cosine": _number(float(found.mean_cosine)),
    }
    if len(found.permuted):
        over_energies = (np.array([found.tested.mean()]), found.permuted.mean(1, keepdims=True))
        entry["permuted"] = {
            "tested": _numbers(found.tested),
            "mean": _numbers(found.permuted.mean(0)),
            "interval": _intervals(found.permuted),
            "p_value": _numbers(relabelling_p_value(found.tested, found.permuted)),
            "p_value_over_energies": _numbers(relabelling_p_value(*over_energies))[0],
        }
    return entry


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _numbers(values: np.ndarray) -> list[float | None]:
    return [_number(value) for value in values.tolist()]


def _intervals(draws: np.ndarray) -> list[list[float] | None]:
    """The central 95 % of draws (R, E), for each of E."""
    ends = [percentile_interval(column, 0.95) for column in draws.T]
    return [None if end is None else list(end) for end in ends]
