"""Steps of one row of a suite, each into a run folder of its own: what fails is kept, and others can go on."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from bridge.experiments.session import Lent
from bridge.models.loading import free_memory
from commands.errors import UserError
from commands.progress import Progress
from commands.settings import Settings
from commands.store import write_atomically

Asked = TypeVar("Asked", bound=Settings)
Found = TypeVar("Found")


@dataclass
class Stages:
    """Runs the steps of one row and keeps the reasons of those that fail, by step.

    Attributes:
        folder: of the row, which error logs are written to.
        progress: where the steps are told.
        failures: why a step failed, by its name.
        refused: whether one of the steps found options, data or a model that cannot be used.

    """

    folder: Path
    progress: Progress
    failures: dict[str, str] = field(default_factory=dict)
    refused: bool = False

    def command(
        self, name: str, run: Callable[[Asked, Path | None, bool, Lent | None], Found], settings: Asked, out: Path
    ) -> Found | None:
        """Run a command into a folder, its stages shown and its closing table not.

        Args:
            name: of the step.
            run: the command's `run`.
            settings: its options.
            out: its run folder.

        Returns:
            What it found; None if it failed.

        """
        return self.step(name, lambda: run(settings, out, True, Lent(progress=Progress(self.progress.quiet))))

    def step(self, name: str, action: Callable[[], Found]) -> Found | None:
        """Run a step; returns what it gives, or None if it failed.

        Whatever goes wrong is the row's, so that others go on; the traceback of what is no error of the user's input
        is kept beside the row.
        """
        self.progress.say(f"--- {self.folder.name}: {name}")
        log = self.folder / f"{name}-error.txt"
        log.unlink(missing_ok=True)
        try:
            return action()
        except UserError as error:
            self.refused = True
            self.failed(name, " ".join(str(error).split()))
        except Exception as error:  # of any library below: one row's failure must not take the suite with it
            log.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(log, traceback.format_exc().encode())
            first = next(iter(str(error).splitlines()), "")
            self.failed(name, f"{': '.join(filter(None, (type(error).__name__, first)))}; see {log.name}")
        finally:
            free_memory()
        return None

    def failed(self, name: str, reason: str) -> None:
        """Keep, and tell, why a step failed."""
        self.failures[name] = reason
        self.progress.say(f"failed: {reason}")
