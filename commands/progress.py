"""Progress of long commands on standard error: bars with time left on a terminal, a line a stage elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Progress:
    """Shows the stages of a command; silent when `quiet`. Remembers how long each stage took."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.seconds: dict[str, float] = {}

    def say(self, line: str) -> None:
        """Print one line to standard error."""
        if not self.quiet:
            print(line, file=sys.stderr, flush=True)

    @contextmanager
    def stage(self, name: str, total: int, done: int = 0) -> Iterator[Callable[[], None]]:
        """Show one stage of `total` steps, `done` of which a killed run had finished; yields `tick`."""
        start = time.monotonic()
        if self.quiet or not sys.stderr.isatty():
            yield lambda: None
            resumed = f", {done} of {total} resumed" if done else ""
            self.say(f"{name}: {time.monotonic() - start:.1f} s{resumed}")
        else:
            with _bar() as bar:
                task = bar.add_task(name, total=total, completed=done)
                yield lambda: bar.advance(task)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start


def _bar():  # type: ignore[no-untyped-def]  # rich is imported only when a bar is drawn
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as RichProgress

    return RichProgress(
        TextColumn("{task.description:<34}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("elapsed"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
