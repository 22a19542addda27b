from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import sympy
from scipy.special import rel_entr

from theory.ledger.maps import polynomial
from theory.ledger.section3 import (
    CONDITION,
    LOSS_IS_DIVERGENCE,
    QUADRATIC_FORM,
    Sensitivity,
    orthogonal,
    sensitivity,
)
from theory.ledger.skills import SoftmaxSkill
from theory.ledger.static import SoftmaxLine, WeierstrassTower
from theory.series import rational

POINT_32 = {"prompts": 3, "outcomes": 4, "dimension": 2, "scale": 0.7, "seed": 5}
POINT_33 = {"prompts": 2, "outcomes": 3, "dimension": 2, "off": 2, "exponent": 1, "seed": 7}
POINT_34 = {"dimension": 6, "extra": 2, "rank": 3, "gap": 0.25, "scale": 8.0, "seed": 1}


def test_32_divergence_is_scipys_relative_entropy():
    case = LOSS_IS_DIVERGENCE.case(POINT_32)
    skill = case.skill
    moved = skill.base * np.exp(skill.log_ratios(case.displacement).reshape(3, 4))
    np.testing.assert_allclose(case.moved(), moved, rtol=1e-13)
    expected = skill.prompts @ rel_entr(skill.base, moved).sum(axis=1)
    assert case.divergence()[0] == pytest.approx(expected, rel=1e-12)
    assert np.linalg.norm(case.displacement) == pytest.approx(0.7, rel=1e-14)
    terms = np.abs(skill.prompts[:, None] * skill.base * np.log(skill.base / moved))
    assert case.divergence()[1] == pytest.approx(terms.sum(), rel=1e-12)


def test_32_rejects_a_policy_whose_logits_are_off():
    case = LOSS_IS_DIVERGENCE.case(POINT_32)
    slack = LOSS_IS_DIVERGENCE.check(case)
    assert slack.holds

    class Wrong(SoftmaxSkill):
        def utility_loss(self, displacement):
            return 2 * super().utility_loss(displacement)

    skill = Wrong(case.skill.prompts, case.skill.base, case.skill.logits)
    divergence, size = case.divergence()
    wrong = LOSS_IS_DIVERGENCE.check(replace(case, skill=skill))
    assert wrong.value == pytest.approx(-divergence / (1 + size), rel=1e-9)
    assert not wrong.holds


def test_32_rare_outcomes_lower_the_loss_by_their_mass_and_cancel_in_the_utilities():
    case = LOSS_IS_DIVERGENCE.case(POINT_32)
    rare = replace(case, rare_mass=0.25, rare_entropy=40.0)
    assert rare.divergence() == pytest.approx([0.75 * x for x in case.divergence()])
    assert LOSS_IS_DIVERGENCE.check(rare).holds
    assert rare.utility(case.skill.base) == pytest.approx(0.75 * case.utility(case.skill.base) - 10)
    plain = sum(w * p * math.log(p) for w, row in zip(case.skill.prompts, case.skill.base, strict=True) for p in row)
    assert case.utility(case.skill.base) == pytest.approx(plain, rel=1e-12)
    assert LOSS_IS_DIVERGENCE.printed(rare).holds
    infinite = LOSS_IS_DIVERGENCE.printed(LOSS_IS_DIVERGENCE.counterexamples[0].case())
    assert math.isnan(infinite.value)


def test_32_the_entropy_of_the_counterexample_grows_without_bound():
    # of p ~ 1/(k log^2 k): partial entropies grow at least like log log K, while the masses converge
    k = np.arange(2, 1_000_001, dtype=float)
    p = 1 / (k * np.log(k) ** 2)
    entropy, mass = np.cumsum(-p * np.log(p)), np.cumsum(p)
    for early, late in ((1_000, 30_000), (30_000, 1_000_000)):
        grown, gained = (float(x[late - 2] - x[early - 2]) for x in (entropy, mass))
        assert grown > math.log(math.log(late) / math.log(early))
        assert gained == pytest.approx(1 / math.log(early) - 1 / math.log(late), rel=1e-3)


def test_33_series_against_sympy():
    t = sympy.Symbol("t")
    case = QUADRATIC_FORM.case(POINT_33 | {"prompts": 1})
    z = polynomial_along(case.skill.logits, case.direction, t)
    off = sum(polynomial_along(case.off, case.direction, t))
    p = [sympy.Rational(x.numerator, x.denominator) for x in case.skill.base[0]]
    loss = sympy.log(sum(a * sympy.exp(b) for a, b in zip(p, z, strict=True)))
    loss -= sum(a * b for a, b in zip(p, z, strict=True)) + sympy.log(1 - off)
    expansion = sympy.series(loss, t, 0, 4).removeO()
    expected = [expansion.coeff(t, k) for k in range(4)]
    found = [sympy.Rational(x.numerator, x.denominator) for x in case.loss_series()]
    assert [sympy.simplify(a - b) for a, b in zip(found, expected, strict=True)] == [0, 0, 0, 0]
    assert expected[2] != 0
    assert expected[3] != 0
    assert case.off_terms()[0] > 0


def polynomial_along(map_, direction, t):
    d = direction
    terms = (map_.linear @ d, map_.quadratic @ d @ d / 2, map_.cubic @ d @ d @ d / 6)
    return [
        sum(sympy.Rational(x.numerator, x.denominator) * t ** (k + 1) for k, x in enumerate(row))
        for row in zip(*terms, strict=True)
    ]


def test_33_numbers_by_hand():
    # a coin of probability 1/3 with logit x + x^2: E (s.D)^2 = p (1 - p) D^2
    logits = polynomial(rational([[0], [1]]), rational([[[0]], [[2]]]))
    skill = SoftmaxSkill(rational([1]), rational([[2, 1]]) / 3, logits)
    line = SoftmaxLine(skill, rational([3]), polynomial(rational([[0]])))
    assert line.quadratic() == 1
    # log(1 + (e^z - 1)/3) - z/3 = z^2/9 + z^3/81 + ..., z = 3 t + 9 t^2
    assert list(line.loss_series()) == [0, 0, 1, 6 + Fraction(27, 81)]
    assert line.cubic() == 6 + Fraction(1, 3)
    assert line.expansion().value == 0


@pytest.mark.parametrize("part", ["scores", "hessians"])
def test_33_rejects_wrong_moments(part):
    case = QUADRATIC_FORM.case(POINT_33)

    class Wrong(SoftmaxSkill):
        def scores(self):
            return super().scores() * (2 if part == "scores" else 1)

        def log_hessians(self):
            return super().log_hessians() * (2 if part == "hessians" else 1)

    doctored = SoftmaxLine(Wrong(case.skill.prompts, case.skill.base, case.skill.logits), case.direction, case.off)
    assert QUADRATIC_FORM.check(case).value == 0
    assert QUADRATIC_FORM.check(doctored).value < -1e-3


def test_33_mass_outside_the_support_breaks_the_printed_form_only():
    case = QUADRATIC_FORM.case(POINT_33)
    extra = case.off_terms()[0]
    found = QUADRATIC_FORM.printed(case)
    assert found.value == pytest.approx(-float(extra / (case.quadratic() + extra)), rel=1e-12)
    half = replace(case, off=replace(case.off, quadratic=case.off.quadratic / 2))
    assert half.off_terms()[0] == extra / 2
    assert QUADRATIC_FORM.check(half).value == 0


def test_33_square_probability():
    line = QUADRATIC_FORM.counterexamples[0].case()
    assert list(line.loss_series()) == [0, 0, 1, 0]
    assert line.quadratic() == 0


def test_33_weierstrass_tower():
    # the naive sum over both signs of every atom
    theta = 2.0**-6
    total = sum(
        -(2.0 ** (-k - 1)) * math.log(1 + sign * math.sin(2 ** (0.4 * k) * theta) / 2)
        for k in range(1, 90)
        for sign in (1, -1)
    )
    fisher = sum(2.0 ** (-0.2 * k) / 4 for k in range(1, 400))
    assert pytest.approx(fisher, rel=1e-13) == WeierstrassTower.FISHER
    tower = WeierstrassTower(theta)
    assert tower.remainder(theta) == pytest.approx(total - fisher * theta**2 / 2, rel=1e-9)
    ratios = [tower.remainder(2.0**-e) / 2.0 ** (-3 * e) for e in (4, 8, 12, 16, 20)]
    np.testing.assert_allclose(ratios, [-3.21246, -12.86868, -51.4759, -205.9037, -823.6148], rtol=1e-6)
    assert tower.remainder(2.0**-30) / 2.0**-75 == pytest.approx(-0.8043, rel=1e-4)
    # the remainder obeys R(2^0.4 x) = 2 R(x) minus the first atom's, exactly
    x = 2**0.4 * theta
    first = -0.5 * math.log(1 - math.sin(x) ** 2 / 4) - x**2 / 8
    assert tower.remainder(x) == pytest.approx(2 * tower.remainder(theta) - first, rel=1e-9)


def test_33_weierstrass_bound_and_slacks():
    constant = WeierstrassTower.CONSTANT
    x = np.geomspace(1e-4, 1, 50)
    k = np.arange(1, 400)[:, None]
    angles = 2 ** (0.4 * k) * x
    bounds = np.sum(0.5**k * np.minimum(angles**2 / 8, angles**4 / 24), axis=0) / x**2.5
    assert 0.95 * constant < bounds.max() + 0.1 < constant + 0.1
    assert constant == pytest.approx(1.01287, rel=1e-5)
    tower = WeierstrassTower(2.0**-8)
    assert tower.expansion().value == pytest.approx(1 - 0.804293 / constant, rel=1e-4)
    assert tower.lower_bound().value == pytest.approx(1 - 0.804293 / constant, rel=1e-4)
    assert tower.printed().value == pytest.approx(2 / 256 * 0.804293 / 0.804311 - 1, rel=1e-5)


def test_34_disagreement_is_rounding_over_the_gap():
    for gap in (1e-2, 1e-5, 1e-9):
        case = sensitivity(np.random.default_rng(3), 6, 0, 2, gap, 1.0)
        assert case.disagreement() < 1e-12 / gap
    assert case.disagreement() > 1e-10  # near degeneracy it does grow


def test_34_spectrum_is_as_asked():
    case = CONDITION.case(POINT_34)
    eigenvalues = np.linalg.eigvalsh(case.fisher())[::-1]
    assert eigenvalues[2] == pytest.approx(8.0, rel=1e-12)
    assert eigenvalues[3] == pytest.approx(6.0, rel=1e-12)
    assert np.all(eigenvalues[:2] >= 8 - 1e-12)
    assert np.all(eigenvalues[:2] <= 800 * (1 + 1e-12))
    assert np.all(eigenvalues[4:] <= 6 + 1e-12)
    assert np.all(eigenvalues[4:] >= 0.006 - 1e-12)
    assert case.scores.shape == (8, 6)
    np.testing.assert_allclose(case.rotation @ case.rotation.T, np.eye(6), atol=1e-14)
    found = case.estimate()
    assert (found.sharpness, found.gap) == pytest.approx((8.0, 2.0))
    assert found.tail == pytest.approx(eigenvalues[3:].sum())
    assert sensitivity(np.random.default_rng(0), 2, 0, 5, 0.5, 1.0).rank == 2


def test_34_rejects_coordinates_that_are_not_orthonormal():
    case = CONDITION.case(POINT_34)
    skewed = replace(case, rotation=case.rotation @ np.diag([1, 1, 1, 1, 1, 2.0]))
    assert CONDITION.check(case).holds
    found = CONDITION.check(skewed)
    gap_share = 2.0 / case.estimate().eigenvalues[0]
    assert found.value == pytest.approx(-skewed.disagreement() * gap_share, rel=1e-9)
    assert not found.holds


def test_34_the_gap_is_at_least_sharpness_minus_tail():
    scores = np.sqrt(3 * np.diag([3.0, 2.0, 0.5]))
    for rank, value in ((1, 0.5 / 3), (2, 0.0)):  # the gap exceeds 3 - 2.5 by 0.5, and is 2 - 0.5
        slack = CONDITION.check(Sensitivity(scores, rank, np.eye(3)))
        assert slack.holds
        found = Sensitivity(scores, rank, np.eye(3)).estimate()
        assert (found.gap - found.sharpness + found.tail) / 3 == pytest.approx(value, abs=1e-15)


def test_34_without_a_gap_the_projector_depends_on_the_coordinates():
    case = CONDITION.counterexamples[0].case()
    np.testing.assert_allclose(case.fisher(), np.eye(2), rtol=1e-15)
    assert case.disagreement() == 1
    assert CONDITION.printed(case).value == -1
    assert orthogonal(np.random.default_rng(0), 3).shape == (3, 3)


def test_32_slack_of_the_printed_difference():
    case = replace(LOSS_IS_DIVERGENCE.case(POINT_32), rare_mass=0.25, rare_entropy=40.0)

    class Doubled(type(case)):
        def utility(self, probabilities):
            return 2 * super().utility(probabilities)

    divergence, size = case.divergence()
    found = LOSS_IS_DIVERGENCE.printed(Doubled(case.skill, case.displacement, 0.25, 40.0))
    assert found.value == pytest.approx(-divergence / (1 + size + 10), rel=1e-9)


def test_32_cases_with_rare_outcomes():
    cases = [LOSS_IS_DIVERGENCE.accepted(np.random.default_rng(s)) for s in range(300)]
    masses, entropies = [x.rare_mass for x in cases], [x.rare_entropy for x in cases]
    assert 0.1 <= min(masses) < 0.12
    assert 0.48 < max(masses) <= 0.5
    assert 1 <= min(entropies) < 1.2
    assert 800 < max(entropies) <= 1000
    assert cases[0].skill.base.shape == (2, 3)
    assert np.linalg.norm(cases[0].displacement) == pytest.approx(1)
    infinite = LOSS_IS_DIVERGENCE.counterexamples[0].case()
    assert infinite.rare_entropy == math.inf
    assert infinite.rare_mass == cases[0].rare_mass


def test_33_cases():
    for off in range(3):
        case = QUADRATIC_FORM.case(POINT_33 | {"off": off, "seed": 11})
        moving = [np.any(q != 0) for q in case.off.quadratic]
        assert moving == [True] * off + [False] * (2 - off)
        for q in case.off.quadratic:
            assert np.linalg.matrix_rank(q.astype(float)) <= 1
            assert np.all(np.diag(q) >= 0)
    plain, long = (QUADRATIC_FORM.case(POINT_33 | {"exponent": e}).direction for e in (0, 3))
    np.testing.assert_array_equal(long, 8 * plain)
    full = QUADRATIC_FORM.accepted(np.random.default_rng(0))
    assert not np.any(full.off.quadratic)
    assert full.skill.base.shape == (2, 3)
    assert QUADRATIC_FORM.printed(full).value == 0


def test_34_rejects_a_gap_that_is_too_small():
    case = CONDITION.boundary[0].case()

    class Doctored(Sensitivity):
        def estimate(self):
            found = super().estimate()
            return replace(found, tail=found.tail / 2)

    found = CONDITION.check(Doctored(case.scores, case.rank, case.rotation))
    assert (found.part, found.value) == ("gap", pytest.approx(-0.5 / 3, rel=1e-12))
    skewed = replace(case, rotation=np.array([[1.0, 0, 0], [0, 0.6, 0.6], [0, -0.8, 0.8]]))
    assert CONDITION.check(skewed).part == "unique"


def test_34_spread_of_the_spectra():
    spectra = np.array(
        [np.linalg.eigvalsh(CONDITION.case(POINT_34 | {"seed": s, "scale": 1.0}).fisher())[::-1] for s in range(200)]
    )
    top, tail = np.log10(spectra[:, :2]), np.log10(spectra[:, 4:] / 0.75)
    assert 1.9 < top.max() <= 2 + 1e-9
    assert -1e-9 <= top.min() < 0.1
    assert -3 - 1e-9 <= tail.min() < -2.9
    assert -0.1 < tail.max() <= 1e-9
    assert CONDITION.accepted(np.random.default_rng(0)).estimate().gap == pytest.approx(0.5)
