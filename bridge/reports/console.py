"""The closing table of a command on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from bridge.reports.tables import Table


def print_tables(tables: Sequence[Table], lines: Sequence[str] = (), width: int = 160) -> None:
    """Print tables to standard output, and sentences below them.

    Args:
        tables: the tables.
        lines: what they mean, a line each.
        width: of the page where standard output is no terminal, in characters.

    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as RichTable

    console = Console()
    if not console.is_terminal:
        console = Console(width=width)
    for table in tables:
        shown = RichTable(title=escape(table.caption), title_justify="left", show_edge=False)
        for k, heading in enumerate(table.headings):
            # sentences wrap, numbers do not
            wraps = table.sentences and k == len(table.headings) - 1
            justify: Literal["left", "right"] = "right" if table.is_number(k) else "left"
            shown.add_column(escape(heading), justify=justify, no_wrap=table.sentences and not wraps)
        for row in table.rows:
            shown.add_row(*map(escape, row))
        console.print(shown)
        if len(tables) > 1:
            console.print()
    for line in lines:
        console.print(escape(line))
