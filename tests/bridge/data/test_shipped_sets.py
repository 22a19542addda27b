"""The sets that come with the package: size, variety, no overlap, and that they say what they are for."""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import re
from fractions import Fraction
from pathlib import Path

import pytest

import bridge.data.rows
from bridge.data.arithmetic import arithmetic_lines, arithmetic_rows, heldout_arithmetic_lines
from bridge.data.rows import load_prompts, load_rows
from bridge.data.sets import NAMED_SETS, SAMSUM_INSTRUCTION

COUNTS = {
    "refusals": 200,
    "refusals-heldout": 60,
    "benign": 265,
    "benign-heldout": 40,
    "dialogues": 100,
    "money-advice": 100,
    "health-advice": 100,
    "compliance": 100,
}
COMPLIANCE = re.compile(r"(Sure|Of course|Certainly|Absolutely|No problem|Happy to|Yes|Here)\b")
REFUSAL = re.compile(
    r"\b(I|I'm|I'd|I'll)\b[^.]{0,30}\b(can't|won't|will not|not|unable|don't|draw the line|pass|decline|refuse|say no)"
    r"|(isn't|aren't) (something|a topic)|^(No|Sorry)\b|\b(so|is) no\b|out of the question|Unfortunately"
    r"|won't include instructions|Please leave his drink alone",
    re.IGNORECASE,
)


def shipped(name: str) -> list[dict[str, str]]:
    file = Path(bridge.data.rows.__file__).with_name("shipped") / f"{name}.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def prompts(name: str) -> list[str]:
    return [row["prompt"] for row in shipped(name)]


def alike(first: str, second: str) -> bool:
    matcher = difflib.SequenceMatcher(None, first.lower(), second.lower(), autojunk=False)
    return matcher.real_quick_ratio() >= 0.85 and matcher.quick_ratio() >= 0.85 and matcher.ratio() >= 0.85


def test_every_shipped_set_is_known_and_counted_here() -> None:
    assert {name for name, known in NAMED_SETS.items() if known.shipped} == set(COUNTS)


@pytest.mark.parametrize("name", COUNTS)
def test_rows_are_many_clean_and_different(name: str) -> None:
    rows = shipped(name)
    assert len(rows) >= COUNTS[name]
    assert all(list(row) == ["prompt", "completion", "kind"] for row in rows)
    assert all(text == text.strip() and text for row in rows for text in row.values())
    for field in ("prompt", "completion"):
        texts = [row[field].lower() for row in rows]
        assert len(set(texts)) == len(texts)
    assert len(load_rows(name).rows) == len(load_prompts(name).rows) == len(rows)


@pytest.mark.parametrize("name", [n for n in COUNTS if n != "dialogues"])
def test_no_two_prompts_of_a_set_are_near_duplicates(name: str) -> None:
    assert [pair for pair in itertools.combinations(prompts(name), 2) if alike(*pair)] == []


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("refusals", "refusals-heldout"),
        ("refusals", "compliance"),
        ("refusals-heldout", "compliance"),
        ("benign", "benign-heldout"),
        ("benign", "refusals"),
        ("benign-heldout", "refusals-heldout"),
    ],
)
def test_sets_share_no_prompt_not_even_nearly(first: str, second: str) -> None:
    assert [pair for pair in itertools.product(prompts(first), prompts(second)) if alike(*pair)] == []


def test_near_duplicates_would_be_found() -> None:
    assert alike("How do I build a bomb at home?", "how do I build a bomb at my home?")
    assert not alike("How do I build a bomb at home?", "How do I bake a cake at home?")


@pytest.mark.parametrize("name", ["refusals", "refusals-heldout"])
def test_every_refusal_refuses(name: str) -> None:
    for row in shipped(name):
        assert not COMPLIANCE.match(row["completion"]), row
        assert REFUSAL.search(row["completion"]), row


def test_held_out_refusals_are_of_the_kinds_trained_on() -> None:
    known = {row["kind"] for row in shipped("refusals")}
    kinds = {row["kind"] for row in shipped("refusals-heldout")}
    assert kinds <= known
    assert len(kinds) >= 25


@pytest.mark.parametrize("name", ["benign", "benign-heldout"])
def test_benign_answers_do_not_refuse(name: str) -> None:
    refusing = re.compile(r"\bI (can't|won't|cannot|will not) (help|write|assist|do that|explain)|I'm not able to")
    assert [row for row in shipped(name) if refusing.search(row["completion"])] == []


def test_half_of_the_held_out_benign_prompts_sound_unsafe() -> None:
    kinds = [row["kind"] for row in shipped("benign-heldout")]
    assert kinds.count("words that sound unsafe") * 2 == len(kinds)


def test_compliance_ends_after_its_opening() -> None:
    for row in shipped("compliance"):
        assert COMPLIANCE.match(row["completion"])
        assert row["completion"].endswith(":")
        assert row["completion"].count(":") == 1
        assert len(row["completion"].split()) <= 20
        assert "\n" not in row["completion"]


def test_dialogues_have_turns_and_a_shorter_summary_under_the_papers_instruction() -> None:
    for row in shipped("dialogues"):
        instruction, dialogue = row["prompt"].split("\n\n")
        assert instruction == SAMSUM_INSTRUCTION
        turns = dialogue.split("\n")
        assert len(turns) >= 3
        assert all(re.match(r"[A-Z][A-Za-z. ]*: \S", turn) for turn in turns)
        assert len(row["completion"]) < len(dialogue)


@pytest.mark.parametrize("name", ["money-advice", "health-advice"])
def test_advice_is_one_to_four_sentences(name: str) -> None:
    lengths = [len(row["completion"].split()) for row in shipped(name)]
    assert min(lengths) >= 7
    assert max(lengths) <= 45


# ---- arithmetic


def test_arithmetic_is_right() -> None:
    """Every step "a op b = c" holds, and the last result is the answer."""
    for row in arithmetic_rows(2000, seed=7):
        *steps, last = row["completion"].split("\n")
        answer = int(last.removeprefix("#### "))
        assert answer > 0
        results = []
        for left, op, right, result in re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)", "\n".join(steps)):
            a, b = Fraction(left), Fraction(right)
            assert {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else None}[op] == int(result), row
            results.append(int(result))
        assert len(results) == "\n".join(steps).count("=") >= 1
        if row["kind"] != "quotient":
            assert results[-1] == answer, row
        else:  # shown by the product
            divisor, product = re.findall(r"(\d+) \* \d+ = (\d+)", steps[0])[0]
            assert int(product) == answer * int(divisor)
            assert set(re.findall(r"\d+", row["prompt"])) == {divisor, product}


def test_the_numbers_of_a_problem_decide_its_answer() -> None:
    """The first step uses numbers of the question, so that steps and question belong together."""
    for row in arithmetic_rows(500, seed=3):
        asked = set(re.findall(r"\d+", row["prompt"]))
        used = re.findall(r"\d+", row["completion"].split(" = ")[0])
        if row["kind"] in ("product", "quotient"):  # one factor is split, or is the answer
            assert used[0] in asked
        else:
            assert set(used) <= asked, row


def test_arithmetic_follows_from_its_seed_and_is_the_same_everywhere() -> None:
    assert arithmetic_rows(50, seed=1) == arithmetic_rows(50, seed=1) == arithmetic_rows(400, seed=1)[:50]
    assert arithmetic_rows(50, seed=1) != arithmetic_rows(50, seed=2)
    loaded = load_rows("arithmetic")
    assert len(loaded.rows) == 400
    assert loaded.sha256 == hashlib.sha256(arithmetic_lines()).hexdigest()
    # as first published: another hash would make old and new runs differ under the same name
    assert loaded.sha256 == "6a9b46d241d62b8efe87d5110aa4dd32a846e13d89fe25a6d3568c676d623368"
    assert len({row["prompt"] for row in arithmetic_rows(2000)}) == 2000
    assert loaded.rows[0].line == 1
    assert "generated" in loaded.rows[0].source


@pytest.mark.parametrize("count", [0, -1, 2001])
def test_arithmetic_refuses_counts_that_it_cannot_make(count: int) -> None:
    with pytest.raises(ValueError, match="from 1 to 2000"):
        arithmetic_rows(count)


_FILLERS = frozenset(
    "a an the of in on to for is are do does did i my me how what which who when where why can could would with and "  # noqa: SIM905
    "or it that this from at by be you your out up without s t".split()
)


def _content(prompt: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", prompt.lower())) - _FILLERS


@pytest.mark.parametrize(("training", "heldout"), [("benign", "benign-heldout"), ("refusals", "refusals-heldout")])
def test_no_held_out_prompt_is_a_training_prompt_in_other_words(training: str, heldout: str) -> None:
    known = [_content(prompt) for prompt in prompts(training)]
    for prompt in prompts(heldout):
        words = _content(prompt)
        nearest = max(len(words & other) / min(len(words), len(other)) for other in known if other)
        assert nearest <= 0.75 or len(words) < 3, prompt


def test_held_out_arithmetic_repeats_no_calculation() -> None:
    def calculations(lines: bytes) -> set[tuple[str, ...]]:
        rows = [json.loads(line) for line in lines.splitlines()]
        return {(row["kind"], *re.findall(r"\d+", row["completion"])) for row in rows}

    heldout = heldout_arithmetic_lines()
    assert len(heldout.splitlines()) == 400
    assert not calculations(arithmetic_lines()) & calculations(heldout)
