"""Problems with a number as their answer: rows chosen by seed, and solved ones put before them as chat turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from bridge.data.rows import Row, RowSet, question
from bridge.evaluation.answers import gold_answer
from commands.errors import UserError


@dataclass(frozen=True)
class Problem:
    """A row, and the number that its own answer ends in.

    `prompt` ends in the question, which shots come before; `question` is its text without them.
    """

    prompt: Row
    question: str
    expected: Fraction


@dataclass(frozen=True)
class Problems:
    """The chosen problems in file order, the lines of the solved ones before each, and what was left out.

    `without_number` counts rows whose own answer is no single number, `repeated` rows that were not taken because
    their question stands among the shots, or would have.
    """

    chosen: tuple[Problem, ...]
    shot_lines: tuple[int, ...]
    without_number: int
    repeated: int


def choose_problems(rows: RowSet, num: int, shots: int, seed: int) -> Problems:
    """Draw `num` problems (0: all that are no shots) and `shots` solved ones, both without replacement.

    Rows whose own answer is no single number ("x + 1", an interval) cannot be asked and are left out, counted. The
    problems do not depend on the number of shots, except where all rows are asked for: shots are taken from the other
    end of the same order. No question is asked whose solution is a shot, white space apart: where a set repeats
    questions, other rows are the shots, or, with all rows asked for, repeated ones are not asked.

    Raises:
        UserError: no row has a number, or there are fewer than asked for.

    """
    expected = {k: gold for k, row in enumerate(rows.rows) if (gold := gold_answer(row.messages[-1]["content"]))}
    if not expected:
        raise UserError(
            f'--data: no answer of {rows.name} ends in a number (\\boxed{{N}}, "#### N" or "The answer is N"); give '
            f"gsm8k, math, arithmetic, metamathqa, or a file with such answers"
        )
    usable = list(expected)
    wanted = num or max(len(usable) - shots, 1)
    if wanted + shots > len(usable):
        raise UserError(
            f"--num: expected at most {max(len(usable) - shots, 0)}, the rows of {rows.name} whose answer is a number "
            f"less {shots} --shots, got {wanted}"
        )
    order = [usable[k] for k in np.random.default_rng(seed).permutation(len(usable)).tolist()]
    asked = order[:wanted] if num else []
    taken = _different(rows.rows, order[len(asked) :][::-1], {_text(rows.rows[k]) for k in asked}, shots)
    if len(taken) < shots:
        raise UserError(
            f"--shots: expected at most {len(taken)}, the solved rows of {rows.name} whose questions are not asked and "
            f"differ, got {shots}"
        )
    passed = order[::-1].index(taken[-1]) + 1 - shots if taken else 0
    if not num:
        shown = {_text(rows.rows[k]) for k in taken}
        asked = [k for k in order if _text(rows.rows[k]) not in shown]
        passed = len(order) - len(asked) - shots
        if not asked:
            raise UserError(f"--shots: expected shots that leave questions of {rows.name} to ask, got {shots}")
    solved = [rows.rows[k] for k in taken[::-1]]
    chosen = tuple(_problem(rows.rows[k], solved, expected[k].value) for k in sorted(asked))
    return Problems(chosen, tuple(row.line for row in solved), len(rows.rows) - len(usable), passed)


def _different(rows: Sequence[Row], order: Sequence[int], seen: set[str], count: int) -> list[int]:
    """The first so many places of an order whose questions are not among those seen, nor twice."""
    seen = set(seen)
    found: list[int] = []
    for k in order:
        if len(found) == count:
            break
        if (text := _text(rows[k])) not in seen:
            seen.add(text)
            found.append(k)
    return found


def _text(row: Row) -> str:
    """What tells a row's question from others: its turns without the answer, white space as one space."""
    return " ".join(question(row).split())


def _problem(row: Row, solved: Sequence[Row], expected: Fraction) -> Problem:
    return Problem(with_shots(row, solved), question(row), expected)


def with_shots(row: Row, solved: Sequence[Row]) -> Row:
    """The row's conversation without its answer, behind those of solved rows; its own system turn stays first."""
    own = row.messages[:-1]
    lead = 1 if own[0]["role"] == "system" else 0
    turns = [message for other in solved for message in other.messages if message["role"] != "system"]
    return replace(row, messages=(*own[:lead], *turns, *own[lead:]))
