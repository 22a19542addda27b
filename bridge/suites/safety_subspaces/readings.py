"""What the numbers of a `bridge.safety_subspaces` run say: comparisons at equal rank and at equal energy, in words.

Two measurements are called apart where their 95 % intervals do not meet. Both are of the same prompts, so that this is
a cautious rule: where intervals meet, no difference shows, and that is not to say that there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bridge.deltas.choices import Scheme
from bridge.reports.numbers import number
from bridge.suites.measures import REFUSALS, shown
from bridge.suites.safety_subspaces.result import ALIGNED, Ends, Measured, ProjectedModel, SafetySubspacesResult

TOP = "top-k"
ControlEnds = Callable[[Sequence[ProjectedModel], ProjectedModel, str], Ends | None]
"""Value and interval of a measure of one control, beside a Top-K model; None where there is nothing to compare with."""


@dataclass(frozen=True)
class Comparison:
    """Top-K beside the random controls for one fine-tune, scheme, fraction and measure.

    `value` is Top-K's; `control` the mean of the controls'; `apart` says that its interval meets none of theirs.
    """

    finetune: str
    scheme: Scheme
    fraction: float
    measure: str
    value: float
    control: float
    apart: bool


def at_equal_rank(result: SafetySubspacesResult, finetune: str) -> list[Comparison]:
    """Top-K and the controls at the same fraction."""

    def ends(control: Sequence[ProjectedModel], top: ProjectedModel, measure: str) -> Ends | None:
        return next((point.ends(measure) for point in control if point.fraction == top.fraction), None)

    return _compare(result, finetune, ends)


def at_equal_energy(result: SafetySubspacesResult, finetune: str) -> list[Comparison]:
    """Top-K and the controls at the same energy kept.

    Each control's value and interval are interpolated linearly between its two nearest energies, never beyond them. At
    the ends stand models without projection, as far as they are what a projection comes to (see `_ends_of_energy`). A
    Top-K model whose energy lies beyond all that was measured of every control is not compared.
    """
    unprojected = _ends_of_energy(result, finetune)

    def ends(control: Sequence[ProjectedModel], top: ProjectedModel, measure: str) -> Ends | None:
        known: list[tuple[float, Ends]] = []
        for energy, model in (*((point.energy, point) for point in control), *unprojected.items()):
            found = model.ends(measure)
            if found is None:
                return None
            known.append((energy, found))
        known.sort(key=lambda pair: pair[0])
        energies = [energy for energy, _ in known]
        if not energies[0] <= top.energy <= energies[-1]:
            return None
        columns = np.array([values for _, values in known], dtype=np.float64).T
        value, low, high = (float(np.interp(top.energy, energies, column)) for column in columns)
        return value, low, high

    return _compare(result, finetune, ends)


def _ends_of_energy(result: SafetySubspacesResult, finetune: str) -> dict[float, Measured]:
    """The models without projection that are the projected ones of energy 0 and 1.

    LoRA moves matrices only: the aligned model and the fine-tune. Where all parameters were trained, a projected model
    has the fine-tune's norms and biases, so that energy 1 is the fine-tune but energy 0 is not the aligned model; or it
    has the aligned model's, and it is the other way round.
    """
    every = {0.0: result.references[ALIGNED], 1.0: result.references[finetune]}
    if result.method == "lora":
        return every
    exact = 1.0 if result.vectors == "keep" else 0.0
    return {exact: every[exact]}


def _compare(result: SafetySubspacesResult, finetune: str, control_ends: ControlEnds) -> list[Comparison]:
    comparisons: list[Comparison] = []
    for scheme in result.schemes:
        lines = result.series(finetune, scheme)
        controls = [line for label, line in lines.items() if label != TOP]
        for top in lines.get(TOP, []):
            for measure in result.measures:
                mine = top.ends(measure)
                theirs = [control_ends(control, top, measure) for control in controls]
                known = [values for values in theirs if values is not None]
                if mine is None or not known:
                    continue
                apart = mine[1] > max(high for _, _, high in known) or mine[2] < min(low for _, low, _ in known)
                control = float(np.mean([value for value, _, _ in known]))
                comparisons.append(Comparison(finetune, scheme, top.fraction, measure, mine[0], control, apart))
    return comparisons


def moved(result: SafetySubspacesResult, finetune: str, measure: str) -> float | None:
    """By how much a fine-tune moved a measure of the aligned model; None if the two are not apart."""
    before, after = (result.references[name].ends(measure) for name in (ALIGNED, finetune))
    if before is None or after is None or not (before[1] > after[2] or before[2] < after[1]):
        return None
    return after[0] - before[0]


def readings(result: SafetySubspacesResult) -> list[str]:
    """Sentences on what the tables say, each computed from the numbers."""
    lines: list[str] = []
    for finetune in result.updates:
        lines += [_effect(result, finetune), *_energy(result, finetune), *_top_k(result, finetune)]
        lines += _both(result, finetune)
    return [*lines, *_overlaps(result)]


def _effect(result: SafetySubspacesResult, finetune: str) -> str:
    """What the fine-tune itself did."""
    before, after = (result.references[name].measures for name in (ALIGNED, finetune))
    parts = []
    for measure in result.measures:
        verdict = "" if moved(result, finetune, measure) is not None else ", within the intervals"
        parts.append(f"{measure} {shown(before[measure])} → {shown(after.get(measure))}{verdict}")
    return f"{finetune}, not projected: {'; '.join(parts)}."


def _energy(result: SafetySubspacesResult, finetune: str) -> list[str]:
    """How the energy in the first directions of the alignment update compares with an isotropic update's."""
    lines = result.series(finetune, "parallel").get(TOP) or []
    if not lines:
        return []
    first = lines[0]
    cosine = result.updates[finetune].cosine
    return [
        f"{finetune}: the top {_percent(first.fraction)} of the alignment update's directions hold "
        f"{_percent(first.energy)} of its squared norm, {number(first.energy / first.isotropic)} times what "
        f"an isotropic update has there; its cosine with the alignment update is {number(cosine)}."
    ]


def _top_k(result: SafetySubspacesResult, finetune: str) -> list[str]:
    rank, energy = at_equal_rank(result, finetune), at_equal_energy(result, finetune)
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
        return [f"{line}; furthest apart at equal energy: {_widest(result, by_energy, 3)}."]
    if not energy:
        return [f"{line}."]
    where = "at equal energy no difference" if by_rank else "no difference"
    return [
        f"{line}: {where} shows at this number of items. The widest gap at equal energy: {_widest(result, energy)}."
    ]


def _widest(result: SafetySubspacesResult, comparisons: Sequence[Comparison], count: int = 1) -> str:
    """The comparisons whose values lie furthest apart, Top-K's against the mean of the controls."""
    chosen = sorted(comparisons, key=lambda c: -_scaled(result, c))[:count]
    return "; ".join(_told(result, c) for c in chosen)


def _scaled(result: SafetySubspacesResult, comparison: Comparison) -> float:
    gap = abs(comparison.value - comparison.control)
    return gap / (1.0 if result.is_share(comparison.measure) else 4.0)  # scores go from 1 to 5


def _told(result: SafetySubspacesResult, comparison: Comparison) -> str:
    tell = _percent if result.is_share(comparison.measure) else number
    values = f"{tell(comparison.value)} against {tell(comparison.control)}"
    return f"{comparison.measure}, {comparison.scheme}, fraction {comparison.fraction:g}: {values}"


def _both(result: SafetySubspacesResult, finetune: str) -> list[str]:
    """How many projections keep what the fine-tune gained and what the aligned model had; where it did both."""
    utility, *safety = result.measures
    gain = moved(result, finetune, utility)
    lost = [m for m in safety if (change := moved(result, finetune, m)) is not None and (change < 0) == (m == REFUSALS)]
    gained = result.references[finetune].ends(utility)
    if gain is None or gain < 0 or gained is None:
        return []
    lines = []
    for measure in lost:
        held: dict[str, list[bool]] = {}
        had = result.references[ALIGNED].ends(measure)
        for point in result.points:
            useful, safe = point.ends(utility), point.ends(measure)
            if point.finetune == finetune and useful and safe and had:
                both = _reaches(useful, gained[0], high=True) and _reaches(safe, had[0], high=measure == REFUSALS)
                held.setdefault(point.basis, []).append(both)
        counts = ", ".join(f"{sum(kept)} of {len(kept)} with {basis}" for basis, kept in held.items())
        lines.append(
            f"{finetune}: projections that keep both its {utility} and the aligned model's {measure}, as far as the "
            f"intervals tell: {counts}."
        )
    return lines


def _reaches(ends: Ends, value: float, high: bool) -> bool:
    """Whether a measurement's interval reaches a value, from below (`high` is good) or from above."""
    return ends[2] >= value if high else ends[1] <= value


def _overlaps(result: SafetySubspacesResult) -> list[str]:
    """The subspaces of the updates themselves, at the middle energy."""
    energies = result.overlap.energies
    k = len(energies) // 2
    parts = [
        f"{' and '.join(pair.updates)} {number(pair.whole.overlap[k])} (chance {number(pair.whole.chance[k])})"
        for pair in result.overlap.pairs
    ]
    return [
        f"Mode subspace overlap of the updates at {_percent(energies[k])} of their energy, mean over matrices: "
        f"{'; '.join(parts)}. The negated alignment update has the same singular subspaces as the alignment update, "
        f"so its overlaps are the same numbers."
    ]


def _percent(value: float) -> str:
    return f"{100 * value:.3g} %"
