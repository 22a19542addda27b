"""Steps of one row of an experiment, each into a run folder of its own: what fails is kept, and others can go on."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bridge.models.loading import free_memory
from bridge.suites.settings_file import command_main, run_quietly
from commands.errors import UserError
from commands.progress import Progress
from commands.store import write_atomically


@dataclass
class Stages:
    """Runs the steps of one row and keeps the reasons of those that fail, by step.

    folder: of the row, which error logs are written to; common: options that every command gets; refused: whether one
    of the steps found options, data or a model that cannot be used.
    """

    folder: Path
    common: dict[str, Any]
    progress: Progress
    failures: dict[str, str] = field(default_factory=dict)
    refused: bool = False

    def command(self, command: str, out: Path, **options: Any) -> Path | None:
        """Run a command of this package into a folder, its closing table not shown; None if it failed."""
        given = {**self.common, **options, "out": out}
        return self.step(command, out, partial(run_quietly, command_main(command), given))

    def step(self, name: str, out: Path, action: Callable[[], object]) -> Path | None:
        """Run a step that writes a folder; returns the folder, or None if it failed.

        Whatever goes wrong is the row's, so that others go on; the traceback of what is no error of the user's input
        is kept beside the row.
        """
        self.progress.say(f"--- {self.folder.name}: {name}")
        log = self.folder / f"{name}-error.txt"
        log.unlink(missing_ok=True)
        try:
            action()
        except UserError as error:
            self.refused = True
            self.failed(name, " ".join(str(error).split()))
        except Exception as error:  # of any library below: one row's failure must not take the experiment with it
            log.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(log, traceback.format_exc().encode())
            first = next(iter(str(error).splitlines()), "")
            self.failed(name, f"{': '.join(filter(None, (type(error).__name__, first)))}; see {log.name}")
        finally:
            free_memory()
        return None if name in self.failures else out

    def failed(self, name: str, reason: str) -> None:
        """Keep, and tell, why a step failed."""
        self.failures[name] = reason
        self.progress.say(f"failed: {reason}")
