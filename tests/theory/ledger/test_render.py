"""What is printed of claims and outcomes, to the letter."""

from __future__ import annotations

import json

import pytest

import theory.__main__ as command
from theory.ledger import render
from theory.ledger.claim import Claim, Example, Outcome, Parameter, Slack, Verdict
from theory.ledger.registry import UnknownClaimError, find

CLAIM = Claim(
    key="T.1",
    title="A title",
    source="Lemma T.1",
    statement="It is $x \\le 1$.",
    hypotheses=("one", "two"),
    verdict=Verdict.CORRECTED,
    why="because",
    derivation="Proof.",
    evidence="Seen.",
    correction="It is $x \\le 2$.",
    check=lambda x: Slack(2 - x, 1e-3, "rounding"),
    printed=lambda x: Slack(1 - x, 1e-3, "rounding"),
    build=lambda rng, x: x,
    parameters=(Parameter("x", 0.0, 2.0, "uniform"),),
    counterexamples=(Example("far", "Here $x = 1.5$.", lambda: 1.5),),
    boundary=(Example("edge", "Here $x = 2$.", lambda: 2.0),),
)
OUTCOME = Outcome(CLAIM, 40, Slack(0.25, 1e-3, "rounding", "upper"), {"x": 1.75, "seed": 3}, 0)


def test_an_entry_in_the_terminal() -> None:
    assert render.entry(CLAIM, 80).splitlines() == [
        "T.1  A title",
        "Lemma T.1",
        "Verdict: holds after correction. because",
        "",
        "Statement",
        "    It is x ≤ 1.",
        "",
        "Hypotheses",
        "    - one",
        "    - two",
        "",
        "Correction",
        "    It is x ≤ 2.",
        "",
        "Derivation",
        "    Proof.",
        "",
        "Evidence",
        "    Seen.",
        "",
        "Counterexample: far",
        "    Here x = 1.5.",
        "    -> true statement holds: slack 0.5, tolerance 0.001",
        "    -> printed statement fails: slack -0.5, tolerance 0.001",
        "",
        "Tight on: edge",
        "    Here x = 2.",
        "    -> true statement holds: slack 0, tolerance 0.001",
        "    -> printed statement fails: slack -1, tolerance 0.001",
    ]


def test_the_table_beside_and_under() -> None:
    assert render.table([CLAIM], 80).splitlines() == [
        "claim  verdict    title    why",
        "T.1    corrected  A title  because",
    ]
    assert render.table([CLAIM], 60).splitlines() == [
        "claim  verdict    title",
        "       why",
        "T.1    corrected  A title",
        "       because",
    ]


def test_an_entry_in_markdown() -> None:
    assert render.markdown_entry(CLAIM) == "\n\n".join(
        [
            "## T.1 A title",
            "*Lemma T.1.* **Verdict: holds after correction.** because",
            "**Statement.** It is $x \\le 1$.",
            "**Hypotheses.**\n\n- one\n\n- two",
            "**Correction.** It is $x \\le 2$.",
            "**Derivation.** Proof.",
            "**Evidence.** Seen.",
            "**Counterexample: far.** Here $x = 1.5$.",
            "**Tight on: edge.** Here $x = 2$.",
        ]
    )
    rows = ["| claim | title | verdict | why |", "| --- | --- | --- | --- |"]
    table = "\n".join([*rows, "| T.1 | A title | holds after correction | because |"])
    assert render.markdown_table([CLAIM]) == table
    head = "# The ledger\n\nWritten by `python -m theory show --markdown`; do not edit."
    assert render.markdown_document([CLAIM]) == "\n\n".join([head, table, render.markdown_entry(CLAIM)])


def test_a_claim_in_json() -> None:
    assert render.claim_record(CLAIM) == {
        "key": "T.1",
        "title": "A title",
        "source": "Lemma T.1",
        "verdict": "corrected",
        "why": "because",
        "statement": "It is $x \\le 1$.",
        "hypotheses": ["one", "two"],
        "correction": "It is $x \\le 2$.",
        "derivation": "Proof.",
        "evidence": "Seen.",
        "counterexamples": [{"name": "far", "text": "Here $x = 1.5$."}],
        "tight_on": [{"name": "edge", "text": "Here $x = 2$."}],
    }


def test_an_outcome() -> None:
    assert render.outcome_record(OUTCOME) == {
        "key": "T.1",
        "title": "A title",
        "source": "Lemma T.1",
        "verdict": "corrected",
        "examples": 40,
        "failures": 0,
        "worst_slack": 0.25,
        "tolerance": 1e-3,
        "reason": "rounding",
        "part": "upper",
        "case": {"x": 1.75, "seed": 3},
    }
    whole = Outcome(CLAIM, 7, Slack(-1.0, 0.0, "r"), {"seed": 4}, 2)
    assert render.outcome_record(whole)["part"] is None
    line = render.outcome_line(OUTCOME)
    assert line == "T.1    holds   worst slack  0.25      tolerance 0.001    x=1.75 seed=3 (upper)"
    assert render.outcome_line(whole) == "T.1    FAILS on 2 of 7 worst slack -1         tolerance 0        seed=4"
    assert render.markdown_outcomes([OUTCOME, whole]) == "\n".join(
        [
            "| claim | examples | failures | worst slack | tolerance | case |",
            "| --- | --- | --- | --- | --- | --- |",
            "| T.1 | 40 | 0 | 0.25 | 0.001 | `x=1.75 seed=3` |",
            "| T.1 | 7 | 2 | -1 | 0 | `seed=4` |",
        ]
    )


def test_json_is_readable_and_one_example_is_enough(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("theory.ledger.registry.ledger", lambda: {"T.1": CLAIM})
    for arguments in (["--json"], ["show", "--json"], ["check", "--examples", "1", "--json"]):
        with pytest.raises(SystemExit) as end:
            command.main(arguments)
        assert end.value.code == 0
        text = capsys.readouterr().out
        assert text == json.dumps(json.loads(text), indent=2, ensure_ascii=False) + "\n"
    with pytest.raises(SystemExit):
        command.main(["check", "--examples", "2", "--markdown"])
    assert capsys.readouterr().out.count("\n") == 3  # the table alone, no lines beside it


def test_the_nearest_keys_are_four_at_most() -> None:
    with pytest.raises(UnknownClaimError) as error:
        find(["A.9"])
    near = str(error.value).rpartition("are ")[2].split(", ")
    assert len(near) == 4
    assert all(key.startswith("A.") for key in near)
