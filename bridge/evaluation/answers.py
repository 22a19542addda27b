r"""Numeric answers: the number that a response gives as its answer, exactly, and where it stands.

Looked for in this order; of several of one kind the last counts:

- boxed: ``\boxed{...}``, as in MATH. What is boxed must be one number, units apart; where it is something else
  ("x + 1", "2\pi"), the response gives no number.
- hashes: ``#### N`` to the end of the line, as in GSM8K. A heading ("#### 2. Add them up") is none.
- phrase: "The answer is N", "Answer: N", as in MetaMathQA.
- last number: the last number of the text.

What is stated behind "####" or "The answer is", begins with a number and is none ("12:30", "2\pi") gives no number, as
in a box.

A number is an integer, a decimal, a fraction (``3/4``, ``\frac{3}{4}``, ¾), a mixed number (``1 3/4``,
``1\frac{3}{4}``, 1¾) or a number times a power of ten (``2e3``, ``2 \times 10^{3}``, 2 thousand), with or without a
sign, thousands separators (commas, spaces, apostrophes), a currency or a unit; "5k" is 5000. Digits around commas that
separate no thousands ("3,5", "1,2,3") could be a decimal or several numbers, and count as none. Of a percentage it is
the number before the sign: 50 % is 50. A digit that belongs to a word or an exponent (H2O, cm^2) is none, nor are words
("five"). Values are fractions, so that comparison is exact: 0.5 equals 1/2, and 0.33 does not equal 1/3.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

Rule = Literal["boxed", "hashes", "phrase", "last number"]
RULES: tuple[Rule, ...] = ("boxed", "hashes", "phrase", "last number")

_LONGEST = 300
"""Characters of a number, and powers of ten, beyond which it is noise (and would take long to compute with)."""


@dataclass(frozen=True)
class Answer:
    """A number, the rule that found it, and where: the characters from `start` up to `end` of the text."""

    value: Fraction
    rule: Rule
    start: int
    end: int


def find_answer(response: str) -> Answer | None:
    """The number that a response gives as its answer, or None if it gives none."""
    boxes = _boxes(response)
    if boxes:
        return _boxed(response, *boxes[-1])
    for rule, pattern in _STATED.items():
        for match in reversed(list(pattern.finditer(response))):
            signed = "\n" not in response[match.start() : match.start(1)]
            if found := _stated(match[1], rule == "hashes", signed):
                return _moved(found, rule, match.start(1))
            heading = rule == "hashes" and response[match.end() :].strip() and _HEADING.match(match[1])
            begins = _BEGINS.match(match[1])
            if begins and (signed or not begins["minus"]) and not heading:
                return None
    *_, last = [None, *_numbers(response)]
    return None if last is None or last[0] is None else Answer(last[0], "last number", *last[1:])


def gold_answer(answer: str) -> Answer | None:
    """The number that a data set's own answer ends in, or None where that is no single number.

    As `find_answer`, but nothing may follow the number except a unit, and there is no last resort: the number must
    be boxed, behind "####" or behind "The answer is".
    """
    boxes = _boxes(answer)
    if boxes:
        return _boxed(answer, *boxes[-1])
    for rule, pattern in _STATED.items():
        matches = list(pattern.finditer(answer))
        if matches:
            found = _stated(matches[-1][1], alone=True)
            return _moved(found, rule, matches[-1].start(1)) if found else None
    return None


def _moved(found: tuple[Fraction, int, int], rule: Rule, place: int) -> Answer:
    value, start, end = found
    return Answer(value, rule, place + start, place + end)


# ------------------------------------------------------------------------------------------------- numbers

_SEPARATOR = r"(?:,\\!|\\,|\{,\}|[,\u00a0\u2009\u202f])"
_DIGITS = rf"(?:[0-9]{{1,3}}(?:{_SEPARATOR}[0-9]{{3}})+(?![0-9])|[0-9]+)"
_SPACED = r"[1-9][0-9]{0,2}(?:[ '’][0-9]{3})+(?![0-9])(?:\.[0-9]+)?"
_COMMAS = r"[0-9]+(?:[.,][0-9]+)*,[0-9]+(?:[.,][0-9]+)*"
_THOUSANDS = r"[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?"
_DECIMAL = rf"(?:{_DIGITS}(?:\.[0-9]+)?|(?<![0-9A-Za-z.])\.[0-9]+)"
_MINUS = "-−–"
_POWERS = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}


def _part(name: str) -> str:
    """Numerator or denominator in TeX: braced, or one digit."""
    return rf"\s*(?:\{{\s*(?P<{name}>[{_MINUS}]?\s*{_DECIMAL})\s*\}}|(?P<{name}_digit>[0-9]))"


_NUMBER = re.compile(
    rf"(?P<ambiguous>(?<![0-9.,])(?!{_THOUSANDS}(?![.,]?[0-9])){_COMMAS})"
    rf"|(?:(?P<tex_whole>[0-9]+)\s*)?\\[dtc]?frac{_part('above')}{_part('below')}"
    rf"|(?:(?P<whole>[0-9]+)[ \u00a0])?(?<!/)(?P<over>{_DECIMAL})\s?[/⁄]\s?(?P<under>{_DECIMAL})"
    r"(?![0-9]|\s?[/⁄]\s?[0-9])"
    r"|(?:(?P<before>[0-9]+)\s?)?(?P<vulgar>[¼-¾⅐-⅞])"
    rf"|(?P<plain>{_SPACED}|{_DECIMAL})"
    r"(?:[eE](?P<exponent>[-+]?[0-9]+)(?![0-9A-Za-z])"
    r"|\s*(?:\\times|\\cdot|[×*x])\s*10\s*\^\s*(?:\{\s*(?P<braced>[-−]?[0-9]+)\s*\}|(?P<power>[-−]?[0-9]+))"
    rf"|\s(?P<word>(?i:{'|'.join(_POWERS)}))\b|(?P<kilo>[kK])(?![A-Za-z0-9]))?"
)
_BEFORE = re.compile(
    rf"(?:(?P<outer>[{_MINUS}])|(?<=[=≈(]) *(?P<apart>[{_MINUS}]) +)?(?:\\?[$€£¥₹]\s?(?P<inner>[{_MINUS}])?)?\Z"
)
_RAISED = re.compile(r"\s*\^(?!\s*\{?\s*\\circ)")  # the number before it is a base; "90^\circ" is 90


def _numbers(text: str) -> Iterator[tuple[Fraction | None, int, int]]:
    """Value, start and end (sign and currency included) of every number of a text, from left to right.

    The value is None where commas leave open which number, or numbers, it is.
    """
    for found in _NUMBER.finditer(text):
        first = found.start()
        glued = first and (text[first - 1].isalpha() or text[first - 1] in "_^" or text[:first].endswith("^{"))
        if glued or _RAISED.match(text, found.end()):
            continue
        if found["ambiguous"]:
            yield None, first, found.end()
            continue
        value = _value(found)
        if value is None:
            continue
        around = _BEFORE.search(text, max(0, first - 8), first)
        start, minus = first, 0
        if around is not None:
            start = around.start()
            minus = around["inner"] is not None
            if around["apart"] is not None:
                start, minus = around.start("apart"), minus + 1
            if around["outer"] is not None:
                subtracts = _subtracts(text, start)
                start, minus = (start + 1, minus) if subtracts else (start, minus + 1)
        yield value * (-1) ** minus, start, found.end()


def _subtracts(text: str, minus: int) -> bool:
    """Whether the minus at a place takes away from, or is a hyphen after, what stands before it."""
    before = text[:minus].rstrip(" ")
    last = before[-1:]
    return (
        last.isdigit() or last in tuple(")]}") or (len(before) == minus and (last.isalpha() or last in tuple(_MINUS)))
    )


def _value(found: re.Match[str]) -> Fraction | None:
    """The value without its sign; None for a denominator of zero, an impossible mixed number, or noise."""
    if found.end() - found.start() > _LONGEST:
        return None
    if found["plain"] is not None:
        return _scaled(found)
    if found["vulgar"] is not None:
        part = Fraction(unicodedata.numeric(found["vulgar"])).limit_denominator(100)
        return Fraction(found["before"] or 0) + part
    tex = found["over"] is None
    names = ("above", "below") if tex else ("over", "under")
    over, under = (_decimal(found[name] or found[f"{name}_digit"]) for name in names)
    whole = found["tex_whole" if tex else "whole"]
    if under == 0:
        return None
    if whole is None:
        return over / under
    proper = 0 < over < under and over.denominator == under.denominator == 1
    if not proper:
        return None if tex else over / under  # "Row 5 10/2": two numbers
    return Fraction(whole) + over / under


def _scaled(found: re.Match[str]) -> Fraction | None:
    """A decimal times its power of ten."""
    written = next((found[name] for name in ("exponent", "braced", "power") if found[name] is not None), "0")
    word = "thousand" if found["kilo"] else (found["word"] or "").lower()
    power = int(written.replace("−", "-")) + _POWERS.get(word, 0)
    return None if abs(power) > _LONGEST else _decimal(found["plain"]) * Fraction(10) ** power


def _decimal(text: str) -> Fraction:
    return Fraction(re.sub(rf"{_SEPARATOR}|[\s'’]", "", text).translate(str.maketrans("−–", "--")))


# ---------------------------------------------------------------------------------------- stated answers

_PHRASE = re.compile(
    r"\banswer\b(?:\s+(?:to|for)\b[^.\n:=]{0,100}?)?\s*\**\s*(?::|=|\b(?:is|was|would be|will be|equals)\b)[\s*_:]*"
    r"((?:[^\n.!?]|[.!?](?!\s|\Z))*)",
    re.IGNORECASE,
)
_STATED: dict[Rule, re.Pattern[str]] = {"hashes": re.compile(r"(?<!#)####(?!#)([^\n]*)"), "phrase": _PHRASE}
_LEAD = (
    r"(?:[\s*_:$({]|\\[(\[]|\b(?:approximately|about|exactly|simply|just|only|equal to|the answer is)\b)*"
    rf"(?:(?P<minus>[{_MINUS}]|\b(?:minus|negative)\b)\s+)?"
)
_OPENING = re.compile(_LEAD, re.IGNORECASE)
_BEGINS = re.compile(rf"{_LEAD}[{_MINUS}]?\\?[$€£¥₹]?\s*(?:\.?[0-9]|[¼-¾⅐-⅞]|\\[dtc]?frac)", re.IGNORECASE)
_HEADING = re.compile(r"[\s*]*[0-9]+[.):]?\**\s+[^\W\d]")
_NO_UNIT = r"(?:and|or|to|plus|minus|times|over|pi|sqrt|if|not|but|dozen)"
_UNIT = rf"(?!{_NO_UNIT}\b)[A-Za-z]{{2,}}(?:\^\{{?[0-9]\}}?|[²³])?"
_ALONE = re.compile(
    r"(?:[\s*$)}]|\.(?=\s*\Z)|(?<=[A-Za-z])!|\([^\W\d][^()0-9=]*\)|\\[)\]]|"
    rf"\\?%|°|\^\s*\{{?\s*\\circ\s*\}}?|\\circ|{_UNIT}(?:\s*[/-]\s*{_UNIT})*)*",
    re.IGNORECASE,
)
# What makes a larger expression of the number before it: an operator, a command, a variable with an operator.
_GOES_ON = re.compile(
    r"\s*(?:[-+*/×÷·^=<>≤≥]\s*[-\w.$(\\]|\\(?![)\]%$])[A-Za-z]|[A-Za-z]\s*[-+*/^=]|[π√]|(?i:pi|sqrt)\b)|:[0-9]"
)
_EQUALS = re.compile(r"=|≈|\\approx\b")


def _stated(text: str, alone: bool, signed: bool = True) -> tuple[Fraction, int, int] | None:
    """The number that a short text states, itself or behind its last "=", with its place; None if it states none.

    Args:
        text: what stands behind "####" or "The answer is".
        alone: nothing but a unit may follow the number; else anything that does not go on with the expression.
        signed: whether "- 5" is a number; at the start of a line it is an item of a list.

    """
    found = _leading(text, 0, alone, signed)
    signs = list(_EQUALS.finditer(text))
    if found is None and signs and not re.search(r"[;]|,(?![0-9]{3})|\b(?:and|or)\b", text[: signs[-1].start()]):
        found = _leading(text, signs[-1].end(), alone, signed=True)
    return found


def _leading(text: str, place: int, alone: bool, signed: bool) -> tuple[Fraction, int, int] | None:
    """The number that a text begins with at a place, if it stands there as `_stated` asks."""
    for value, start, end in _numbers(text[place:]):
        start, end = place + start, place + end
        before = _OPENING.fullmatch(text, place, start)
        if before is None or value is None or (before["minus"] and not signed):
            return None
        if before["minus"]:
            value, start = -value, before.start("minus")
        fits = _ALONE.fullmatch(text, end) if alone else not _GOES_ON.match(text, end)
        return (value, start, end) if fits else None
    return None


# ------------------------------------------------------------------------------------------------- boxes

_BOX = re.compile(r"\\f?boxed(?![A-Za-z])\s*|\\fbox\s*")
_BARE = re.compile(r"[0-9]+")  # \boxed 7
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_WORDS = re.compile(r"\\(?:text(?:bf|it|rm)?|math(?:rm|bf|it)|mbox|operatorname)\s*\{([^{}]*)\}")
_SPACES = re.compile(r"\\[!;: ]|~|\\(?:left|right|displaystyle|quad)(?![A-Za-z])")


def _boxes(text: str) -> list[tuple[int, int]]:
    """Start and end of what is boxed, empty and unfinished boxes left out."""
    closing = _closing_braces(text)
    spans: list[tuple[int, int]] = []
    for found in _BOX.finditer(text):
        start = found.end()
        if start in closing:
            if text[start + 1 : closing[start]].strip():
                spans.append((start + 1, closing[start]))
        elif digits := _BARE.match(text, start):
            spans.append(digits.span())
    return spans


def _closing_braces(text: str) -> dict[int, int]:
    """Where each brace that is closed closes; escaped ones are text."""
    pairs: dict[int, int] = {}
    opened: list[int] = []
    for found in _BRACE.finditer(text):
        if found[0] == "{":
            opened.append(found.start())
        elif found[0] == "}" and opened:
            pairs[opened.pop()] = found.start()
    return pairs


def _boxed(text: str, start: int, end: int) -> Answer | None:
    def words(found: re.Match[str]) -> str:
        inside = found[1].strip()
        only_letters = inside.replace(" ", "").replace(".", "").isalpha()
        if only_letters and not re.fullmatch(_NO_UNIT, inside, re.IGNORECASE) and inside.lower() not in _POWERS:
            return " unit "  # of one letter too, as in \text{m}
        return f" {inside} "

    content = _SPACES.sub(" ", _WORDS.sub(words, text[start:end].replace(",\\!", ",")))
    found = _stated(content, alone=True)
    return None if found is None else Answer(found[0], "boxed", start, end)
