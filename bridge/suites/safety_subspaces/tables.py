"""The tables of `bridge.safety_subspaces`: Table 1 (useful) and Table 2 (harmful, contaminated), as text and as CSV."""

from __future__ import annotations

from collections.abc import Sequence

from bridge.experiments.subspaces.report import SIDE_NOTE
from bridge.reports.numbers import number
from bridge.reports.results import tables_of
from bridge.reports.tables import Table, plain
from bridge.suites.measures import REFUSALS, shown
from bridge.suites.safety_subspaces.readings import readings
from bridge.suites.safety_subspaces.result import ALIGNED, BASE, Measured, SafetySubspacesResult
from bridge.suites.safety_subspaces.settings import USEFUL

_WHAT = ("fine-tune", "fraction", "basis", "scheme")


@tables_of.register
def tables(result: SafetySubspacesResult) -> list[Table]:
    """Table 1, of the useful fine-tune, and Table 2, of the others."""
    others = result.others(USEFUL)
    return [
        _table(result, f"Table 1: {USEFUL}, projected", [USEFUL]),
        _table(result, f"Table 2: {' and '.join(others)}, projected", others),
    ]


def _table(result: SafetySubspacesResult, caption: str, finetunes: Sequence[str]) -> Table:
    names = result.measures
    rows = [
        [name, "–", "–", "not projected", "–", "–", *_measured(result.references[name], names)]
        for name in (BASE, ALIGNED, *finetunes)
    ]
    order = list(dict.fromkeys(point.label for point in result.points))
    chosen = [point for point in result.points if point.finetune in finetunes]
    chosen.sort(key=lambda p: (finetunes.index(p.finetune), p.fraction, order.index(p.label)))
    rows += [
        [
            point.finetune, f"{point.fraction:g}", point.label, point.scheme, _share(point.energy),
            _share(point.isotropic), *_measured(point, names),
        ]
        for point in chosen
    ]  # fmt: skip
    return Table(caption, [*_WHAT, "energy kept", "if isotropic", *names], rows, len(_WHAT))


def _measured(model: Measured, names: Sequence[str]) -> list[str]:
    return [shown(model.measures.get(name)) for name in names]


def _share(value: float) -> str:
    return f"{100 * value:.3g} %"


def updates_table(result: SafetySubspacesResult) -> Table:
    """What the fine-tunes did to the weights."""
    rows = [
        [
            name, update.data, str(update.rows), number(update.epochs), number(update.first_loss),
            number(update.last_loss), number(update.norm), number(update.cosine),
        ]
        for name, update in result.updates.items()
    ]  # fmt: skip
    headings = ["fine-tune", "data", "rows", "epochs", "first loss", "last loss", "|update|", "cosine with alignment"]
    return Table("The fine-tunes", headings, rows, 2)


def notes(result: SafetySubspacesResult) -> list[str]:
    """What a reader must know besides."""
    lines = [
        "In parentheses: 95 % intervals, in per cent beside shares.",
        f"Fraction: rank of the basis over min(rows, columns) of each matrix, from the {result.side}. Energy kept: "
        "share of the fine-tune's squared norm that the part has, over all matrices; if isotropic: what it would be if "
        "the fine-tune had no preferred direction. Top-K: first singular vectors of the alignment update; Random-K: "
        "drawn from its singular vectors; Random: random orthonormal vectors.",
        SIDE_NOTE,
        "Parallel: the part inside the basis is kept; orthogonal: the part outside, with all of a matrix that the "
        "alignment update did not move." + _of_vectors(result),
    ]
    if REFUSALS in result.measures:
        lines.append("Refusals are counted by their wording; that is no harmfulness score.")
    if result.repeats == 1 and any(name != "top-k" for name in result.bases):
        lines.append("Each random basis was drawn once: how much draws differ is not known from here.")
    lines.append(f"{BASE}: the weights of {result.base} with the tokenizer and chat template of {result.model}.")
    lines += _measure_notes(result)
    return [*lines, *result.unanswered]


def _of_vectors(result: SafetySubspacesResult) -> str:
    """What becomes of parameters that are no matrices; LoRA moves none."""
    if result.method == "lora":
        return ""
    if result.vectors == "keep":
        return (
            " What is no matrix (norms, biases) is kept whole in both, so that together they hold it twice: without "
            "any energy left, a projected model is still not the aligned one."
        )
    return (
        " What is no matrix (norms, biases) is dropped from both: with all energy kept, a projected model is still not "
        "the fine-tune."
    )


def _measure_notes(result: SafetySubspacesResult) -> list[str]:
    models = [*result.references.items(), *((point.name, point) for point in result.points)]
    return [
        f"{name}, {measure}: {value.note}"
        for name, model in models
        for measure, value in model.measures.items()
        if value.note
    ]


def markdown(result: SafetySubspacesResult) -> str:
    """tables.md: readings, both tables, the fine-tunes, and notes."""
    lines = [f"# {plain(result.title)}", "", *(f"- {plain(line)}" for line in readings(result))]
    for table in (*tables(result), updates_table(result)):
        lines += ["", f"## {plain(table.caption)}", "", *table.markdown()]
    return "\n".join([*lines, "", *(f"- {plain(line)}" for line in notes(result))]) + "\n"
