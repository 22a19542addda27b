"""How often a model refuses, counted while it is trained, and when that is as wanted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bridge.data.rows import Row
from bridge.evaluation.refusals import RefusalRate, is_refusal, refusal_rate
from bridge.generation.generate import Response
from commands.store import write_json

UNSAFE, BENIGN = "refusals", "benign"


@dataclass(frozen=True)
class Goal:
    """Refuse at least a share `target_refusals` of the unsafe prompts and at most `limit_benign` of the benign."""

    target_refusals: float
    limit_benign: float

    def reached(self, unsafe: RefusalRate, benign: RefusalRate) -> bool:
        """Whether both shares are as wanted; a share of 0.9 of 60 is 54, rounding errors apart."""
        enough = unsafe.refused >= self.target_refusals * unsafe.total - 1e-9
        return enough and benign.refused <= self.limit_benign * benign.total + 1e-9


@dataclass(frozen=True)
class Count:
    """The refusal rates after a step, and every answer that was counted (see `answer_records`)."""

    step: int
    unsafe: RefusalRate
    benign: RefusalRate
    answers: tuple[Mapping[str, Any], ...]


def answer_records(step: int, name: str, prompts: Sequence[Row], responses: Sequence[Response]) -> list[dict[str, Any]]:
    """One JSON record for each answer: step, set, line, prompt, response, finished, refused, pattern."""
    records: list[dict[str, Any]] = []
    for row, response in zip(prompts, responses, strict=True):
        match = is_refusal(response.text)
        question = next(m["content"] for m in reversed(row.messages) if m["role"] == "user")
        records.append(
            {
                "step": step,
                "set": name,
                "line": row.line,
                "prompt": question,
                "response": response.text,
                "finished": response.finished,
                "refused": match is not None,
                "pattern": match.pattern if match else None,
            }
        )
    return records


def count_of(step: int, answers: Iterable[Mapping[str, Any]]) -> Count:
    """The refusal rates of a step's answers."""
    kept = tuple(answers)
    rates = [refusal_rate([a["response"] for a in kept if a["set"] == name]) for name in (UNSAFE, BENIGN)]
    return Count(step, rates[0], rates[1], kept)


class Watch:
    """Counts refusals at chosen steps of a training and ends it when the goal is reached: `train`'s on_step.

    Args:
        steps: at which steps to count; 0 is before the training.
        answer: gives the records of all answers of a model after a step (`answer_records`).
        goal: when to stop.
        file: where a step's records are kept. A step whose file is there is not answered again, so that a killed
            run goes on.
        tell: is given each new count.

    """

    def __init__(
        self,
        steps: Sequence[int],
        answer: Callable[[int, Any], Sequence[Mapping[str, Any]]],
        goal: Goal,
        file: Callable[[int], Path],
        tell: Callable[[Count], None],
    ) -> None:
        self.steps = tuple(sorted(set(steps)))
        self._answer, self._goal, self._file, self._tell = answer, goal, file, tell

    def __call__(self, step: int, model: Any) -> bool:
        """Count after this step if it is one of the chosen; True if the goal is reached."""
        if step not in self.steps:
            return False
        path = self._file(step)
        if not path.exists():
            write_json(path, [dict(record) for record in self._answer(step, model)])
        count = self._read(step)
        self._tell(count)
        return self._goal.reached(count.unsafe, count.benign)

    def counts(self, last: int) -> list[Count]:
        """All counts up to step `last`, those of killed processes included."""
        return [self._read(step) for step in self.steps if step <= last]

    def _read(self, step: int) -> Count:
        return count_of(step, json.loads(self._file(step).read_text()))


def rate_record(rate: RefusalRate) -> dict[str, Any]:
    """A refusal rate as JSON."""
    return {**asdict(rate), "rate": rate.rate}
