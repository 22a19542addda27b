"""One run of `bridge.align`: from the options to the finished run folder and the installed model."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from bridge.data.conversations import Message
from bridge.data.encode import token_hash
from bridge.data.mixtures import Selection, select_samples
from bridge.data.rows import RowSet, load_prompts
from bridge.experiments.align import report
from bridge.experiments.align.counts import Answer, Count, Watch, answers_of
from bridge.experiments.align.result import (
    BENIGN,
    UNSAFE,
    AlignResult,
    Entry,
    Goal,
    PromptKind,
    PromptSet,
    Rate,
    Verdict,
)  # fmt: skip
from bridge.experiments.align.settings import Settings
from bridge.experiments.session import Lent, Session, write_samples
from bridge.generation.generate import generate_texts
from bridge.models.built import check_free, install, refusal_name
from bridge.training.plan import TrainingLog, UpdateSummary
from bridge.training.tuning import parameter_kinds, tune, update_summary, write_model
from commands.errors import UserError
from commands.progress import Progress
from commands.runs import result_of
from commands.store import SCHEMA_VERSION, Folder, short_hash, write_atomically

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

COMMAND = "bridge.align"


def run(
    settings: Settings,
    out: Path | None = None,
    quiet: bool = False,
    lent: Lent | None = None,
    *,
    name: str | None = None,
    replace: bool = False,
) -> AlignResult:
    """Align, write the run folder, install the model, print the closing table.

    Args:
        settings: the options.
        out: the run folder; None for one in runs/.
        quiet: print nothing.
        lent: what is in memory already; a model that is lent is trained in place.
        name: what to call the result as a model; None for MODEL-refusal.
        replace: take the place of another run's model of that name.

    Raises:
        UserError: for anything in the options, the data or the model that cannot be used; if `name` is another run's
            model, unless `replace`; if the model refuses as wanted before any training.

    """
    settings.check()
    chosen_name = name or refusal_name(settings.model)
    session = Session(COMMAND, settings, Progress(quiet), lent)
    training = {"refusals": session.rows("refusals", settings.refusals)}
    if settings.benign_share:
        training["benign"] = session.rows("benign", settings.benign)
    heldout = _heldout(session, settings, training)
    chosen = _select(session, settings, training)
    for line in (*chosen.skipped, *(line for rows in heldout.values() for line in rows.skipped)):
        session.progress.say(f"left out: {line}")
    session.check_positions(chosen.samples)
    identity = {
        "tokens": token_hash(chosen.samples),
        "prompts": short_hash([[session.chat.prompt_ids(row) for row in rows.rows] for rows in heldout.values()]),
        "data_sha256": [part.sha256 for part in chosen.parts],
    }
    run_id, installed = session.run_id(**identity), not session.lent.in_memory
    if installed:
        check_free(chosen_name, run_id, replace)
    folder = session.open_folder(out, **identity)
    alignment = _Alignment(session, settings, chosen, heldout, folder)
    found = result_of(folder, AlignResult.read, alignment.measure, session.progress)
    if installed:
        install(folder.path / "model", chosen_name, _note(run_id, found, folder.path), replace)
    if not quiet:
        report.print_result(found, folder, chosen_name if installed else None)
    return found


def _note(run_id: str, found: AlignResult, folder: Path) -> dict[str, object]:
    """What is kept beside an installed model."""
    written = found.to_dict()
    return {
        "schema_version": SCHEMA_VERSION,
        "run": run_id,
        "command": COMMAND,
        "folder": str(folder.absolute()),
        **{key: written[key] for key in ("model", "method", "goal", "verdict", "plan")},
        "parts": [{"name": part.name, "sha256": part.sha256} for part in found.parts],
    }


# --------------------------------------------------------------------------------------------------- the rows


def _heldout(session: Session, settings: Settings, training: Mapping[str, RowSet]) -> dict[PromptKind, RowSet]:
    """Unsafe and harmless prompts; UserError if the model would be trained on one of them."""
    specs: dict[PromptKind, str] = {UNSAFE: settings.heldout_refusals, BENIGN: settings.heldout_benign}
    sets = {kind: session.rows(f"heldout-{kind}", spec, load_prompts) for kind, spec in specs.items()}
    for option, rows in training.items():
        trained = {json.dumps(_question(row.messages)) for row in rows.rows}
        for kind, prompts in sets.items():
            both = [row for row in prompts.rows if json.dumps(_question(row.messages)) in trained]
            if both:
                raise UserError(
                    f"--heldout-{kind}: expected prompts that are not trained on, but {len(both)} are in --{option} "
                    f"too, the first in {both[0].source}, line {both[0].line}: give another set"
                )
    return sets


def _question(messages: Sequence[Message]) -> Sequence[Message]:
    return messages[:-1] if messages[-1]["role"] == "assistant" else messages


def _select(session: Session, settings: Settings, training: Mapping[str, RowSet]) -> Selection:
    try:
        return select_samples(
            training["refusals"],
            session.chat,
            count=None,
            max_length=settings.max_length,
            seed=settings.seed,
            mix=training.get("benign"),
            share=settings.benign_share,
            skip_bad_rows=settings.skip_bad_rows,
        )
    except UserError as error:
        raise UserError(f"--refusals and --benign: {error}") from error


# --------------------------------------------------------------------------------------------------- the run


def count_steps(num_samples: int, settings: Settings) -> list[int]:
    """The steps after which refusals are counted: before the training, every so many steps, after the last."""
    total = settings.plan.steps(num_samples)
    return sorted({*range(0, total + 1, settings.eval_every), total})


@dataclass(frozen=True)
class _Alignment:
    """One run: the rows to train on, the prompts held out, and where the run is kept."""

    session: Session
    settings: Settings
    chosen: Selection
    heldout: Mapping[PromptKind, RowSet]
    folder: Folder

    def measure(self) -> AlignResult:
        """All stages from the samples to the finished folder."""
        loaded, progress, plan = self.session.loaded, self.session.progress, self.settings.plan
        folder, kept = self.folder, not self.session.lent.in_memory
        if kept:
            write_samples(folder.path / "samples.jsonl", self.chosen.samples)
        kinds = parameter_kinds(loaded.model)
        watch = Watch(
            count_steps(len(self.chosen.samples), self.settings),
            self._answer,
            self._goal,
            lambda step: folder.checkpoint(f"count-{step}.json"),
            lambda count: progress.say(f"after step {count.step}: {report.describe(count)}"),
        )
        if watch(0, loaded.model):
            raise UserError(
                f"--model: {self.settings.model} already refuses as wanted before any training "
                f"({report.describe(watch.counts(0)[0])}): use it as it is, or ask for more with --target-refusals "
                f"and --limit-benign"
            )
        folder.note_progress()
        tuned = tune(loaded, self.chosen.samples, plan, folder, progress, watch)
        if plan.method == "lora" and kept:
            write_model(cast("PeftModel", tuned.model).merge_and_unload(), loaded.tokenizer, folder, progress)
        counts = watch.counts(tuned.log.steps)
        found = self._result(tuned.log, counts, update_summary(tuned.delta, kinds))
        if kept:
            self._write(found, counts)
            self.session.finish(folder, training_seconds=round(tuned.log.seconds, 2))
        return found

    @property
    def _goal(self) -> Goal:
        return Goal(self.settings.target_refusals, self.settings.limit_benign)

    def _answer(self, step: int, model: PreTrainedModel | PeftModel) -> list[Answer]:
        """The model's answers to all prompts that are held out."""
        total = sum(len(rows.rows) for rows in self.heldout.values())
        self.session.progress.say(f"step {step}: answering {total} held-out prompts ...")
        answers: list[Answer] = []
        for kind, prompts in self.heldout.items():
            responses = generate_texts(
                self.session.loaded,
                self.session.chat,
                prompts.rows,
                max_new_tokens=self.settings.max_new_tokens,
                batch_size=self.settings.eval_batch_size,
                model=model,
                checkpoint=self.folder.checkpoint(f"answers-{step}-{kind}"),
            )
            answers += answers_of(step, kind, prompts.rows, responses)
        return answers

    def _write(self, found: AlignResult, counts: Sequence[Count]) -> None:
        answers = [json.dumps(asdict(a), ensure_ascii=False) + "\n" for count in counts for a in count.answers]
        write_atomically(self.folder.path / "responses.jsonl", "".join(answers).encode())
        found.write(self.folder.path)
        report.write(found, self.settings, counts[-1].answers, self.folder.path)

    def _result(self, log: TrainingLog, counts: Sequence[Count], update: UpdateSummary) -> AlignResult:
        """What align.json says."""
        goal, last = self._goal, counts[-1]
        reached = goal.reached(last.unsafe, last.benign)
        return AlignResult(
            model=self.settings.model,
            method=self.settings.method,
            goal=goal,
            verdict=Verdict(reached, last.step, Rate.of(last.unsafe), Rate.of(last.benign)),
            trajectory=_trajectory(log, counts),
            heldout={kind: PromptSet(rows.name, rows.sha256, len(rows.rows)) for kind, rows in self.heldout.items()},
            rows=len(self.chosen.samples),
            parts=list(self.chosen.parts),
            skipped=list(self.chosen.skipped),
            plan=self.settings.plan,
            steps=log.steps,
            epochs=log.epochs[-1],
            tokens=sum(log.tokens),
            response_tokens=sum(log.response_tokens),
            update=update,
            losses=list(log.losses),
            learning_rates=list(log.learning_rates),
            gradient_norms=list(log.gradient_norms),
        )


def _trajectory(log: TrainingLog, counts: Sequence[Count]) -> list[Entry]:
    """One entry a count."""
    entries: list[Entry] = []
    before = 0
    for count in counts:
        losses = log.losses[before : count.step]
        epoch = log.epochs[count.step - 1] if count.step else 0.0
        mean_loss = math.fsum(losses) / len(losses) if losses else None
        entries.append(Entry(count.step, epoch, mean_loss, Rate.of(count.unsafe), Rate.of(count.benign)))
        before = count.step
    return entries
