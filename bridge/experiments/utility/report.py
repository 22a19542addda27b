"""What people see of a run of `bridge.utility`: the closing table and report.html."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bridge.evaluation.records import Record
from bridge.reports.pages import render_page
from commands.store import write_atomically

_RULE_NAMES = {
    "boxed": "in \\boxed{}",
    "hashes": 'behind "####"',
    "phrase": 'behind "The answer is"',
    "last number": "as its last number",
}


def lines(found: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Name, value and meaning of the numbers that a person wants first."""
    low, high = found["interval"]
    items = found["items"]
    rows = [
        ("accuracy", f"{100 * found['accuracy']:.1f} %", f"{found['correct']} of {items} problems"),
        ("95 % interval", f"{100 * low:.1f}–{100 * high:.1f} %", "Wilson's, for problems like these"),
        ("without a number", str(found["no_number"]), "answers that give none; they count as wrong"),
        ("cut", str(found["cut"]), f"longer than {found['max_new_tokens']} tokens; {found['cut_correct']} right"),
    ]  # fmt: skip
    rows += [
        (f"  {_RULE_NAMES[rule]}", str(count["items"]), f"answers whose number stands there; {count['correct']} right")
        for rule, count in found["rules"].items()
        if count["items"]
    ]
    if left_out := found["data"]["without_number"]:
        rows.append(
            ("rows left out", str(left_out), f"of {found['data']['rows']}: their own answer is no single number")
        )
    if repeated := found["data"].get("repeated", 0):
        rows.append(("repeated questions", str(repeated), "rows not taken: a shot solves a question that is asked"))
    return rows


def title(found: Mapping[str, Any]) -> str:
    """What was measured."""
    changed = f" changed by {found['delta']}" if found["delta"] else ""
    shots = f", {len(found['shots'])}-shot" if found["shots"] else ""
    return f"{found['model']}{changed} on {found['data']['name']}{shots}"


def print_table(found: Mapping[str, Any]) -> None:
    """Print the closing table to standard output."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    table = Table(title=escape(title(found)), title_justify="left", show_edge=False)
    table.add_column("quantity", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("what it is")
    for row in lines(found):
        table.add_row(*map(escape, row))
    console.print(table)


def write(found: Mapping[str, Any], settings: Mapping[str, Any], records: Sequence[Record], folder: Path) -> None:
    """Write report.html: the numbers, then every problem with its answer and the number that was read in it."""
    page = render_page(
        "experiments/utility/report.html",
        {},
        title=title(found),
        lines=lines(found),
        settings=settings,
        decoding=found["decoding"],
        data=found["data"],
        records=[_shown(record) for record in records],
    )
    write_atomically(folder / "report.html", page)


def _shown(record: Record) -> dict[str, Any]:
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
