"""What people see of a run of `bridge.harmfulness`: the closing table, report.html and scores.png."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bridge.evaluation.judges import LEVELS, REFUSAL, RUBRIC
from bridge.evaluation.records import Record
from bridge.reports.drawing import DARK, LIGHT, MID, new_figure, png_of
from bridge.reports.pages import render_page
from commands.store import write_atomically

_STYLES = ((DARK, None), (LIGHT, "//"), (MID, ".."))


def title(found: Mapping[str, Any]) -> str:
    """What was measured."""
    changed = f" changed by {found['delta']}" if found["delta"] else ""
    return f"{found['model']}{changed} on {found['prompts']['name']}"


def lines(found: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Judge, quantity, value and meaning of the numbers that a person wants first."""
    out: list[tuple[str, str, str, str]] = []
    if rate := found["refusals"]:
        note = f"{rate['refused']} of {rate['total']}, Wilson's 95 % interval {_percents(rate['interval'])}"
        out.append((REFUSAL, "refusal rate", _percent(rate["rate"]), note))
    for name, judge in found["judges"].items():
        out += [(name, *line) for line in _judge_lines(judge)]
    for pair in found["agreement"]:
        note = f"quadratic weighted kappa; {pair['same']} of {pair['items']} scores are the same"
        out.append((" / ".join(pair["judges"]), "agreement", _number(pair["kappa"]), note))
    if found["cut"]:
        note = f"of {found['items']}: longer than {found['max_new_tokens']} tokens"
        out.append(("", "responses cut", str(found["cut"]), note))
    return out


def _judge_lines(judge: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    status, total = judge["status"], judge["total"]
    low, high = judge["bounds"]
    interval = f"; bootstrap 95 % interval {_numbers(judge['interval'])}" if judge["interval"] else ""
    out = [("harmfulness score", _number(judge["mean"]), f"mean of {status['scored']} of {total}, 1 to 5{interval}")]
    for key, what in (("harmful", "harmful (4 or 5)"), ("fully_harmful", "fully harmful (5)")):
        share = judge[key]
        note = f"Wilson's 95 % interval {_percents(share['interval'])}" if share["interval"] else "no scores"
        out.append((what, _percent(share["rate"]), f"{share['count']} of {status['scored']}; {note}"))
    if status["scored"] < total:
        parts = ", ".join(f"{status[s]} {s}" for s in ("unparsed", "refused", "failed") if status[s])
        out.append(("without a score", str(total - status["scored"]), parts))
        out.append(("mean of all, bounds", f"{low:.2f}–{high:.2f}", "if those without a score were all 1, or all 5"))
    return out


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _numbers(ends: Sequence[float]) -> str:
    return f"{ends[0]:.2f}–{ends[1]:.2f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _percents(ends: Sequence[float]) -> str:
    return f"{100 * ends[0]:.1f}–{100 * ends[1]:.1f} %"


def print_table(found: Mapping[str, Any]) -> None:
    """Print the closing table to standard output, and how failed items can be asked again."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    table = Table(title=escape(title(found)), title_justify="left", show_edge=False)
    table.add_column("judge", no_wrap=True)
    table.add_column("quantity", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("what it is")
    for row in lines(found):
        table.add_row(*map(escape, row))
    console.print(table)
    if failed := sum(judge["status"]["failed"] for judge in found["judges"].values()):
        console.print(f"{failed} items got no answer: the same command with --retry-failed asks again", highlight=False)


def histogram(judges: Mapping[str, Mapping[str, Any]]) -> bytes:
    """scores.png: how many items got each score, by judge, and how many got none."""
    figure, axis = new_figure(1, 1, (7.0, 3.6))
    names = [*map(str, LEVELS), "none"]
    width = 0.8 / len(judges)
    for k, (name, judge) in enumerate(judges.items()):
        color, hatch = _STYLES[k % len(_STYLES)]
        counts = [*judge["histogram"].values(), judge["total"] - judge["status"]["scored"]]
        place = np.arange(len(names)) + (k - (len(judges) - 1) / 2) * width
        axis.bar(place, counts, width, color=color, hatch=hatch, edgecolor="white", label=name)
    axis.set_xticks(range(len(names)), names)
    axis.set(xlabel="score", ylabel="items")
    axis.yaxis.get_major_locator().set_params(integer=True)
    axis.legend(frameon=False, fontsize=8)
    return png_of(figure)


def write(found: Mapping[str, Any], settings: Mapping[str, Any], records: Sequence[Record], folder: Path) -> None:
    """Write report.html, with every prompt, response and verdict, and scores.png if a judge gave scores."""
    pictures = {"scores": histogram(found["judges"])} if found["judges"] else {}
    for name, png in pictures.items():
        write_atomically(folder / f"{name}.png", png)
    items: dict[str, list[Record]] = {}
    for record in records:
        items.setdefault(record.item, []).append(record)
    page = render_page(
        "experiments/harmfulness/report.html",
        pictures,
        title=title(found),
        lines=lines(found),
        result=found,
        settings=settings,
        levels=LEVELS,
        rubric=RUBRIC,
        items=[
            {"first": verdicts[0], "verdicts": [(verdict(record), record) for record in verdicts]}
            for verdicts in items.values()
        ],
    )
    write_atomically(folder / "report.html", page)


def verdict(record: Record) -> str:
    """A judge's verdict in a few words."""
    if record.status == "checked":
        return "refusal" if record.details["refused"] else "no refusal"
    return f"score {record.score}" if record.status == "scored" else record.status
