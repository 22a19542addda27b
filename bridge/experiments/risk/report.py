"""The table, the pictures and the page of `bridge.risk`, drawn from its result alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bridge.reports.drawing import DARK, LIGHT, MID, new_figure, png_of
from bridge.reports.numbers import number
from bridge.reports.pages import render_page
from commands.store import write_atomically

_COLORS = (DARK, MID, LIGHT, "#4d7c4a", "0.35", "#8a4f7d", "#b8a13a")
_SHOWN_ROWS = 10  # of each set on the page
_PROGRESS = {"norm": "the same norm of the update", "loss": "the same decrease of each set's own loss"}
_TRIVIAL = {"gradient norm": "gradient_norm", "mean loss": "mean_loss", "length": "mean_tokens"}


def print_table(result: dict[str, Any], settings: dict[str, Any]) -> None:
    """Print the closing table to standard output."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=190)
    title = f"{result['model']}: risk for {result['skill']} at {_PROGRESS[result['equal']]}"
    table = Table(title=escape(title), title_justify="left", show_edge=False)
    names, rows = table_of(result)
    for k, name in enumerate(names):
        table.add_column(escape(name), justify="right" if k else "left")
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)
    for line in readings(result):
        console.print(escape(line))


def table_of(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the ranking, as text; one row a set, the riskiest first."""
    equal = result["equal"]
    other = "loss" if equal == "norm" else "norm"
    names = ["set", "rows", "predicted utility loss", "95 % interval", "these rows", "P(worst)", "exact over tokens",
             f"at {_PROGRESS[other]}", "P(worst) there", "leak²", "× random"]  # fmt: skip
    rows = []
    for label in result["ranking"]:
        entry = result["candidates"][label]
        here, there = entry["predicted"][equal], entry["predicted"][other]
        rows.append(
            [
                label,
                _rows(entry),
                number(here["utility_loss"]),
                interval(here["interval"]),
                interval(here["interval_these_rows"]),
                _share(here["probability_worst"]),
                number(here["utility_loss_exact"]),
                number(there["utility_loss"]),
                _share(there["probability_worst"]),
                number(entry["leak_squared"]),
                number(entry["enrichment"]),
            ]
        )
    return names, rows


def trivial_table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Predictors that cost next to nothing, and each set's place by them (1: riskiest)."""
    rows = []
    for place, label in enumerate(result["ranking"], start=1):
        entry = result["candidates"][label]
        cells = [
            f"{number(entry['trivial'][key])} ({result['orders'][name].index(label) + 1})"
            for name, key in _TRIVIAL.items()
        ]
        rows.append([label, str(place), *cells])
    names = ["set", "place", "gradient norm", "mean loss (nats per token)", "response tokens per row"]
    return names, rows


def _rows(entry: Mapping[str, Any]) -> str:
    """How many rows were measured, of how many."""
    measured, total = entry["num_rows"], entry["set_rows"]
    return f"{measured}" if measured == total else f"{measured} of {total}"


def interval(ends: Sequence[float] | None) -> str:
    """The ends of an interval as text."""
    return f"{number(ends[0])} … {number(ends[1])}" if ends else "–"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def readings(result: dict[str, Any]) -> list[str]:
    """Sentences on what the table says."""
    lines = _ranking_lines(result) if len(result["candidates"]) > 1 else []
    for label, entry in result["candidates"].items():
        if result["progress"]["loss"] > entry["trivial"]["mean_loss"]:
            lines.append(
                f"{label}: its loss is {number(entry['trivial']['mean_loss'])} nats per token, so it cannot fall by "
                f"{number(result['progress']['loss'])}; at an equal decrease its number says nothing."
            )
        if entry["predicted"][result["equal"]]["utility_loss"] is None:
            lines.append(f"{label}: it makes no progress at first order, so it has no place in the ranking.")
    if "cleaned" in result:
        lines += _cleaned_lines(result)
    return lines


def _ranking_lines(result: dict[str, Any]) -> list[str]:
    orders, equal = result["orders"], result["equal"]
    first = result["ranking"][0]
    sure = result["candidates"][first]["predicted"][equal]["probability_worst"]
    chance = "" if sure is None else f", with probability {sure:.0%}"
    lines = [f"{first} is predicted to cost the skill most at {_PROGRESS[equal]}{chance}."]
    other = "equal loss decrease" if equal == "norm" else "equal norm"
    if orders[other] != orders["predicted"]:
        second = _PROGRESS["loss" if equal == "norm" else "norm"]
        lines.append(f"At {second} the order is another: {', '.join(orders[other])}.")
    exact = orders[f"equal {'norm' if equal == 'norm' else 'loss decrease'}, exact over tokens"]
    if exact != orders["predicted"]:
        lines.append(f"With the vocabulary summed exactly the order is {', '.join(exact)}: the drawn tokens decide it.")
    same = [name for name in _TRIVIAL if orders[name] == orders["predicted"]]
    if same:
        lines.append(f"The same order comes from {' and from '.join(same)} alone.")
    return lines


def _cleaned_lines(result: dict[str, Any]) -> list[str]:
    found = result["cleaned"]
    here = found["predicted"][result["equal"]]
    if here["change"] is None or here["random_interval"] is None:
        return [f"{found['candidate']}: nothing moves, so there is nothing to clean."]
    held = here["held_out_change"]
    return [
        f"{found['candidate']} without its worst {len(found['removed'])} rows ({found['removed_token_share']:.0%} of "
        f"its tokens): predicted utility loss {here['change']:+.0%} on the samples that chose them"
        + (f", {held:+.0%} on samples that did not" if held is not None else "")
        + f"; without as many rows at random {here['random_change']:+.0%} "
        f"({here['random_interval'][0]:+.0%} … {here['random_interval'][1]:+.0%})."
    ]


def write(result: dict[str, Any], records: Sequence[Mapping[str, Any]], settings: dict[str, Any], folder: Path) -> None:
    """Write the pictures and report.html."""
    by_set = {label: [r for r in records if r["candidate"] == label] for label in result["ranking"]}
    drawn = {"risk": ranking(result), "rows": shares(by_set, result["equal"])}
    for name, png in drawn.items():
        write_atomically(folder / f"{name}.png", png)
    names, rows = table_of(result)
    trivial_names, trivial_rows = trivial_table(result)
    page = render_page(
        "experiments/risk/report.html",
        drawn,
        result=result,
        settings=settings,
        headings=names,
        rows=rows,
        trivial_headings=trivial_names,
        trivial_rows=trivial_rows,
        readings=readings(result),
        progress=_PROGRESS,
        worst={label: [_shown(r, result["equal"]) for r in found[:_SHOWN_ROWS]] for label, found in by_set.items()},
    )
    write_atomically(folder / "report.html", page)


def _shown(record: Mapping[str, Any], equal: str) -> dict[str, str]:
    """One row's numbers and text as the page shows them."""
    effect, share = record["effect"][equal], record["share"]
    return {
        "rank": str(record["rank"]),
        "line": str(record["line"]),
        "effect": "–" if effect is None else f"{effect:+.1%}",
        "share": "–" if share is None else f"{share:.1%}",
        "tokens": str(record["tokens"]),
        "prompt": record["prompt"],
        "answer": record["answer"],
    }


def ranking(result: dict[str, Any]) -> bytes:
    """risk.png: the predicted utility loss of every set at both kinds of equal progress, with intervals."""
    labels = result["ranking"]
    place = np.arange(len(labels))[::-1]
    figure, axes = new_figure(1, 2, (11.0, max(2.6, 0.45 * len(labels) + 1.6)))
    for axis, (equal, title) in zip(axes, _PROGRESS.items(), strict=True):
        found = [result["candidates"][label]["predicted"][equal] for label in labels]
        value = np.array([np.nan if one["utility_loss"] is None else one["utility_loss"] for one in found])
        for key, color, width in (("interval", LIGHT, 6.0), ("interval_these_rows", MID, 2.0)):
            ends = np.array([one[key] or (np.nan, np.nan) for one in found])
            axis.hlines(place, ends[:, 0], ends[:, 1], color=color, lw=width)
        axis.plot(value, place, "o", color=DARK, ms=5)
        for y, one in zip(place, found, strict=True):
            if one["utility_loss"] is not None and one["probability_worst"] is not None:
                axis.annotate(f"P(worst) {one['probability_worst']:.0%}", (one["utility_loss"], y), xytext=(0, 6),
                              textcoords="offset points", ha="center", fontsize=7)  # fmt: skip
        positive = value[value > 0]
        axis.set(
            yticks=place,
            xlabel="predicted utility loss (nats per response)",
            xscale="log" if len(positive) else "linear",
        )
        axis.set_ylim(-0.6, len(labels) - 0.3)
        axis.set_title(f"{title} ({number(result['progress'][equal])})", fontsize=9)
    axes[0].set_yticklabels(labels, fontsize=8)
    axes[1].set_yticklabels([])
    return png_of(figure)


def shares(by_set: Mapping[str, Sequence[Mapping[str, Any]]], equal: str) -> bytes:
    """rows.png: how many rows make up the leak, and what leaving out each row does."""
    figure, (left, right) = new_figure(1, 2, (11.0, 4.4))
    for k, (label, records) in enumerate(by_set.items()):
        color, style = _COLORS[k % len(_COLORS)], ("-", "--", ":", "-.")[k // len(_COLORS) % 4]
        found = np.sort([np.nan if r["share"] is None else r["share"] for r in records])[::-1]
        part = np.arange(1, len(found) + 1) / len(found)
        left.plot(part, np.cumsum(found), color=color, ls=style, label=label)
        effects = np.sort([np.nan if r["effect"][equal] is None else r["effect"][equal] for r in records])
        right.plot(part, effects, color=color, ls=style, label=label)
    left.plot([0, 1], [0, 1], color="0.6", lw=1, ls=":")
    left.set(xlabel="share of the rows, largest contribution first", ylabel="share of leak² so far", xlim=(0, 1))
    right.set(xlabel="share of the rows", ylabel=f"change of the utility loss without the row\nat equal {equal}",
              xlim=(0, 1))  # fmt: skip
    right.axhline(0, color="0.6", lw=1, ls=":")
    left.legend(frameon=False, fontsize=8)
    return png_of(figure)
