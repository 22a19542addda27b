"""The exactly solvable examples against the closed forms of their flows, and the claims that they decide."""

from __future__ import annotations

import mpmath
import pytest
import sympy as sp

from theory.symbolic import CategoricalSkill, GaussianSkill, Problem, fisher, fisher_derivative, onset, utility_loss
from theory.symbolic.examples import (
    ANGLE,
    BETA,
    PRECISION,
    UNIT_X,
    Example,
    X,
    Y,
    bent_tangent,
    circle,
    circle_of_slopes,
    constant_fisher,
    hyperbolic,
    language_model,
    reparametrised,
    static_projection,
    tangent,
    unrealisable,
)
from theory.symbolic.expansion import TIME

ROOT = sp.sqrt(PRECISION)


def same(a, b):
    return sp.simplify(sp.sympify(a - b).rewrite(sp.exp)) == 0


def same_matrix(a, b):
    return a.shape == b.shape and all(same(x, y) for x, y in zip(a, b, strict=True))


def column(*entries):
    return sp.Matrix(entries)


def solve_flow(field, start, time):
    """Gradient flow to 25 digits, from functions of (x, y)."""
    with mpmath.workdps(25):
        return mpmath.odefun(lambda _, z: [f(*z) for f in field], 0, [mpmath.mpf(v) for v in start])(time)


@pytest.mark.parametrize(
    "build",
    [circle, tangent, bent_tangent, lambda: bent_tangent(sp.Integer(1)), constant_fisher, unrealisable],
    ids=["circle", "tangent", "bent", "bent by 1", "constant", "unrealisable"],
)
def test_paths_solve_the_flow_from_the_base_point(build):
    example = build()
    assert example.residual == column(0, 0)
    assert example.path.subs(TIME, 0) == column(*example.problem.base)


# Corollary 6.3


def test_the_circle_has_gamma_and_loses_nothing():
    example = circle()
    o = example.onset
    assert same_matrix(o.gradient, column(0, -1))
    assert same_matrix(o.curved_gradient, column(-1, 0))
    assert same_matrix(o.fisher, sp.diag(PRECISION, 0))
    assert o.leak == 0
    assert o.coupling == ROOT
    assert o.onset_coefficient == 0
    assert example.utility_loss == 0
    assert example.problem.drift() == sp.Matrix([0])


def test_the_circle_at_another_pace():
    problem = circle_of_slopes()
    o = onset(problem)
    assert same_matrix(o.gradient, column(0, -1))
    assert (o.leak, o.coupling, o.onset_coefficient) == (0, ROOT, 0)
    assert problem.drift() == sp.Matrix([0])
    x, y = solve_flow([sp.lambdify((X, Y), f, "mpmath") for f in problem.field], (1, 0), 0.4)
    assert float(x**2 + y**2 - 1) == pytest.approx(0, abs=1e-20)
    angle = mpmath.atan2(y, x)
    assert float(angle / 2 + mpmath.sin(2 * angle) / 4) == pytest.approx(0.4, rel=1e-12)


def test_drift_is_not_zero_where_the_policy_moves():
    assert tangent().problem.drift() != sp.Matrix([0])


def test_gamma_zero_does_not_protect():
    example = tangent()
    o = example.onset
    assert same_matrix(o.curved_gradient, column(0, 0))
    assert (o.leak, o.coupling, o.onset_coefficient) == (0, 0, ROOT)
    assert same_matrix(example.path, column(1, TIME))
    assert same(example.utility_loss, PRECISION / 2 * (sp.sqrt(1 + TIME**2) - 1) ** 2)
    assert [example.coefficient(k) for k in range(5)] == [0, 0, 0, 0, PRECISION / 8]


def test_bent_tangent():
    example = bent_tangent()
    o = example.onset
    exact = column(1 + (1 - sp.cosh(BETA * TIME)) / BETA, sp.sinh(BETA * TIME) / BETA)
    assert same_matrix(example.path, exact)
    assert o.gradient.norm() == 1
    assert o.leak == 0
    assert same(o.coupling, ROOT * BETA)
    assert same(o.onset_coefficient**2, PRECISION * (BETA - 1) ** 2)
    assert [sp.factor(example.coefficient(k)) for k in range(5)] == [0, 0, 0, 0, PRECISION * (BETA - 1) ** 2 / 8]


def test_bent_tangent_attains_the_lower_bound_on_gamma_star():
    example = bent_tangent()
    o = example.onset
    direction = sp.Symbol("a", real=True)
    change = fisher_derivative(example.problem, (sp.cos(direction), sp.sin(direction)))
    eigenvalues = [sp.simplify(e**2 - (PRECISION * sp.sin(direction)) ** 2) for e in change.eigenvals()]
    assert eigenvalues == [0, 0]  # so that L_F = lambda, attained along g
    rotation = fisher_derivative(example.problem, tuple(o.gradient)) * o.gradient
    assert same(rotation.norm(), PRECISION)
    for bend in (sp.Integer(1), sp.Rational(3, 2), sp.Integer(7)):
        bound = (o.coupling - PRECISION * o.gradient.norm() ** 2 / ROOT).subs(BETA, bend)
        assert same(o.onset_coefficient.subs(BETA, bend), bound)
    assert not same(
        o.onset_coefficient.subs(BETA, sp.Rational(1, 2)), (o.coupling - ROOT).subs(BETA, sp.Rational(1, 2))
    )


def test_rotation_of_the_fisher_matrix_is_the_mean_of_score_and_curvature():
    """``DF[g] g = E[s l''] - F H g`` on the circle, where l'' = 0."""
    o = circle().onset
    rotation = fisher_derivative(circle().problem, tuple(o.gradient)) * o.gradient
    assert same_matrix(rotation, -o.fisher * o.curved_gradient)


def test_quadratic_loss_with_gamma_and_order_eight():
    example = bent_tangent(sp.Integer(1))
    assert example.problem.loss.equals(-Y + (X - 1) * Y)
    assert example.onset.coupling == ROOT
    assert example.onset.onset_coefficient == 0
    assert [example.coefficient(k) for k in range(8)] == [0] * 8
    assert example.coefficient(8) == PRECISION / 32


def test_language_model():
    problem = language_model()
    o, k = onset(problem), sp.Symbol("k", positive=True)
    assert same_matrix(o.gradient, column(0, sp.Rational(-1, 2)))
    assert same_matrix(o.curved_gradient, column(sp.Rational(-1, 4), sp.Rational(-1, 8)))
    assert same_matrix(o.fisher, sp.diag(k**2 / (4 * sp.cosh(k / 2) ** 2), 0))
    assert o.first == (0, 0)
    assert o.second == (0, 0)
    assert same(o.coupling**2, o.fisher[0, 0] / 16)
    assert o.coupling != 0
    assert problem.drift() == sp.Matrix([0, 0])
    assert sp.simplify(sp.exp(-problem.loss) - 1 / (1 + sp.exp(-ANGLE))) == 0
    x, y = solve_flow([sp.lambdify((X, Y), f, "mpmath") for f in problem.field], (1, 0), 0.5)
    assert float(x**2 + y**2 - 1) == pytest.approx(0, abs=1e-20)
    assert float(y) > 0.2


# Sections 5 and 6


def test_constant_fisher_matrix_and_a_curved_path():
    example = constant_fisher()
    o = example.onset
    assert fisher(example.problem.skill, {X: X, Y: Y}) == sp.diag(PRECISION, 0)
    assert same_matrix(example.path, column((1 - sp.cosh(BETA * TIME)) / BETA, sp.sinh(BETA * TIME) / BETA))
    assert o.coupling == o.onset_coefficient == ROOT * BETA
    assert same(example.utility_loss, PRECISION / 2 * ((1 - sp.cosh(BETA * TIME)) / BETA) ** 2)
    assert [example.coefficient(k) for k in range(5)] == [0, 0, 0, 0, o.coupling**2 / 8]


def test_reparametrisation_changes_gamma_and_not_gamma_star():
    shear = sp.Symbol("c", real=True)
    o = reparametrised(shear)
    curve = column((1 - sp.cosh(BETA * TIME)) / BETA, sp.sinh(BETA * TIME) / BETA)
    curve[0] -= shear * curve[1] ** 2 / 2  # X = x - c y^2/2
    assert same_matrix(o.velocity, curve.diff(TIME).subs(TIME, 0))
    assert same_matrix(o.acceleration, curve.diff(TIME, 2).subs(TIME, 0))
    assert same(o.coupling, ROOT * sp.Abs(BETA + shear))
    assert same(o.onset_coefficient, ROOT * BETA)
    assert o.leak == 0
    assert reparametrised(-BETA).coupling == 0


def test_theorem_62_needs_the_largest_eigenvalue():
    found = hyperbolic()
    eps, h, path = found.overlap, found.curvature, found.example.path
    assert same(path[0], -eps * sp.sinh(h * TIME) / h + (sp.cosh(h * TIME) - 1) / h)
    second_order = path[0].diff(TIME, 2) - h**2 * path[0] - h
    assert same(second_order, 0)
    assert path[0].subs(TIME, 0) == 0
    assert path[0].diff(TIME).subs(TIME, 0) == -eps
    assert found.example.residual == column(0, 0)
    o = found.example.onset
    assert same_matrix(o.gradient, column(eps, -1))
    assert same_matrix(o.curved_gradient, column(h, -eps * h))
    assert o.coupling == ROOT * h
    assert o.leak == ROOT * eps
    assert same(found.return_time, 2 * sp.atanh(eps).rewrite(sp.log) / h) or same(
        sp.exp(h * found.return_time), (1 + eps) / (1 - eps)
    )
    assert same(path[0].subs(TIME, found.return_time), 0)


def test_theorem_62_bounds_at_the_return():
    found = hyperbolic()
    eps, h = found.overlap, found.curvature
    printed = found.printed_bound.series(eps, 0, 4).removeO()
    assert same(printed, 2 * (ROOT - 1) * eps**2 / h)
    with mpmath.workdps(20):
        for precision in (1.21, 4, 100):
            values = {eps: 1e-3, h: 2, PRECISION: precision}
            time = float(found.return_time.subs(values))
            assert time == pytest.approx(float(mpmath.atanh(1e-3)), rel=1e-12)
            assert float(found.printed_bound.subs(values)) == pytest.approx(
                precision**0.5 * time**2 - 1e-3 * time, rel=1e-9
            )
            assert float(found.printed_bound.subs(values)) > 0
            cubic = precision**0.5 * 2**2 * time**3 / 6  # sqrt(lambda)/6 |H^2 g| T^3, H = h times a reflection
            assert 0 < float(found.corrected_bound.subs(values)) < cubic
    corrected = found.corrected_bound.series(eps, 0, 5).removeO()
    assert same(corrected, 2 * ROOT * eps**4 / h * sp.Rational(1, 3))


def test_static_projection_harms_on_the_circle():
    found = static_projection()
    s = found.height
    assert found.time == s + s**3 / 3
    assert same(found.utility_loss, PRECISION / 2 * (sp.sqrt(1 + s**2) - 1) ** 2)
    assert sp.limit(found.utility_loss / found.time**4, s, 0) == PRECISION / 8
    o = found.onset
    assert same_matrix(o.velocity, column(0, 1))
    assert same_matrix(o.acceleration, column(0, 0))
    assert (o.leak, o.coupling, o.onset_coefficient) == (0, 0, ROOT)
    assert found.problem.drift() == sp.Matrix([0])  # undefended, nothing is lost
    _, y = solve_flow([lambda x, y: 0, lambda x, y: x / (x**2 + y**2)], (1, 0), 0.7)
    assert float(y + y**3 / 3) == pytest.approx(0.7, rel=1e-12)


def test_without_assumption_1_utility_can_improve():
    example = unrealisable()
    o = example.onset
    x, y = (1 - sp.cosh(2 * TIME)) / 2, sp.sinh(2 * TIME) / 2
    assert same_matrix(example.path, column(x, y))
    assert same_matrix(o.fisher, sp.diag(1, 0))
    assert same_matrix(o.fisher * o.gradient, column(0, 0))
    assert o.coupling == 2
    assert same(example.utility_loss, x**2 / 2 + y**6 / 2 - y**3)
    assert [example.coefficient(k) for k in range(4)] == [0, 0, 0, -1]
    assert float(example.utility_loss.subs(TIME, 0.1)) < 0


# skills


def test_gaussian_utility_loss_and_fisher():
    here, there = {X: sp.Integer(2), Y: sp.Integer(3)}, {X: sp.Integer(-1), Y: sp.Integer(5)}
    skill = GaussianSkill((X, Y), (X * Y, X - Y), sp.Integer(7))
    assert utility_loss(skill, here, there) == sp.Rational(7, 2) * ((6 + 5) ** 2 + (-1 + 6) ** 2)
    jacobian = sp.Matrix([[3, 2], [1, -1]])
    assert fisher(skill, here) == 7 * jacobian.T * jacobian


def test_categorical_utility_loss_is_the_divergence():
    zero = sp.Integer(0)
    weights = (sp.Rational(1, 3), sp.Rational(2, 3))
    skill = CategoricalSkill((X, Y), ((X, Y, zero), (X * Y, zero)), weights)
    here, there = {X: zero, Y: sp.log(2)}, {X: sp.log(3), Y: zero}
    first = [sp.Rational(k, 4) for k in (1, 2, 1)], [sp.Rational(k, 5) for k in (3, 1, 1)]
    expected = sum(p * sp.log(p / q) for p, q in zip(*first, strict=True)) / 3
    found = utility_loss(skill, here, there)
    assert float(found) == pytest.approx(float(expected), rel=1e-12)
    assert skill.probabilities(here) == (*(p / 3 for p in first[0]), sp.Rational(1, 3), sp.Rational(1, 3))
    f = fisher(skill, here)
    # covariance of (1{y=1}, 1{y=2}) on the first prompt; X Y has gradient (log 2, 0) on the second
    expected_fisher = sp.Matrix([[3, -2], [-2, 4]]) / 48 + sp.Matrix([[sp.log(2) ** 2 / 6, 0], [0, 0]])
    assert same_matrix(f, expected_fisher)


def test_onset_follows_the_given_path():
    problem = Problem(GaussianSkill((X, Y), (X + Y**2,), PRECISION), X, UNIT_X)
    o = onset(problem, sp.ImmutableMatrix([2, 3]), sp.ImmutableMatrix([5, 7]))
    assert same(o.leak, 2 * ROOT)
    assert same(o.coupling, 5 * ROOT)
    # the mean moves as 2 t + 23/2 t^2, and E[l''^2] = lambda m''^2 + lambda^2 m'^4
    assert same(o.onset_coefficient**2, PRECISION * 23**2 + PRECISION**2 * 2**4)


def test_moments_of_gaussian_responses():
    skill = GaussianSkill((X, Y), (X, Y), PRECISION)
    y1, y2 = sp.symbols("y1 y2", real=True)
    base = {X: sp.Integer(3), Y: sp.Integer(-2)}
    expected = [(y1, 3), (y1 * y2, -6), ((y1 - 3) ** 3, 0), ((y1 - 3) ** 4, 3 / PRECISION**2)]
    expected += [((y1 - 3) ** 2 * (y2 + 2) ** 6, 15 / PRECISION**4), ((y2 + 2) ** 3 * y1, 0)]
    for value, mean in expected:
        assert same(skill.expectation([value], base), mean)


def test_a_wrong_path_leaves_a_residual():
    problem = circle().problem
    wrong = Example(problem, sp.ImmutableMatrix([1, TIME]))
    assert wrong.residual != column(0, 0)
