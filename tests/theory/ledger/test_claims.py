"""Every claim of the ledger, checked on random cases, at its boundary, and on its counterexamples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from theory.ledger.claim import Claim, Parameter, Point, Verdict
from theory.ledger.registry import ledger

CLAIMS = list(ledger().values())
SEEDS = st.integers(0, 2**32 - 1)


def values(parameter: Parameter) -> st.SearchStrategy[int | float]:
    if parameter.kind == "integer":
        return st.integers(int(parameter.low), int(parameter.high))
    return st.floats(0, 1).map(parameter.at)


def points(claim: Claim) -> st.SearchStrategy[Point]:
    return st.fixed_dictionaries({p.name: values(p) for p in claim.parameters} | {"seed": SEEDS})


def of(claims: list[Claim]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("claim", claims, ids=[claim.key for claim in claims])


@of(CLAIMS)
def test_the_true_statement_holds(claim: Claim) -> None:
    @settings(max_examples=min(settings().max_examples, 25))
    @given(points(claim))
    def holds(point: Point) -> None:
        slack = claim.check(claim.case(point))
        assert slack.holds, slack

    holds()


@of([claim for claim in CLAIMS if claim.boundary])
def test_a_bound_is_reached(claim: Claim) -> None:
    for example in claim.boundary:
        slack = claim.check(example.case())
        assert slack.holds, (example.name, slack)
        assert abs(slack.value) <= claim.tightness, (example.name, slack)


@of([claim for claim in CLAIMS if claim.counterexamples])
def test_the_printed_statement_fails_on_its_counterexamples_and_the_true_one_holds(claim: Claim) -> None:
    assert claim.printed is not None
    for example in claim.counterexamples:
        case = example.case()
        rejected = claim.printed(case)
        assert not rejected.holds, (example.name, rejected)
        assert not rejected.margin >= -1e-3, (example.name, rejected)  # by more than rounding or a small constant
        assert claim.check(case).holds, (example.name, claim.check(case))


@of([claim for claim in CLAIMS if claim.accepted])
def test_the_printed_statement_is_accepted_where_it_is_right(claim: Claim) -> None:
    @settings(max_examples=min(settings().max_examples, 15))
    @given(SEEDS)
    def accepted(seed: int) -> None:
        assert claim.printed is not None
        assert claim.accepted is not None
        slack = claim.printed(claim.accepted(np.random.default_rng(seed)))
        assert slack.holds, slack

    accepted()


def test_the_ledger_is_complete() -> None:
    sections = ["3.2", "3.3", "3.4", "4.1.1", "4.1.2a", "4.1.2b", "5.1", "5.1a", "5.1b", "5.2", "5.3"]
    theorems = ["6.1", "6.1c", "6.2", "6.3", "7.1", "7.2"]
    appendices = ["A.1", "A.2", "A.3", "A.4", "A.5", "A.6", "A.7", "A.8", "B.1", "B.2", "B.3", "B.4", "C.1", "C.2"]
    ours = [f"F{i}" for i in range(1, 5)] + [f"Q{i}" for i in range(1, 7)] + [f"E{i}" for i in range(1, 10)]
    assert sorted(ledger()) == sorted(sections + theorems + appendices + ours)


@of(CLAIMS)
def test_an_entry_says_everything(claim: Claim) -> None:
    for text in (claim.title, claim.source, claim.statement, claim.why, claim.derivation, claim.evidence):
        assert text.strip()
    assert claim.hypotheses
    assert len(claim.why) <= 110
    assert "\n" not in claim.why
    assert claim.check.__module__ == claim.build.__module__
    for text in (claim.title, claim.statement, claim.why, claim.correction, claim.derivation, claim.evidence):
        assert text.count("$") % 2 == 0
    if claim.verdict is Verdict.REFUTED:
        assert claim.printed
        assert claim.counterexamples
        assert claim.accepted
    if claim.verdict in (Verdict.CORRECTED, Verdict.REFUTED):
        assert claim.correction
    if claim.verdict is Verdict.HOLDS:
        assert not claim.counterexamples
    for example in (*claim.counterexamples, *claim.boundary):
        assert example.text.count("$") % 2 == 0
