"""One run of `bridge.align`: from the options to the finished run folder and the installed model."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.data.chat import ChatFormat
from bridge.data.encode import check_positions, token_hash
from bridge.data.mixtures import Selection, select_samples
from bridge.data.rows import RowSet, load_prompts, load_rows
from bridge.experiments.align import report
from bridge.experiments.align.counts import BENIGN, UNSAFE, Count, Goal, Watch, answer_records, rate_record
from bridge.generation.generate import generate_texts
from bridge.models.built import check_free, install
from bridge.models.identity import model_identity, positions_of
from bridge.models.load import LoadedModel, load_model
from bridge.models.names import run_name
from bridge.training.plan import TrainingLog
from bridge.training.tuning import parameter_kinds, tune, update_summary, write_model
from commands.errors import UserError
from commands.progress import Progress
from commands.store import SCHEMA_VERSION, RunFolder, read_result, short_hash, write_atomically, write_json

if TYPE_CHECKING:
    from bridge.experiments.align.settings import Settings

COMMAND = "bridge.align"


@dataclass(frozen=True)
class Outcome:
    """The run folder, and whether its model refuses as wanted."""

    folder: Path
    reached: bool


def run(
    settings: Settings, name: str, out: Path | None = None, *, replace: bool = False, quiet: bool = False
) -> Outcome:
    """Align, write the run folder, install the model under `name`, print the closing table.

    Raises:
        UserError: for anything in the options, the data or the model that cannot be used; if `name` is another run's
            model, unless `replace`; if the model refuses as wanted before any training.

    """
    settings.check()
    progress = Progress(quiet)
    heldout = _heldout(settings)
    loaded = load_model(settings.model, device=settings.device, seed=settings.plan.seed, report=progress.say)
    chat = ChatFormat(loaded.tokenizer)
    chosen = _select(settings, chat)
    for line in (*chosen.skipped, *(line for rows in heldout.values() for line in rows.skipped)):
        progress.say(f"left out: {line}")
    check_positions(positions_of(loaded), chosen.samples, [], 0)
    identity = asdict(settings) | {
        **model_identity(loaded),
        "tokens": token_hash(chosen.samples),
        "prompts": short_hash([[chat.prompt_ids(row) for row in rows.rows] for rows in heldout.values()]),
        "end_token_ids": list(chat.end_token_ids),
        "data_sha256": [part["sha256"] for part in chosen.parts],
    }
    run_id = short_hash(identity)
    check_free(name, run_id, replace)
    folder = RunFolder(out or Path("runs") / "align" / f"{run_name(settings.model)}-{run_id}", COMMAND, identity)
    try:
        already = folder.complete
        if not already:
            _align(loaded, chat, chosen, heldout, settings, folder, progress)
        found = read_result(folder.path / "align.json")
        if already:
            progress.say(f"complete already: {folder.path}{folder.made_with()}")
        install(folder.path / "model", name, _note(run_id, found, folder.path), replace)
    finally:
        folder.close()
    if not quiet:
        report.print_table(found)
        report.print_outcome(found, folder.path, name)
    return Outcome(folder.path, bool(found["verdict"]["reached"]))


# --------------------------------------------------------------------------------------------------- the rows


def _heldout(settings: Settings) -> dict[str, RowSet]:
    """Unsafe and harmless prompts; UserError if the model would be trained on one of them."""
    specs = {UNSAFE: settings.heldout_refusals, BENIGN: settings.heldout_benign}
    sets = {name: load_prompts(spec, skip_bad_rows=settings.skip_bad_rows) for name, spec in specs.items()}
    for option in ("refusals", "benign"):
        if option == "benign" and settings.benign_share == 0:
            continue
        rows = load_rows(getattr(settings, option), skip_bad_rows=settings.skip_bad_rows).rows
        trained = {json.dumps(_question(row.messages)) for row in rows}
        for name, prompts in sets.items():
            both = [row for row in prompts.rows if json.dumps(_question(row.messages)) in trained]
            if both:
                raise UserError(
                    f"--heldout-{name}: expected prompts that are not trained on, but {len(both)} are in --{option} "
                    f"too, the first in {both[0].source}, line {both[0].line}: give another set"
                )
    return sets


def _question(messages: Sequence[Any]) -> Sequence[Any]:
    return messages[:-1] if messages[-1]["role"] == "assistant" else messages


def _select(settings: Settings, chat: ChatFormat) -> Selection:
    try:
        return select_samples(
            settings.refusals,
            chat,
            count=None,
            max_length=settings.max_length,
            seed=settings.plan.seed,
            mix=settings.benign if settings.benign_share else None,
            share=settings.benign_share,
            skip_bad_rows=settings.skip_bad_rows,
        )
    except UserError as error:
        raise UserError(f"--refusals and --benign: {error}") from error


# --------------------------------------------------------------------------------------------------- the run


def _align(
    loaded: LoadedModel,
    chat: ChatFormat,
    chosen: Selection,
    heldout: dict[str, RowSet],
    settings: Settings,
    folder: RunFolder,
    progress: Progress,
) -> None:
    """All stages from the samples to the finished folder."""
    lines = "".join(sample.to_json() + "\n" for sample in chosen.samples)
    write_atomically(folder.path / "samples.jsonl", lines.encode())
    kinds = parameter_kinds(loaded.model)
    watch = _watch(loaded, chat, len(chosen.samples), heldout, settings, folder, progress)
    if watch(0, loaded.model):
        raise UserError(_nothing_to_do(settings, watch.counts(0)[0]))
    folder.note_progress()
    tuned = tune(loaded, chosen.samples, settings.plan, folder, progress, watch)
    if settings.plan.method == "lora":
        write_model(tuned.model.merge_and_unload(), loaded.tokenizer, folder, progress)
    counts = watch.counts(tuned.log.steps)
    records = "".join(json.dumps(a, ensure_ascii=False) + "\n" for count in counts for a in count.answers)
    write_atomically(folder.path / "responses.jsonl", records.encode())
    update = update_summary(tuned.delta, kinds)
    found = _result(tuned.log, counts, update, chosen, heldout, settings)
    write_json(folder.path / "align.json", found)
    report.write(found, asdict(settings), counts, folder.path)
    folder.finish(
        stage_seconds={k: round(v, 2) for k, v in progress.seconds.items()},
        training_seconds=round(tuned.log.seconds, 2),
    )


def count_steps(num_samples: int, settings: Settings) -> list[int]:
    """The steps after which refusals are counted: before the training, every so many steps, after the last."""
    total = settings.plan.steps(num_samples)
    return sorted({*range(0, total + 1, settings.eval_every), total})


def _watch(
    loaded: LoadedModel,
    chat: ChatFormat,
    num_samples: int,
    heldout: dict[str, RowSet],
    settings: Settings,
    folder: RunFolder,
    progress: Progress,
) -> Watch:
    def answer(step: int, model: Any) -> list[dict[str, Any]]:
        progress.say(f"step {step}: answering {sum(len(rows.rows) for rows in heldout.values())} held-out prompts ...")
        records: list[dict[str, Any]] = []
        for name, prompts in heldout.items():
            responses = generate_texts(
                loaded,
                chat,
                prompts.rows,
                max_new_tokens=settings.max_new_tokens,
                batch_size=settings.eval_batch_size,
                model=model,
                checkpoint=folder.checkpoint(f"answers-{step}-{name}"),
            )
            records += answer_records(step, name, prompts.rows, responses)
        return records

    def tell(count: Count) -> None:
        progress.say(f"after step {count.step}: {report.describe(count)}")

    return Watch(
        count_steps(num_samples, settings),
        answer,
        Goal(settings.target_refusals, settings.limit_benign),
        lambda step: folder.checkpoint(f"count-{step}.json"),
        tell,
    )


def _nothing_to_do(settings: Settings, count: Count) -> str:
    return (
        f"--model: {settings.model} already refuses as wanted before any training ({report.describe(count)}): "
        f"use it as it is, or ask for more with --target-refusals and --limit-benign"
    )


# --------------------------------------------------------------------------------------------------- the result


def _result(
    log: TrainingLog,
    counts: Sequence[Count],
    update: dict[str, Any],
    chosen: Selection,
    heldout: dict[str, RowSet],
    settings: Settings,
) -> dict[str, Any]:
    """The content of align.json."""
    goal, last = Goal(settings.target_refusals, settings.limit_benign), counts[-1]
    return {
        "schema_version": SCHEMA_VERSION,
        "model": settings.model,
        "method": settings.plan.method,
        "goal": asdict(goal),
        "verdict": {
            "reached": goal.reached(last.unsafe, last.benign),
            "step": last.step,
            "refusals": rate_record(last.unsafe),
            "benign": rate_record(last.benign),
        },
        "trajectory": _trajectory(log, counts),
        "heldout": {
            name: {"name": rows.name, "sha256": rows.sha256, "prompts": len(rows.rows)}
            for name, rows in heldout.items()
        },
        "rows": len(chosen.samples),
        "parts": [dict(part) for part in chosen.parts],
        "skipped": list(chosen.skipped),
        "plan": asdict(settings.plan),
        "steps": log.steps,
        "epochs": log.epochs[-1],
        "tokens": sum(log.tokens),
        "response_tokens": sum(log.response_tokens),
        "update": update,
        "losses": list(log.losses),
        "learning_rates": list(log.learning_rates),
        "gradient_norms": list(log.gradient_norms),
    }


def _trajectory(log: TrainingLog, counts: Sequence[Count]) -> list[dict[str, Any]]:
    """One entry a count: step, passes over the rows, mean loss of the steps since the last count, both rates."""
    entries: list[dict[str, Any]] = []
    before = 0
    for count in counts:
        losses = log.losses[before : count.step]
        entries.append(
            {
                "step": count.step,
                "epoch": log.epochs[count.step - 1] if count.step else 0.0,
                "mean_loss": math.fsum(losses) / len(losses) if losses else None,
                "refusals": rate_record(count.unsafe),
                "benign": rate_record(count.benign),
            }
        )
        before = count.step
    return entries


def _note(run_id: str, found: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What is kept beside an installed model."""
    return {
        "schema_version": SCHEMA_VERSION,
        "run": run_id,
        "command": COMMAND,
        "folder": str(folder.absolute()),
        **{key: found[key] for key in ("model", "method", "goal", "verdict", "plan")},
        "parts": [{"name": part["name"], "sha256": part["sha256"]} for part in found["parts"]],
    }
