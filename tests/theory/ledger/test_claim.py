"""The arithmetic of slacks, the parameters of cases, and how a check reports what it found."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from theory.ledger.claim import (
    Claim,
    Parameter,
    Slack,
    Verdict,
    at_least,
    check_claim,
    check_point,
    equal,
    exact,
    worst,
)
from theory.series import rational


def test_a_slack_holds_down_to_its_tolerance() -> None:
    assert Slack(-1e-3, 1e-3, "").holds
    assert not Slack(-1.001e-3, 1e-3, "").holds
    assert Slack(0.25, 0.5, "").margin == 0.75
    assert not Slack(math.nan, 1.0, "").holds


def test_equal_is_the_largest_difference_over_the_larger_side() -> None:
    slack = equal(np.array([1.0, -4.0, 2.0]), np.array([1.0, -4.0, 1.0]), 0.3, "why", part="half")
    assert slack == Slack(-0.25, 0.3, "why", "half")
    assert equal(2.0, -8.0, 0.0, "").value == -1.25
    assert equal(3.0, 1.0, 0.0, "", scale=4.0).value == -0.5
    assert equal(0.0, 0.0, 0.0, "").value == 0.0
    assert equal(np.zeros(0), np.zeros(0), 0.0, "").value == 0.0
    assert not equal(np.array([1.0, math.nan]), np.array([1.0, 2.0]), 1.0, "").holds
    with pytest.raises(ValueError, match=r"got \(2,\) and \(3,\)"):
        equal(np.zeros(2), np.zeros(3), 0.0, "")


def test_fractions_are_compared_exactly() -> None:
    third = Fraction(1, 3)
    assert equal(rational([third, 1]), rational([third, 1]), 0.0, "").holds
    tiny = equal(third, third + Fraction(1, 10**40), 0.0, "")
    assert not tiny.holds
    assert tiny.value == pytest.approx(-3e-40)


def test_a_difference_that_underflows_is_still_a_difference() -> None:
    half, tiny = Fraction(1, 2), Fraction(1, 10**400)
    for slack in (equal(half, half + tiny, 0.0, ""), at_least(half - tiny, half, 0.0, ""), exact(half + tiny, half)):
        assert slack.value == -math.ulp(0.0)
        assert not slack.holds
    more = at_least(half + tiny, half, 0.0, "")
    assert more.value == math.ulp(0.0)
    assert more.holds
    assert exact(half, Fraction(2, 4), part="p") == Slack(0.0, 0.0, "exact arithmetic: no rounding", "p")


def test_at_least_is_signed() -> None:
    assert at_least(3.0, 2.0, 0.1, "why", part="p") == Slack(1 / 3, 0.1, "why", "p")
    assert at_least(-2.0, 2.0, 0.1, "").value == -2.0
    assert at_least(5.0, 2.0, 0.0, "", scale=6.0).value == 0.5
    assert at_least(0.0, 0.0, 0.0, "").value == 0.0


def test_the_worst_slack_has_the_smallest_margin() -> None:
    strict, loose, undefined = Slack(-0.1, 0.1, "s"), Slack(-0.2, 0.5, "l"), Slack(math.nan, 9.0, "n")
    assert worst(loose, strict) is strict
    assert worst(strict, undefined, loose) is undefined
    assert worst(loose) is loose


def test_a_parameter_covers_its_range() -> None:
    whole = Parameter("n", 2, 4)
    assert [whole.at(x) for x in (0.0, 0.32, 0.34, 0.66, 0.67, 1.0)] == [2, 2, 3, 3, 4, 4]
    assert all(isinstance(whole.at(x), int) for x in (0.0, 1.0))
    assert [Parameter("x", -1.0, 3.0, "uniform").at(x) for x in (0.0, 0.25, 1.0)] == [-1.0, 0.0, 3.0]
    assert Parameter("x", 1e-2, 1e4, "log").at(0.5) == pytest.approx(10.0)
    assert Parameter("x", 1e-2, 1e4, "log").at(1.0) == pytest.approx(1e4)


def claim_of(check) -> Claim:
    return Claim(
        key="T",
        title="t",
        source="s",
        statement="$x$",
        hypotheses=("h",),
        verdict=Verdict.HOLDS,
        why="w",
        derivation="d",
        evidence="e",
        check=check,
        build=lambda rng, n: (n, rng.random()),
        parameters=(Parameter("n", 1, 5),),
    )


def test_a_check_reports_the_worst_case_and_how_to_build_it() -> None:
    claim = claim_of(lambda case: Slack(case[1] - 0.5 * (case[0] == 3), 0.0, "why"))
    outcome = check_claim(claim, 400, seed=1)
    assert outcome.point["n"] == 3
    assert outcome.worst == claim.check(claim.case(outcome.point))
    assert outcome.worst.value < -0.4
    assert outcome.examples == 400
    assert 20 < outcome.failures < 70  # a fifth of the cases has n = 3, half of them fail
    assert check_claim(claim, 400, seed=1) == outcome
    assert check_claim(claim, 400, seed=2).point != outcome.point
    assert check_claim(claim, 1, seed=1).examples == 1


def test_one_point_is_one_case() -> None:
    claim = claim_of(lambda case: Slack(case[0] - 3.0, 1.0, "why"))
    assert check_point(claim, {"n": 2, "seed": 5}).failures == 0
    failed = check_point(claim, {"n": 1, "seed": 5})
    assert (failed.failures, failed.examples, failed.worst.value) == (1, 1, -2.0)
    assert failed.point == {"n": 1, "seed": 5}


def test_draws_are_cases() -> None:
    claim = claim_of(lambda case: Slack(0.0, 0.0, ""))
    rng = np.random.default_rng(0)
    drawn = [claim.draw(rng) for _ in range(200)]
    assert {point["n"] for point in drawn} == {1, 2, 3, 4, 5}
    assert len({point["seed"] for point in drawn}) == 200
    assert claim.case(drawn[0]) == claim.case(dict(drawn[0]))
    assert claim.case({"n": 1, "seed": 1}) != claim.case({"n": 1, "seed": 2})


def test_a_check_needs_an_example() -> None:
    with pytest.raises(ValueError, match="at least one example, got 0"):
        check_claim(claim_of(lambda case: Slack(0.0, 0.0, "")), 0, seed=0)


def test_verdicts_have_words() -> None:
    assert [verdict.words for verdict in Verdict] == ["holds", "holds after correction", "refuted", "vacuous"]


@pytest.mark.parametrize(
    "broken", [(0.0, -1e-9, "why", ""), (0.0, math.nan, "why", ""), (0.0, 0.0, None, ""), (0.0, 0.0, "why", None)]
)
def test_a_slack_needs_a_tolerance_and_a_reason(broken) -> None:
    with pytest.raises((ValueError, TypeError)):  # a TypeError where types are checked at run time
        Slack(*broken)
