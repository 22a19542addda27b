"""One run of `bridge.utility`: from the options to the finished run folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from bridge.data.rows import Row, RowSet
from bridge.evaluation.answering import answer_prompts, prompt_ids
from bridge.evaluation.answers import RULES, find_answer
from bridge.evaluation.problems import Problem, Problems, choose_problems
from bridge.evaluation.records import NAME, Record, write_records
from bridge.experiments.session import AnsweringSession, Lent
from bridge.experiments.utility import report
from bridge.experiments.utility.result import Counts, DataSummary, RuleCount, UtilityResult
from bridge.experiments.utility.settings import HELDOUT, Settings
from bridge.models.load import LoadedModel
from commands.progress import Progress
from commands.runs import result_of
from commands.store import Checkpoints, Folder, short_hash
from theory.proportions import wilson_interval

COMMAND = "bridge.utility"
JUDGE = "exact match"


@dataclass(frozen=True)
class Questions:
    """What a run asks of a model: problems chosen from a set, and how the answers are decoded."""

    settings: Settings
    rows: RowSet
    problems: Problems

    @property
    def prompts(self) -> list[Row]:
        """The problems as the model gets them."""
        return [problem.prompt for problem in self.problems.chosen]

    def identity(self, loaded: LoadedModel) -> dict[str, object]:
        """What of the questions decides the numbers; UserError where one does not fit the model."""
        ids = prompt_ids(loaded, self.prompts, self.settings.longest)
        return {
            "decoding": asdict(self.settings.decoding),
            "data_sha256": self.rows.sha256,
            "prompts": short_hash([[row.line for row in self.prompts], ids]),
            "expected": short_hash([str(problem.expected) for problem in self.problems.chosen]),
        }

    def ask(self, loaded: LoadedModel, folder: Checkpoints, progress: Progress) -> list[Record]:
        """The model's answers, compared with the right ones, in the order of the problems."""
        answers = answer_prompts(
            loaded, self.prompts, self.settings.decoding, self.settings.longest, self.settings.batch_size, folder,
            progress, name=self.rows.name, stage="answers",
        )  # fmt: skip
        return [checked(record, problem) for record, problem in zip(answers, self.problems.chosen, strict=True)]


def prepare(session: AnsweringSession, settings: Settings) -> Questions:
    """Read the set and choose the problems; UserError if either cannot be."""
    spec = HELDOUT.get(settings.data, settings.data)
    if spec != settings.data:
        session.progress.say(f"{settings.data}: its held-out rows are asked, {spec}")
    rows = session.rows("data", spec)
    for line in rows.skipped:
        session.progress.say(f"left out: {line}")
    return Questions(settings, rows, choose_problems(rows, settings.num, settings.shots, settings.seed))


def run(settings: Settings, out: Path | None = None, quiet: bool = False, lent: Lent | None = None) -> UtilityResult:
    """Generate and compare, write the run folder, print the closing table.

    Args:
        settings: the options.
        out: the run folder; None for one in runs/.
        quiet: print nothing.
        lent: what is in memory already.

    Raises:
        UserError: for anything in the options, the data, the model or the change that cannot be used.

    """
    settings.check()
    session = AnsweringSession(COMMAND, settings, Progress(quiet), lent)
    questions = prepare(session, settings)
    folder = session.open_folder(out, **questions.identity(session.loaded))
    found = result_of(folder, UtilityResult.read, partial(_measure, session, questions, folder), session.progress)
    if not quiet:
        report.print_result(found, folder)
    return found


def _measure(session: AnsweringSession, questions: Questions, folder: Folder) -> UtilityResult:
    """All stages from the problems to the finished folder."""
    settings, rows, problems = questions.settings, questions.rows, questions.problems
    records = questions.ask(session.loaded, folder, session.progress)
    found = UtilityResult(
        **vars(summary(records)),
        model=settings.model,
        delta=settings.delta,
        data=DataSummary(
            rows.name, rows.sha256, len(rows.rows), problems.without_number, problems.repeated, list(rows.skipped)
        ),
        shots=list(problems.shot_lines),
        decoding=settings.decoding,
        max_new_tokens=settings.longest,
    )
    if not session.lent.in_memory:
        write_records(folder.path / NAME, records)
        found.write(folder.path)
        report.write(found, settings, records, folder.path)
        session.finish(folder)
    return found


def checked(record: Record, problem: Problem) -> Record:
    """The record of the question, shots apart, with expected and found number, rule, place and verdict."""
    found = find_answer(record.response)
    details = {
        "expected": str(problem.expected),
        "found": str(found.value) if found else None,
        "rule": found.rule if found else None,
        "start": found.start if found else None,
        "end": found.end if found else None,
        "correct": found is not None and found.value == problem.expected,
    }
    return replace(record, prompt=problem.question, judge=JUDGE, status="checked", details=details)


def summary(records: Sequence[Record]) -> Counts:
    """Counts, and the accuracy with Wilson's 95 % interval: every record is in the denominator."""
    correct = [record for record in records if record.details["correct"]]
    cut = [record for record in records if not record.finished]
    return Counts(
        items=len(records),
        correct=len(correct),
        accuracy=len(correct) / len(records),
        interval=list(wilson_interval(len(correct), len(records))),
        no_number=sum(record.details["found"] is None for record in records),
        cut=len(cut),
        cut_correct=sum(bool(record.details["correct"]) for record in cut),
        rules={
            rule: RuleCount(
                sum(record.details["rule"] == rule for record in records),
                sum(record.details["rule"] == rule for record in correct),
            )
            for rule in RULES
        },
        prompt_tokens=sum(record.prompt_tokens for record in records),
        response_tokens=sum(record.response_tokens for record in records),
    )
