from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import sympy
from scipy.integrate import solve_ivp

from theory.ledger.appendix_c import LOWER_BOUND, WITHOUT_REALIZABILITY, SoftmaxRay, Unrealizable
from theory.ledger.maps import polynomial
from theory.ledger.skills import SoftmaxSkill
from theory.series import rational

POINT_C1 = {"prompts": 2, "outcomes": 3, "dimension": 2, "degree": 3, "time": 0.3, "new": 1, "seed": 8}
POINT_C2 = {"dimension": 2, "kernel": 1, "bent": 1, "cubic": 0, "exponent": 4, "seed": 2}


def second_derivative(case, tau):
    """Of the softmax part of the utility loss along the ray, by its moments, prompt by prompt."""
    logits, d, shape = case.skill.logits, case.direction, case.skill.base.shape
    a, b, c = (x.reshape(shape) for x in (logits.linear @ d, logits.quadratic @ d @ d, logits.cubic @ d @ d @ d))
    z, first, second = a * tau + b * tau**2 / 2 + c * tau**3 / 6, a + b * tau + c * tau**2 / 2, b + c * tau
    total = 0.0
    for x, w in enumerate(case.skill.prompts):
        q = case.skill.base[x] * np.exp(z[x])
        q /= q.sum()
        total += w * (q @ first[x] ** 2 - (q @ first[x]) ** 2 + (q - case.skill.base[x]) @ second[x])
    return total


def test_c1_the_constant_bounds_the_fall_of_the_second_derivative():
    ratios = []
    for seed in range(60):
        case = LOWER_BOUND.case(POINT_C1 | {"seed": seed, "degree": 1 + seed % 3, "outcomes": 2 + seed % 2})
        start = second_derivative(case, 0.0)
        assert start * case.time**2 / 2 == pytest.approx(case.quadratic(), rel=1e-12)
        changes = [(second_derivative(case, tau) - start) / tau for tau in np.linspace(0.01, 1, 20) * case.time]
        ratios.append(max(np.abs(changes)) / (6 * case.constant()))
    assert max(ratios) <= 1
    assert max(ratios) > 0.7


def test_c1_second_derivative_oracle_is_right():
    case = replace(LOWER_BOUND.case(POINT_C1), new=0.0)
    step = 1e-3
    losses = [replace(case, time=0.3 + k * step).loss() for k in (-1, 0, 1)]
    found = (losses[2] - 2 * losses[1] + losses[0]) / step**2
    assert found == pytest.approx(second_derivative(case, 0.3), rel=1e-4)


def test_c1_steep_third_derivatives_need_no_term_of_their_own():
    # logit differences with a large cubic part, whose range is 6 to 6000 times the other terms of C at short times
    for p in (0.01, 0.5, 0.99):
        for slope in (-1.0, 0.1, 1.0):
            for jerk in (-600.0, -6.0, 6.0, 600.0):
                linear, cubic = np.array([[0.0], [slope]]), np.array([0.0, jerk]).reshape(2, 1, 1, 1)
                skill = SoftmaxSkill(np.ones(1), np.array([[1 - p, p]]), polynomial(linear, None, cubic))
                for time in (1e-2, 1e-1, 1.0):
                    assert LOWER_BOUND.check(SoftmaxRay(skill, np.ones(1), time)).value > 0


@pytest.mark.parametrize("index", [0, 1])
def test_c1_each_term_is_needed(index):
    case = LOWER_BOUND.boundary[index].case()
    z = case.skill.logits
    velocity = abs(z.linear[1, 0]) + case.time * abs(z.quadratic[1, 0, 0])
    terms = (math.sqrt(3) / 18 * velocity**3 / 6, 0.125 * velocity * abs(z.quadratic[1, 0, 0]))
    assert case.constant() == pytest.approx(sum(terms), rel=1e-14)

    class Without(SoftmaxRay):
        def constant(self):
            return 0.99999 * super().constant()

    assert terms[index] > 0.999999 * case.constant()  # the other one is not what holds
    slack = LOWER_BOUND.check(Without(case.skill, case.direction, case.time))
    assert (slack.holds, slack.value) == (False, pytest.approx(-1e-5, rel=0.15))


def test_c1_constant_by_hand():
    # ranges 2, 4, 6 of the first three derivatives at one prompt, 0 at the other
    linear, quadratic, cubic = (np.array([0.0, r, 0.0, 0.0]) for r in (2.0, 4.0, 6.0))
    logits = polynomial(linear[:, None], quadratic[:, None, None], cubic[:, None, None, None])
    skill = SoftmaxSkill(np.array([0.25, 0.75]), np.full((2, 2), 0.5), logits)
    ray = SoftmaxRay(skill, np.ones(1), 0.1)
    velocity, curvature = 2 + 0.4 + 0.03, 4.6
    expected = 0.25 / 6 * (0.75 * velocity * curvature + math.sqrt(3) / 18 * velocity**3)
    assert ray.constant() == pytest.approx(expected, rel=1e-14)
    assert ray.quadratic() == pytest.approx(0.25 * 0.25 * 4 * 0.01 / 2, rel=1e-14)


def test_c1_slack_from_its_parts():
    case = LOWER_BOUND.case(POINT_C1)
    assert 0 < case.new < 0.5
    mass = case.new * 0.3**2
    z = case.skill.logits.value(0.3 * case.direction).reshape(2, 3)
    moved = case.skill.base * np.exp(z)
    moved *= (1 - mass) / moved.sum(axis=1, keepdims=True)
    loss = case.skill.prompts @ (case.skill.base * np.log(case.skill.base / moved)).sum(axis=1)
    assert case.loss() == pytest.approx(loss, rel=1e-11)
    error = case.constant() * 0.3**3
    expected = (loss - case.quadratic() + error) / error
    assert LOWER_BOUND.check(case).value == pytest.approx(expected, rel=1e-8)
    assert LOWER_BOUND.printed(case).value == pytest.approx(expected, rel=1e-8)
    assert replace(case, new=0.0).loss() < case.loss()
    assert LOWER_BOUND.case(POINT_C1 | {"new": 0}).new == 0
    masses = [LOWER_BOUND.case(POINT_C1 | {"seed": s}).new for s in range(100)]
    assert 0.45 < max(masses) < 0.5


def test_c1_rejects_a_smaller_constant_and_a_larger_fisher_matrix():
    case = LOWER_BOUND.boundary[0].case()
    assert case.skill.base[0, 1] == pytest.approx(0.5 + 0.5 / math.sqrt(3))
    assert case.constant() == pytest.approx(math.sqrt(3) / 108, rel=1e-14)

    class Smaller(SoftmaxRay):
        def constant(self):
            return 0.9 * super().constant()

    class Larger(SoftmaxRay):
        def quadratic(self):
            return 1.01 * super().quadratic()

    smaller = LOWER_BOUND.check(Smaller(case.skill, case.direction, case.time))
    assert smaller.value == pytest.approx(1 - 1 / 0.9, rel=1e-4)
    # 1% of p (1 - p)/2 = 1/12 over the constant and theta
    larger = LOWER_BOUND.check(Larger(case.skill, case.direction, case.time))
    assert larger.value == pytest.approx(-0.01 / 12 / case.constant() / 1e-3, rel=1e-4)


def test_c2_counterexample_by_sympy_and_by_integration():
    case = WITHOUT_REALIZABILITY.counterexamples[0].case()
    x, y = sympy.symbols("x y")
    loss = -y + 2 * x * y
    utility = (x**2 + y**6) / 2 - y**3  # half of |m - mu|^2 - |mu|^2 with m = (x, y^3), mu = (0, 1)
    t = sympy.Symbol("t")
    point = {x: 0, y: 0}
    for _ in range(5):  # Picard
        point = {
            s: sympy.series(sympy.integrate((-sympy.diff(loss, s)).subs(point), (t, 0, t)), t, 0, 5).removeO()
            for s in (x, y)
        }
    expected = sympy.Poly(sympy.expand(utility.subs(point)), t)
    found = case.losses_along(case.flow())
    assert [sympy.Rational(c.numerator, c.denominator) for c in found] == [
        expected.coeff_monomial(t**k) for k in range(5)
    ]
    assert found[3] == -1
    assert case.squared_coupling() == 4
    numeric = solve_ivp(lambda _, p: [-2 * p[1], 1 - 2 * p[0]], (0, 0.1), [0, 0], rtol=1e-12, atol=1e-14).y[:, -1]
    assert numeric[0] ** 2 / 2 + numeric[1] ** 6 / 2 - numeric[1] ** 3 == pytest.approx(-1e-3, rel=0.05)


def test_c2_slacks_of_the_counterexample():
    case = replace(WITHOUT_REALIZABILITY.counterexamples[0].case(), time=Fraction(1, 4))
    px, py = (sum(float(c) / 4**k for k, c in enumerate(column)) for column in case.flow().T)
    size = math.hypot(px, py) ** 3
    assert WITHOUT_REALIZABILITY.check(case).value == pytest.approx((py**6 / 2 - py**3 + size) / size, rel=1e-12)
    loss = sum(float(c) / 4**k for k, c in enumerate(case.losses_along(case.flow())))
    quartic = 4 / 256 / 1000
    assert WITHOUT_REALIZABILITY.printed(case).value == pytest.approx((loss - quartic) / abs(loss), rel=1e-12)
    assert loss < 0


def test_c2_quartic_coefficient_of_random_cases():
    for seed in range(6):
        case = WITHOUT_REALIZABILITY.case(POINT_C2 | {"seed": seed})
        g, hessian = case.loss.linear[0], case.loss.quadratic[0]
        kick = hessian @ g
        fisher = case.linear.T @ case.linear
        assert not np.any(fisher @ g)
        assert case.squared_coupling() == kick @ fisher @ kick
        bent = case.bent @ kick
        quartic = case.losses_along(case.flow())[4]
        assert quartic == case.squared_coupling() / 8 + case.offset * (bent @ bent) / 8
        assert WITHOUT_REALIZABILITY.check(case).value >= 0
        straight = replace(case, bent=case.bent * 0)
        assert WITHOUT_REALIZABILITY.check(straight).value == 0


def test_c2_cases():
    case = WITHOUT_REALIZABILITY.case(POINT_C2 | {"cubic": 1, "kernel": 2})
    assert case.linear.shape == (2, 4)
    assert case.time == Fraction(1, 16)
    assert not np.any(case.linear[:, 2:])
    assert not np.any(case.bent[:, 2:])
    assert np.any(case.linear[:, :2])
    assert np.any(case.cubic)
    assert case.offset > 0
    assert not np.any(WITHOUT_REALIZABILITY.case(POINT_C2 | {"bent": 0}).bent)
    assert case.bent.shape == (1, 4)
    offsets = [WITHOUT_REALIZABILITY.case(POINT_C2 | {"seed": s}).offset for s in range(400)]
    assert (min(offsets), max(offsets)) == (Fraction(1, 4), 12)
    falling = WITHOUT_REALIZABILITY.counterexamples[0].case()
    np.testing.assert_array_equal(falling.loss.quadratic[0], [[0, 2], [2, 0]])


def test_c2_static_bound_with_the_cubic():
    # along c itself the bound is attained up to q^2/2 = |D|^6/2, along -c it has twice the room
    base = Unrealizable(
        rational([[0, 0]]), rational([[0, 0]]), rational([0, 2]), Fraction(3), quadratic_loss(-1), Fraction(1, 10)
    )
    error = 3 * 8 * 1e-3
    found = WITHOUT_REALIZABILITY.check(base)
    assert (found.part, found.value) == ("Theorem 6.1", pytest.approx((64e-6 / 2) / error, rel=1e-12))
    away = WITHOUT_REALIZABILITY.check(replace(base, loss=quadratic_loss(1)))
    assert away.value == pytest.approx(2 + (64e-6 / 2) / error, rel=1e-12)


def quadratic_loss(slope):
    return polynomial(rational([[0, slope]]))


@pytest.mark.parametrize("part", ["Theorem 6.1", "Corollary 6.3", "no lower order"])
def test_c2_rejects_doctored_losses(part):
    case = WITHOUT_REALIZABILITY.case(POINT_C2 | {"bent": 0})
    kick = case.loss.quadratic[0] @ case.loss.linear[0]
    assert np.any(case.linear @ kick)

    class Doctored(Unrealizable):
        def losses_along(self, curve):
            losses = super().losses_along(curve)
            if part == "Theorem 6.1" and len(curve) == 1:
                return losses * Fraction(9, 10)
            if part == "no lower order" and len(curve) > 1:
                losses[3] -= 1
            return losses

        def squared_coupling(self):
            return super().squared_coupling() * (2 if part == "Corollary 6.3" else 1)

    doctored = Doctored(case.linear, case.bent, case.cubic, case.offset, case.loss, case.time)
    found = WITHOUT_REALIZABILITY.check(doctored)
    assert not found.holds
    assert found.part == part
    assert found.value == {"Theorem 6.1": -1, "Corollary 6.3": -0.5, "no lower order": -1}[part]
