"""Tables as text: their cells in Markdown, measures with their intervals."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bridge.reports.numbers import number


@dataclass(frozen=True)
class Table:
    """A table as text; the first `words` columns are words, the others numbers."""

    caption: str
    headings: list[str]
    rows: list[list[str]]
    words: int


def shown(measure: Mapping[str, Any] | None) -> str:
    """A measure with its interval as people read it; a dash where there is none."""
    if measure is None or measure["value"] is None:
        return "–"
    if measure["kind"] == "share":
        text = f"{100 * measure['value']:.1f} %"
        ends = "" if measure["low"] is None else f" ({100 * measure['low']:.0f}–{100 * measure['high']:.0f})"
    else:
        text = number(measure["value"])
        ends = "" if measure["low"] is None else f" ({number(measure['low'])} … {number(measure['high'])})"
    return text + ends


def markdown_line(cells: Sequence[str]) -> str:
    """A line of a table in Markdown."""
    return f"| {' | '.join(plain(cell) for cell in cells)} |"


def plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*_<>|\[\]#~])", r"\\\1", " ".join(text.split()))
