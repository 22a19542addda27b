"""What people see of a run of `bridge.harmfulness`: the closing table, report.html and scores.png."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from bridge.evaluation.judges import LEVELS, REFUSAL, RUBRIC
from bridge.evaluation.records import Record
from bridge.experiments.harmfulness.result import HarmfulnessResult, Scores
from bridge.experiments.harmfulness.settings import Settings
from bridge.reports.console import print_tables
from bridge.reports.drawing import DARK, LIGHT, MID, new_figure, png_of
from bridge.reports.pages import write_page
from bridge.reports.results import pictures_of, tables_of
from bridge.reports.tables import Table
from commands.store import Folder

_STYLES = ((DARK, None), (LIGHT, "//"), (MID, ".."))


def title(result: HarmfulnessResult) -> str:
    """What was measured."""
    changed = f" changed by {result.delta}" if result.delta else ""
    return f"{result.model}{changed} on {result.prompts.name}"


def lines(result: HarmfulnessResult) -> list[tuple[str, str, str, str]]:
    """Judge, quantity, value and meaning of the numbers that a person wants first."""
    out: list[tuple[str, str, str, str]] = []
    if rate := result.refusals:
        note = f"{rate.refused} of {rate.total}, Wilson's 95 % interval {_percents(rate.interval)}"
        out.append((REFUSAL, "refusal rate", _percent(rate.rate), note))
    for name, judge in result.judges.items():
        out += [(name, *line) for line in _judge_lines(judge)]
    for pair in result.agreement:
        note = f"quadratic weighted kappa; {pair.same} of {pair.items} scores are the same"
        out.append((" / ".join(pair.judges), "agreement", _number(pair.kappa), note))
    if result.cut:
        note = f"of {result.items}: longer than {result.max_new_tokens} tokens"
        out.append(("", "responses cut", str(result.cut), note))
    return out


def _judge_lines(judge: Scores) -> list[tuple[str, str, str]]:
    status, total = judge.status, judge.total
    low, high = judge.bounds
    interval = f"; bootstrap 95 % interval {_numbers(judge.interval)}" if judge.interval else ""
    out = [("harmfulness score", _number(judge.mean), f"mean of {status.scored} of {total}, 1 to 5{interval}")]
    for share, what in ((judge.harmful, "harmful (4 or 5)"), (judge.fully_harmful, "fully harmful (5)")):
        note = f"Wilson's 95 % interval {_percents(share.interval)}" if share.interval else "no scores"
        out.append((what, _percent(share.rate), f"{share.count} of {status.scored}; {note}"))
    if status.scored < total:
        kinds = {"unparsed": status.unparsed, "refused": status.refused, "failed": status.failed}
        parts = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
        out.append(("without a score", str(total - status.scored), parts))
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


@tables_of.register
def tables(result: HarmfulnessResult) -> list[Table]:
    """The closing table, a row a judge and quantity."""
    return [Table(title(result), ("judge", "quantity", "value", "what it is"), lines(result), 2, sentences=True)]


def print_result(result: HarmfulnessResult, folder: Folder) -> None:
    """Print the closing table to standard output, how failed items can be asked again, and where the report is."""
    again = f"{result.failed} items got no answer: the same command with --retry-failed asks again"
    print_tables(tables(result), [again] if result.failed else [], width=140)
    print(f"\n{folder.path / 'report.html'}")


@pictures_of.register
def pictures(result: HarmfulnessResult) -> dict[str, bytes]:
    """The histogram, if a judge gave scores."""
    return {"scores": histogram(result.judges)} if result.judges else {}


def histogram(judges: Mapping[str, Scores]) -> bytes:
    """scores.png: how many items got each score, by judge, and how many got none."""
    figure, axis = new_figure(1, 1, (7.0, 3.6))
    names = [*map(str, LEVELS), "none"]
    width = 0.8 / len(judges)
    for k, (name, judge) in enumerate(judges.items()):
        color, hatch = _STYLES[k % len(_STYLES)]
        counts = [*judge.histogram.values(), judge.total - judge.status.scored]
        place = np.arange(len(names)) + (k - (len(judges) - 1) / 2) * width
        axis.bar(place, counts, width, color=color, hatch=hatch, edgecolor="white", label=name)
    axis.set_xticks(range(len(names)), names)
    axis.set(xlabel="score", ylabel="items")
    axis.yaxis.get_major_locator().set_params(integer=True)
    axis.legend(frameon=False, fontsize=8)
    return png_of(figure)


def write(result: HarmfulnessResult, settings: Settings, records: Sequence[Record], folder: Path) -> None:
    """Write report.html, with every prompt, response and verdict, and scores.png if a judge gave scores."""
    items: dict[str, list[Record]] = {}
    for record in records:
        items.setdefault(record.item, []).append(record)
    write_page(
        folder,
        "experiments/harmfulness/report.html",
        pictures(result),
        title=title(result),
        table=tables(result)[0],
        result=result,
        decoding=asdict(result.decoding),
        settings=settings.identity(),
        levels=LEVELS,
        rubric=RUBRIC,
        items=[
            {"first": verdicts[0], "verdicts": [(verdict(record), record) for record in verdicts]}
            for verdicts in items.values()
        ],
    )


def verdict(record: Record) -> str:
    """A judge's verdict in a few words."""
    if record.status == "checked":
        return "refusal" if record.details["refused"] else "no refusal"
    return f"score {record.score}" if record.status == "scored" else record.status
