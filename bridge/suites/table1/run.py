"""One run of `bridge.table1`: every row's commands, one after the other, and the table after each row."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from bridge.experiments.finetune.run import run as finetune
from bridge.experiments.harmfulness.run import run as harmfulness
from bridge.experiments.overlap.run import run as overlap
from bridge.experiments.utility.run import run as utility
from bridge.models.names import run_name
from bridge.suites import measures
from bridge.suites.finetunes import TrainingSet, drop_weights
from bridge.suites.measures import Measures
from bridge.suites.stages import Stages
from bridge.suites.table1 import report
from bridge.suites.table1.contents import Contents, TableContents, differences
from bridge.suites.table1.result import Before, TableResult, TableRow, Training
from bridge.suites.table1.settings import CHANGE, TableSettings
from bridge.training.plan import Method
from commands.errors import UserError
from commands.progress import Progress
from commands.store import RunFolder, short_hash

COMMAND = "bridge.table1"


def run(settings: TableSettings, name: str, out: Path | None = None, quiet: bool = False) -> TableResult:
    """Fill the table, write the run folder, print the table.

    Args:
        settings: what to fill it with.
        name: of the settings, for the default folder.
        out: the run folder.
        quiet: print nothing.

    Raises:
        UserError: the folder is another run's, holds rows made from other contents, or cannot be written; or a set on
            which every model is measured cannot be read. What goes wrong in a row is the row's.

    """
    progress = Progress(quiet)
    contents = TableContents(settings, progress.say)
    identity = settings.identity()
    folder = RunFolder(out or Path("runs") / "table1" / f"{run_name(name)}-{short_hash(identity)}", COMMAND, identity)
    try:
        table = _Table(settings, contents, folder, progress)
        table.refuse_other_contents()
        if folder.complete:
            progress.say(f"complete already: {folder.path}{folder.made_with()}")
        else:
            settings.write(folder.path, COMMAND)
            table.fill()
        found = TableResult.read(folder.path)
        if found.done and not folder.complete:
            folder.finish()
    finally:
        folder.close()
    if not quiet:
        report.print_result(found, folder.path)
    return found


class _Table:
    """A table that is filled: its settings, what it is made from, and its folder."""

    def __init__(self, settings: TableSettings, contents: TableContents, folder: RunFolder, progress: Progress) -> None:
        self.settings, self.contents, self.folder, self.progress = settings, contents, folder, progress
        self.rows = [
            _Row(model, method, chosen, folder.path / "rows" / f"{run_name(model)}--{method}--{chosen.name}")
            for model in settings.models
            for method in settings.methods
            for chosen in settings.sets
        ]

    def before_place(self, model: str) -> Path:
        """The folder of a model's measures before any fine-tuning."""
        return self.folder.path / "before" / run_name(model)

    def refuse_other_contents(self) -> None:
        """Raise UserError if what is done already was made from other contents than are there now."""
        done = {self.before_place(model): self.contents.of_measures(model) for model in self.settings.models}
        done |= {row.path: self.contents.of_row(row.model, row.method, row.chosen) for row in self.rows}
        for path, now in done.items():
            if (path / TableRow.FILE).exists() and (changed := differences(path, now)):
                raise UserError(
                    f"--out: {self.folder.path} holds numbers made from other contents ({path.name}: "
                    f"{'; '.join(changed[:4])}); choose another folder, or restore the contents"
                )

    def fill(self) -> None:
        """Fill every row; the files are written after each."""
        self._refuse_same_folders()
        found = [row.read() for row in self.rows]
        for left in self.folder.path.glob("*/*/.*.tmp"):  # a killed process was writing it
            left.unlink()
        self._write(found)
        measured: dict[str, tuple[Before, bool]] = {}
        for k, row in enumerate(self.rows):
            if row.model not in measured:
                measured[row.model] = self._before(row.model)
            found[k] = self._filled(row, found[k], *measured[row.model])
            self._write(found)
            self.folder.note_progress()

    def _refuse_same_folders(self) -> None:
        names = [run_name(model).lower() for model in self.settings.models]
        if len(set(names)) < len(names):
            raise UserError(f"--settings: models: expected different last 60 characters of the names, got {names}")

    def _write(self, rows: list[TableRow]) -> None:
        report.write(TableResult(self.settings.title, rows), self.folder.path)

    def _before(self, model: str) -> tuple[Before, bool]:
        """What a model can do before any fine-tuning, and whether its rows cannot be filled at all."""
        path = self.before_place(model)
        if (path / Before.FILE).exists():
            return Before.read(path), False
        stages = Stages(path, self.progress)
        measured = self._evaluate(stages, model, None)
        _check(stages, self.contents.of_measures(model))
        before = Before(measured, stages.failures)
        if not stages.failures:
            before.write(path)
        return before, stages.refused

    def _evaluate(self, stages: Stages, model: str, delta: Path | None) -> Measures:
        """Harmfulness and utility of a model, changed or not, where the table asks for them."""
        measured: Measures = {}
        change = None if delta is None else str(delta)
        if (judged := self.settings.harmfulness_settings(model, change)) is not None:
            again = partial(harmfulness, retry_failed=True)
            verdicts = stages.command("harmfulness", again, judged, stages.folder / "harmfulness")
            if verdicts is not None:
                measured |= measures.verdicts(verdicts)
                if reason := measures.unanswered(verdicts.judges):
                    stages.failures["harmfulness"] = reason
        if (asked := self.settings.utility_settings(model, change)) is not None:
            solved = stages.command("utility", utility, asked, stages.folder / "utility")
            measured |= {} if solved is None else measures.accuracy(solved.data.name, solved)
        return measured

    def _filled(self, row: _Row, found: TableRow, before: Before, refused: bool) -> TableRow:
        """One row, as it was read if it was done before."""
        if found.status == "done":
            self._drop_weights(row)  # the process may have died just before
            return found
        stages = Stages(row.path, self.progress)
        filled = replace(row.pending, before=before.before)
        if not refused:  # or its own measures would be refused too, after a fine-tune
            filled = self._tuned(row, filled, stages)
            _check(stages, self.contents.of_row(row.model, row.method, row.chosen))
        failures = {f"{step} before": reason for step, reason in before.failures.items()} | stages.failures
        filled = replace(filled, failures=failures, status="failed" if failures else "done")
        if not failures:
            filled.write(row.path)
            self._drop_weights(row)
        return filled

    def _tuned(self, row: _Row, filled: TableRow, stages: Stages) -> TableRow:
        """Fine-tune, and measure what that gave, as far as it goes."""
        out = row.path / "finetune"
        settings = self.settings.finetune_settings(row.model, row.method, row.chosen)
        tuned = stages.command("finetune", finetune, settings, out)
        if tuned is None:
            return filled
        change = {"update norm": measures.quantity(tuned.update.norm)}
        after = self._evaluate(stages, row.model, out)
        if (asked := self.settings.overlap_settings(row.model, str(out))) is not None:
            scored = stages.command("overlap", overlap, asked, row.path / "overlap")
            if scored is not None:
                change |= measures.overlap(scored.deltas[CHANGE], scored.num_samples)
        return replace(filled, training=Training.of(tuned), change=change, after=after)

    def _drop_weights(self, row: _Row) -> None:
        if not self.settings.keep_weights:
            drop_weights(row.path / "finetune")


class _Row:
    """A row of the table, and its folder."""

    def __init__(self, model: str, method: Method, chosen: TrainingSet, path: Path) -> None:
        self.model, self.method, self.chosen, self.path = model, method, chosen, path

    @property
    def pending(self) -> TableRow:
        """The row before anything was done."""
        return TableRow(self.model, self.method, self.chosen.name, self.chosen.data)

    def read(self) -> TableRow:
        """The row as it was done before, or still to come."""
        return TableRow.read(self.path) if (self.path / TableRow.FILE).exists() else self.pending


def _check(stages: Stages, contents: Contents) -> None:
    """Where every command went well, all of them must have read what the table was started on."""
    if not stages.failures and (changed := differences(stages.folder, contents)):
        stages.failed("contents", f"changed while the table was filled ({'; '.join(changed[:4])})")
