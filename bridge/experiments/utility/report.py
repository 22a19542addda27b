"""What people see of a run of `bridge.utility`: the closing table and report.html."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bridge.evaluation.records import Record
from bridge.experiments.utility.result import UtilityResult
from bridge.experiments.utility.settings import Settings
from bridge.reports.console import print_tables
from bridge.reports.pages import write_page
from bridge.reports.results import tables_of
from bridge.reports.tables import Table
from commands.store import Folder

_RULE_NAMES = {
    "boxed": "in \\boxed{}",
    "hashes": 'behind "####"',
    "phrase": 'behind "The answer is"',
    "last number": "as its last number",
}


def lines(result: UtilityResult) -> list[tuple[str, str, str]]:
    """Name, value and meaning of the numbers that a person wants first."""
    low, high = result.interval
    items = result.items
    rows = [
        ("accuracy", f"{100 * result.accuracy:.1f} %", f"{result.correct} of {items} problems"),
        ("95 % interval", f"{100 * low:.1f}–{100 * high:.1f} %", "Wilson's, for problems like these"),
        ("without a number", str(result.no_number), "answers that give none; they count as wrong"),
        ("cut", str(result.cut), f"longer than {result.max_new_tokens} tokens; {result.cut_correct} right"),
    ]  # fmt: skip
    rows += [
        (f"  {_RULE_NAMES[rule]}", str(count.items), f"answers whose number stands there; {count.correct} right")
        for rule, count in result.rules.items()
        if count.items
    ]
    if left_out := result.data.without_number:
        rows.append(("rows left out", str(left_out), f"of {result.data.rows}: their own answer is no single number"))
    if repeated := result.data.repeated:
        rows.append(("repeated questions", str(repeated), "rows not taken: a shot solves a question that is asked"))
    return rows


def title(result: UtilityResult) -> str:
    """What was measured."""
    changed = f" changed by {result.delta}" if result.delta else ""
    shots = f", {len(result.shots)}-shot" if result.shots else ""
    return f"{result.model}{changed} on {result.data.name}{shots}"


@tables_of.register
def tables(result: UtilityResult) -> list[Table]:
    """The closing table, a row a quantity."""
    return [Table(title(result), ("quantity", "value", "what it is"), lines(result), sentences=True)]


def print_result(result: UtilityResult, folder: Folder) -> None:
    """Print the closing table to standard output, and where the report is."""
    print_tables(tables(result), width=140)
    print(f"\n{folder.path / 'report.html'}")


def write(result: UtilityResult, settings: Settings, records: Sequence[Record], folder: Path) -> None:
    """Write report.html: the numbers, then every problem with its answer and the number that was read in it."""
    write_page(
        folder,
        "experiments/utility/report.html",
        {},
        title=title(result),
        table=tables(result)[0],
        settings=settings.identity(),
        decoding=asdict(result.decoding),
        data=result.data,
        records=[_shown(record) for record in records],
    )


def _shown(record: Record) -> dict[str, object]:
    """One record for the page, its response in three parts: before the number, the number, after it."""
    details, text = record.details, record.response
    start, end = (len(text), len(text)) if details["start"] is None else (details["start"], details["end"])
    verdict = "right" if details["correct"] else "no number" if details["found"] is None else "wrong"
    return {
        "item": record.item,
        "prompt": record.prompt,
        "parts": (text[:start], text[start:end], text[end:]),
        "expected": details["expected"],
        "found": details["found"] or "–",
        "rule": details["rule"] or "–",
        "verdict": verdict if record.finished else f"{verdict}, cut",
    }
