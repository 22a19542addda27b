"""One run of `bridge.utility`: from the options to the finished run folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.data.rows import Row, RowSet, load_rows
from bridge.deltas.changed_model import open_subject, subject_identity
from bridge.evaluation.answering import answer_prompts, prompt_ids
from bridge.evaluation.answers import RULES, find_answer
from bridge.evaluation.problems import Problem, Problems, choose_problems
from bridge.evaluation.records import NAME, Record, write_records
from bridge.experiments.utility import report
from bridge.experiments.utility.settings import HELDOUT, find_decoding
from bridge.generation.decodings import Decoding
from bridge.models.identity import run_name
from bridge.models.load import LoadedModel
from commands.errors import UserError
from commands.progress import Progress
from commands.runs import result_of
from commands.store import SCHEMA_VERSION, Checkpoints, RunFolder, short_hash, write_json
from theory.proportions import wilson_interval

if TYPE_CHECKING:
    from bridge.experiments.utility.settings import Settings

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

    @property
    def decoding(self) -> Decoding:
        """How the answers are decoded."""
        return find_decoding(self.settings.preset).seeded(self.settings.seed)

    def identity(self, subject: LoadedModel) -> dict[str, Any]:
        """What of the questions decides the numbers; UserError where one does not fit the model."""
        ids = prompt_ids(subject, self.prompts, self.settings.max_new_tokens)
        return {
            "decoding": asdict(self.decoding),
            "data_sha256": self.rows.sha256,
            "prompts": short_hash([[row.line for row in self.prompts], ids]),
            "expected": short_hash([str(problem.expected) for problem in self.problems.chosen]),
        }

    def ask(self, subject: LoadedModel, folder: Checkpoints, progress: Progress) -> list[Record]:
        """The model's answers, compared with the right ones, in the order of the problems."""
        answers = answer_prompts(
            subject, self.prompts, self.decoding, self.settings.max_new_tokens, self.settings.batch_size, folder,
            progress, name=self.rows.name, stage="answers",
        )  # fmt: skip
        return [checked(record, problem) for record, problem in zip(answers, self.problems.chosen, strict=True)]


def prepare(settings: Settings, progress: Progress) -> Questions:
    """Read the set and choose the problems; UserError if either cannot be."""
    rows = _load(settings, progress)
    return Questions(settings, rows, choose_problems(rows, settings.num, settings.shots, settings.seed))


def run(settings: Settings, out: Path | None = None, quiet: bool = False) -> Path:
    """Generate and compare, write the run folder, print the closing table; returns the folder.

    Raises:
        UserError: for anything in the options, the data, the model or the change that cannot be used.

    """
    settings.check()
    progress = Progress(quiet)
    questions = prepare(settings, progress)
    subject = open_subject(
        settings.model,
        settings.delta,
        dtype=settings.dtype,
        device=settings.device,
        seed=settings.seed,
        report=progress.say,
    )
    identity = asdict(settings) | subject_identity(subject) | questions.identity(subject)
    default = Path("runs") / "utility" / f"{run_name(settings.model)}-{short_hash(identity)}"
    folder = RunFolder(out or default, COMMAND, identity)
    found = result_of(folder, "utility.json", partial(_measure, subject, questions, folder, progress), progress)
    if not quiet:
        report.print_table(found)
        print(f"\n{folder.path / 'report.html'}")
    return folder.path


def _load(settings: Settings, progress: Progress) -> RowSet:
    spec = HELDOUT.get(settings.data, settings.data)
    if spec != settings.data:
        progress.say(f"{settings.data}: its held-out rows are asked, {spec}")
    try:
        rows = load_rows(spec, skip_bad_rows=settings.skip_bad_rows)
    except UserError as error:
        raise UserError(f"--data: {error}") from error
    for line in rows.skipped:
        progress.say(f"left out: {line}")
    return rows


def _measure(subject: LoadedModel, questions: Questions, folder: RunFolder, progress: Progress) -> None:
    """All stages from the problems to the finished folder."""
    settings, rows, problems = questions.settings, questions.rows, questions.problems
    records = questions.ask(subject, folder, progress)
    write_records(folder.path / NAME, records)
    found = {
        "schema_version": SCHEMA_VERSION,
        "model": settings.model,
        "delta": settings.delta,
        "data": {
            "name": rows.name,
            "sha256": rows.sha256,
            "rows": len(rows.rows),
            "without_number": problems.without_number,
            "repeated": problems.repeated,
            "skipped": list(rows.skipped),
        },
        "shots": list(problems.shot_lines),
        "decoding": asdict(questions.decoding),
        "max_new_tokens": settings.max_new_tokens,
        **summary(records),
    }
    write_json(folder.path / "utility.json", found)
    report.write(found, asdict(settings), records, folder.path)
    folder.finish(stage_seconds={k: round(v, 2) for k, v in progress.seconds.items()})


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


def summary(records: Sequence[Record]) -> dict[str, Any]:
    """Counts, and the accuracy with Wilson's 95 % interval: every record is in the denominator."""
    correct = [record for record in records if record.details["correct"]]
    cut = [record for record in records if not record.finished]
    return {
        "items": len(records),
        "correct": len(correct),
        "accuracy": len(correct) / len(records),
        "interval": list(wilson_interval(len(correct), len(records))),
        "no_number": sum(record.details["found"] is None for record in records),
        "cut": len(cut),
        "cut_correct": sum(record.details["correct"] for record in cut),
        "rules": {
            rule: {
                "items": sum(record.details["rule"] == rule for record in records),
                "correct": sum(record.details["rule"] == rule for record in correct),
            }
            for rule in RULES
        },
        "prompt_tokens": sum(record.prompt_tokens for record in records),
        "response_tokens": sum(record.response_tokens for record in records),
    }
