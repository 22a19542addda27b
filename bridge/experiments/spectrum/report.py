"""The table, the pictures and the page of `bridge.spectrum`, drawn from its result alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bridge.experiments.spectrum.result import SkillSpectrum, SpectrumResult
from bridge.experiments.spectrum.settings import Settings
from bridge.reports.console import print_tables
from bridge.reports.drawing import DARK, LIGHT, MID, new_figure, png_of
from bridge.reports.numbers import number, set_name
from bridge.reports.pages import write_page
from bridge.reports.results import pictures_of, tables_of
from bridge.reports.tables import Table
from commands.store import Folder

_STYLES = [(DARK, "-", "o"), (MID, "-", "s"), (LIGHT, "-", "^"), ("#4d7c4a", "-", "D"), ("0.35", "-", "v")]


def print_result(result: SpectrumResult, folder: Folder) -> None:
    """Print the closing table to standard output, and where the report is."""
    print_tables(tables(result), readings(result))
    print(f"\n{folder.path / 'report.html'}")


HEADINGS = (
    "skill", "samples", "trace", "λ₁", "share of the top d", "effective rank", "by norms alone", "at half the samples",
    "unit norms, no mean", "halves agree", "by chance",
)  # fmt: skip


@tables_of.register
def tables(result: SpectrumResult) -> list[Table]:
    """The closing table, a row a skill."""
    rows = []
    for name, skill in result.skills.items():
        whole, halves = skill.whole_model, skill.halves_at(result.rank)
        rows.append(
            (
                set_name(name),
                str(skill.num_samples),
                number(whole.trace),
                number(whole.eigenvalues[0]),
                f"{skill.top_share(result.rank):.0%}",
                number(whole.effective_rank),
                number(whole.effective_rank_orthogonal),
                number(skill.effective_rank_of_half),
                number(whole.effective_rank_centred_normalised),
                number(halves.overlap if halves else None),
                number(halves.random if halves else None),
            )
        )
    return [Table(f"{result.model}: spectrum of the {result.fisher} Fisher information", HEADINGS, rows)]


def readings(result: SpectrumResult) -> list[str]:
    """One or two sentences a skill: does this spectrum speak for low rank?"""
    return [reading(name, skill, result.rank) for name, skill in result.skills.items()]


def reading(name: str, skill: SkillSpectrum, rank: int) -> str:
    """What one skill's spectrum says of low rank."""
    whole, half = skill.whole_model, skill.effective_rank_of_half
    grown = "its growth cannot be told from so few samples"
    if half:
        ratio = whole.effective_rank / half
        grown = f"twice the samples show {ratio:.2f} times the effective rank: " + (
            "it has stopped growing" if ratio < 1.15 else "it still grows with the samples"
        )
    plain = whole.effective_rank / whole.effective_rank_orthogonal if whole.effective_rank_orthogonal else 0.0
    norms = f"unequal norms alone would give {number(whole.effective_rank_orthogonal)}"
    shared = f"; the scores' directions bring that down to {plain:.0%}" if plain < 0.95 else ", so that they explain it"
    halves = skill.halves_at(rank)
    agree = f" Two halves of the samples share {halves.overlap:.1%} of their top {rank} directions." if halves else ""
    return f"{set_name(name)}: {grown}; {norms}{shared}.{agree}"


@pictures_of.register
def pictures(result: SpectrumResult) -> dict[str, bytes]:
    """The run's pictures by name."""
    return {"spectrum": spectra(result), "growth": growth(result), "blocks": blocks(result)}


def write(result: SpectrumResult, settings: Settings, folder: Path) -> None:
    """Write the pictures and report.html."""
    write_page(
        folder,
        "experiments/spectrum/report.html",
        pictures(result),
        result=result,
        settings=settings.identity(),
        table=tables(result)[0],
        readings=readings(result),
    )


def _skills(result: SpectrumResult) -> list[tuple[str, SkillSpectrum, dict[str, Any]]]:
    """Name, content and line style of every skill."""
    out = []
    for number_, (name, skill) in enumerate(result.skills.items()):
        color, line, marker = _STYLES[number_ % len(_STYLES)]
        out.append((set_name(name), skill, {"color": color, "ls": line, "marker": marker, "ms": 3}))
    return out


def spectra(result: SpectrumResult) -> bytes:
    """spectrum.png: eigenvalues as shares of the trace, and their sums, beside the decay by norms alone."""
    figure, (left, right) = new_figure(1, 2, (10.5, 4.2))
    for name, skill, style in _skills(result):
        whole = skill.whole_model
        total = whole.trace or 1.0
        values, norms = (np.array(part) / total for part in (whole.eigenvalues, whole.orthogonal))
        order = np.arange(1, len(values) + 1)
        shown = values > values.max(initial=0.0) * 1e-12
        left.semilogy(order[shown], values[shown], label=name, **style)
        right.plot(order, np.cumsum(values), label=name, **style)
        plain = {"color": style["color"], "ls": "--", "lw": 1}
        left.semilogy(order, np.maximum(norms, 1e-300), label=f"{name}: same norms, orthogonal", **plain)
        right.plot(order, np.cumsum(norms), **plain)
    left.set(xlabel="k", ylabel="$\\lambda_k$ / trace", title="eigenvalues of F")
    right.set(xlabel="k", ylabel="share of the trace in the top k", ylim=(0, 1.03), title="sums")
    for axis in (left, right):
        axis.axvline(result.rank, color="0.5", lw=1, ls=":")
        axis.xaxis.get_major_locator().set_params(integer=True)
    left.legend(frameon=False, fontsize=8)
    return png_of(figure)


def growth(result: SpectrumResult) -> bytes:
    """growth.png: effective rank against the number of samples, of the scores and of their directions alone."""
    figure, (left, right) = new_figure(1, 2, (10.5, 4.2))
    largest = 1.0
    for name, skill, style in _skills(result):
        count = np.array([point.count for point in skill.growth])
        largest = max(largest, count.max())
        left.plot(count, [point.effective_rank for point in skill.growth], label=name, **style)
        left.plot(
            count, [point.orthogonal for point in skill.growth], color=style["color"], ls="--", lw=1,
            label=f"{name}: same norms, orthogonal",
        )  # fmt: skip
        right.plot(count, [point.centred_normalised for point in skill.growth], label=name, **style)
    for axis, title in ((left, "scores as they are"), (right, "scores of unit norm, without their mean")):
        axis.plot([0, largest], [0, largest], color="0.6", lw=1, ls=":", label="full rank: all that N samples show")
        axis.set(xlabel="samples N", ylabel="effective rank", title=title, xlim=(0, None), ylim=(0, None))
        axis.legend(frameon=False, fontsize=8)
    return png_of(figure)


def blocks(result: SpectrumResult) -> bytes:
    """blocks.png: trace and effective rank of every block."""
    figure, (left, right) = new_figure(1, 2, (10.5, 4.2))
    for name, skill, style in _skills(result):
        layers = list(skill.layers.values())
        order = np.arange(len(layers))
        left.plot(order, [layer.trace / (skill.whole_model.trace or 1.0) for layer in layers], label=name, **style)
        right.plot(order, [layer.effective_rank for layer in layers], label=name, **style)
        right.plot(order, [layer.effective_rank_orthogonal for layer in layers], color=style["color"], ls="--", lw=1)
    left.set(xlabel="block", ylabel="share of the trace", ylim=(0, None), title="where the sensitivity is")
    right.set(xlabel="block", ylabel="effective rank", ylim=(0, None), title="dashed: by norms alone")
    for axis in (left, right):
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(frameon=False, fontsize=8)
    return png_of(figure)
