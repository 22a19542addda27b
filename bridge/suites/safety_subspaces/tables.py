"""The tables of `bridge.safety_subspaces`: Table 1 (useful) and Table 2 (harmful, contaminated), as text and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bridge.experiments.subspaces.report import SIDE_NOTE
from bridge.reports.numbers import number
from bridge.reports.tables import markdown_line, plain, shown
from bridge.suites.measures import REFUSALS
from bridge.suites.safety_subspaces.points import ALIGNED, BASE
from bridge.suites.safety_subspaces.readings import measure_names, readings
from bridge.suites.safety_subspaces.settings import USEFUL

Found = Mapping[str, Any]
_WHAT = ("fine-tune", "fraction", "basis", "scheme")


@dataclass(frozen=True)
class Table:
    """A caption, headings, and rows of text; the first `words` columns are words, the others numbers."""

    caption: str
    headings: list[str]
    rows: list[list[str]]
    words: int


def tables(found: Found) -> list[Table]:
    """Table 1, of the useful fine-tune, and Table 2, of the others."""
    others = [name for name in found["updates"] if name != USEFUL]
    return [
        _table(found, f"Table 1: {USEFUL}, projected", [USEFUL]),
        _table(found, f"Table 2: {' and '.join(others)}, projected", others),
    ]


def _table(found: Found, caption: str, finetunes: Sequence[str]) -> Table:
    names = measure_names(found)
    rows = [
        [name, "–", "–", "not projected", "–", "–", *_measured(found["references"][name], names)]
        for name in (BASE, ALIGNED, *finetunes)
    ]
    order = list(dict.fromkeys(point["label"] for point in found["points"]))
    chosen = [point for point in found["points"] if point["finetune"] in finetunes]
    chosen.sort(key=lambda p: (finetunes.index(p["finetune"]), p["fraction"], order.index(p["label"])))
    rows += [
        [
            point["finetune"], f"{point['fraction']:g}", point["label"], point["scheme"], _share(point["energy"]),
            _share(point["isotropic"]), *_measured(point, names),
        ]
        for point in chosen
    ]  # fmt: skip
    return Table(caption, [*_WHAT, "energy kept", "if isotropic", *names], rows, len(_WHAT))


def _measured(entry: Found, names: Sequence[str]) -> list[str]:
    return [shown(entry["measures"].get(name)) for name in names]


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.3g} %"


def updates_table(found: Found) -> Table:
    """What the fine-tunes did to the weights."""
    rows = [
        [
            name, entry["data"], str(entry["rows"]), number(entry["epochs"]), number(entry["first_loss"]),
            number(entry["last_loss"]), number(entry["norm"]), number(entry["cosine"]),
        ]
        for name, entry in found["updates"].items()
    ]  # fmt: skip
    headings = ["fine-tune", "data", "rows", "epochs", "first loss", "last loss", "|update|", "cosine with alignment"]
    return Table("The fine-tunes", headings, rows, 2)


def notes(found: Found) -> list[str]:
    """What a reader must know besides."""
    lines = [
        "In parentheses: 95 % intervals, in per cent beside shares.",
        f"Fraction: rank of the basis over min(rows, columns) of each matrix, from the {found['side']}. Energy kept: "
        "share of the fine-tune's squared norm that the part has, over all matrices; if isotropic: what it would be if "
        "the fine-tune had no preferred direction. Top-K: first singular vectors of the alignment update; Random-K: "
        "drawn from its singular vectors; Random: random orthonormal vectors.",
        SIDE_NOTE,
        "Parallel: the part inside the basis is kept; orthogonal: the part outside, with all of a matrix that the "
        "alignment update did not move." + _of_vectors(found),
    ]
    if REFUSALS in measure_names(found):
        lines.append("Refusals are counted by their wording; that is no harmfulness score.")
    if found["repeats"] == 1 and any(name != "top-k" for name in found["bases"]):
        lines.append("Each random basis was drawn once: how much draws differ is not known from here.")
    lines.append(f"{BASE}: the weights of {found['base']} with the tokenizer and chat template of {found['model']}.")
    lines += [f"{entry['label']}: {entry['text']}" for entry in _measure_notes(found)]
    return [*lines, *found["unanswered"]]


def _of_vectors(found: Found) -> str:
    """What becomes of parameters that are no matrices; LoRA moves none."""
    if found["method"] == "lora":
        return ""
    if found["vectors"] == "keep":
        return (
            " What is no matrix (norms, biases) is kept whole in both, so that together they hold it twice: without "
            "any energy left, a projected model is still not the aligned one."
        )
    return (
        " What is no matrix (norms, biases) is dropped from both: with all energy kept, a projected model is still not "
        "the fine-tune."
    )


def _measure_notes(found: Found) -> list[dict[str, str]]:
    entries = [*found["references"].items(), *((point["name"], point) for point in found["points"])]
    return [
        {"label": f"{name}, {measure}", "text": value["note"]}
        for name, entry in entries
        for measure, value in entry["measures"].items()
        if value.get("note")
    ]


def markdown(found: Found) -> str:
    """tables.md: readings, both tables, the fine-tunes, and notes."""
    lines = [f"# {plain(found['title'])}", "", *(f"- {plain(line)}" for line in readings(found))]
    for table in (*tables(found), updates_table(found)):
        lines += ["", f"## {plain(table.caption)}", "", markdown_line(table.headings)]
        lines += [markdown_line(["---"] * len(table.headings)), *map(markdown_line, table.rows)]
    return "\n".join([*lines, "", *(f"- {plain(line)}" for line in notes(found))]) + "\n"


def csv_of(found: Found) -> str:
    """tables.csv: every measured model, every number in full, intervals and counts in columns of their own."""
    names, keys = measure_names(found), ("value", "low", "high", "count")
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    about = ("name", "finetune", "fraction", "basis", "draw", "scheme", "energy", "isotropic")
    writer.writerow([*about, *(name if key == "value" else f"{name} {key}" for name in names for key in keys)])
    references = [
        {"name": name, "finetune": name if name in found["updates"] else None} | entry
        for name, entry in found["references"].items()
    ]
    for entry in (*references, *found["points"]):
        measures = [entry["measures"].get(name, {}) for name in names]
        values = [measure.get(key) for measure in measures for key in keys]
        writer.writerow(["" if v is None else v for v in (*(entry.get(key) for key in about), *values)])
    return buffer.getvalue()
