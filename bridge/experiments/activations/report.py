"""The table, the pictures and the page of `bridge.activations`, drawn from its result alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bridge.experiments.activations.result import (
    CENTRINGS,
    ActivationsResult,
    Centring,
    MeanOverlap,
    Relabelled,
    SetPair,
    SetSummary,
)
from bridge.experiments.activations.settings import Settings
from bridge.reports.console import print_tables
from bridge.reports.drawing import DARK, LIGHT, MID, new_figure, png_of
from bridge.reports.numbers import number
from bridge.reports.pages import write_page
from bridge.reports.results import pictures_of, tables_of
from bridge.reports.tables import Table
from commands.store import Folder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SHOWN = (0.5, 0.9, 0.99)  # energy fractions of the table
_READ = 0.9  # the one that is read aloud and drawn over the layers
_LEVEL = 0.05

HEADINGS = (
    "sets", "states", "energy", "ranks", "overlap", "of halves", "each with itself", "share of that", "by chance",
    "tested", "labels drawn", "p",
)  # fmt: skip
_TEXT_COLUMNS = 2


@tables_of.register
def tables(result: ActivationsResult) -> list[Table]:
    """The closing table: pairs of sets, as they are and centred, at some energy fractions."""
    summed = layers_text(result.summed_layers)
    title = f"{result.model}: hidden states of {_whose(result)}, mean over {summed}"
    return [Table(title, HEADINGS, rows(result), _TEXT_COLUMNS)]


def print_result(result: ActivationsResult, folder: Folder) -> None:
    """Print the closing table and what it says to standard output, and where the report is."""
    print_tables(tables(result), readings(result))
    print(f"\n{folder.path / 'report.html'}")


@pictures_of.register
def pictures(result: ActivationsResult) -> dict[str, bytes]:
    """The run's pictures by name."""
    return {"energies": over_energies(result), "layers": over_layers(result)}


def _whose(result: ActivationsResult) -> str:
    return "the prompt's last token" if result.token == "prompt" else "the response's last token"


def layers_text(layers: list[int]) -> str:
    """Layers as people read them: "layers 20–27 and 30"."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    texts = [str(first) if first == last else f"{first}–{last}" for first, last in runs]
    joined = " and ".join(filter(None, [", ".join(texts[:-1]), texts[-1]]))
    return f"{'layer' if len(layers) == 1 else 'layers'} {joined}"


def _shown(result: ActivationsResult) -> list[int]:
    """Places of the energy fractions in the table: the usual ones that were measured, or else the one read aloud."""
    return [k for k, energy in enumerate(result.energies) if energy in _SHOWN] or [_read(result)]


def _read(result: ActivationsResult) -> int:
    """Place of the energy fraction nearest to the one that is read aloud."""
    return int(np.argmin([abs(energy - _READ) for energy in result.energies]))


def rows(result: ActivationsResult) -> list[tuple[str, ...]]:
    """The table's rows as text: pairs of sets, as they are and centred, at some energy fractions."""
    out: list[tuple[str, ...]] = []
    for pair, name, mean in result.means():
        if mean is None:
            continue
        half, drawn = mean.half, mean.permuted
        for k in _shown(result):
            out.append(
                (
                    " × ".join(pair.sets),
                    name,
                    f"{result.energies[k]:.0%}",
                    " / ".join(number(ranks[k]) for ranks in mean.ranks),
                    number(mean.overlap[k]),
                    number(half.overlap[k]),
                    " / ".join(number(ceiling[k]) for ceiling in half.ceilings),
                    _percent(half.share_of_ceiling[k]),
                    number(half.chance[k]),
                    number(drawn.tested[k] if drawn else None),
                    number(drawn.mean[k] if drawn else None),
                    number(drawn.p_value[k] if drawn else None),
                )
            )
    return out


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.0%}"  # halves of a set may share nothing at all


def readings(result: ActivationsResult) -> list[str]:
    """Sentences on what the table says."""
    lines = [_reading(result, pair, name, mean) for pair, name, mean in result.means()]
    if len(result.pairs) > 1:
        lines += [_order(result, name) for name in CENTRINGS]
    for label, about in result.sets.items():
        lines += _remarks(label, about)
    for pair in result.pairs:
        if pair.shared_prompts:
            sets = " and ".join(pair.sets)
            lines.append(f"{sets} have {pair.shared_prompts} prompts in common, which raises their overlap.")
    return lines


def _reading(result: ActivationsResult, pair: SetPair, name: Centring, mean: MeanOverlap | None) -> str:
    first, second = pair.sets
    who = f"{first} and {second}, {name}"
    if mean is None:
        layers = layers_text(result.summed_layers)
        return f"{who}: no common subspace to speak of in {layers}, where all states of a set are equal or zero."
    k, half = _read(result), mean.half
    ceilings = [number(ceiling[k]) for ceiling in half.ceilings]
    share = _percent(half.share_of_ceiling[k])
    text = (
        f"{who}: halves of {result.rows_in_half} prompts share {number(half.overlap[k])} of their directions at "
        f"{result.energies[k]:.0%} of the energy, two halves of {first} {ceilings[0]}, of {second} {ceilings[1]}: "
        f"{share} of what each shares with itself; by chance {number(half.chance[k])}."
    )
    if mean.permuted is not None:
        text += f" {_verdict(mean.permuted, result.permutations)}"
    if name == "uncentred":
        shares = " and ".join(f"{share:.0%}" for share in mean.mean_share)
        text += f" The sets' means hold {shares} of the energy, at a cosine of {number(mean.mean_cosine)}."
    return text


def _order(result: ActivationsResult, name: Centring) -> str:
    """The pairs of sets, those that share most first."""
    k = _read(result)
    shares = [
        (mean.half.share_of_ceiling[k], " × ".join(pair.sets))
        for pair, centring, mean in result.means()
        if centring == name and mean is not None
    ]
    shares.sort(key=lambda pair: -1.0 if pair[0] is None else pair[0], reverse=True)
    listed = ", ".join(f"{who} {_percent(share)}" for share, who in shares) or "none"
    return f"From the most alike to the least, {name}, at {result.energies[k]:.0%} of the energy: {listed}."


def _verdict(drawn: Relabelled, count: int) -> str:
    """What the relabelling over all energy fractions says."""
    p = drawn.p_value_over_energies
    if 1 / (1 + count) > _LEVEL:
        return f"{count} relabellings are too few for a test."
    if p is not None and p <= _LEVEL:
        return f"With the labels drawn anew they would share more (p = {number(p)} over all energies): the sets differ."
    return f"With the labels drawn anew they share as little at times (p = {number(p)}): no difference was found."


def _remarks(label: str, about: SetSummary) -> list[str]:
    """What a reader has to know of one set."""
    out = []
    if about.repeated:
        out.append(f"{label}: {about.repeated} repeated prompts were left out.")
    answers = about.responses
    if answers and answers.empty:
        out.append(
            f"{label}: {answers.empty} of {about.prompts} responses end at once; their states are those of the "
            "prompt's last token, from which the end was predicted."
        )
    if answers and answers.cut:
        out.append(f"{label}: {answers.cut} of {about.prompts} responses were cut before their end.")
    return out


def write(result: ActivationsResult, settings: Settings, folder: Path) -> None:
    """Write the pictures and report.html."""
    write_page(
        folder,
        "experiments/activations/report.html",
        pictures(result),
        result=result,
        settings=settings.identity(),
        table=tables(result)[0],
        readings=readings(result),
        whose=_whose(result),
        summed=layers_text(result.summed_layers),
        read=f"{result.energies[_read(result)]:.0%}",
    )


def _panels(result: ActivationsResult) -> tuple[Figure, list[tuple[Axes, SetPair, Centring]]]:
    """A figure with a row for each pair and a column for each centring, and what belongs into each."""
    count = len(result.pairs)
    figure, axes = new_figure(count, 2, (11.0, 4.3 * count))
    grid = np.reshape(axes, (count, 2))
    return figure, [
        (grid[row, column], pair, name)
        for row, pair in enumerate(result.pairs)
        for column, name in enumerate(CENTRINGS)
    ]


def _values(numbers: Sequence[float | None]) -> np.ndarray:
    return np.array(numbers, dtype=np.float64)  # None becomes NaN, which is not drawn


def over_energies(result: ActivationsResult) -> bytes:
    """energies.png: overlap, ceilings and chance over the energy fractions, for the layers summed up and their mean."""
    figure, panels = _panels(result)
    energies = result.energies
    for axis, pair, name in panels:
        first, second = pair.sets
        for layer in result.summed_layers:
            axis.plot(energies, _values(pair.centring(name).layers[layer].half.overlap), color="0.7", lw=0.7)
        if (mean := pair.centring(name).mean) is not None:
            if mean.permuted is not None:
                low, high = np.transpose([ends or [np.nan, np.nan] for ends in mean.permuted.interval])
                axis.fill_between(energies, low, high, color="0.88", label="tested, labels drawn anew (95 %)")
                axis.plot(energies, _values(mean.permuted.tested), color="0.5", ls="-.", lw=1.0, label="tested")
            axis.plot(
                energies, _values(mean.overlap), color=DARK, ls="--", lw=1.2, label=f"{first} × {second}, all prompts"
            )
            for label, ceiling, color, marker in zip(pair.sets, mean.half.ceilings, (MID, LIGHT), "s^", strict=True):
                axis.plot(energies, _values(ceiling), color=color, marker=marker, ms=4, label=f"two halves of {label}")
            axis.plot(energies, _values(mean.half.overlap), color=DARK, marker="o", ms=4,
                      label=f"a half of {first} × one of {second}")  # fmt: skip
            axis.plot(energies, _values(mean.half.chance), color="0.3", ls=":", label="halves, by chance")
        axis.set(ylim=(0, 1.03), xlim=(0, 1), xlabel="energy fraction", ylabel="mode subspace overlap",
                 title=f"{first} × {second}, {name}")  # fmt: skip
    _legends(panels)
    return png_of(figure)


def _legends(panels: list[tuple[Axes, SetPair, Centring]]) -> None:
    """One for each pair, whose names it tells."""
    for axis, _, _ in panels[:: len(CENTRINGS)]:
        axis.legend(frameon=False, fontsize=7.5)


def over_layers(result: ActivationsResult) -> bytes:
    """layers.png: overlap at halves, ceilings and chance in every layer, at one energy fraction."""
    figure, panels = _panels(result)
    k = _read(result)
    layers = np.arange(result.blocks + 1)
    for axis, pair, name in panels:
        first, second = pair.sets
        halves = [layer.half for layer in pair.centring(name).layers]
        for number_, (label, color, marker) in enumerate(zip(pair.sets, (MID, LIGHT), "s^", strict=True)):
            ceiling = _values([half.ceilings[number_][k] for half in halves])
            axis.plot(layers, ceiling, color=color, marker=marker, ms=3, label=f"two halves of {label}")
        overlap = _values([half.overlap[k] for half in halves])
        axis.plot(layers, overlap, color=DARK, marker="o", ms=3, label=f"a half of {first} × one of {second}")
        chance = _values([half.chance[k] for half in halves])
        axis.plot(layers, chance, color="0.3", ls=":", label="by chance")
        for layer in result.summed_layers:
            axis.axvspan(layer - 0.5, layer + 0.5, color="0.93", lw=0)
        axis.set(ylim=(0, 1.03), xlabel="layer (0: embeddings)", ylabel="mode subspace overlap",
                 title=f"{first} × {second}, {name}, {result.energies[k]:.0%} of the energy")  # fmt: skip
        axis.locator_params("x", integer=True)
    _legends(panels)
    return png_of(figure)
