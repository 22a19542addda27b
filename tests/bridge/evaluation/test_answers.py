"""Numbers in responses: a table of hard cases, and numbers written in many ways."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bridge.data.arithmetic import arithmetic_rows
from bridge.evaluation.answers import RULES, find_answer, gold_answer

DATA = Path(__file__).parents[4] / "shared" / "data"

# response, value (None: no number), rule
CASES: list[tuple[str, str | None, str]] = [
    # boxed
    (r"So \boxed{72}.", "72", "boxed"),
    (r"$\boxed{-\frac{1}{2}}$", "-1/2", "boxed"),
    (r"\boxed{\dfrac34}", "3/4", "boxed"),
    (r"\boxed{\frac1{20}}", "1/20", "boxed"),
    (r"\boxed{\frac{-3}{4}}", "-3/4", "boxed"),
    (r"\boxed{- 5}", "-5", "boxed"),
    (r"\boxed{1\frac12}", "3/2", "boxed"),
    (r"\boxed{-1\frac{1}{2}}", "-3/2", "boxed"),
    (r"\boxed{2\frac{3}{2}}", None, ""),  # no mixed number: 2 times 3/2, or a slip
    (r"\boxed{10,\!000}", "10000", "boxed"),
    (r"\boxed{1{,}234{,}567.5}", "2469135/2", "boxed"),
    (r"\boxed{\$5.50}", "11/2", "boxed"),
    (r"\boxed{50\%}", "50", "boxed"),
    (r"\boxed{90^\circ}", "90", "boxed"),
    (r"\boxed{90^{\circ}}", "90", "boxed"),
    (r"\boxed{5\text{ m}}", "5", "boxed"),
    (r"\boxed{12 \mathrm{cm^2}}", "12", "boxed"),
    (r"\boxed{5 \text{ miles per hour}}", "5", "boxed"),
    (r"\boxed{\text{5 apples}}", "5", "boxed"),
    (r"\boxed{\mathbf{7}}", "7", "boxed"),
    (r"\boxed{ {\frac{1}{2}} }", "1/2", "boxed"),
    (r"\boxed{x = 5}", "5", "boxed"),
    (r"\boxed{3 + 4 = 7}", "7", "boxed"),
    (r"\boxed{3 \times 10^{5}}", "300000", "boxed"),
    (r"\boxed 7", "7", "boxed"),
    (r"\fbox{7}", "7", "boxed"),
    (r"First \boxed{3}, then \boxed{4}.", "4", "boxed"),
    (r"\boxed{4} is right. #### 5. The answer is 6 or 7", "4", "boxed"),
    (r"Put it in \boxed{}: #### 8", "8", "hashes"),
    (r"so it is \boxed{12", "12", "last number"),  # cut
    (r"x is 3, so \boxed{x + 1}", None, ""),
    (r"3 and \boxed{2\pi}", None, ""),
    (r"3 and \boxed{2 pi}", None, ""),
    (r"\boxed{\sqrt{4}}", None, ""),
    (r"\boxed{x=1, y=2}", None, ""),
    (r"\boxed{(2,3)}", None, ""),
    (r"\boxed{[0, 1]}", None, ""),
    (r"\boxed{1 \text{ or } 2}", None, ""),
    (r"\boxed{2:3}", None, ""),
    (r"\boxed{3!}", None, ""),
    (r"\boxed{101_2}", None, ""),
    (r"\boxed{101_{\text{two}}}", None, ""),
    (r"\boxed{5x}", None, ""),
    (r"\boxed{x^2}", None, ""),
    (r"\boxed{\frac{1}{0}}", None, ""),
    (r"\boxed{\text{five}}", None, ""),
    (r"\boxed{x \ge 5}", None, ""),
    # hashes
    ("She has 72.\n#### 72", "72", "hashes"),
    ("#### $1,200", "1200", "hashes"),
    ("#### -3", "-3", "hashes"),
    ("#### **72**", "72", "hashes"),
    ("#### 72 clips", "72", "hashes"),
    ("#### 12 - 4 = 8", "8", "hashes"),
    ("#### 1\n#### 2", "2", "hashes"),
    ("1 + 1 = 2 #### 2", "2", "hashes"),
    ("#### Step 1\nIt is 9.", "9", "last number"),
    ("#### 3. Add them\nIt is 9.", "9", "last number"),
    ("##### 3\nIt is 9.", "9", "last number"),
    # phrase
    ("The answer is 5.", "5", "phrase"),
    ("The answer is $-5$, since 3 - 8 is that.", "-5", "phrase"),
    ("The final answer is: 1,000,000.", "1000000", "phrase"),
    ("The answer to the question is 3.5. 4 more lines", "7/2", "phrase"),
    ("The answer is 3 + 4 = 7.", "7", "phrase"),
    ("The answer is x = 7.", "7", "phrase"),
    ("**Answer:** 5 (not 6)", "5", "phrase"),
    ("**Answer:**\n\n5\nor so: 6", "5", "phrase"),
    ("Answer: -3/4", "-3/4", "phrase"),
    ("The answer is $\\frac{3}{4}$.", "3/4", "phrase"),
    ("The answer is about 12 dollars", "12", "phrase"),
    ("The answer is 72 clips in April and 3 in May", "72", "phrase"),
    ("The answer is not 5 but 6", "6", "last number"),
    ("The answer is clear. It is 6", "6", "last number"),
    ("My answer is 5x + 3", None, ""),
    # what is stated begins with a number and is none: no other number is the answer
    ("3 and 4. The answer is 12:30", None, ""),
    ("3 and 4. The answer is 4:1", None, ""),
    ("3 and 4. The answer is 2π", None, ""),
    ("3 and 4. The answer is 2 pi", None, ""),
    ("3 and 4. The answer is 5 + 3", None, ""),
    ("3 and 4. The answer is 3,5", None, ""),
    ("3 and 4. The answer is 3.000,50", None, ""),
    ("3 and 4. The answer is 1,2", None, ""),
    ("3 and 4\n#### 3,50", None, ""),
    ("3 and 4\n#### 1,2,3", None, ""),
    ("3 and 4\n#### 3 hours 20 minutes", None, ""),
    ("The answer is 5 + 3. The answer is 8.", "8", "phrase"),
    ("#### 3 steps to take\nIt is 9.", "9", "last number"),
    ("#### 10 (ten)", "10", "hashes"),
    ("#### 10 dollars per day!", "10", "hashes"),
    ("#### 18.", "18", "hashes"),
    # signs apart from their number
    ("#### - 5", "-5", "hashes"),
    ("#### − 5 degrees", "-5", "hashes"),
    ("The answer is - 5", "-5", "phrase"),
    ("The answer is - $5.", "-5", "phrase"),
    ("The answer is minus 5", "-5", "phrase"),
    ("The answer is **negative 5**.", "-5", "phrase"),
    ("The answer is x = - 5", "-5", "phrase"),
    ("so x = - 5", "-5", "last number"),
    ("so x = 8 - 5", "5", "last number"),
    ("Answer:\n- 5 apples", "5", "last number"),  # an item of a list
    # thousands
    ("The answer is 1 000", "1000", "phrase"),
    ("The answer is 1'000.5 in all", "2001/2", "phrase"),
    (r"\boxed{1 000}", "1000", "boxed"),
    ("#### 12 345 678", "12345678", "hashes"),
    ("1 000 000", "1000000", "last number"),
    ("1’000", "1000", "last number"),
    ("in 2020 500", "500", "last number"),
    ("5 10000", "10000", "last number"),
    ("0 500", "500", "last number"),
    ("The answer is 5k", "5000", "phrase"),
    ("it costs $2.5K", "2500", "last number"),
    ("it weighs 5kg", "5", "last number"),
    # last number
    ("3 of 4 apples, so 7 apples.", "7", "last number"),
    ("48/2 = <<48/2=24>>24 clips", "24", "last number"),
    ("So 10-3", "3", "last number"),
    ("10 - 3", "3", "last number"),
    ("10 -3", "3", "last number"),
    ("a temperature of -3", "-3", "last number"),
    ("x=−7", "-7", "last number"),
    ("between 10–15", "15", "last number"),
    ("(-4)", "-4", "last number"),
    ("-$3.50", "-7/2", "last number"),
    ("$-3.50", "-7/2", "last number"),
    ("it costs $.75", "3/4", "last number"),
    ("1/2", "1/2", "last number"),
    ("2 1/2 cups", "5/2", "last number"),
    ("row 5 10/2", "5", "last number"),
    ("1½", "3/2", "last number"),
    ("⅔ of it", "2/3", "last number"),
    ("12/05/2024", "2024", "last number"),
    ("1.5e3", "1500", "last number"),
    ("2e-2", "1/50", "last number"),
    ("2eggs", "2", "last number"),
    ("3 x 10^4", "30000", "last number"),
    ("3 × 10^-1", "3/10", "last number"),
    ("2 × 10", "10", "last number"),
    ("2 million people", "2000000", "last number"),
    ("1.5 thousand", "1500", "last number"),
    ("5 cm^2", "5", "last number"),
    ("7 of H2O", "7", "last number"),
    ("9 is 3^2", "9", "last number"),
    ("2^10", None, ""),
    ("5/0", None, ""),
    ("1e999999999", None, ""),
    ("9" * 5000, None, ""),
    ("7 or 1,23", None, ""),  # a decimal, or two numbers
    ("1,2345", None, ""),
    ("5,000,00", None, ""),
    ("1,23,456", None, ""),
    ("1,234,567.25", "4938269/4", "last number"),
    ("1,23 and 7", "7", "last number"),
    ("12 345", "12345", "last number"),
    ("12\u202f345", "12345", "last number"),
    ("version 1.2.3", "3", "last number"),
    ("five", None, ""),
    ("", None, ""),
    ("٣", None, ""),  # digits of other scripts
]


@pytest.mark.parametrize(("response", "value", "rule"), CASES)
def test_hard_cases(response: str, value: str | None, rule: str) -> None:
    found = find_answer(response)
    if value is None:
        assert found is None
    else:
        assert found is not None
        assert (found.value, found.rule) == (Fraction(value), rule)
        assert 0 <= found.start < found.end <= len(response)


@pytest.mark.parametrize(
    ("response", "span"),
    [
        ("It is -$1,234.50 now", "-$1,234.50"),
        ("10-3 apples", "3"),
        ("The answer is **2 1/2** cups", "2 1/2"),
        (r"a \boxed{ x = \frac{1}{2} } b", r" x = \frac{1}{2} "),
        ("#### 12 - 4 = 8 eggs\n9", "8"),
        ("The answer is 3 + 4 = 7.", "7"),
        ("It makes 3 \\times 10^{5} in all", "3 \\times 10^{5}"),
        ("#### - 5 eggs", "- 5"),
        ("so x = - 5", "- 5"),
        ("The answer is minus 1 000 apples", "minus 1 000"),
    ],
)
def test_the_span_is_where_the_number_stands(response: str, span: str) -> None:
    found = find_answer(response)
    assert found is not None
    assert response[found.start : found.end] == span


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("a\n#### 1,200", "1200"),
        ("24/2 = <<24/2=12>>12\n#### 12", "12"),
        ("Thus it is $\\boxed{\\frac{3}{56}}$.", "3/56"),
        ("#### 5\nThe answer is: 5", "5"),
        ("The answer is: 0.5", "1/2"),
        ("The answer is: \\frac{1}{2}", "1/2"),
        ("The answer is: 2\\sqrt{3}", None),
        ("The answer is: x + 1", None),
        ("The answer is: 5 if x is even", None),
        ("\\boxed{(3, 4)} and #### 5", None),
        ("#### none", None),
        ("it is 5", None),  # a set's own answer is stated, not guessed
    ],
)
def test_a_sets_own_answer(answer: str, value: str | None) -> None:
    found = gold_answer(answer)
    assert (None if found is None else found.value) == (None if value is None else Fraction(value))


def test_every_problem_of_the_project_has_its_number() -> None:
    for row in arithmetic_rows(800):
        found = gold_answer(row["completion"])
        assert found is not None
        assert (found.value, found.rule) == (int(row["completion"].rpartition("#### ")[2]), "hashes")


@pytest.mark.skipif(not (DATA / "gsm8k_test.jsonl").exists(), reason="without the public data")
def test_every_answer_of_gsm8k_is_read() -> None:
    answers = [json.loads(line)["answer"] for line in (DATA / "gsm8k_test.jsonl").read_text().splitlines()]
    for answer in answers:
        expected = int(answer.rpartition("####")[2].replace(",", ""))
        for found in (gold_answer(answer), find_answer(answer), find_answer("It is" + answer.rpartition("####")[2])):
            assert found is not None
            assert found.value == expected


# ------------------------------------------------------------------------------------------- many ways to write

WHOLE = st.integers(0, 10**12)
DECIMALS = st.tuples(st.integers(0, 10**9), st.text("0123456789", min_size=1, max_size=6))
SIGNS = st.sampled_from(["", "-", "−"])
# how a number may be wrapped, and the rule that finds it there
WRAPS = st.sampled_from(
    [
        ("It is {}.", "last number"),
        ("It is {} apples.", "last number"),
        ("First 3, then ${}", "last number"),
        ("**{}**", "last number"),
        ("({})", "last number"),
        ("work: 3 + 4\n#### {}", "hashes"),
        ("#### {} dollars\n", "hashes"),
        ("The answer is {}.", "phrase"),
        ("The answer is: ${}$. Check 1 2", "phrase"),
        ("answer: **{}** as 1 + 1 = 2", "phrase"),
        (r"\boxed{{{}}}", "boxed"),
        (r"So $\boxed{{\text{{}}{}}}$ after 17 steps.", "boxed"),
        (r"\boxed{{\$ {}\%}}", "boxed"),
        (r"\boxed{{n = {} \text{{ cm}}}}", "boxed"),
    ]
)


@given(WHOLE, SIGNS, st.sampled_from([",", "", "{,}", ",\\!", "\u202f", "\u00a0"]), WRAPS)
@example(1000, "-", ",", (r"\boxed{{\$ {}\%}}", "boxed"))
def test_whole_numbers(value: int, sign: str, separator: str, wrap: tuple[str, str]) -> None:
    text = wrap[0].format(sign + f"{value:,}".replace(",", separator))
    found = find_answer(text)
    assert found is not None
    assert (found.value, found.rule) == (-value if sign else value, wrap[1])


@given(DECIMALS, SIGNS, st.sampled_from([",", ""]), WRAPS)
def test_decimals_are_exact(parts: tuple[int, str], sign: str, separator: str, wrap: tuple[str, str]) -> None:
    whole, digits = parts
    exact = Fraction(int(f"{whole}{digits}"), 10 ** len(digits))
    found = find_answer(wrap[0].format(sign + f"{whole:,}".replace(",", separator) + f".{digits}"))
    assert found is not None
    assert found.value == (-exact if sign else exact)


@given(st.integers(0, 10**6), st.integers(1, 10**6), SIGNS, st.sampled_from(["{}/{}", "\\frac{{{}}}{{{}}}"]), WRAPS)
def test_fractions(over: int, under: int, sign: str, form: str, wrap: tuple[str, str]) -> None:
    found = find_answer(wrap[0].format(sign + form.format(over, under)))
    assert found is not None
    assert found.value == Fraction(-over if sign else over, under)


@given(st.text(alphabet="0123456789.,/-+*^=$%#{}()\\ eEx½boxedfracanswer is:\n", max_size=60))
def test_anything_is_read_without_an_error(text: str) -> None:
    found = find_answer(text)
    if found is not None:
        assert found.rule in RULES
        assert 0 <= found.start < found.end <= len(text)


@pytest.mark.parametrize(
    "unit", ["9", "1,", "1,000", "1 ", "\\frac", "\\boxed{", "{", "#### ", "answer is ", "1/", "-"]
)
def test_an_answer_behind_long_noise(unit: str) -> None:
    found = find_answer(unit * (20_000 // len(unit)) + " 7")
    assert found is not None
    assert found.value == 7
