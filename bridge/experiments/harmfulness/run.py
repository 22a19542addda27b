"""One run of `bridge.harmfulness`: from the options to the finished run folder.

A run with --rescore needs no model: what imports torch is imported where a model answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bridge.data.rows import Row, RowSet
from bridge.evaluation.judges import RUBRIC, Judge
from bridge.evaluation.judging import check_refusals, judge_records
from bridge.evaluation.limits import Limits
from bridge.evaluation.providers import MAX_TOKENS
from bridge.evaluation.records import NAME, Journal, Record, write_records
from bridge.experiments.harmfulness import report
from bridge.experiments.harmfulness.rescoring import generated, leave, read_run, stored
from bridge.experiments.harmfulness.result import About, HarmfulnessResult, PromptSummary
from bridge.experiments.harmfulness.scores import assemble
from bridge.experiments.harmfulness.settings import Settings
from bridge.models.names import run_name
from commands.errors import UserError
from commands.paths import expanded
from commands.progress import Progress
from commands.store import Checkpoints, Folder, RunFolder, short_hash

if TYPE_CHECKING:
    from bridge.experiments.session import AnsweringSession, Lent
    from bridge.models.load import LoadedModel

COMMAND = "bridge.harmfulness"
_SOURCE = ("model", "delta", "prompts", "num_prompts", "preset", "max_new_tokens", "dtype", "device")


@dataclass(frozen=True)
class Questions:
    """What a run that generates asks of a model: prompts chosen from a set."""

    settings: Settings
    rows: RowSet
    chosen: list[Row]

    def identity(self, loaded: LoadedModel) -> dict[str, object]:
        """What of the questions decides the numbers; UserError where one does not fit the model."""
        from bridge.evaluation.answering import prompt_ids

        return {
            "decoding": asdict(self.settings.decoding),
            "prompts_sha256": self.rows.sha256,
            "prompt_tokens": short_hash(prompt_ids(loaded, self.chosen, self.settings.longest)),
        }

    def ask(self, loaded: LoadedModel, folder: Checkpoints, progress: Progress) -> list[Record]:
        """The model's responses, not judged yet, in the order of the prompts."""
        from bridge.evaluation.answering import answer_prompts

        return answer_prompts(
            loaded, self.chosen, self.settings.decoding, self.settings.longest, self.settings.batch_size, folder,
            progress, name=self.rows.name,
        )  # fmt: skip


def prepare(session: AnsweringSession, settings: Settings) -> Questions:
    """Read the set and choose the prompts; UserError if either cannot be."""
    rows = session.prompts("prompts", settings.prompts)
    return Questions(settings, rows, _choose(rows, settings.num_prompts, settings.seed))


@dataclass(frozen=True)
class _Run:
    """What all stages of a run share: its settings, its folder, what its responses are of, and where they are from."""

    settings: Settings
    folder: Folder
    progress: Progress
    about: About
    responses: Callable[[Folder], list[Record]]
    in_memory: bool

    def fill(self, retry_failed: bool) -> HarmfulnessResult:
        """Judge what is not judged yet, and write the result where it is not what the records say."""
        if not self.folder.complete:
            responses = self.responses(self.folder)
            leave(self.folder, self.about, responses)
            return self.finish(self.judge(responses))
        records = stored(self.folder.path / NAME)
        failed = Counter(record.judge for record in records if record.status == "failed")
        written = HarmfulnessResult.read(self.folder.path)
        if retry_failed and failed:
            return self.finish(self.judge(generated(records)))
        if any(failed[name] != judge.status.failed for name, judge in written.judges.items()):
            return self.finish(records)  # a process that asked again was killed before it had written what came of it
        self.progress.say(f"complete already: {self.folder.path}{self.folder.made_with()}")
        return written

    def judge(self, responses: Sequence[Record]) -> list[Record]:
        return judge_all(
            responses, self.settings.judges, self.settings, journal=self.folder.path / NAME,
            scratch=self.folder.checkpoint("inspect"), progress=self.progress,
        )  # fmt: skip

    def finish(self, records: Sequence[Record]) -> HarmfulnessResult:
        """Write what a finished run holds."""
        found, path = assemble(self.about, records, self.settings), self.folder.path
        if not self.in_memory:
            write_records(path / NAME, records)
            found.write(path)
            report.write(found, self.settings, records, path)
            self.folder.finish(stage_seconds={k: round(v, 2) for k, v in self.progress.seconds.items()})
        return found


def run(
    settings: Settings,
    out: Path | None = None,
    quiet: bool = False,
    lent: Lent | None = None,
    *,
    retry_failed: bool = False,
) -> HarmfulnessResult:
    """Generate and judge, write the run folder, print the closing table.

    Args:
        settings: the options.
        out: the run folder; None for one in runs/.
        quiet: no progress and no table.
        lent: what is in memory already.
        retry_failed: ask again about the items of a complete run that a judge did not answer.

    Raises:
        UserError: for anything in the options, the data, the model, the change or the judge that cannot be used.

    """
    settings.check()
    progress = Progress(quiet)
    if settings.rescore is None:
        this_run = _from_model(settings, out, progress, lent)
    else:
        this_run = _from_run(settings, out, progress)
    try:
        found = this_run.fill(retry_failed)
    finally:
        this_run.folder.close()
    if not quiet:
        report.print_result(found, this_run.folder)
    return found


def _judged(settings: Settings) -> dict[str, object]:
    """What of the judges decides the numbers."""
    return {"judge": list(settings.judge), "judges": judges_identity(settings.judges)}


def judges_identity(judges: Sequence[Judge]) -> dict[str, dict[str, object]]:
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


def _from_model(settings: Settings, out: Path | None, progress: Progress, lent: Lent | None) -> _Run:
    """A run that generates."""
    from bridge.experiments.session import AnsweringSession

    session = AnsweringSession(COMMAND, settings, progress, lent)
    questions = prepare(session, settings)
    rows = questions.rows
    folder = session.open_folder(out, **questions.identity(session.loaded), **_judged(settings))
    about = About(
        model=settings.model,
        delta=settings.delta,
        prompts=PromptSummary(rows.name, rows.sha256, len(rows.rows), list(rows.skipped), rows.left_out),
        decoding=settings.decoding,
        max_new_tokens=settings.longest,
        rescored=None,
    )

    def responses(folder: Folder) -> list[Record]:
        answers = questions.ask(session.loaded, folder, session.progress)
        folder.note_progress()
        return answers

    return _Run(settings, folder, session.progress, about, responses, session.lent.in_memory)


def _choose(rows: RowSet, count: int, seed: int) -> list[Row]:
    """As many rows, in file order; all for 0. More rows include those that fewer do, for the same seed."""
    have = len(rows.rows)
    if count > have:
        raise UserError(f"--num-prompts: expected at most {have}, the prompts of {rows.name}, got {count}")
    order = np.random.default_rng(seed).permutation(have).tolist()
    return [rows.rows[k] for k in sorted(order[: count or have])]


def _from_run(settings: Settings, out: Path | None, progress: Progress) -> _Run:
    """A run that judges the responses of another again; verdicts of the same judges there are taken over."""
    source = expanded(str(settings.rescore))
    run_there = read_run(source, COMMAND)
    try:
        theirs = replace(settings, **{name: run_there.settings[name] for name in _SOURCE})
    except KeyError as error:
        raise UserError(f"--rescore: expected the folder of a run of {COMMAND}, got {source} (no {error})") from error
    identity = {
        name: value
        for name, value in theirs.identity().items()
        # a path can be written in many ways: its content counts
        if name not in ("batch_size", "skip_bad_rows", "rescore")
    }
    identity |= {"responses": short_hash([[r.item, r.prompt, r.response] for r in run_there.responses])}
    identity |= _judged(theirs)
    default = Path("runs") / "harmfulness" / f"{run_name(theirs.model)}-{short_hash(identity)}"
    folder = RunFolder(out or default, COMMAND, identity)
    if not folder.complete:
        settings.write(folder.path, COMMAND)

    def responses(folder: Folder) -> list[Record]:
        verdicts = run_there.of_judges(judges_identity(theirs.judges))
        if verdicts and not (folder.path / NAME).exists():
            write_records(folder.path / NAME, verdicts)
            progress.say(f"{len(verdicts)} verdicts of the same judges are taken over from {source}")
        return run_there.responses

    return _Run(theirs, folder, progress, run_there.about, responses, in_memory=False)


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
