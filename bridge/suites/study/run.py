"""One run of `bridge.study`: every fine-tune and what is measured of it, and the tables after each."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bridge.data.rows import RowSet, load_prompts, load_rows
from bridge.models.identity import model_identity
from bridge.models.load import load_model
from bridge.models.loading import free_memory
from bridge.models.names import run_name
from bridge.suites.stages import Stages
from bridge.suites.study import pilot, report, result
from bridge.suites.study import predictors as study_predictors
from bridge.suites.study.predictors import CHANGE
from bridge.suites.study.settings import StudySet, StudySettings, kind_of_optimizer
from commands.errors import UserError
from commands.progress import Progress
from commands.store import RunFolder, read_result, short_hash, write_atomically, write_json

COMMAND = "bridge.study"
RESULT = "study.json"
_ROW = "row.json"
_WEIGHTS = ("model", "adapter", "delta.safetensors")
_TRAINING = ("rows", "steps", "response_tokens", "first_loss", "last_loss")


@dataclass(frozen=True)
class _Row:
    """One fine-tune: what decides it, and its folder."""

    chosen: StudySet
    method: str
    seed: int
    path: Path


@dataclass(frozen=True)
class _Study:
    """What all rows share. `sets` holds the rows of every set by its name."""

    settings: StudySettings
    sets: Mapping[str, RowSet]
    folder: RunFolder
    progress: Progress

    def rows(self) -> list[_Row]:
        """All fine-tunes: every set under one seed before the next seed, so that half a study spans all sets."""
        settings, place = self.settings, self.folder.path / "rows"
        return [
            _Row(each, method, seed, place / f"{each.name}--{method}--{seed}")
            for seed in settings.seeds
            for each in settings.sets
            for method in settings.methods
        ]


def run(settings: StudySettings, name: str, out: Path | None = None, quiet: bool = False) -> bool:
    """Make every fine-tune, measure, correlate, write the run folder; returns whether all of them worked.

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
        progress.say(f"left out, since --files is not given: {', '.join(settings.left_out)}")
    identity = _identity(settings, sets, progress)
    default = Path("runs") / "study" / f"{run_name(name)}-{short_hash(identity)}"
    folder = RunFolder(out or default, COMMAND, identity)
    try:
        if folder.complete:
            progress.say(f"complete already: {folder.path}{folder.made_with()}")
        else:
            _fill(_Study(settings, sets, folder, progress))
        found = read_result(folder.path / RESULT)
        done = all(row["status"] == "done" for row in found["rows"])
        if done and not folder.complete:
            folder.finish()
    finally:
        folder.close()
    if not quiet:
        report.print_tables(found)
        print(f"\n{folder.path / 'report.html'}")
    return done


def _read_sets(settings: StudySettings) -> dict[str, RowSet]:
    found = {}
    for each in settings.sets:
        options = [settings.finetune_options(method, each, 0) for method in settings.methods]
        bad = any(one.get("skip_bad_rows", False) for one in options)
        try:
            found[each.name] = load_rows(each.data, skip_bad_rows=bad)
        except UserError as error:
            raise UserError(f"set {each.name}: {error}") from error
    return found


def _identity(settings: StudySettings, sets: Mapping[str, RowSet], progress: Progress) -> dict[str, Any]:
    """Everything that decides the numbers: settings, weights, and the contents of all sets."""
    options = settings.overlap_options()
    asked: dict[str, str] = {"skill": load_rows(options["skill"]).sha256}
    if options.get("refusals") is not None:
        asked["refusals"] = load_prompts(options["refusals"]).sha256
    loaded = load_model(
        settings.model, dtype=settings.dtype, device=settings.device, seed=settings.seed, report=progress.say
    )
    found = json.loads(json.dumps(asdict(settings), default=str)) | model_identity(loaded)
    del loaded
    free_memory()
    return found | {"contents": {**asked, **{f"set {name}": rows.sha256 for name, rows in sets.items()}}}


def _fill(this: _Study) -> None:
    """Every fine-tune; the tables are written after each, the page at the end."""
    wanted = this.rows()
    rows = [read_result(each.path / _ROW) if (each.path / _ROW).exists() else _pending(each) for each in wanted]
    for depth in ("*/.*.tmp", "*/*/.*.tmp"):
        for left in this.folder.path.glob(depth):  # a killed process was writing it
            left.unlink()
    _write(this, rows)
    for k, each in enumerate(wanted):
        if rows[k]["status"] != "done":
            rows[k] = _measured(this, each, rows[k])
            _write(this, rows)
            this.folder.note_progress()
        _drop_weights(this, each, rows[k])
    report.write_page(read_result(this.folder.path / RESULT), _shown(this.settings), this.folder.path)


def _pending(each: _Row) -> dict[str, Any]:
    return {"set": each.chosen.name, "data": each.chosen.data, "method": each.method, "seed": each.seed,
            "status": "pending", "failures": {}, "training": {}, "outcomes": {}, "predictors": {}}  # fmt: skip


def _write(this: _Study, rows: list[dict[str, Any]]) -> None:
    """study.json, study.csv and study.md, each whole."""
    found = result.assemble(this.settings, rows)
    write_json(this.folder.path / RESULT, found)
    report.write_tables(found, this.folder.path)


def _shown(settings: StudySettings) -> dict[str, Any]:
    """The settings as the page shows them."""
    found = asdict(settings)
    sets = {each.name: each.data for each in settings.sets}
    return {**{k: v for k, v in found.items() if k not in ("sets", "title")}, "sets": sets}


# ------------------------------------------------------------------------------------------------- one row


def _measured(this: _Study, each: _Row, row: Mapping[str, Any]) -> dict[str, Any]:
    """One fine-tune, and all that is measured of it, as far as it goes."""
    stages = Stages(each.path, this.settings.common(), this.progress)
    found = {**row, "training": {}, "outcomes": {}, "predictors": {}}
    tuned = stages.command(
        "finetune", each.path / "finetune", **this.settings.finetune_options(each.method, each.chosen, each.seed)
    )
    if tuned is not None:
        training = read_result(tuned / "finetune.json")
        found["training"] = {key: training[key] for key in _TRAINING}
        found["predictors"] = {
            **study_predictors.of_training(tuned),
            **_before(this, each, training, stages),
            **_pilot(this, each, stages),
        }
        found |= _damage(this, each, tuned, stages, found["predictors"])
    found["failures"] = stages.failures
    found["status"] = "failed" if stages.failures else "done"
    if found["status"] == "done":
        write_json(each.path / _ROW, found)
    return found


def _before(this: _Study, each: _Row, training: Mapping[str, Any], stages: Stages) -> study_predictors.Values:
    """What is known of the very rows before the training, from the base model alone.

    The folders are named for what decides their numbers, so that fine-tunes of the same rows share them: an estimate
    holds its prediction at all times, of which each fine-tune's own is read.
    """
    settings, plan = this.settings, training["plan"]
    rows = _rows_file(this, each, training["parts"][0]["rows"])
    common = {**settings.skill_options(), "optimizer": kind_of_optimizer(plan["optimizer"]),
              "adam_batch_size": plan["batch_size"]}  # fmt: skip
    path = {**common, "num_finetune": training["rows"], "rank": settings.overlap_options().get("rank")}
    horizon = math.fsum(training["learning_rates"]) if each.method == "full" else None
    place = this.folder.path / "before"
    found: study_predictors.Values = {}
    out = place / f"estimate-{short_hash([rows.name, path])}"
    if stages.command("estimate_aic", out, finetune=str(rows), **path) is not None:
        found |= study_predictors.of_estimate(out, horizon)
    if settings.risk:
        out = place / f"risk-{short_hash([rows.name, common])}"
        if stages.command("risk", out, candidates=[f"rows={rows}"], num_rows=0, **common) is not None:
            found |= study_predictors.of_risk(out)
    return found


def _rows_file(this: _Study, each: _Row, lines: list[int]) -> Path:
    """A file of the rows that the fine-tune was made on, named for its content."""
    chosen = set(lines)
    rows = [row for row in this.sets[each.chosen.name].rows if row.line in chosen]
    text = "".join(json.dumps({"messages": row.messages}, ensure_ascii=False) + "\n" for row in rows)
    path = this.folder.path / "sets" / f"{each.chosen.name}-{short_hash(text)}.jsonl"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, text.encode())
    return path


def _pilot(this: _Study, each: _Row, stages: Stages) -> study_predictors.Values:
    settings, out = this.settings, each.path / "pilot"
    if not settings.pilot_steps:
        return {}
    tuned = settings.finetune_settings(each.method, each.chosen, each.seed)
    action = partial(pilot.run, tuned, settings.skill_options(), settings.pilot_steps, out, this.progress)
    return {} if stages.step("pilot", out, action) is None else study_predictors.of_pilot(out)


def _damage(
    this: _Study, each: _Row, tuned: Path, stages: Stages, predictors: study_predictors.Values
) -> dict[str, Any]:
    """The overlap of the change, and what it did."""
    out = each.path / "overlap"
    delta = [f"{CHANGE}={tuned}"]
    if stages.command("overlap", out, delta=delta, **this.settings.overlap_options()) is None:
        return {}
    return {
        "predictors": {**predictors, **study_predictors.of_overlap(out)},
        "outcomes": study_predictors.outcomes(out),
    }


def _drop_weights(this: _Study, each: _Row, row: Mapping[str, Any]) -> None:
    """Delete what a finished row's fine-tune left of weights, where the study does not keep them."""
    if this.settings.keep_weights or row["status"] != "done":
        return
    for name in _WEIGHTS:
        place = each.path / "finetune" / name
        shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
