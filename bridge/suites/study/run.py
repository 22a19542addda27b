"""One run of `bridge.study`: every fine-tune and what is measured of it, and the tables after each."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from bridge.data.rows import RowSet, load_prompts, load_rows
from bridge.experiments.estimate_aic.run import run as estimate_aic
from bridge.experiments.finetune.result import FinetuneResult
from bridge.experiments.finetune.run import run as finetune
from bridge.experiments.overlap.run import run as overlap
from bridge.experiments.risk.run import run as risk
from bridge.models.identity import model_identity
from bridge.models.load import load_model
from bridge.models.loading import free_memory
from bridge.models.names import run_name
from bridge.suites.finetunes import TrainingSet, drop_weights
from bridge.suites.stages import Stages
from bridge.suites.study import pilot, predictors, report
from bridge.suites.study.predictors import Values
from bridge.suites.study.ranking import assemble
from bridge.suites.study.result import Outcomes, StudyResult, StudyRow, Training
from bridge.suites.study.settings import StudySettings, kind_of_optimizer
from bridge.training.plan import Method
from commands.errors import UserError
from commands.progress import Progress
from commands.store import RunFolder, short_hash, write_atomically

COMMAND = "bridge.study"


def run(settings: StudySettings, name: str, out: Path | None = None, quiet: bool = False) -> StudyResult:
    """Make every fine-tune, measure, correlate, write the run folder, print the tables.

    Args:
        settings: the study.
        name: of the settings, for the default folder.
        out: the run folder.
        quiet: print nothing.

    Raises:
        UserError: the folder is another run's or cannot be written, or the model or a set cannot be read. What goes
            wrong in one fine-tune is listed with it.

    """
    progress = Progress(quiet)
    sets = _read_sets(settings)
    if settings.left_out:
        names = ", ".join(each.name for each in settings.left_out)
        progress.say(f"left out, since --files is not given: {names}")
    identity = _identity(settings, sets, progress)
    default = Path("runs") / "study" / f"{run_name(name)}-{short_hash(identity)}"
    folder = RunFolder(out or default, COMMAND, identity)
    try:
        if folder.complete:
            progress.say(f"complete already: {folder.path}{folder.made_with()}")
        else:
            settings.write(folder.path, COMMAND)
            _Study(settings, sets, folder, progress).fill()
        found = StudyResult.read(folder.path)
        if found.done and not folder.complete:
            folder.finish()
    finally:
        folder.close()
    if not quiet:
        report.print_result(found, folder.path)
    return found


def _read_sets(settings: StudySettings) -> dict[str, RowSet]:
    """The rows of every set by its name."""
    found = {}
    for each in settings.sets:
        tuned = [settings.finetune_settings(method, each, 0) for method in settings.methods]
        try:
            found[each.name] = load_rows(each.data, skip_bad_rows=any(one.skip_bad_rows for one in tuned))
        except UserError as error:
            raise UserError(f"set {each.name}: {error}") from error
    return found


def _identity(settings: StudySettings, sets: Mapping[str, RowSet], progress: Progress) -> dict[str, object]:
    """Everything that decides the numbers: settings, weights, and the contents of all sets."""
    asked = {"skill": load_rows(settings.skill_settings().skill).sha256}
    if (refusals := settings.overlap.settings().refusals) is not None:
        asked["refusals"] = load_prompts(refusals).sha256
    loaded = load_model(
        settings.model, dtype=settings.dtype, device=settings.device, seed=settings.seed, report=progress.say
    )
    found = settings.identity() | model_identity(loaded)
    del loaded
    free_memory()
    return found | {"contents": {**asked, **{f"set {name}": rows.sha256 for name, rows in sets.items()}}}


@dataclass(frozen=True)
class _Row:
    """One fine-tune: what decides it, and its folder."""

    chosen: TrainingSet
    method: Method
    seed: int
    path: Path

    @property
    def pending(self) -> StudyRow:
        """The row before anything was done."""
        return StudyRow(self.chosen.name, self.chosen.data, self.method, self.seed)

    def read(self) -> StudyRow:
        """The row as it was done before, or still to come."""
        return StudyRow.read(self.path) if (self.path / StudyRow.FILE).exists() else self.pending


class _Study:
    """A study that is filled: its settings, the rows of its sets by name, and its folder."""

    def __init__(
        self, settings: StudySettings, sets: Mapping[str, RowSet], folder: RunFolder, progress: Progress
    ) -> None:
        self.settings, self.sets, self.folder, self.progress = settings, sets, folder, progress

    def fill(self) -> None:
        """Make every fine-tune; the tables are written after each, the page at the end."""
        wanted = self._wanted()
        rows = [row.read() for row in wanted]
        for depth in ("*/.*.tmp", "*/*/.*.tmp"):
            for left in self.folder.path.glob(depth):  # a killed process was writing it
                left.unlink()
        found = self._write(rows)
        for k, row in enumerate(wanted):
            if rows[k].status != "done":
                rows[k] = self._measured(row)
                found = self._write(rows)
                self.folder.note_progress()
            if rows[k].status == "done" and not self.settings.keep_weights:
                drop_weights(row.path / "finetune")
        report.write(found, self.settings, self.folder.path)

    def _wanted(self) -> list[_Row]:
        """All fine-tunes: every set under one seed before the next seed, so that half a study spans all sets."""
        settings, place = self.settings, self.folder.path / "rows"
        return [
            _Row(chosen, method, seed, place / f"{chosen.name}--{method}--{seed}")
            for seed in settings.seeds
            for chosen in settings.sets
            for method in settings.methods
        ]

    def _write(self, rows: list[StudyRow]) -> StudyResult:
        found = assemble(self.settings, rows)
        report.write_tables(found, self.folder.path)
        return found

    # --------------------------------------------------------------------------------------------- one row

    def _measured(self, row: _Row) -> StudyRow:
        """One fine-tune, and all that is measured of it, as far as it goes."""
        stages = Stages(row.path, self.progress)
        out = row.path / "finetune"
        settings = self.settings.finetune_settings(row.method, row.chosen, row.seed)
        tuned = stages.command("finetune", finetune, settings, out)
        found = row.pending
        if tuned is not None:
            known = predictors.of_training(tuned, out) | self._before(row, tuned, stages) | self._pilot(row, stages)
            found = self._damaged(replace(found, training=Training.of(tuned), predictors=known), row, out, stages)
        found = replace(found, failures=stages.failures, status="failed" if stages.failures else "done")
        if not stages.failures:
            found.write(row.path)
        return found

    def _before(self, row: _Row, tuned: FinetuneResult, stages: Stages) -> Values:
        """What is known of the very rows before the training, from the base model alone.

        The folders are named for what decides their numbers, so that fine-tunes of the same rows share them: an
        estimate holds its prediction at all times, of which each fine-tune's own is read.
        """
        settings, plan = self.settings, tuned.plan
        rows = self._rows_file(row, tuned.parts[0].rows)
        common = {**settings.skill_options(), "optimizer": kind_of_optimizer(plan.optimizer),
                  "adam_batch_size": plan.batch_size}  # fmt: skip
        path = {**common, "num_finetune": tuned.rows, "rank": settings.overlap.given.get("rank")}
        horizon = math.fsum(tuned.learning_rates) if row.method == "full" else None
        place = self.folder.path / "before"
        out = place / f"estimate-{short_hash([rows.name, path])}"
        estimate = settings.aic_settings({**path, "finetune": str(rows)})
        estimated = stages.command("estimate_aic", estimate_aic, estimate, out)
        found = {} if estimated is None else predictors.of_estimate(estimated, horizon)
        if settings.risk:
            out = place / f"risk-{short_hash([rows.name, common])}"
            asked = settings.risk_settings({**common, "candidates": {"rows": str(rows)}, "num_rows": 0})
            ranked = stages.command("risk", risk, asked, out)
            found |= {} if ranked is None else predictors.of_risk(ranked)
        return found

    def _rows_file(self, row: _Row, lines: list[int]) -> Path:
        """A file of the rows that the fine-tune was made on, named for its content."""
        chosen = set(lines)
        rows = [each for each in self.sets[row.chosen.name].rows if each.line in chosen]
        text = "".join(json.dumps({"messages": each.messages}, ensure_ascii=False) + "\n" for each in rows)
        path = self.folder.path / "sets" / f"{row.chosen.name}-{short_hash(text)}.jsonl"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, text.encode())
        return path

    def _pilot(self, row: _Row, stages: Stages) -> Values:
        settings = self.settings
        if not settings.pilot_steps:
            return {}
        tuned = settings.finetune_settings(row.method, row.chosen, row.seed)
        skill, options = settings.skill_settings(), settings.skill_options()
        out, progress = row.path / "pilot", Progress(self.progress.quiet)
        found = stages.step(
            "pilot", partial(pilot.run, tuned, skill, options, settings.pilot_steps, out, progress)
        )  # fmt: skip
        return {} if found is None else predictors.of_pilot(found)

    def _damaged(self, found: StudyRow, row: _Row, tuned: Path, stages: Stages) -> StudyRow:
        """The row with the overlap of its change, and what that did."""
        scored = stages.command("overlap", overlap, self.settings.overlap_settings(str(tuned)), row.path / "overlap")
        if scored is None:
            return found
        known = {**found.predictors, **predictors.of_overlap(scored)}
        return replace(found, predictors=known, outcomes=Outcomes.of(scored))
