"""Arithmetic made by seed: sums and word problems, each with worked steps and "#### answer" as in GSM8K."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable

DEFAULT_COUNT = 400
DEFAULT_SEED = 0

_NAMES = (
    *("Ada", "Bilal", "Chen", "Dora", "Emeka", "Freya", "Goran", "Hana", "Ines", "Jonas", "Kavya", "Leo", "Mira"),
    *("Nadia", "Omar", "Priya", "Quinn", "Rosa", "Samir", "Tilda", "Umar", "Vera", "Wanda", "Yusuf", "Zoe"),
)
_THINGS = (
    *("apples", "marbles", "stickers", "pencils", "shells", "postcards", "buttons", "tickets", "muffins", "stamps"),
    *("beads", "books", "coins", "candles", "seeds", "badges", "keys", "ribbons"),
)


class _Draw:
    """Draws that are the same in every version of Python: of `random`, only random() promises that."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def number(self, low: int, high: int) -> int:
        """An integer from low to high, both included."""
        return low + int(self._random.random() * (high - low + 1))

    def one(self, items: tuple[str, ...]) -> str:
        """One of the items."""
        return items[self.number(0, len(items) - 1)]


Problem = tuple[str, str, int]  # question, worked steps, answer


def _sum(d: _Draw) -> Problem:
    a, b = d.number(12, 480), d.number(12, 480)
    question = d.one(("What is {a} + {b}?", "Add {a} and {b}.", "Work out {a} plus {b}."))
    return question.format(a=a, b=b), f"{a} + {b} = {a + b}", a + b


def _difference(d: _Draw) -> Problem:
    b = d.number(11, 300)
    a = b + d.number(3, 400)
    question = d.one(("What is {a} - {b}?", "Take {b} away from {a}.", "How much more than {b} is {a}?"))
    return question.format(a=a, b=b), f"{a} - {b} = {a - b}", a - b


def _product(d: _Draw) -> Problem:
    a, b = d.number(12, 49), d.number(3, 9)
    tens, ones = a // 10 * 10, a % 10
    steps = f"{b} * {tens} = {b * tens} and {b} * {ones} = {b * ones}\n{b * tens} + {b * ones} = {a * b}"
    return d.one((f"What is {a} * {b}?", f"Multiply {a} by {b}.")), steps, a * b


def _quotient(d: _Draw) -> Problem:
    b, c = d.number(3, 12), d.number(6, 40)
    return d.one((f"What is {b * c} / {b}?", f"Divide {b * c} by {b}.")), f"{b} * {c} = {b * c}", c


def _bags(d: _Draw) -> Problem:
    name, thing = d.one(_NAMES), d.one(_THINGS)
    bags, each, gone = d.number(3, 12), d.number(4, 15), d.number(2, 11)
    question = (
        f"{name} packs {bags} bags with {each} {thing} each and then gives away {gone} {thing}. "
        f"How many {thing} are left?"
    )
    total = bags * each
    return question, f"{bags} * {each} = {total} {thing}\n{total} - {gone} = {total - gone}", total - gone


def _sharing(d: _Draw) -> Problem:
    name, thing = d.one(_NAMES), d.one(_THINGS)
    friends, each, kept = d.number(3, 9), d.number(3, 14), d.number(1, 9)
    total = friends * each + kept
    question = (
        f"{name} has {total} {thing}, keeps {kept} and shares the rest equally among {friends} friends. "
        f"How many {thing} does each friend get?"
    )
    return question, f"{total} - {kept} = {total - kept}\n{total - kept} / {friends} = {each}", each


def _change(d: _Draw) -> Problem:
    name, thing = d.one(_NAMES), d.one(_THINGS)
    count, price, extra = d.number(2, 9), d.number(2, 9), d.number(1, 30)
    paid, cost = count * price + extra, count * price
    question = (
        f"{name} buys {count} {thing} at {price} dollars each and pays with {paid} dollars. How much is the change?"
    )
    return question, f"{count} * {price} = {cost} dollars\n{paid} - {cost} = {extra} dollars", extra


def _saving(d: _Draw) -> Problem:
    name = d.one(_NAMES)
    start, week, weeks = d.number(5, 90), d.number(3, 25), d.number(3, 12)
    total = start + week * weeks
    question = f"{name} has {start} dollars and saves {week} dollars a week. How much is it after {weeks} weeks?"
    return question, f"{week} * {weeks} = {week * weeks} dollars\n{start} + {week * weeks} = {total} dollars", total


def _travel(d: _Draw) -> Problem:
    name = d.one(_NAMES)
    speed, hours, more = d.number(4, 18) * 5, d.number(2, 6), d.number(3, 40)
    total = speed * hours + more
    question = (
        f"{name} drives {hours} hours at {speed} kilometres per hour and then another {more} kilometres. "
        "How many kilometres is that in all?"
    )
    return question, f"{hours} * {speed} = {speed * hours} kilometres\n{speed * hours} + {more} = {total}", total


def _two_people(d: _Draw) -> Problem:
    first, thing = d.one(_NAMES), d.one(_THINGS)
    second = d.one(tuple(name for name in _NAMES if name != first))
    a, times = d.number(4, 30), d.number(2, 6)
    question = f"{first} has {a} {thing}. {second} has {times} times as many. How many {thing} do they have together?"
    return question, f"{times} * {a} = {times * a} {thing}\n{a} + {times * a} = {a + times * a}", a + times * a


_KINDS: dict[str, Callable[[_Draw], Problem]] = {
    "sum": _sum,
    "difference": _difference,
    "product": _product,
    "quotient": _quotient,
    "bags": _bags,
    "sharing": _sharing,
    "change": _change,
    "saving": _saving,
    "travel": _travel,
    "two people": _two_people,
}


def arithmetic_rows(count: int = DEFAULT_COUNT, seed: int = DEFAULT_SEED) -> list[dict[str, str]]:
    """`count` different problems as {"prompt", "completion", "kind"}, the kinds in turn; seed decides the rest.

    A completion holds the worked steps and "#### N" on its last line; N is a positive integer. The first rows
    are the same for any count. Raises ValueError for a count below 1 or above 2,000, since the smallest kind
    has few hundred different problems.
    """
    if not 1 <= count <= 2000:
        raise ValueError(f"expected a count from 1 to 2000, got {count}")
    draw, rows, seen = _Draw(seed), list[dict[str, str]](), set[str]()
    while len(rows) < count:
        kind = list(_KINDS)[len(rows) % len(_KINDS)]
        question, steps, answer = _KINDS[kind](draw)
        if question not in seen:
            seen.add(question)
            rows.append({"prompt": question, "completion": f"{steps}\n#### {answer}", "kind": kind})
    return rows


def arithmetic_lines(count: int = DEFAULT_COUNT, seed: int = DEFAULT_SEED) -> bytes:
    """`arithmetic_rows` as JSON Lines."""
    return "".join(json.dumps(row) + "\n" for row in arithmetic_rows(count, seed)).encode()


def heldout_arithmetic_lines(count: int = DEFAULT_COUNT) -> bytes:
    """`count` problems that follow those of `arithmetic_lines`, as JSON Lines.

    None of them is a calculation of those under other names: of one kind and with the same numbers in its steps.
    Raises ValueError for a count that the 2,000 problems do not hold.
    """
    rows = arithmetic_rows(2000)
    known = {_calculation(row) for row in rows[:DEFAULT_COUNT]}
    new = [row for row in rows[DEFAULT_COUNT:] if _calculation(row) not in known]
    if not 1 <= count <= len(new):
        raise ValueError(f"expected a count from 1 to {len(new)}, got {count}")
    return "".join(json.dumps(row) + "\n" for row in new[:count]).encode()


def _calculation(row: dict[str, str]) -> tuple[str, tuple[str, ...]]:
    return row["kind"], tuple(re.findall(r"\d+", row["completion"]))
