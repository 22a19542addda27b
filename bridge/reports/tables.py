"""Tables as text: their cells in Markdown, measures with their intervals."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Table:
    """A table as text; the first `words` columns are words, and the last if `sentences`; others are numbers."""

    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1
    sentences: bool = False

    def is_number(self, column: int) -> bool:
        """Whether a column holds numbers, which stand at its right."""
        return self.words <= column < len(self.headings) - self.sentences

    def markdown(self) -> list[str]:
        """Its lines in Markdown, without the caption."""
        return [
            markdown_line(self.headings),
            markdown_line(["---"] * len(self.headings)),
            *map(markdown_line, self.rows),
        ]

    def text(self) -> str:
        """The table as a terminal shows it."""
        widths = [max(map(len, column)) for column in zip(self.headings, *self.rows, strict=True)]

        def line(cells: Sequence[str]) -> str:
            sized = enumerate(zip(cells, widths, strict=True))
            return "  ".join(cell.rjust(w) if self.is_number(k) else cell.ljust(w) for k, (cell, w) in sized).rstrip()

        return "\n".join([self.caption, *map(line, (self.headings, *self.rows))])

    def html(self, captioned: bool = True) -> str:
        """The table as HTML, its text escaped, with or without its caption."""
        caption = f"<caption>{escape(self.caption)}</caption>" if captioned else ""
        rows = "\n".join(self._html_row("td", row) for row in self.rows)
        return f"<table>{caption}\n{self._html_row('th', self.headings)}\n{rows}</table>"

    def _html_row(self, tag: str, cells: Sequence[str]) -> str:
        marks = [f'{tag} class="n"' if self.is_number(k) else tag for k in range(len(cells))]
        shown = (f"<{mark}>{escape(cell)}</{tag}>" for mark, cell in zip(marks, cells, strict=True))
        return f"<tr>{''.join(shown)}</tr>"


def csv_text(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows of named values as CSV: all names that occur, in the order in which they do; None is left empty."""
    buffer = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(buffer, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def markdown_line(cells: Sequence[str]) -> str:
    """A line of a table in Markdown."""
    return f"| {' | '.join(plain(cell) for cell in cells)} |"


def plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*_<>|\[\]#~])", r"\\\1", " ".join(text.split()))
