from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from theory.ledger.appendix_a2 import (
    CONCENTRATION,
    LOWER_FORM,
    QUADRATIC_MEAN,
    SECOND_MOMENT,
    UPPER_FORM,
    Deviation,
    Form,
    Quadratic,
    concentration,
    diagonal,
)
from theory.null_model import CHERNOFF_CONSTANT, OverlapLaw

FORM = Form(np.array([3, -1, 2]), np.array([[1, 7, 0], [-2, 5, 4], [9, 0, -3]]))
POINT = {"dimension": 6, "extra": 2, "rank": 2, "gap": 0.3, "scale": 5.0, "focus": 0.0, "size": 2.0, "seed": 4}


def sphere(rng, count, n):
    g = rng.standard_normal((count, n))
    return g / np.linalg.norm(g, axis=1, keepdims=True)


def test_a1_orbit_is_all_signed_shifts():
    expected = {
        tuple(s * x for s, x in zip(signs, shifted, strict=True))
        for signs in itertools.product((-1, 1), repeat=3)
        for shifted in ((3, -1, 2), (2, 3, -1), (-1, 2, 3))
    }
    orbit = FORM.orbit()
    assert len(orbit) == 24
    assert {tuple(map(int, row)) for row in orbit} == expected
    moment = sum(np.outer(row, row) for row in orbit) / 24
    np.testing.assert_allclose(moment, 14 / 3 * np.eye(3), rtol=1e-15)


def test_a1_rejects_an_orbit_with_fewer_symmetries():
    class Unsigned(Form):
        def orbit(self):
            return np.abs(super().orbit())

    # the off-diagonal entries are then (6 + 3 + 2)/3 instead of 0, the diagonal 14/3
    slack = SECOND_MOMENT.check(Unsigned(FORM.vector, FORM.matrix))
    assert slack.value == pytest.approx(-11 / 14, rel=1e-12)
    assert SECOND_MOMENT.check(FORM).value == 0


def test_a1_and_a2_on_sampled_directions():
    rng = np.random.default_rng(1)
    count, n = 200_000, 4
    g = sphere(rng, count, n)
    moment = g.T @ g / count
    # Var g_i g_j is at most E g_i^4 = 3/(n (n + 2))
    np.testing.assert_allclose(moment, np.eye(n) / n, atol=5 * math.sqrt(3 / (n * (n + 2)) / count))
    matrix = rng.standard_normal((n, n))
    forms = np.einsum("ri,ij,rj->r", g, matrix, g)
    assert abs(forms.mean() - np.trace(matrix) / n) < 5 * forms.std() / math.sqrt(count)


def test_a2_mean_over_the_orbit():
    case = Form(FORM.vector, FORM.matrix)
    forms = [row @ FORM.matrix @ row for row in FORM.orbit()]
    assert np.mean(forms) == pytest.approx(14 * 3 / 3, rel=1e-14)
    assert QUADRATIC_MEAN.check(case).value == 0

    class Forgotten(Form):
        def orbit(self):
            return super().orbit()[:6]

    assert QUADRATIC_MEAN.check(Forgotten(FORM.vector, FORM.matrix)).value < -0.01


def test_a1_a2_cases():
    case = SECOND_MOMENT.case({"dimension": 5, "size": 30.9, "seed": 3})
    assert case.vector.shape == (5,)
    assert case.matrix.shape == (5, 5)
    assert case.vector[0] == 30
    assert abs(case.matrix).max() <= 30
    assert not np.array_equal(case.matrix, case.matrix.T)


def test_a3_parts_on_one_case():
    case = Deviation(OverlapLaw(1000, 50), 0.5)
    upper, lower = case.law.sf(0.075), case.law.cdf(0.025)
    bound = 2 * math.exp(-CHERNOFF_CONSTANT * 0.25 * 50)
    assert upper + lower < bound
    assert concentration(case).holds
    chernoff = max(math.exp(-case.law.chernoff_exponent(x)) for x in (0.075, 0.025))
    smallest = min(
        1 - upper / math.exp(-case.law.chernoff_exponent(0.075)),
        1 - lower / math.exp(-case.law.chernoff_exponent(0.025)),
        1 - chernoff / math.exp(-CHERNOFF_CONSTANT * 12.5),
        1 - (CHERNOFF_CONSTANT * 12.5 - math.log(2)) / -math.log(upper + lower),
    )
    assert concentration(case).value == pytest.approx(smallest, rel=1e-9)


@pytest.mark.parametrize(
    ("doctored", "part"),
    [("deviation_probability", "both tails, exponents"), ("sf", "upper tail"), ("cdf", "lower tail")],
)
def test_a3_rejects_a_law_with_heavier_tails(doctored, part):
    class Heavy(OverlapLaw):
        pass

    setattr(Heavy, doctored, lambda self, x: np.sqrt(getattr(OverlapLaw, doctored)(self, x)))
    slack = concentration(Deviation(Heavy(10_000, 500), 0.6))
    assert slack.part == part
    assert not slack.holds
    true = getattr(OverlapLaw(10_000, 500), doctored)
    if doctored == "deviation_probability":
        right = CHERNOFF_CONSTANT * 180 - math.log(2)
        assert slack.value == pytest.approx(-math.log(true(0.6)) / 2 / right - 1, rel=1e-9)
    else:
        x = 0.08 if doctored == "sf" else 0.02
        bound = math.exp(-OverlapLaw(10_000, 500).chernoff_exponent(x))
        assert slack.value == pytest.approx(bound / math.sqrt(true(x)) - 1, rel=1e-9)


def test_a3_rejects_a_chernoff_bound_above_the_printed_one():
    class Loose(OverlapLaw):
        def chernoff_exponent(self, energy):
            return super().chernoff_exponent(energy) / 4

    slack = concentration(Deviation(Loose(10**6, 100), 0.9))
    exponents = [OverlapLaw(10**6, 100).chernoff_exponent(x) / 4 for x in (1.9e-4, 1e-5)]
    assert slack.part == "one-sided bounds"
    assert slack.value == pytest.approx(math.exp(min(exponents) - CHERNOFF_CONSTANT * 81) - 1, rel=1e-9)


def test_a3_the_whole_space_and_tails_below_the_smallest_number():
    assert concentration(Deviation(OverlapLaw(7, 7), 0.5)).holds
    both = concentration(Deviation(OverlapLaw(10**9, 10**6), 0.9))  # every tail underflows
    assert both.holds
    assert CONCENTRATION.case({"rank": 10.4, "ratio": 3.0, "eps": 0.2, "seed": 0}).law == OverlapLaw(31, 10)


def test_a3_the_exponent_is_reached_by_both_tails_together():
    case = CONCENTRATION.boundary[0].case()
    exponent = -math.log(case.law.deviation_probability(case.eps))
    excess = exponent - (CHERNOFF_CONSTANT * 4000 - math.log(2))
    # the difference is ln sqrt(pi d) + ln 2 up to terms of order 1/d
    assert excess == pytest.approx(math.log(math.sqrt(math.pi * 4000)) + math.log(2), rel=0.01)


@pytest.mark.parametrize("claim", [UPPER_FORM, LOWER_FORM], ids=["A.4", "A.5"])
def test_a4_a5_slack_from_the_dense_matrix(claim):
    for seed in range(20):
        case = claim.case(POINT | {"seed": seed, "focus": seed / 20})
        fisher = case.scores.T @ case.scores / len(case.scores)
        eigenvalues, vectors = np.linalg.eigh(fisher)
        eigenvalues, coordinates = eigenvalues[::-1], vectors[:, ::-1].T @ case.vector
        squares = coordinates**2
        assert squares.sum() == pytest.approx(4.0)
        top, form = squares[:2].sum(), eigenvalues @ squares
        assert case.form() == pytest.approx(form, rel=1e-12)
        if claim is UPPER_FORM:
            expected = eigenvalues[0] * top + eigenvalues[2] * (4 - top) - form
        else:
            inside = eigenvalues[:2] @ squares[:2]
            expected = min(form - inside, inside - eigenvalues[1] * top)
        assert claim.check(case).value == pytest.approx(expected / (4 * eigenvalues[0]), abs=1e-13)


def test_a4_a5_generator_comes_near_to_equality():
    for claim in (UPPER_FORM, LOWER_FORM):
        slacks = [claim.check(claim.case(POINT | {"seed": s, "focus": 0.999})).value for s in range(20)]
        assert 1e-12 < min(slacks) < 1e-4


def test_a4_without_further_eigenvalues():
    # d is the number of samples or of parameters: what follows lambda_d is 0
    wide = Quadratic(np.array([[2.0, 0.0, 0.0]]), 1, np.array([0.6, 0.8, 0.0]))
    assert UPPER_FORM.check(wide).value == pytest.approx(0, abs=1e-15)
    assert wide.form() == pytest.approx(4 * 0.36)


def test_a4_rejects_a_larger_form():
    case = UPPER_FORM.boundary[0].case()

    class Larger(Quadratic):
        def form(self):
            return 1.1 * super().form()

    found = UPPER_FORM.check(Larger(case.scores, case.rank, case.vector))
    assert found.value == pytest.approx(-0.1 * 2.08 / 4, rel=1e-9)


def test_a5_rejects_a_smaller_form_and_a_larger_sharpness():
    case = LOWER_FORM.boundary[0].case()

    class Smaller(Quadratic):
        def form(self):
            return 0.9 * super().form()

    class Sharper(Quadratic):
        def estimate(self):
            found = super().estimate()
            return replace(found, sharpness=1.5 * found.sharpness)

    found = LOWER_FORM.check(Smaller(case.scores, case.rank, case.vector))
    assert (found.part, found.value) == ("projection", pytest.approx(-1.8 / 36, rel=1e-9))
    found = LOWER_FORM.check(Sharper(case.scores, case.rank, case.vector))
    assert (found.part, found.value) == ("sharpness", pytest.approx(-9 / 36, rel=1e-9))


def test_diagonal_scores():
    scores = diagonal(4.0, 1.0)
    np.testing.assert_allclose(scores.T @ scores / 2, np.diag([4.0, 1.0]), rtol=1e-15)
