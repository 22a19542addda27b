"""The pictures of `bridge.safety_subspaces`, drawn from its result alone. Readable in greyscale."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bridge.models.blocks import block_number
from bridge.reports.drawing import DARK, LIGHT, MID, new_figure, png_of
from bridge.suites.safety_subspaces.points import ALIGNED, BASE
from bridge.suites.safety_subspaces.readings import measure_names, series
from bridge.suites.safety_subspaces.settings import USEFUL

Found = Mapping[str, Any]
_STYLES = {"top-k": (DARK, "o", "-"), "random-k": (MID, "s", "--"), "random": (LIGHT, "^", ":")}
_PAIRS = ((DARK, "o", "-"), (MID, "s", "--"), (LIGHT, "^", "-."), ("0.45", "D", ":"), ("#4d7c4a", "v", "-"),
          ("#8a4f7d", "P", "--"))  # fmt: skip
_TICKS = 40  # labels of blocks at most
_AXES = {"fraction": "rank / min(rows, columns)", "energy": "share of the fine-tune's squared norm kept"}


def pictures(found: Found) -> dict[str, bytes]:
    """All pictures as PNG files by name."""
    others = [name for name in found["updates"] if name != USEFUL]
    every = [USEFUL, *others]
    return {
        "figure2": outcomes(found, [USEFUL], "fraction"),
        "figure3": outcomes(found, others, "fraction"),
        "by_energy": outcomes(found, every, "energy"),
        "energy": energy(found),
        "figure4": overlaps(found),
    }


def outcomes(found: Found, finetunes: Sequence[str], across: str) -> bytes:
    """Each measure (down) of the projections of fine-tunes, in both schemes (side by side), against one quantity."""
    measures = measure_names(found)
    columns = [(finetune, scheme) for finetune in finetunes for scheme in found["schemes"]]
    size = (1.0 + 3.6 * len(columns), 0.6 + 3.0 * len(measures))
    figure, drawn = new_figure(len(measures), len(columns), size)
    axes = np.array(drawn, dtype=object).reshape(len(measures), len(columns))
    for row, measure in zip(axes, measures, strict=True):
        for axis, (finetune, scheme) in zip(row, columns, strict=True):
            _lines(axis, found, finetune, scheme, measure, across)
            _references(axis, found, finetune, measure)
            axis.set(xlim=(-0.03, 1.03), ylim=_limits(found, measure))
            axis.set_title(f"{finetune}, {scheme}", fontsize=9)
            axis.set_xlabel(_AXES[across], fontsize=8)
        row[0].set_ylabel(measure, fontsize=8)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return png_of(figure)


def _limits(found: Found, measure: str) -> tuple[float, float]:
    share = found["references"][ALIGNED]["measures"][measure]["kind"] == "share"
    return (-0.03, 1.03) if share else (0.9, 5.1)


def _lines(axis: Any, found: Found, finetune: str, scheme: str, measure: str, across: str) -> None:
    """A line for every draw of every basis with 95 % intervals, shifted a little so that none hides another."""
    seen: set[str] = set()
    for k, points in enumerate(series(found, finetune, scheme).values()):
        known = [p for p in points if p["measures"][measure]["value"] is not None]
        if not known:
            continue
        known.sort(key=lambda p: p[across])
        basis = known[0]["basis"]
        color, marker, style = _STYLES[basis]
        values = np.array([[p["measures"][measure][key] for key in ("value", "low", "high")] for p in known], float).T
        spread = np.nan_to_num(np.abs(values[1:] - values[0]))
        place = [p[across] + 0.007 * k for p in known]
        axis.errorbar(
            place, values[0], spread, color=color, marker=marker, ms=4, ls=style, lw=1.2,
            elinewidth=0.6, capsize=2, alpha=0.6 if basis in seen else 1.0, label=None if basis in seen else basis,
        )  # fmt: skip
        seen.add(basis)


def _references(axis: Any, found: Found, finetune: str, measure: str) -> None:
    styles = {"aligned": ("0.25", (0, (6, 2))), "fine-tuned, not projected": ("0.25", "-"), "base": ("0.6", ":")}
    for (label, (color, style)), name in zip(styles.items(), (ALIGNED, finetune, BASE), strict=True):
        value = found["references"][name]["measures"][measure]["value"]
        if value is not None:
            axis.axhline(value, color=color, ls=style, lw=1.0, label=label, zorder=0)


def energy(found: Found) -> bytes:
    """energy.png: energy kept inside each basis against its rank, beside an isotropic update's."""
    finetunes = list(found["updates"])
    figure, drawn = new_figure(1, len(finetunes), (1.0 + 3.8 * len(finetunes), 3.8))
    for axis, finetune in zip(np.atleast_1d(drawn), finetunes, strict=True):
        scheme = found["schemes"][0]
        seen: set[str] = set()
        for points in series(found, finetune, scheme).values():
            basis = points[0]["basis"]
            color, marker, style = _STYLES[basis]
            x = [p["fraction"] for p in points]
            axis.plot(x, [_inside(p, "energy") for p in points], color=color, marker=marker, ms=4, ls=style, lw=1.2,
                      label=None if basis in seen else basis)  # fmt: skip
            seen.add(basis)
        axis.plot(x, [_inside(p, "isotropic") for p in points], color="0.6", lw=4, alpha=0.5, zorder=0,
                  label="if isotropic")  # fmt: skip
        axis.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), title=finetune, xlabel=_AXES["fraction"])
    first = np.atleast_1d(drawn)[0]
    first.set_ylabel("share of the squared norm inside the basis")
    first.legend(frameon=False, fontsize=8)
    return png_of(figure)


def _inside(point: Found, key: str) -> float:
    """A share inside the basis, whichever part was kept."""
    value = float(point[key])
    return value if point["scheme"] == "parallel" else 1 - value


def overlaps(found: Found) -> bytes:
    """figure4.png: mode subspace overlap of the updates over energies, and by block, beside chance."""
    overlap = found["overlap"]
    middle = len(overlap["energies"]) // 2
    names = _layers(overlap["pairs"])
    figure, (left, right) = new_figure(1, 2, (11.0, 4.2))
    for k, pair in enumerate(overlap["pairs"]):
        color, marker, style = _PAIRS[k % len(_PAIRS)]
        label = " – ".join(pair["updates"])
        for key, look in (
            ("overlap", {"marker": marker, "ms": 4, "label": label}),
            ("chance", {"lw": 4, "alpha": 0.25}),
        ):
            left.plot(overlap["energies"], pair["whole"][key], color=color, ls=style, **look)
            values = [pair["layers"][name][key][middle] if name in pair["layers"] else math.nan for name in names]
            right.plot(values, color=color, ls=style, **look)
    left.set(xlabel="share of each update's squared norm", ylabel="mode subspace overlap", title="mean over matrices")
    right.set(xlabel="block, in the model's order", title=f"by block, at {overlap['energies'][middle]:g}")
    shown = {k: label for k, name in enumerate(names) if (label := _tick(name, len(names)))}
    right.set_xticks(list(shown), list(shown.values()), fontsize=6, rotation=90)
    for axis in (left, right):
        axis.set_ylim(0, 1.03)
    left.legend(frameon=False, fontsize=8, title="broad and pale: chance", title_fontsize=8)
    return png_of(figure)


def _layers(pairs: Sequence[Found]) -> list[str]:
    """Blocks, and matrices outside of them, that one of the pairs has: in the model's order, each once."""
    every = [list(pair["layers"]) for pair in pairs]

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
