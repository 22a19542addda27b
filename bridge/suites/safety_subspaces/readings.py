"""What the numbers of a `bridge.safety_subspaces` run say: comparisons at equal rank and at equal energy, in words.

Two measurements are called apart where their 95 % intervals do not meet. Both are of the same prompts, so that this is
a cautious rule: where intervals meet, no difference shows, and that is not to say that there is none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bridge.reports.numbers import number
from bridge.reports.tables import shown
from bridge.suites.measures import REFUSALS
from bridge.suites.safety_subspaces.points import ALIGNED

Found = Mapping[str, Any]
TOP = "top-k"


@dataclass(frozen=True)
class Comparison:
    """Top-K beside the random controls for one fine-tune, scheme, fraction and measure.

    `value` is Top-K's; `control` the mean of the controls'; `apart` says that its interval meets none of theirs.
    """

    finetune: str
    scheme: str
    fraction: float
    measure: str
    value: float
    control: float
    apart: bool


def series(found: Found, finetune: str, scheme: str) -> dict[str, list[Found]]:
    """The points of one fine-tune and scheme by the label of their basis, by rising fraction."""
    out: dict[str, list[Found]] = {}
    for point in found["points"]:
        if point["finetune"] == finetune and point["scheme"] == scheme:
            out.setdefault(point["label"], []).append(point)
    return out


def measure_names(found: Found) -> list[str]:
    """Names of what was measured of every model: utility first."""
    return list(found["references"][ALIGNED]["measures"])


def at_equal_rank(found: Found, finetune: str) -> list[Comparison]:
    """Top-K and the controls at the same fraction."""

    def ends(control: Sequence[Found], top: Found, measure: str, scheme: str) -> list[float] | None:
        return next((_ends(p, measure) for p in control if p["fraction"] == top["fraction"]), None)

    return _compare(found, finetune, ends)


def at_equal_energy(found: Found, finetune: str) -> list[Comparison]:
    """Top-K and the controls at the same energy kept.

    Each control's value and interval are interpolated linearly between its two nearest energies, never beyond them. At
    the ends stand models without projection, as far as they are what a projection comes to (see `_ends_of_energy`). A
    Top-K model whose energy lies beyond all that was measured of every control is not compared.
    """
    ends_of = _ends_of_energy(found, finetune)

    def ends(control: Sequence[Found], top: Found, measure: str, scheme: str) -> list[float] | None:
        known = [(p["energy"], _ends(p, measure)) for p in control]
        known += [(energy, _ends(reference, measure)) for energy, reference in ends_of.items()]
        if any(values is None for _, values in known):
            return None
        known.sort(key=lambda pair: pair[0])
        energies = [energy for energy, _ in known]
        if not energies[0] <= top["energy"] <= energies[-1]:
            return None
        columns = np.array([values for _, values in known], dtype=np.float64).T
        return [float(np.interp(top["energy"], energies, column)) for column in columns]

    return _compare(found, finetune, ends)


def _ends_of_energy(found: Found, finetune: str) -> dict[float, Found]:
    """The models without projection that are the projected ones of energy 0 and 1.

    LoRA moves matrices only: the aligned model and the fine-tune. Where all parameters were trained, a projected model
    has the fine-tune's norms and biases, so that energy 1 is the fine-tune but energy 0 is not the aligned model; or it
    has the aligned model's, and it is the other way round.
    """
    every = {0.0: found["references"][ALIGNED], 1.0: found["references"][finetune]}
    if found["method"] == "lora":
        return every
    exact = 1.0 if found["vectors"] == "keep" else 0.0
    return {exact: every[exact]}


def _ends(entry: Found, measure: str) -> list[float] | None:
    """Value and interval of a measure, or None where it has none."""
    named = entry["measures"].get(measure)
    if named is None or named["value"] is None or named["low"] is None:
        return None
    return [named["value"], named["low"], named["high"]]


def _compare(found: Found, finetune: str, control_ends: Any) -> list[Comparison]:
    out: list[Comparison] = []
    for scheme in found["schemes"]:
        lines = series(found, finetune, scheme)
        controls = [line for label, line in lines.items() if label != TOP]
        for top in lines.get(TOP, []):
            for measure in measure_names(found):
                mine = _ends(top, measure)
                theirs = [control_ends(control, top, measure, scheme) for control in controls]
                known = [values for values in theirs if values is not None]
                if mine is None or not known:
                    continue
                apart = mine[1] > max(high for _, _, high in known) or mine[2] < min(low for _, low, _ in known)
                control = float(np.mean([value for value, _, _ in known]))
                out.append(Comparison(finetune, scheme, top["fraction"], measure, mine[0], control, apart))
    return out


def moved(found: Found, finetune: str, measure: str) -> float | None:
    """By how much a fine-tune moved a measure of the aligned model; None if the two are not apart."""
    before = _ends(found["references"][ALIGNED], measure)
    after = _ends(found["references"][finetune], measure)
    if before is None or after is None or not (before[1] > after[2] or before[2] < after[1]):
        return None
    return after[0] - before[0]


def readings(found: Found) -> list[str]:
    """Sentences on what the tables say, each computed from the numbers."""
    lines: list[str] = []
    for finetune in found["updates"]:
        lines += [_effect(found, finetune), *_energy(found, finetune), *_top_k(found, finetune)]
        lines += _both(found, finetune)
    return [*lines, *_overlaps(found)]


def _effect(found: Found, finetune: str) -> str:
    """What the fine-tune itself did."""
    before, after = (found["references"][name]["measures"] for name in (ALIGNED, finetune))
    parts = []
    for measure in measure_names(found):
        verdict = "" if moved(found, finetune, measure) is not None else ", within the intervals"
        parts.append(f"{measure} {shown(before[measure])} → {shown(after.get(measure))}{verdict}")
    return f"{finetune}, not projected: {'; '.join(parts)}."


def _energy(found: Found, finetune: str) -> list[str]:
    """How the energy in the first directions of the alignment update compares with an isotropic update's."""
    lines = series(found, finetune, "parallel").get(TOP) or []
    if not lines:
        return []
    first = lines[0]
    cosine = found["updates"][finetune]["cosine"]
    return [
        f"{finetune}: the top {_percent(first['fraction'])} of the alignment update's directions hold "
        f"{_percent(first['energy'])} of its squared norm, {number(first['energy'] / first['isotropic'])} times what "
        f"an isotropic update has there; its cosine with the alignment update is {number(cosine)}."
    ]


def _top_k(found: Found, finetune: str) -> list[str]:
    rank, energy = at_equal_rank(found, finetune), at_equal_energy(found, finetune)
    if not rank:
        return []
    by_rank, by_energy = ([c for c in each if c.apart] for each in (rank, energy))
    beyond = len(rank) - len(energy)
    line = (
        f"{finetune}: Top-K is apart from every random control in {len(by_rank)} of {len(rank)} comparisons at equal "
        f"rank and in {len(by_energy)} of {len(energy)} at equal energy"
        + (f" ({beyond} more have no control around their energy)" if beyond else "")
    )
    if by_energy:
        return [f"{line}; furthest apart at equal energy: {_widest(found, by_energy, 3)}."]
    if not energy:
        return [f"{line}."]
    where = "at equal energy no difference" if by_rank else "no difference"
    return [f"{line}: {where} shows at this number of items. The widest gap at equal energy: {_widest(found, energy)}."]


def _widest(found: Found, comparisons: Sequence[Comparison], count: int = 1) -> str:
    """The comparisons whose values lie furthest apart, Top-K's against the mean of the controls."""
    chosen = sorted(comparisons, key=lambda c: -_scaled(found, c))[:count]
    return "; ".join(_told(found, c) for c in chosen)


def _scaled(found: Found, comparison: Comparison) -> float:
    share = found["references"][ALIGNED]["measures"][comparison.measure]["kind"] == "share"
    return abs(comparison.value - comparison.control) / (1.0 if share else 4.0)  # scores go from 1 to 5


def _told(found: Found, comparison: Comparison) -> str:
    kind = found["references"][ALIGNED]["measures"][comparison.measure]["kind"]
    values = [_percent(v) if kind == "share" else number(v) for v in (comparison.value, comparison.control)]
    return (
        f"{comparison.measure}, {comparison.scheme}, fraction {comparison.fraction:g}: {values[0]} against {values[1]}"
    )


def _both(found: Found, finetune: str) -> list[str]:
    """How many projections keep what the fine-tune gained and what the aligned model had; where it did both."""
    utility, *safety = measure_names(found)
    gain = moved(found, finetune, utility)
    lost = [m for m in safety if (change := moved(found, finetune, m)) is not None and (change < 0) == (m == REFUSALS)]
    if gain is None or gain < 0 or not lost:
        return []
    out = []
    gained = found["references"][finetune]["measures"][utility]["value"]
    for measure in lost:
        had = found["references"][ALIGNED]["measures"][measure]["value"]
        counts: dict[str, list[bool]] = {}
        for point in found["points"]:
            ends = [_ends(point, utility), _ends(point, measure)]
            if point["finetune"] == finetune and ends[0] is not None and ends[1] is not None:
                held = _reaches(ends[0], gained, high=True) and _reaches(ends[1], had, high=measure == REFUSALS)
                counts.setdefault(point["basis"], []).append(held)
        each = ", ".join(f"{sum(held)} of {len(held)} with {basis}" for basis, held in counts.items())
        out.append(
            f"{finetune}: projections that keep both its {utility} and the aligned model's {measure}, as far as the "
            f"intervals tell: {each}."
        )
    return out


def _reaches(ends: Sequence[float], value: float, high: bool) -> bool:
    """Whether a measurement's interval reaches a value, from below (`high` is good) or from above."""
    return ends[2] >= value if high else ends[1] <= value


def _overlaps(found: Found) -> list[str]:
    """The subspaces of the updates themselves, at the middle energy."""
    overlap = found["overlap"]
    energies = overlap["energies"]
    k = len(energies) // 2
    parts = [
        f"{' and '.join(pair['updates'])} {number(pair['whole']['overlap'][k])} (chance "
        f"{number(pair['whole']['chance'][k])})"
        for pair in overlap["pairs"]
    ]
    return [
        f"Mode subspace overlap of the updates at {_percent(energies[k])} of their energy, mean over matrices: "
        f"{'; '.join(parts)}. The negated alignment update has the same singular subspaces as the alignment update, "
        f"so its overlaps are the same numbers."
    ]


def _percent(value: float) -> str:
    return f"{100 * value:.3g} %"
