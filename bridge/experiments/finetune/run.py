"""One run of `bridge.finetune`: from the options to the finished run folder."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from bridge.data.encode import token_hash
from bridge.data.mixtures import Selection, select_samples
from bridge.data.rows import RowSet
from bridge.experiments.finetune import report
from bridge.experiments.finetune.defended import Defended
from bridge.experiments.finetune.result import FinetuneResult
from bridge.experiments.finetune.settings import Settings
from bridge.experiments.session import Lent, Session, write_samples
from bridge.training.tuning import Tuned, parameter_kinds, tune, update_summary
from commands.errors import UserError
from commands.progress import Progress
from commands.runs import result_of
from commands.store import Folder

COMMAND = "bridge.finetune"
_SHOWN = 5  # rows in the report


def run(settings: Settings, out: Path | None = None, quiet: bool = False, lent: Lent | None = None) -> FinetuneResult:
    """Fine-tune, write the run folder, print the closing table.

    Args:
        settings: the options.
        out: the run folder; None for one in runs/.
        quiet: print nothing.
        lent: what is in memory already; a model that is lent is trained in place.

    Raises:
        UserError: for anything in the options, the data or the model that cannot be used.

    """
    settings.check()
    session = Session(COMMAND, settings, Progress(quiet), lent)
    data = session.rows("data", settings.data)
    mix = None if settings.mix is None else session.rows("mix", settings.mix)
    skill = None if settings.defence is None else session.rows("skill", settings.defence.skill)
    from bridge.training.arguments import check_overrides  # trl takes seconds to import

    check_overrides(settings.plan.overrides)
    chosen = _select(session, settings, data, mix)
    for line in chosen.skipped:
        session.progress.say(f"left out: {line}")
    session.check_positions(chosen.samples)
    defended = None if settings.defence is None or skill is None else Defended(session, settings.defence, skill)
    folder = session.open_folder(
        out,
        tokens=token_hash(chosen.samples),
        data_sha256=[part.sha256 for part in chosen.parts],
        **({} if defended is None else defended.identity),
    )
    measure = partial(_finetune, session, settings, chosen, defended, folder)
    found = result_of(folder, FinetuneResult.read, measure, session.progress)
    if not quiet:
        report.print_result(found, folder)
    return found


def _select(session: Session, settings: Settings, data: RowSet, mix: RowSet | None) -> Selection:
    """The rows to train on; errors name --data."""
    try:
        return select_samples(
            data,
            session.chat,
            count=settings.rows or None,
            max_length=settings.max_length,
            seed=settings.seed,
            mix=mix,
            share=settings.share,
            skip_bad_rows=settings.skip_bad_rows,
        )
    except UserError as error:
        raise UserError(f"--data: {error}") from error


def _finetune(
    session: Session, settings: Settings, chosen: Selection, defended: Defended | None, folder: Folder
) -> FinetuneResult:
    """All stages from the samples to the finished folder."""
    loaded, kept = session.loaded, not session.lent.in_memory
    if kept:
        write_samples(folder.path / "samples.jsonl", chosen.samples)
    kinds = parameter_kinds(loaded.model)
    if defended is not None:
        defended.draw(folder)
    make_hook = None if defended is None else defended.make_hook
    tuned = tune(loaded, chosen.samples, settings.plan, folder, session.progress, make_hook=make_hook)
    found = _result(tuned, kinds, settings, chosen, defended)
    if kept:
        found.write(folder.path)
        texts = [str(loaded.tokenizer.decode(list(sample.input_ids))) for sample in chosen.samples[:_SHOWN]]
        report.write(found, settings, texts, folder.path)
        session.finish(folder)
    return found


def _result(
    tuned: Tuned, kinds: dict[str, str], settings: Settings, chosen: Selection, defended: Defended | None
) -> FinetuneResult:
    """What finetune.json says."""
    log = tuned.log
    return FinetuneResult(
        model=settings.model,
        data=settings.data,
        method=settings.method,
        rows=len(chosen.samples),
        parts=list(chosen.parts),
        skipped=list(chosen.skipped),
        plan=settings.plan,
        steps=log.steps,
        epochs=log.epochs[-1],
        tokens=sum(log.tokens),
        response_tokens=sum(log.response_tokens),
        first_loss=log.losses[0],
        last_loss=log.losses[-1],
        update=update_summary(tuned.delta, kinds),
        losses=list(log.losses),
        learning_rates=list(log.learning_rates),
        gradient_norms=list(log.gradient_norms),
        seconds=round(log.seconds, 2),
        defence=None if defended is None else defended.result(chosen.samples, log.seconds),
    )
