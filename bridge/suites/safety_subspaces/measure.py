"""Utility and harmfulness of one loaded model under many weights: set, asked, judged, recorded, set anew."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge.data.rows import load_rows
from bridge.evaluation.judging import Limits
from bridge.evaluation.records import Record, write_records
from bridge.experiments.harmfulness import run as harmfulness_run
from bridge.experiments.harmfulness.result import assemble
from bridge.experiments.utility import run as utility_run
from bridge.models.load import LoadedModel
from bridge.suites import measures as table1_measures
from bridge.suites.safety_subspaces.settings import ExperimentSettings, harmfulness_settings, utility_settings
from commands.errors import UserError
from commands.progress import Progress
from commands.store import Part, RunFolder, read_result, write_json

RECORDS = "records"


@dataclass(frozen=True)
class Asked:
    """What every model is asked, and who judges the responses."""

    utility: utility_run.Questions
    harmfulness: harmfulness_run.Questions
    limits: Limits

    def identity(self, loaded: LoadedModel) -> dict[str, Any]:
        """What of it decides the numbers; UserError where a prompt does not fit the model."""
        return {
            "utility_questions": self.utility.identity(loaded),
            "harmfulness_questions": self.harmfulness.identity(loaded),
            "judges": harmfulness_run.judges_identity(self.harmfulness.settings.judges),
        }


def prepare(settings: ExperimentSettings, progress: Progress) -> Asked:
    """Read the sets that models are asked; UserError if one cannot be read or is too small."""
    try:
        asked, limits = harmfulness_settings(settings)
        harmful = harmfulness_run.prepare(asked, progress)
    except UserError as error:
        raise UserError(f"[harmfulness] {error}") from error
    try:
        useful = utility_run.prepare(utility_settings(settings), progress)
    except UserError as error:
        raise UserError(f"[utility] {error}") from error
    return Asked(useful, harmful, limits)


def training_sets(settings: ExperimentSettings) -> dict[str, dict[str, Any]]:
    """What the fine-tunes train on, by the name of the fine-tune; UserError if a set cannot be read or is too small."""
    found: dict[str, dict[str, Any]] = {}
    for name, options in settings.finetunes.items():
        try:
            rows = load_rows(options["data"], skip_bad_rows=options.get("skip_bad_rows", False))
            wanted = options.get("rows", 0)
            if "mix" not in options and wanted > len(rows.rows):
                raise UserError(f"expected at least {wanted} rows, as `rows` asks for, got {len(rows.rows)}")
        except UserError as error:
            raise UserError(f"[{name}] data: {error}") from error
        found[name] = {"name": rows.name, "sha256": rows.sha256}
    return found


@dataclass(frozen=True)
class Measuring:
    """One loaded model, what it is asked, and where its answers go."""

    loaded: LoadedModel
    asked: Asked
    folder: RunFolder

    def done(self, name: str) -> bool:
        """Whether a model has been measured, every item with its verdict."""
        return self._file(name).exists()

    def measure(self, name: str, set_weights: Callable[[], object]) -> dict[str, Any]:
        """Set the weights, ask, judge, and keep the records as records/NAME.jsonl; read instead if it was done.

        Where a judge did not answer on some items the result is not kept, so that the same command asks again.

        Raises:
            UserError: weights, prompts or judges cannot be used.

        """
        file = self._file(name)
        if file.exists():
            return read_result(file)
        set_weights()
        quiet = Progress(quiet=True)
        solved = self.asked.utility.ask(self.loaded, Part(self.folder, f"{name}-utility"), quiet)
        answered = self.asked.harmfulness.ask(self.loaded, Part(self.folder, f"{name}-harmfulness"), quiet)
        judged = harmfulness_run.judge_all(
            answered,
            self.asked.harmfulness.settings.judges,
            self.asked.limits,
            journal=self.folder.checkpoint(f"{name}-verdicts.jsonl"),
            scratch=self.folder.checkpoint("inspect"),
            progress=quiet,
        )
        write_records(self.folder.path / RECORDS / f"{name}.jsonl", [*solved, *judged])
        found = self._summary(solved, judged)
        if found["unanswered"] is None:
            write_json(file, found)
            self._drop_batches(name)
        return found

    def _summary(self, solved: Sequence[Record], judged: Sequence[Record]) -> dict[str, Any]:
        useful = utility_run.summary(solved)
        harmful = assemble({}, judged, self.asked.harmfulness.settings)
        measures = table1_measures.accuracy(self.asked.utility.rows.name, useful) | table1_measures.verdicts(harmful)
        unanswered = table1_measures.not_answered(harmful["judges"])
        return {"measures": measures, "unanswered": unanswered, "utility": useful, "harmfulness": harmful}

    def _file(self, name: str) -> Path:
        return self.folder.checkpoint(f"{name}.json")

    def _drop_batches(self, name: str) -> None:
        """The batches are in the records now."""
        for stage in ("utility", "harmfulness"):
            for path in self.folder.checkpoints.glob(f"{name}-{stage}-*"):
                path.unlink()
        self.folder.checkpoint(f"{name}-verdicts.jsonl").unlink(missing_ok=True)


class Clock:
    """Says now and then how far a long stage has come and how long the rest will take, where no bar shows it."""

    def __init__(self, progress: Progress, total: int, done: int, every: float = 60.0) -> None:
        self._progress, self._total, self._every = progress, total, every
        self._start = self._said = time.monotonic()
        self._earlier = self._done = done

    def step(self, name: str) -> None:
        """One more model is measured."""
        self._done += 1
        now = time.monotonic()
        if now - self._said < self._every or self._done == self._total:
            return
        self._said = now
        each = (now - self._start) / (self._done - self._earlier)
        minutes = each * (self._total - self._done) / 60
        self._progress.say(
            f"{name}: {self._done} of {self._total} models, {each:.1f} s each, about {minutes:.0f} min left"
        )
