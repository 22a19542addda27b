"""One run of `bridge.table1`: every row's commands, one after the other, and the table after each row."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bridge.models.names import run_name
from bridge.suites import measures
from bridge.suites.stages import Stages
from bridge.suites.table1 import report
from bridge.suites.table1.contents import Contents, TableContents, differences
from bridge.suites.table1.settings import TableSet, TableSettings
from commands.errors import UserError
from commands.progress import Progress
from commands.store import SCHEMA_VERSION, RunFolder, read_result, short_hash, write_atomically, write_json

COMMAND = "bridge.table1"
ROW = "row.json"
_WEIGHTS = ("model", "adapter", "delta.safetensors")
_CHANGE = "change"


def run(settings: TableSettings, name: str, out: Path | None = None, quiet: bool = False) -> bool:
    """Fill the table, write the run folder, print the table; returns whether every row is done.

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
    identity = json.loads(json.dumps(asdict(settings), default=str))
    folder = RunFolder(out or Path("runs") / "table1" / f"{run_name(name)}-{short_hash(identity)}", COMMAND, identity)
    try:
        _refuse_other_contents(settings, contents, folder.path)
        if folder.complete:
            progress.say(f"complete already: {folder.path}{folder.made_with()}")
        else:
            _fill(settings, contents, folder, progress)
        found = read_result(folder.path / "table1.json")
        done = all(row["status"] == "done" for row in found["rows"])
        if done and not folder.complete:
            folder.finish()
    finally:
        folder.close()
    if not quiet:
        report.print_table(found)
        print(f"\n{folder.path / 'table1.md'}")
    return done


def _wanted(settings: TableSettings, out: Path) -> list[tuple[str, str, TableSet, Path]]:
    """Model, method, set and folder of every row, in the order of models, methods and sets."""
    return [
        (model, method, each, out / "rows" / f"{run_name(model)}--{method}--{each.name}")
        for model in settings.models
        for method in settings.methods
        for each in settings.sets
    ]


def _before_place(model: str, out: Path) -> Path:
    return out / "before" / run_name(model)


def _refuse_other_contents(settings: TableSettings, contents: TableContents, out: Path) -> None:
    """Raise UserError if what is done already was made from other contents than are there now."""
    done = {_before_place(model, out): contents.of_measures(model) for model in settings.models}
    done |= {path: contents.of_row(model, method, each) for model, method, each, path in _wanted(settings, out)}
    for path, now in done.items():
        if (path / ROW).exists() and (changed := differences(path, now)):
            raise UserError(
                f"--out: {out} holds numbers made from other contents ({path.name}: {'; '.join(changed[:4])}); "
                "choose another folder, or restore the contents"
            )


def _fill(settings: TableSettings, contents: TableContents, folder: RunFolder, progress: Progress) -> None:
    """Every row of the table; the files are written after each."""
    _refuse_same_folders(settings)
    wanted = _wanted(settings, folder.path)
    rows = [
        read_result(path / ROW) if (path / ROW).exists() else _pending(model, method, each)
        for model, method, each, path in wanted
    ]
    for left in folder.path.glob("*/*/.*.tmp"):  # a killed process was writing it
        left.unlink()
    _write(settings, rows, folder.path)
    before: dict[str, dict[str, Any]] = {}
    for k, (model, method, each, path) in enumerate(wanted):
        if model not in before:
            stages = Stages(_before_place(model, folder.path), _common(settings), progress)
            before[model] = _before(model, settings, stages, contents.of_measures(model))
        stages = Stages(path, _common(settings), progress)
        rows[k] = _row(rows[k], before[model], each, settings, stages, contents.of_row(model, method, each))
        _write(settings, rows, folder.path)
        folder.note_progress()


def _refuse_same_folders(settings: TableSettings) -> None:
    names = [run_name(model).lower() for model in settings.models]
    if len(set(names)) < len(names):
        raise UserError(f"--settings: models: expected different last 60 characters of the names, got {names}")


def _pending(model: str, method: str, each: TableSet) -> dict[str, Any]:
    return {"model": model, "method": method, "set": each.name, "data": each.data, "status": "pending",
            "failures": {}, "before": {}, "after": {}, "change": {}, "training": {}}  # fmt: skip


def _common(settings: TableSettings) -> dict[str, Any]:
    """Options that every command gets."""
    return {"seed": settings.seed} | ({} if settings.device is None else {"device": settings.device})


def _run(stages: Stages, command: str, **options: Any) -> Path | None:
    """Run one command into a folder of its name beside the row; returns the folder, or None if it failed."""
    return stages.command(command, stages.folder / command, **options)


def _check(stages: Stages, contents: Contents) -> None:
    """Where every command went well, all of them must have read what the table was started on."""
    if not stages.failures and (changed := differences(stages.folder, contents)):
        stages.failed("contents", f"changed while the table was filled ({'; '.join(changed[:4])})")


def _before(model: str, settings: TableSettings, stages: Stages, contents: Contents) -> dict[str, Any]:
    """Measures of the model before any fine-tuning, what of them failed, and whether its rows can be filled at all."""
    if (stages.folder / ROW).exists():
        return read_result(stages.folder / ROW)
    found = {"before": _evaluate(settings, stages, model, None), "failures": stages.failures}
    _check(stages, contents)
    if not stages.failures:
        write_json(stages.folder / ROW, found)
    return found | {"refused": stages.refused}


def _evaluate(settings: TableSettings, stages: Stages, model: str, delta: Path | None) -> dict[str, Any]:
    """Harmfulness and utility of a model, changed or not, where the table asks for them."""
    found: dict[str, Any] = {}
    subject = {"model": model, "delta": None if delta is None else str(delta)}
    if settings.harmfulness is not None:
        out = _run(stages, "harmfulness", **subject, **settings.harmfulness, retry_failed=True)
        if out is not None:
            found |= measures.harmfulness(out)
            if reason := measures.unanswered(out):
                stages.failures["harmfulness"] = reason
    if settings.utility is not None:
        out = _run(stages, "utility", **subject, **settings.utility)
        found |= measures.utility(out) if out is not None else {}
    return found


def _row(
    row: Mapping[str, Any],
    before: Mapping[str, Any],
    each: TableSet,
    settings: TableSettings,
    stages: Stages,
    contents: Contents,
) -> dict[str, Any]:
    """One row, from its file if it was done before."""
    path = stages.folder
    if (path / ROW).exists():
        _drop_weights(path, settings)  # the process may have died just before
        return read_result(path / ROW)
    found = {**row, "before": before["before"]}
    if not before.get("refused"):  # or its own measures would be refused too, after a fine-tune
        found |= _tuned(row, each, settings, stages)
        _check(stages, contents)
    earlier = {f"{stage} before": reason for stage, reason in before["failures"].items()}
    found["failures"] = earlier | stages.failures
    found["status"] = "failed" if found["failures"] else "done"
    if found["status"] == "done":
        write_json(path / ROW, found)
        _drop_weights(path, settings)
    return found


def _tuned(row: Mapping[str, Any], each: TableSet, settings: TableSettings, stages: Stages) -> dict[str, Any]:
    """Fine-tune, and measure what that gave, as far as it goes."""
    model = row["model"]
    options = settings.finetune_options(row["method"], each)
    tuned = _run(stages, "finetune", model=model, data=each.data, method=row["method"], **options)
    if tuned is None:
        return {}
    training, change = measures.training(tuned)
    after = _evaluate(settings, stages, model, tuned)
    if settings.overlap is not None:
        scored = _run(stages, "overlap", model=model, delta=[f"{_CHANGE}={tuned}"], **settings.overlap)
        change |= measures.overlap(scored, _CHANGE) if scored else {}
    return {"training": training, "change": change, "after": after}


def _drop_weights(path: Path, settings: TableSettings) -> None:
    """Delete what the row's fine-tune left of weights, where the table does not keep them."""
    for name in () if settings.keep_weights else _WEIGHTS:
        place = path / "finetune" / name
        shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)


def _write(settings: TableSettings, rows: list[dict[str, Any]], folder: Path) -> None:
    """table1.json, table1.csv and table1.md, each whole."""
    found = {"schema_version": SCHEMA_VERSION, "title": settings.title, "rows": rows}
    write_json(folder / "table1.json", found)
    write_atomically(folder / "table1.csv", report.csv_of(found).encode())
    write_atomically(folder / "table1.md", report.markdown(found).encode())
