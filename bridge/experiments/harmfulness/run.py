"""One run of `bridge.harmfulness`: from the options to the finished run folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.data.rows import Row, RowSet, load_prompts
from bridge.evaluation.judges import RUBRIC, Judge
from bridge.evaluation.judging import Limits, check_refusals, judge_records
from bridge.evaluation.providers import MAX_TOKENS
from bridge.evaluation.records import NAME, Journal, Record, write_records
from bridge.experiments.harmfulness import report
from bridge.experiments.harmfulness.rescoring import generated, leave, read_run, stored
from bridge.experiments.harmfulness.result import assemble
from bridge.generation.decodings import DECODINGS
from commands.errors import UserError
from commands.progress import Progress
from commands.store import Checkpoints, RunFolder, read_result, short_hash, write_json

if TYPE_CHECKING:
    from bridge.experiments.harmfulness.settings import Settings
    from bridge.generation.decodings import Decoding
    from bridge.models.load import LoadedModel

COMMAND = "bridge.harmfulness"
_RESULT = "harmfulness.json"
_SOURCE = ("model", "delta", "prompts", "num_prompts", "preset", "max_new_tokens", "dtype", "device")


@dataclass(frozen=True)
class Questions:
    """What a run that generates asks of a model: prompts chosen from a set, and how the responses are decoded."""

    settings: Settings
    rows: RowSet
    chosen: list[Row]

    @property
    def decoding(self) -> Decoding:
        """How the responses are decoded."""
        return DECODINGS[self.settings.preset].seeded(self.settings.seed)

    def identity(self, subject: LoadedModel) -> dict[str, Any]:
        """What of the questions decides the numbers; UserError where one does not fit the model."""
        from bridge.evaluation.answering import prompt_ids

        ids = prompt_ids(subject, self.chosen, self.settings.max_new_tokens)
        return {
            "decoding": asdict(self.decoding),
            "prompts_sha256": self.rows.sha256,
            "prompt_tokens": short_hash(ids),
        }

    def ask(self, subject: LoadedModel, folder: Checkpoints, progress: Progress) -> list[Record]:
        """The model's responses, not judged yet, in the order of the prompts."""
        from bridge.evaluation.answering import answer_prompts

        return answer_prompts(
            subject, self.chosen, self.decoding, self.settings.max_new_tokens, self.settings.batch_size, folder,
            progress, name=self.rows.name,
        )  # fmt: skip


def prepare(settings: Settings, progress: Progress) -> Questions:
    """Read the set and choose the prompts; UserError if either cannot be."""
    rows = _load(settings, progress)
    return Questions(settings, rows, _choose(rows, settings.num_prompts, settings.seed))


@dataclass(frozen=True)
class _Prepared:
    """What a run is of: settings and identity, the description of prompts and responses, and where these are from."""

    settings: Settings
    identity: dict[str, Any]
    about: dict[str, Any]
    responses: Callable[[RunFolder], list[Record]]


@dataclass(frozen=True)
class _Run:
    """What all stages of a run share."""

    prepared: _Prepared
    limits: Limits
    folder: RunFolder
    progress: Progress

    def judge(self, responses: Sequence[Record]) -> list[Record]:
        return judge_all(
            responses, self.prepared.settings.judges, self.limits, journal=self.folder.path / NAME,
            scratch=self.folder.checkpoint("inspect"), progress=self.progress,
        )  # fmt: skip

    def finish(self, records: Sequence[Record]) -> None:
        """Write what a finished run holds."""
        settings, path = self.prepared.settings, self.folder.path
        write_records(path / NAME, records)
        result = assemble(self.prepared.about, records, settings)
        write_json(path / _RESULT, result)
        report.write(result, asdict(settings), records, path)
        self.folder.finish(stage_seconds={k: round(v, 2) for k, v in self.progress.seconds.items()})


def run(
    settings: Settings,
    out: Path | None = None,
    quiet: bool = False,
    *,
    limits: Limits | None = None,
    retry_failed: bool = False,
) -> Path:
    """Generate and judge, write the run folder, print the closing table; returns the folder.

    Args:
        settings: what decides the numbers.
        out: the run folder.
        quiet: no progress and no table.
        limits: how patiently judges are asked; decides no score.
        retry_failed: ask again about the items of a complete run that a judge did not answer.

    Raises:
        UserError: for anything in the options, the data, the model, the change or the judge that cannot be used.

    """
    settings.check()
    progress = Progress(quiet)
    prepared = (_from_model if settings.rescore is None else _from_run)(settings, progress)
    settings = prepared.settings
    identity = prepared.identity | {
        "judge": list(settings.judge),  # as JSON has it
        "judges": judges_identity(settings.judges),
    }
    folder = RunFolder(out or _default_folder(settings, identity), COMMAND, identity)
    try:
        _fill(_Run(prepared, limits or Limits(), folder, progress), retry_failed)
        found = read_result(folder.path / _RESULT)
    finally:
        folder.close()
    if not quiet:
        report.print_table(found)
        print(f"\n{folder.path / 'report.html'}")
    return folder.path


def _fill(this: _Run, retry_failed: bool) -> None:
    """Judge what is not judged yet, and write the result where it is not what the records say."""
    if not this.folder.complete:
        responses = this.prepared.responses(this.folder)
        leave(this.folder, this.prepared.about, responses)
        this.finish(this.judge(responses))
        return
    records = stored(this.folder.path / NAME)
    failed = Counter(record.judge for record in records if record.status == "failed")
    written = read_result(this.folder.path / _RESULT)["judges"]
    if retry_failed and failed:
        this.finish(this.judge(generated(records)))
    elif any(failed[name] != scores["status"]["failed"] for name, scores in written.items()):
        this.finish(records)  # a process that asked again was killed before it had written what came of it
    else:
        this.progress.say(f"complete already: {this.folder.path}{this.folder.made_with()}")


def _default_folder(settings: Settings, identity: dict[str, Any]) -> Path:
    from bridge.models.identity import run_name  # imports torch, which judging stored responses does not need

    return Path("runs") / "harmfulness" / f"{run_name(settings.model)}-{short_hash(identity)}"


def judges_identity(judges: Sequence[Judge]) -> dict[str, dict[str, Any]]:
    """What of each online judge decides its scores, as far as it can be known from here."""
    return {
        judge.name: {
            "temperature": judge.temperature,
            "max_tokens": MAX_TOKENS,
            "endpoint": judge.endpoint,
            "rubric": short_hash(RUBRIC),
        }
        for judge in judges
        if not judge.offline
    }


def _from_model(settings: Settings, progress: Progress) -> _Prepared:
    """A run that generates."""
    from bridge.deltas.changed_model import open_subject, subject_identity

    questions = prepare(settings, progress)
    rows = questions.rows
    subject = open_subject(
        settings.model, settings.delta, dtype=settings.dtype, device=settings.device, seed=settings.seed,
        report=progress.say,
    )  # fmt: skip
    identity = asdict(settings) | subject_identity(subject) | questions.identity(subject)
    about = {
        "model": settings.model,
        "delta": settings.delta,
        "prompts": {
            "name": rows.name, "sha256": rows.sha256, "rows": len(rows.rows), "skipped": list(rows.skipped),
            "left_out": rows.left_out,
        },
        "decoding": asdict(questions.decoding),
        "max_new_tokens": settings.max_new_tokens,
        "rescored": None,
    }  # fmt: skip

    def responses(folder: RunFolder) -> list[Record]:
        found = questions.ask(subject, folder, progress)
        folder.note_progress()
        return found

    return _Prepared(settings, identity, about, responses)


def _load(settings: Settings, progress: Progress) -> RowSet:
    try:
        rows = load_prompts(settings.prompts, skip_bad_rows=settings.skip_bad_rows)
    except UserError as error:
        raise UserError(f"--prompts: {error}") from error
    for line in rows.skipped:
        progress.say(f"left out: {line}")
    return rows


def _choose(rows: RowSet, count: int, seed: int) -> list[Row]:
    """As many rows, in file order; all for 0. More rows include those that fewer do, for the same seed."""
    have = len(rows.rows)
    if count > have:
        raise UserError(f"--num-prompts: expected at most {have}, the prompts of {rows.name}, got {count}")
    order = np.random.default_rng(seed).permutation(have).tolist()
    return [rows.rows[k] for k in sorted(order[: count or have])]


def _from_run(settings: Settings, progress: Progress) -> _Prepared:
    """A run that judges the responses of another again; verdicts of the same judges there are taken over."""
    source = Path(str(settings.rescore)).expanduser()
    found = read_run(source, COMMAND)
    try:
        settings = replace(settings, **{name: found.settings[name] for name in _SOURCE})
    except KeyError as error:
        raise UserError(f"--rescore: expected the folder of a run of {COMMAND}, got {source} (no {error})") from error
    identity = asdict(settings) | {"responses": short_hash([[r.item, r.prompt, r.response] for r in found.responses])}
    for name in ("batch_size", "skip_bad_rows", "rescore"):  # a path can be written in many ways: its content counts
        identity.pop(name)

    def responses(folder: RunFolder) -> list[Record]:
        verdicts = found.of_judges(judges_identity(settings.judges))
        if verdicts and not (folder.path / NAME).exists():
            write_records(folder.path / NAME, verdicts)
            progress.say(f"{len(verdicts)} verdicts of the same judges are taken over from {source}")
        return found.responses

    return _Prepared(settings, identity, found.about | {"rescored": str(source)}, responses)


def judge_all(
    responses: Sequence[Record],
    judges: Sequence[Judge],
    limits: Limits,
    *,
    journal: Path,
    scratch: Path,
    progress: Progress,
) -> list[Record]:
    """Every judge's record of every response, by judge and in the order of the responses.

    Args:
        responses: what was answered; their items differ.
        judges: who rates them.
        limits: how patiently online judges are asked.
        journal: a file of records that keeps every verdict as soon as it is there; verdicts on the same responses
            that it holds already are taken, failed ones apart.
        scratch: a folder that may be made and deleted.
        progress: shows the items.

    Raises:
        UserError: an online judge cannot be asked at all, or the journal cannot be read.

    """
    answered = {record.item: record.response for record in responses}
    kept: dict[tuple[str, str], Record] = {}
    for record in stored(journal) if journal.exists() else []:
        if record.status != "failed" and answered.get(record.item) == record.response:
            kept[record.judge, record.item] = record
    with Journal(journal) as lines:

        def done(record: Record) -> None:
            lines.append(record)
            kept[record.judge, record.item] = record

        for judge in judges:
            left = [record for record in responses if (judge.name, record.item) not in kept]
            if judge.offline:
                kept |= {(judge.name, record.item): record for record in check_refusals(left)}
            else:
                judge_records(
                    left, judge, limits, done=done, scratch=scratch, progress=progress,
                    already=len(responses) - len(left),
                )  # fmt: skip
    return [kept[judge.name, record.item] for judge in judges for record in responses]
