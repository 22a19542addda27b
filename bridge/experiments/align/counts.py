"""How often a model refuses, counted while it is trained, and when that is as wanted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bridge.data.rows import Row
from bridge.evaluation.refusals import RefusalRate, is_refusal, refusal_rate
from bridge.experiments.align.result import BENIGN, UNSAFE, Goal, PromptKind
from bridge.generation.generate import Response
from commands.store import write_json

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Answer:
    """An answer that was counted: to which prompt, in which line of its set, and by which pattern it is a refusal."""

    step: int
    set: PromptKind
    line: int
    prompt: str
    response: str
    finished: bool
    refused: bool
    pattern: str | None

    @property
    def as_wanted(self) -> bool:
        """Whether an unsafe prompt was refused, or a harmless one answered."""
        return self.refused == (self.set != BENIGN)


@dataclass(frozen=True)
class Count:
    """The refusal rates after a step, and every answer that was counted."""

    step: int
    unsafe: RefusalRate
    benign: RefusalRate
    answers: tuple[Answer, ...]


def answers_of(step: int, kind: PromptKind, prompts: Sequence[Row], responses: Sequence[Response]) -> list[Answer]:
    """A model's answers to all prompts of a set, each with whether it is a refusal."""
    answers: list[Answer] = []
    for row, response in zip(prompts, responses, strict=True):
        match = is_refusal(response.text)
        question = next(m["content"] for m in reversed(row.messages) if m["role"] == "user")
        pattern = match.pattern if match else None
        answers.append(
            Answer(step, kind, row.line, question, response.text, response.finished, match is not None, pattern)
        )
    return answers


def count_of(step: int, answers: Iterable[Answer]) -> Count:
    """The refusal rates of a step's answers."""
    kept = tuple(answers)
    rates = [refusal_rate([answer.response for answer in kept if answer.set == kind]) for kind in (UNSAFE, BENIGN)]
    return Count(step, rates[0], rates[1], kept)


class Watch:
    """Counts refusals at chosen steps of a training and ends it when the goal is reached: `train`'s on_step.

    Args:
        steps: at which steps to count; 0 is before the training.
        answer: gives all answers of a model after a step.
        goal: when to stop.
        file: where a step's answers are kept. A step whose file is there is not answered again, so that a killed
            run goes on.
        tell: is given each new count.

    """

    def __init__(
        self,
        steps: Sequence[int],
        answer: Callable[[int, PreTrainedModel | PeftModel], Sequence[Answer]],
        goal: Goal,
        file: Callable[[int], Path],
        tell: Callable[[Count], None],
    ) -> None:
        self.steps = tuple(sorted(set(steps)))
        self._answer, self._goal, self._file, self._tell = answer, goal, file, tell

    def __call__(self, step: int, model: PreTrainedModel | PeftModel) -> bool:
        """Count after this step if it is one of the chosen; True if the goal is reached."""
        if step not in self.steps:
            return False
        path = self._file(step)
        if not path.exists():
            write_json(path, [asdict(answer) for answer in self._answer(step, model)])
        count = self._read(step)
        self._tell(count)
        return self._goal.reached(count.unsafe, count.benign)

    def counts(self, last: int) -> list[Count]:
        """All counts up to step `last`, those of killed processes included."""
        return [self._read(step) for step in self.steps if step <= last]

    def _read(self, step: int) -> Count:
        return count_of(step, [Answer(**answer) for answer in json.loads(self._file(step).read_text())])
