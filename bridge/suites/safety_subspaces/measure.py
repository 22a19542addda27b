"""Utility and harmfulness of one loaded model under many weights: set, asked, judged, recorded, set anew."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bridge.data.rows import load_rows
from bridge.evaluation.records import Record, write_records
from bridge.experiments.harmfulness import run as harmfulness
from bridge.experiments.harmfulness.scores import judged
from bridge.experiments.session import AnsweringSession
from bridge.experiments.utility import run as utility
from bridge.models.load import LoadedModel
from bridge.suites import measures
from bridge.suites.safety_subspaces.result import JudgedModel, Measured
from bridge.suites.safety_subspaces.settings import ExperimentSettings
from commands.errors import UserError
from commands.progress import Progress
from commands.store import Part, RunFolder, write_json

RECORDS = "records"


@dataclass(frozen=True)
class Asked:
    """What every model is asked, and who judges the responses."""

    utility: utility.Questions
    harmfulness: harmfulness.Questions

    def identity(self, loaded: LoadedModel) -> dict[str, object]:
        """What of it decides the numbers; UserError where a prompt does not fit the model."""
        return {
            "utility_questions": self.utility.identity(loaded),
            "harmfulness_questions": self.harmfulness.identity(loaded),
            "judges": harmfulness.judges_identity(self.harmfulness.settings.judges),
        }


def prepare(settings: ExperimentSettings, progress: Progress) -> Asked:
    """Read the sets that models are asked; UserError if one cannot be read or is too small."""
    judging, solving = settings.harmfulness_settings(), settings.utility_settings()
    try:
        harmful = harmfulness.prepare(AnsweringSession(harmfulness.COMMAND, judging, progress), judging)
    except UserError as error:
        raise UserError(f"[harmfulness] {error}") from error
    try:
        useful = utility.prepare(AnsweringSession(utility.COMMAND, solving, progress), solving)
    except UserError as error:
        raise UserError(f"[utility] {error}") from error
    return Asked(useful, harmful)


def training_sets(settings: ExperimentSettings) -> dict[str, dict[str, str]]:
    """Names and hashes of what the fine-tunes train on, by the name of the fine-tune.

    Raises:
        UserError: a set cannot be read or is too small.

    """
    found: dict[str, dict[str, str]] = {}
    for name, options in settings.finetunes.items():
        tuned = settings.finetune_settings(name)
        try:
            rows = load_rows(tuned.data, skip_bad_rows=tuned.skip_bad_rows)
            wanted = tuned.rows if "rows" in options.given else 0
            if tuned.mix is None and wanted > len(rows.rows):
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
        return self.folder.checkpoint(f"{name}.json").exists()

    def measure(self, name: str, set_weights: Callable[[], object]) -> Measured:
        """Set the weights, ask, judge, and keep the records as records/NAME.jsonl; read instead if it was done.

        Where a judge did not answer on some items the result is not kept, so that the same command asks again.

        Raises:
            UserError: weights, prompts or judges cannot be used.

        """
        file = self.folder.checkpoint(f"{name}.json")
        if file.exists():
            return Measured.of_json(file.read_bytes(), str(file))
        set_weights()
        quiet = Progress(quiet=True)
        solved = self.asked.utility.ask(self.loaded, Part(self.folder, f"{name}-utility"), quiet)
        answered = self.asked.harmfulness.ask(self.loaded, Part(self.folder, f"{name}-harmfulness"), quiet)
        settings = self.asked.harmfulness.settings
        verdicts = harmfulness.judge_all(
            answered,
            settings.judges,
            settings,
            journal=self.folder.checkpoint(f"{name}-verdicts.jsonl"),
            scratch=self.folder.checkpoint("inspect"),
            progress=quiet,
        )
        write_records(self.folder.path / RECORDS / f"{name}.jsonl", [*solved, *verdicts])
        found = self._measured(solved, verdicts)
        if found.unanswered is None:
            write_json(file, found.to_dict())
            self._drop_batches(name)
        return found

    def _measured(self, solved: Sequence[Record], verdicts: Sequence[Record]) -> Measured:
        useful = utility.summary(solved)
        harmful = JudgedModel(**vars(judged(verdicts, self.asked.harmfulness.settings)))
        return Measured(
            measures=measures.accuracy(self.asked.utility.rows.name, useful) | measures.verdicts(harmful),
            unanswered=measures.unanswered(harmful.judges),
            utility=useful,
            harmfulness=harmful,
        )

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
