"""One run of `bridge.finetune`: from the options to the finished run folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.data.chat import ChatFormat
from bridge.data.encode import check_positions, token_hash
from bridge.data.mixtures import Selection, select_samples
from bridge.data.rows import load_rows
from bridge.experiments.finetune import defended as defended_run
from bridge.experiments.finetune import report
from bridge.models.identity import model_identity, positions_of
from bridge.models.load import LoadedModel, load_model
from bridge.models.names import run_name
from bridge.training.plan import TrainingLog
from bridge.training.presets import sources
from bridge.training.tuning import parameter_kinds, tune, update_summary
from commands.errors import UserError
from commands.progress import Progress
from commands.runs import result_of
from commands.store import SCHEMA_VERSION, RunFolder, short_hash, write_atomically, write_json

if TYPE_CHECKING:
    from bridge.experiments.finetune.settings import Settings

COMMAND = "bridge.finetune"


def run(settings: Settings, out: Path | None = None, quiet: bool = False) -> Path:
    """Fine-tune, write the run folder, print the closing table; returns the folder.

    Raises:
        UserError: for anything in the options, the data or the model that cannot be used.

    """
    settings.check()
    progress = Progress(quiet)
    skill = None if settings.defence is None else settings.defence.skill
    for option, spec in (("data", settings.data), ("mix", settings.mix), ("skill", skill)):
        if spec is not None:
            _named(option, partial(load_rows, spec, skip_bad_rows=settings.skip_bad_rows))
    from bridge.training.arguments import check_overrides  # trl takes seconds to import

    check_overrides(settings.plan.overrides)
    loaded = load_model(
        settings.model, dtype=settings.dtype, device=settings.device, seed=settings.plan.seed, report=progress.say
    )
    chat = ChatFormat(loaded.tokenizer)
    chosen = _named("data", partial(_select, chat, settings))
    for line in chosen.skipped:
        progress.say(f"left out: {line}")
    check_positions(positions_of(loaded), chosen.samples, [], 0)
    defended = defended_run.prepare(loaded, chat, settings, progress)
    identity = asdict(settings) | {
        **model_identity(loaded),
        "tokens": token_hash(chosen.samples),
        "end_token_ids": list(chat.end_token_ids),
        "data_sha256": [part["sha256"] for part in chosen.parts],
        **({} if defended is None else defended.identity),
    }
    default = Path("runs") / "finetune" / f"{run_name(settings.model)}-{short_hash(identity)}"
    folder = RunFolder(out or default, COMMAND, identity)
    found = result_of(
        folder, "finetune.json", partial(_finetune, loaded, chosen, settings, defended, folder, progress), progress
    )
    if not quiet:
        report.print_table(found)
        report.print_paths(found, folder.path)
    return folder.path


def _named(option: str, choose: Callable[[], Any]) -> Any:
    try:
        return choose()
    except UserError as error:
        raise UserError(f"--{option}: {error}") from error


def _select(chat: ChatFormat, settings: Settings) -> Selection:
    return select_samples(
        settings.data,
        chat,
        count=settings.rows or None,
        max_length=settings.max_length,
        seed=settings.plan.seed,
        mix=settings.mix,
        share=settings.share,
        skip_bad_rows=settings.skip_bad_rows,
    )


def _finetune(
    loaded: LoadedModel,
    chosen: Selection,
    settings: Settings,
    defended: defended_run.Defended | None,
    folder: RunFolder,
    progress: Progress,
) -> None:
    """All stages from the samples to the finished folder."""
    lines = "".join(sample.to_json() + "\n" for sample in chosen.samples)
    write_atomically(folder.path / "samples.jsonl", lines.encode())
    kinds = parameter_kinds(loaded.model)
    if defended is not None:
        defended.draw(folder)
    make_hook = None if defended is None else defended.make_hook
    tuned = tune(loaded, chosen.samples, settings.plan, folder, progress, make_hook=make_hook)
    found = _result(tuned.log, update_summary(tuned.delta, kinds), chosen, settings)
    found["defence"] = None if defended is None else defended.result(chosen.samples, tuned.log.seconds)
    write_json(folder.path / "finetune.json", found)
    texts = [str(loaded.tokenizer.decode(list(sample.input_ids))) for sample in chosen.samples[:5]]
    report.write(found, asdict(settings), sources(settings.preset, settings.plan), texts, folder.path)
    folder.finish(stage_seconds={k: round(v, 2) for k, v in progress.seconds.items()})


def _result(log: TrainingLog, update: dict[str, Any], chosen: Selection, settings: Settings) -> dict[str, Any]:
    """The content of finetune.json."""
    return {
        "schema_version": SCHEMA_VERSION,
        "model": settings.model,
        "data": settings.data,
        "method": settings.plan.method,
        "rows": len(chosen.samples),
        "parts": [dict(part) for part in chosen.parts],
        "skipped": list(chosen.skipped),
        "plan": asdict(settings.plan),
        "steps": log.steps,
        "epochs": log.epochs[-1],
        "tokens": sum(log.tokens),
        "response_tokens": sum(log.response_tokens),
        "first_loss": log.losses[0],
        "last_loss": log.losses[-1],
        "update": update,
        "losses": list(log.losses),
        "learning_rates": list(log.learning_rates),
        "gradient_norms": list(log.gradient_norms),
        "seconds": round(log.seconds, 2),
    }
