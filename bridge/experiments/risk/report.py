"""The tables, the pictures and the page of `bridge.risk`, drawn from its result alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from bridge.experiments.risk.result import CandidateRisk, CleanedSet, Interval, Predicted, RiskResult, RowRisk, Trivial
from bridge.experiments.risk.settings import Settings
from bridge.reports.console import print_tables
from bridge.reports.drawing import DARK, LIGHT, MID, new_figure, png_of
from bridge.reports.numbers import number
from bridge.reports.pages import write_page
from bridge.reports.results import pictures_of, tables_of
from bridge.reports.tables import Table
from commands.store import Folder
from theory.risk import EQUALS, Equal

_COLORS = (DARK, MID, LIGHT, "#4d7c4a", "0.35", "#8a4f7d", "#b8a13a")
_SHOWN_ROWS = 10  # of each set on the page
_PROGRESS: Mapping[Equal, str] = {
    "norm": "the same norm of the update", "loss": "the same decrease of each set's own loss",
}  # fmt: skip
_ORDERS: Mapping[Equal, str] = {"norm": "equal norm", "loss": "equal loss decrease"}
_TRIVIAL = ("gradient norm", "mean loss", "length")  # orders, as the fields of Trivial


def print_result(result: RiskResult, folder: Folder, cleaned: Path | None) -> None:
    """Print the ranking to standard output, and where the report and the cleaned copy are."""
    print_tables([ranking_table(result)], readings(result), width=190)
    if result.cleaned is not None:
        print(f"\n{cleaned}")
    print(f"\n{folder.path / 'report.html'}")


@tables_of.register
def tables(result: RiskResult) -> list[Table]:
    """The ranking, and what costs nothing to know."""
    return [ranking_table(result), trivial_table(result)]


def ranking_table(result: RiskResult) -> Table:
    """The ranking; one row a set, the riskiest first."""
    other = _other(result.equal)
    headings = ["set", "rows", "predicted utility loss", "95 % interval", "these rows", "P(worst)", "exact over tokens",
                f"at {_PROGRESS[other]}", "P(worst) there", "leak²", "× random"]  # fmt: skip
    rows = []
    for label in result.ranking:
        risk = result.candidates[label]
        here, there = risk.predicted[result.equal], risk.predicted[other]
        rows.append(
            [
                label,
                _rows(risk),
                number(here.utility_loss),
                interval(here.interval),
                interval(here.interval_these_rows),
                _share(here.probability_worst),
                number(here.utility_loss_exact),
                number(there.utility_loss),
                _share(there.probability_worst),
                number(risk.leak_squared),
                number(risk.enrichment),
            ]
        )
    return Table(f"{result.model}: risk for {result.skill} at {_PROGRESS[result.equal]}", headings, rows)


def trivial_table(result: RiskResult) -> Table:
    """Predictors that cost next to nothing, and each set's place by them (1: riskiest)."""
    rows = []
    for place, label in enumerate(result.ranking, start=1):
        values = _trivial_values(result.candidates[label].trivial)
        places = [result.orders[name].index(label) + 1 for name in _TRIVIAL]
        cells = [f"{number(value)} ({place_by})" for value, place_by in zip(values, places, strict=True)]
        rows.append([label, str(place), *cells])
    headings = ["set", "place", "gradient norm", "mean loss (nats per token)", "response tokens per row"]
    return Table("What costs nothing to know", headings, rows)


def _trivial_values(trivial: Trivial) -> tuple[float, ...]:
    return trivial.gradient_norm, trivial.mean_loss, trivial.mean_tokens


def _other(equal: Equal) -> Equal:
    return "loss" if equal == "norm" else "norm"


def _rows(risk: CandidateRisk) -> str:
    """Number of rows that were measured, of how many."""
    return f"{risk.num_rows}" if risk.num_rows == risk.set_rows else f"{risk.num_rows} of {risk.set_rows}"


def interval(ends: Interval | None) -> str:
    """The ends of an interval as text."""
    return f"{number(ends[0])} … {number(ends[1])}" if ends else "–"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def readings(result: RiskResult) -> list[str]:
    """Sentences on what the table says."""
    lines = _ranking_lines(result) if len(result.candidates) > 1 else []
    for label, risk in result.candidates.items():
        if result.progress["loss"] > risk.trivial.mean_loss:
            lines.append(
                f"{label}: its loss is {number(risk.trivial.mean_loss)} nats per token, so it cannot fall by "
                f"{number(result.progress['loss'])}; at an equal decrease its number says nothing."
            )
        if risk.predicted[result.equal].utility_loss is None:
            lines.append(f"{label}: it makes no progress at first order, so it has no place in the ranking.")
    if result.cleaned is not None:
        lines.append(_cleaned_line(result.cleaned, result.equal))
    return lines


def _ranking_lines(result: RiskResult) -> list[str]:
    orders, equal, first = result.orders, result.equal, result.ranking[0]
    sure = result.candidates[first].predicted[equal].probability_worst
    chance = "" if sure is None else f", with probability {sure:.0%}"
    lines = [f"{first} is predicted to cost the skill most at {_PROGRESS[equal]}{chance}."]
    other = orders[_ORDERS[_other(equal)]]
    if other != orders["predicted"]:
        lines.append(f"At {_PROGRESS[_other(equal)]} the order is another: {', '.join(other)}.")
    exact = orders[f"{_ORDERS[equal]}, exact over tokens"]
    if exact != orders["predicted"]:
        lines.append(f"With the vocabulary summed exactly the order is {', '.join(exact)}: the drawn tokens decide it.")
    same = [name for name in _TRIVIAL if orders[name] == orders["predicted"]]
    if same:
        lines.append(f"The same order comes from {' and from '.join(same)} alone.")
    return lines


def _cleaned_line(cleaned: CleanedSet, equal: Equal) -> str:
    here = cleaned.predicted[equal]
    if here.change is None or here.random_change is None or here.random_interval is None:
        return f"{cleaned.candidate}: nothing moves, so there is nothing to clean."
    held = here.held_out_change
    return (
        f"{cleaned.candidate} without its worst {len(cleaned.removed)} rows ({cleaned.removed_token_share:.0%} of "
        f"its tokens): predicted utility loss {here.change:+.0%} on the samples that chose them"
        + (f", {held:+.0%} on samples that did not" if held is not None else "")
        + f"; without as many rows at random {here.random_change:+.0%} "
        f"({here.random_interval[0]:+.0%} … {here.random_interval[1]:+.0%})."
    )


def worst_rows_table(rows: Sequence[RowRisk], equal: Equal) -> Table:
    """A set's worst rows, with what they say."""
    headings = ["prompt", "answer", "rank", "line", "without it", "share of leak²", "tokens"]
    cells = [
        [
            row.prompt,
            row.answer,
            str(row.rank),
            str(row.line),
            _change(row.effect[equal]),
            "–" if row.share is None else f"{row.share:.1%}",
            str(row.tokens),
        ]
        for row in rows[:_SHOWN_ROWS]
    ]
    return Table("The worst rows", headings, cells, words=2)


def cleaned_table(cleaned: CleanedSet) -> Table:
    """Predicted utility loss before and after cleaning, by what is equal."""
    headings = ["", "before", "after", "change", "on samples that did not choose", "random rows instead"]
    rows = []
    for equal in EQUALS:
        cleaning = cleaned.predicted[equal]
        changes = (cleaning.change, cleaning.held_out_change, cleaning.random_change)
        losses = [number(loss) for loss in (cleaning.before, cleaning.after)]
        rows.append([f"at {_PROGRESS[equal]}", *losses, *map(_change, changes)])
    return Table(f"Without the worst rows of {cleaned.candidate}", headings, rows)


def _change(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:+.1f} %"


def write(result: RiskResult, settings: Settings, folder: Path) -> None:
    """Write the pictures and report.html."""
    ranked, trivial = tables(result)
    write_page(
        folder,
        "experiments/risk/report.html",
        pictures(result),
        result=result,
        settings=settings.identity(),
        table=ranked,
        trivial=trivial,
        readings=readings(result),
        progress=_PROGRESS,
        worst={label: worst_rows_table(result.rows_of(label), result.equal) for label in result.ranking},
        cleaned=cleaned_table(result.cleaned) if result.cleaned else None,
    )


@pictures_of.register
def pictures(result: RiskResult) -> dict[str, bytes]:
    """The run's pictures by name."""
    return {"risk": ranking(result), "rows": shares(result)}


def ranking(result: RiskResult) -> bytes:
    """risk.png: the predicted utility loss of every set at both kinds of equal progress, with intervals."""
    labels = result.ranking
    figure, axes = new_figure(1, 2, (11.0, max(2.6, 0.45 * len(labels) + 1.6)))
    for axis, equal in zip(axes, EQUALS, strict=True):
        _draw_losses(axis, [result.candidates[label].predicted[equal] for label in labels])
        axis.set_ylim(-0.6, len(labels) - 0.3)
        axis.set_title(f"{_PROGRESS[equal]} ({number(result.progress[equal])})", fontsize=9)
    axes[0].set_yticklabels(labels, fontsize=8)
    axes[1].set_yticklabels([])
    return png_of(figure)


def _draw_losses(axis: Axes, predicted: Sequence[Predicted]) -> None:
    places = np.arange(len(predicted))[::-1]
    nothing = (np.nan, np.nan)
    whole = np.array([loss.interval or nothing for loss in predicted])
    these_rows = np.array([loss.interval_these_rows or nothing for loss in predicted])
    for ends, color, width in ((whole, LIGHT, 6.0), (these_rows, MID, 2.0)):
        axis.hlines(places, ends[:, 0], ends[:, 1], color=color, lw=width)
    values = np.array([np.nan if loss.utility_loss is None else loss.utility_loss for loss in predicted])
    axis.plot(values, places, "o", color=DARK, ms=5)
    for y, loss in zip(places, predicted, strict=True):
        if loss.utility_loss is not None and loss.probability_worst is not None:
            axis.annotate(f"P(worst) {loss.probability_worst:.0%}", (loss.utility_loss, y), xytext=(0, 6),
                          textcoords="offset points", ha="center", fontsize=7)  # fmt: skip
    scale = "log" if len(values[values > 0]) else "linear"
    axis.set(yticks=places, xlabel="predicted utility loss (nats per response)", xscale=scale)


def shares(result: RiskResult) -> bytes:
    """rows.png: how many rows make up the leak, and what leaving out each row does."""
    figure, (left, right) = new_figure(1, 2, (11.0, 4.4))
    for k, label in enumerate(result.ranking):
        color, style = _COLORS[k % len(_COLORS)], ("-", "--", ":", "-.")[k // len(_COLORS) % 4]
        rows = result.rows_of(label)
        parts = np.sort([np.nan if row.share is None else row.share for row in rows])[::-1]
        place = np.arange(1, len(parts) + 1) / len(parts)
        left.plot(place, np.cumsum(parts), color=color, ls=style, label=label)
        effects = [row.effect[result.equal] for row in rows]
        values = np.sort([np.nan if effect is None else effect for effect in effects])
        right.plot(place, values, color=color, ls=style, label=label)
    left.plot([0, 1], [0, 1], color="0.6", lw=1, ls=":")
    left.set(xlabel="share of the rows, largest contribution first", ylabel="share of leak² so far", xlim=(0, 1))
    right.set(xlabel="share of the rows", ylabel="change of the utility loss without the row\n"
              f"at equal {result.equal}", xlim=(0, 1))  # fmt: skip
    right.axhline(0, color="0.6", lw=1, ls=":")
    left.legend(frameon=False, fontsize=8)
    return png_of(figure)
