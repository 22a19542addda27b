"""The pictures of `bridge.safety_subspaces`, drawn from its result alone. Readable in greyscale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from bridge.deltas.choices import Basis, Scheme
from bridge.experiments.subspaces.result import PairSummary
from bridge.models.blocks import block_number
from bridge.reports.drawing import DARK, LIGHT, MID, new_figure, png_of
from bridge.reports.results import pictures_of
from bridge.suites.safety_subspaces.result import ALIGNED, BASE, ProjectedModel, SafetySubspacesResult
from bridge.suites.safety_subspaces.settings import USEFUL

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Across = Literal["fraction", "energy"]
_STYLES: dict[Basis, tuple[str, str, str]] = {
    "top-k": (DARK, "o", "-"),
    "random-k": (MID, "s", "--"),
    "random": (LIGHT, "^", ":"),
}
_PAIRS = ((DARK, "o", "-"), (MID, "s", "--"), (LIGHT, "^", "-."), ("0.45", "D", ":"), ("#4d7c4a", "v", "-"),
          ("#8a4f7d", "P", "--"))  # fmt: skip
_TICKS = 40  # labels of blocks at most
_AXES: dict[Across, str] = {
    "fraction": "rank / min(rows, columns)",
    "energy": "share of the fine-tune's squared norm kept",
}


@pictures_of.register
def pictures(result: SafetySubspacesResult) -> dict[str, bytes]:
    """All pictures as PNG files by name."""
    others = result.others(USEFUL)
    return {
        "figure2": outcomes(result, [USEFUL], "fraction"),
        "figure3": outcomes(result, others, "fraction"),
        "by_energy": outcomes(result, [USEFUL, *others], "energy"),
        "energy": energy(result),
        "figure4": overlaps(result),
    }


def outcomes(result: SafetySubspacesResult, finetunes: Sequence[str], across: Across) -> bytes:
    """Each measure (down) of the projections of fine-tunes, in both schemes (side by side), against one quantity."""
    measures = result.measures
    columns = [(finetune, scheme) for finetune in finetunes for scheme in result.schemes]
    size = (1.0 + 3.6 * len(columns), 0.6 + 3.0 * len(measures))
    figure, drawn = new_figure(len(measures), len(columns), size)
    axes = np.array(drawn, dtype=object).reshape(len(measures), len(columns))
    for row, measure in zip(axes, measures, strict=True):
        for axis, (finetune, scheme) in zip(row, columns, strict=True):
            for k, points in enumerate(result.series(finetune, scheme).values()):
                _line(axis, points, measure, across, 0.007 * k)
            _references(axis, result, finetune, measure)
            axis.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03) if result.is_share(measure) else (0.9, 5.1))
            axis.set_title(f"{finetune}, {scheme}", fontsize=9)
            axis.set_xlabel(_AXES[across], fontsize=8)
        row[0].set_ylabel(measure, fontsize=8)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return png_of(figure)


def _line(axis: Axes, points: Sequence[ProjectedModel], measure: str, across: Across, shift: float) -> None:
    """A line for one draw of a basis with 95 % intervals, shifted a little so that none hides another."""
    known = [p for p in points if p.measures[measure].value is not None]
    if not known:
        return
    known.sort(key=lambda p: float(getattr(p, across)))
    basis, drawn_before = known[0].basis, known[0].draw > 1
    color, marker, style = _STYLES[basis]
    measures = [p.measures[measure] for p in known]
    values = np.array([[m.value, m.low, m.high] for m in measures], float).T
    axis.errorbar(
        [getattr(p, across) + shift for p in known], values[0], np.nan_to_num(np.abs(values[1:] - values[0])),
        color=color, marker=marker, ms=4, ls=style, lw=1.2, elinewidth=0.6, capsize=2,
        alpha=0.6 if drawn_before else 1.0, label=None if drawn_before else basis,
    )  # fmt: skip


def _references(axis: Axes, result: SafetySubspacesResult, finetune: str, measure: str) -> None:
    dashed: tuple[int, tuple[int, int]] = (0, (6, 2))
    for label, name, color, style in (
        ("aligned", ALIGNED, "0.25", dashed),
        ("fine-tuned, not projected", finetune, "0.25", "-"),
        ("base", BASE, "0.6", ":"),
    ):
        value = result.references[name].measures[measure].value
        if value is not None:
            axis.axhline(value, color=color, ls=style, lw=1.0, label=label, zorder=0)


def energy(result: SafetySubspacesResult) -> bytes:
    """energy.png: energy kept inside each basis against its rank, beside an isotropic update's."""
    figure, drawn = new_figure(1, len(result.updates), (1.0 + 3.8 * len(result.updates), 3.8))
    axes = np.atleast_1d(drawn)
    for axis, finetune in zip(axes, result.updates, strict=True):
        scheme = result.schemes[0]
        for points in result.series(finetune, scheme).values():
            basis = points[0].basis
            color, marker, style = _STYLES[basis]
            fractions = [p.fraction for p in points]
            axis.plot(fractions, [_inside(p.energy, scheme) for p in points], color=color, marker=marker, ms=4,
                      ls=style, lw=1.2, label=None if points[0].draw > 1 else basis)  # fmt: skip
        axis.plot(fractions, [_inside(p.isotropic, scheme) for p in points], color="0.6", lw=4, alpha=0.5, zorder=0,
                  label="if isotropic")  # fmt: skip
        axis.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), title=finetune, xlabel=_AXES["fraction"])
    axes[0].set_ylabel("share of the squared norm inside the basis")
    axes[0].legend(frameon=False, fontsize=8)
    return png_of(figure)


def _inside(share: float, scheme: Scheme) -> float:
    """A share inside the basis, whichever part was kept."""
    return share if scheme == "parallel" else 1 - share


def overlaps(result: SafetySubspacesResult) -> bytes:
    """figure4.png: mode subspace overlap of the updates over energies, and by block, beside chance."""
    energies, pairs = result.overlap.energies, result.overlap.pairs
    middle = len(energies) // 2
    names = _layers(pairs)
    figure, (left, right) = new_figure(1, 2, (11.0, 4.2))
    for k, pair in enumerate(pairs):
        color, marker, style = _PAIRS[k % len(_PAIRS)]
        layers = [pair.layers.get(name) for name in names]
        left.plot(energies, pair.whole.overlap, color=color, ls=style, marker=marker, ms=4,
                  label=" – ".join(pair.updates))  # fmt: skip
        left.plot(energies, pair.whole.chance, color=color, ls=style, lw=4, alpha=0.25)
        right.plot([layer.overlap[middle] if layer else math.nan for layer in layers], color=color, ls=style,
                   marker=marker, ms=4)  # fmt: skip
        right.plot([layer.chance[middle] if layer else math.nan for layer in layers], color=color, ls=style, lw=4,
                   alpha=0.25)  # fmt: skip
    left.set(xlabel="share of each update's squared norm", ylabel="mode subspace overlap", title="mean over matrices")
    right.set(xlabel="block, in the model's order", title=f"by block, at {energies[middle]:g}")
    shown = {k: label for k, name in enumerate(names) if (label := _tick(name, len(names)))}
    right.set_xticks(list(shown), list(shown.values()), fontsize=6, rotation=90)
    for axis in (left, right):
        axis.set_ylim(0, 1.03)
    left.legend(frameon=False, fontsize=8, title="broad and pale: chance", title_fontsize=8)
    return png_of(figure)


def _layers(pairs: Sequence[PairSummary]) -> list[str]:
    """Blocks, and matrices outside of them, that one of the pairs has: in the model's order, each once."""
    every = [list(pair.layers) for pair in pairs]

    def place(name: str) -> tuple[int, int]:
        number = block_number(name)
        if number is not None:
            return 1, number
        after = (names[names.index(name) + 1 :] for names in every if name in names)
        first = any(block_number(later) is not None for names in after for later in names)
        return (0, 0) if first else (2, 0)

    return sorted(dict.fromkeys(name for names in every for name in names), key=place)


def _tick(name: str, count: int) -> str:
    """A block's number, every so many only where there are many of them; the name of what stands outside."""
    number = block_number(name)
    if number is None:
        return name.removesuffix(".weight").rpartition(".")[2]
    return str(number) if number % -(-count // _TICKS) == 0 else ""
