"""The derivations against closed forms typed here, and against numerical integration at points."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import sympy as sp
from scipy.integrate import solve_ivp

from theory.symbolic import (
    STEPS,
    TIME,
    Problem,
    binary_policy,
    derivative_symbols,
    descent_law,
    descent_onset,
    flow_remainder,
    generic_descent,
    generic_flow,
    immune_skill,
    lora_descent,
    lora_flow,
    normalisation_identities,
    onset_law,
    quadratic_flow,
    softmax_law,
    utility_loss_coefficients,
)
from theory.symbolic.examples import circle
from theory.symbolic.expansion import along, flow_residual, generic_polynomial
from theory.symbolic.lora import SCALE

R = sp.Rational
L1, L2, L3, L4 = derivative_symbols(4)


def is_zero(expressions):
    return all(sp.expand(e) == 0 for e in expressions)


def tensors(loss, parameters):
    """g_i, H_ij and the third derivatives, as nested lists of partial derivatives."""
    first = [sp.diff(loss, p) for p in parameters]
    second = [[sp.diff(f, p) for p in parameters] for f in first]
    return first, second, [[[sp.diff(h, p) for p in parameters] for h in row] for row in second]


def flow_numerically(loss, parameters, start, times):
    """Gradient flow by SciPy from a sympy loss; one row per time."""
    slope = sp.lambdify(parameters, [-sp.diff(loss, p) for p in parameters])
    found = solve_ivp(
        lambda _, z: slope(*z), (0, times[-1]), start, t_eval=times, method="DOP853", rtol=1e-13, atol=1e-15
    )
    return found.y.T


# the path


@pytest.mark.parametrize("n", [2, 3])
def test_flow_is_minus_tg_plus_half_t2_hg_minus_sixth_of_the_remainder(n):
    path = generic_flow(n)
    g, h, third = tensors(path.loss, path.parameters)
    r = range(n)
    hg = [sum(h[i][j] * g[j] for j in r) for i in r]
    hhg = [sum(h[i][j] * hg[j] for j in r) for i in r]
    twist = [sum(third[i][j][k] * g[j] * g[k] for j in r for k in r) for i in r]
    assert is_zero(path.derivatives[0] + sp.Matrix(g))
    assert is_zero(path.derivatives[1] - sp.Matrix(hg))
    assert is_zero(path.derivatives[2] + sp.Matrix(twist) + sp.Matrix(hhg))
    assert is_zero(flow_remainder(n) + sp.Matrix(twist) + sp.Matrix(hhg))
    assert len(path.derivatives) == 3


def test_flow_expansion_agrees_with_numerical_integration():
    path = generic_flow(2)
    x, y = path.parameters
    loss, start = sp.exp(x) * sp.cos(y) + x**2 * y + x / 3, (0.3, -0.2)
    at = {x: start[0], y: start[1]}
    rates = [np.array([float(e.subs(path.loss, loss).doit().subs(at)) for e in d]) for d in path.derivatives]
    times = np.array([0.01, 0.02])
    moved = flow_numerically(loss, (x, y), start, times) - start
    errors = [
        np.linalg.norm(m - sum(t**k / sp.factorial(k) * r for k, r in enumerate(rates, 1)).astype(float))
        for m, t in zip(moved, times, strict=True)
    ]
    assert errors[1] / errors[0] == pytest.approx(16, rel=0.05)


def test_along_is_the_composition():
    x, y = sp.symbols("x y")
    f = sp.sin(x) * sp.exp(2 * y)
    path = [(R(2), R(-1)), (R(1, 3), R(5)), (R(-4), R(7))]
    moved = f.subs(
        {
            x: 1 + sum(p[0] * TIME**k for k, p in enumerate(path, 1)),
            y: sum(p[1] * TIME**k for k, p in enumerate(path, 1)),
        }
    )
    expected = moved.series(TIME, 0, 6).removeO()
    for k in range(6):
        assert (
            sp.simplify(along(f, (x, y), {x: sp.Integer(1), y: sp.Integer(0)}, path, k) - expected.coeff(TIME, k)) == 0
        )


def test_generic_polynomial_holds_every_monomial_once():
    x, y = sp.symbols("x y")
    names = "c0 c1 c0_0 c0_1 c1_1 c0_0_0 c0_0_1 c0_1_1 c1_1_1"
    monomials = [x, y, x**2, x * y, y**2, x**3, x**2 * y, x * y**2, y**3]
    expected = sum(c * m for c, m in zip(sp.symbols(names, real=True), monomials, strict=True))
    assert sp.expand(generic_polynomial("c", (x, y), 3) - expected) == 0


def test_quadratic_flow_with_every_kind_of_hessian():
    x, y = p = sp.symbols("x y", real=True)
    base = {x: R(1, 2), y: sp.Integer(-1)}
    for loss in (x**2 + 3 * y**2 + x * y, x - 2 * y, (x - y) ** 2 / 2 + x, 2 * x * y - y + 5):
        path = quadratic_flow(loss, p, base)
        assert is_zero(flow_residual(path, [-loss.diff(x), -loss.diff(y)], p))
        assert is_zero(path.subs(TIME, 0) - sp.Matrix([R(1, 2), -1]))


def test_quadratic_flow_refuses_other_losses():
    x, y = p = sp.symbols("x y", real=True)
    for loss in (x**2 * y, sp.sin(x) + y):
        with pytest.raises(ValueError, match="degree at most 2"):
            quadratic_flow(loss, p, {x: sp.Integer(0), y: sp.Integer(0)})


def test_flow_residual_tells_a_wrong_path():
    p = sp.symbols("x y", real=True)
    assert not is_zero(flow_residual(sp.ImmutableMatrix([TIME, TIME**2]), [sp.Integer(1), sp.Integer(0)], p))


# the utility loss


def test_utility_loss_coefficients():
    assert utility_loss_coefficients(4) == (
        0,
        0,
        L1**2 / 2,
        sp.expand(L1 * L2 / 2 + L1**3 / 6),
        sp.expand(L2**2 / 8 + L1 * L3 / 6 + L1**2 * L2 / 4 + L1**4 / 24),
    )


def test_utility_loss_coefficients_by_bell_polynomials():
    order = 7
    symbols = derivative_symbols(order)
    for k, found in enumerate(utility_loss_coefficients(order)[1:], start=1):
        complete = sum(sp.bell(k, j, symbols[: k - j + 1]) for j in range(1, k + 1))
        assert sp.expand(found - (complete - symbols[k - 1]) / sp.factorial(k)) == 0
        assert sp.expand(normalisation_identities(order)[k - 1] - complete) == 0


def test_normalisation_identities():
    assert normalisation_identities(3) == (L1, L1**2 + L2, L1**3 + 3 * L1 * L2 + L3)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_onset_exponent_is_even(k):
    law = onset_law(k, 2 * k)
    assert law[: 2 * k] == (0,) * (2 * k)
    assert law[2 * k] == derivative_symbols(k)[-1] ** 2 / (2 * sp.factorial(k) ** 2)


def test_quartic_law():
    assert onset_law(2, 6) == (0, 0, 0, 0, L2**2 / 8, L2 * L3 / 12, sp.expand(L3**2 / 72 + L2 * L4 / 48 + L2**3 / 48))


@pytest.fixture(scope="module")
def policy():
    return binary_policy(5)


def test_moments_give_the_series_of_a_binary_softmax(policy):
    assert len(policy.direct) == len(policy.from_moments) == 6
    assert is_zero(a - b for a, b in zip(policy.direct, policy.from_moments, strict=True))
    p, z = policy.probability, policy.logit_derivatives
    assert sp.expand(policy.direct[2] - p * (1 - p) * z[0] ** 2 / 2) == 0
    skew = p * (1 - p) * (1 - 2 * p)
    assert sp.expand(policy.direct[3] - p * (1 - p) * z[0] * z[1] / 2 - skew * z[0] ** 3 / 6) == 0


def test_series_of_a_binary_softmax_by_numerical_differentiation(policy):
    p, rates = R(2, 7), [R(3, 2), R(-1, 3), R(5, 4), R(-2), R(1, 5)]
    with mpmath.workdps(40):
        base = mpmath.mpf(2) / 7
        z = [mpmath.mpf(r.p) / r.q for r in rates]

        def divergence(t):
            logit = mpmath.log(base / (1 - base)) + sum(z[k - 1] * t**k / mpmath.factorial(k) for k in range(1, 6))
            q = 1 / (1 + mpmath.exp(-logit))
            return base * mpmath.log(base / q) + (1 - base) * mpmath.log((1 - base) / (1 - q))

        expected = mpmath.taylor(divergence, 0, 5)
    values = {policy.probability: p, **dict(zip(policy.logit_derivatives, rates, strict=True))}
    for found, number in zip(policy.direct, expected, strict=True):
        assert float(found.subs(values)) == pytest.approx(float(number), rel=1e-10, abs=1e-15)


# the quartic law on models


@pytest.fixture(scope="module")
def law():
    return softmax_law()


def test_quartic_law_on_a_generic_softmax(law):
    assert law.direct[:4] == (0, 0, 0, 0)
    assert law.onset.leak == 0
    assert sp.simplify(law.direct[4] - law.onset.onset_coefficient**2 / 8) == 0
    assert sp.expand(law.direct[5] - law.mixed_moment / 12) == 0
    assert law.direct[4] != 0
    assert law.direct[5] != 0
    assert sp.simplify(law.direct[4] - law.onset.coupling**2 / 8) != 0


def test_generic_softmax_is_orthogonal_to_the_gradient_and_not_flat(law):
    assert is_zero(law.onset.fisher * law.onset.gradient)
    p = sp.Symbol("p", positive=True)
    slope = sp.Symbol("q0", real=True)
    assert sp.expand(law.onset.fisher[0, 0] - p * (1 - p) * slope**2) == 0
    assert len(law.problem.loss.free_symbols) == 2 + 8
    assert len(law.problem.skill.logits[0][0].free_symbols) == 2 + 1 + 8


def test_quartic_law_agrees_with_numerical_integration(law):
    symbols = sorted(
        (law.problem.loss.free_symbols | law.problem.skill.logits[0][0].free_symbols) - set(law.problem.parameters),
        key=str,
    )
    rng = np.random.default_rng(5)
    values = {s: R(int(k), 10) for s, k in zip(symbols, rng.integers(3, 12, len(symbols)), strict=True)}
    values[sp.Symbol("p", positive=True)] = R(3, 10)
    fourth, fifth = (float(c.subs(values)) for c in law.direct[4:])
    times = np.array([0.02, 0.04])
    moved = flow_numerically(law.problem.loss.subs(values), law.problem.parameters, (0.0, 0.0), times)
    logit = sp.lambdify(law.problem.parameters, law.problem.skill.logits[0][0].subs(values) - sp.log(R(3, 7)))
    change = np.array([logit(*m) for m in moved])
    d = np.array([change - np.log1p(0.3 * np.expm1(change)), -np.log1p(0.3 * np.expm1(change))])
    divergence = np.array([0.3, 0.7]) @ (d**2 / 2 + d**3 / 6 + d**4 / 24)
    errors = np.abs(divergence - fourth * times**4 - fifth * times**5)
    assert np.all(errors < np.abs(fifth) * times**5)
    assert errors[1] / errors[0] == pytest.approx(64, rel=0.25)


@pytest.mark.parametrize("n", [2, 3])
def test_a_skill_with_positive_gamma_loses_only_t6(n):
    immune = immune_skill(n)
    o, precision = immune.onset, sp.Symbol("lambda", positive=True)
    assert o.leak == 0
    assert o.onset_coefficient == 0
    assert immune.mean_series[:2] == (0, 0)
    assert is_zero(o.fisher * o.gradient)
    coupling = precision * immune.normal.dot(o.curved_gradient) ** 2
    assert coupling != 0
    assert sp.expand(o.coupling**2 - coupling) == 0
    assert o.fisher.rank() == 1
    values = {s: R(k % 7 + 1, 3) for k, s in enumerate(sorted(immune.leading.free_symbols, key=str))}
    leading = float(immune.leading.xreplace(values))
    assert leading > 0
    mean = sp.lambdify(immune.problem.parameters, immune.problem.skill.mean[0].xreplace(values))
    times = np.array([0.002, 0.004])
    moved = flow_numerically(immune.problem.loss.subs(values), immune.problem.parameters, (0.0,) * n, times)
    ratio = [float(values[precision]) / 2 * mean(*m) ** 2 / t**6 for m, t in zip(moved, times, strict=True)]
    assert 2 * ratio[0] - ratio[1] == pytest.approx(leading, rel=2e-2)


def test_immune_skill_refuses_other_dimensions():
    with pytest.raises(ValueError, match="dimension 2 or 3, got 4"):
        immune_skill(4)


# gradient descent


@pytest.mark.parametrize("n", [2, 3])
def test_descent_weakens_the_curvature_term(n):
    path = generic_descent(n)
    g, h, _ = tensors(path.loss, path.parameters)
    g, h = sp.Matrix(g), sp.Matrix(h)
    assert is_zero(path.derivatives[0] + g)
    assert is_zero(path.derivatives[1] - (1 - 1 / STEPS) * h * g)


def test_descent_to_third_order_is_that_of_actual_steps():
    path = generic_descent(2, 3)
    x, y = path.parameters
    loss = x**3 * y / 6 + x * y**2 - 2 * x + y + x * y
    start = {x: R(1, 2), y: R(1, 3)}
    for steps in (1, 2, 3, 4):
        here = [start[x], start[y]]
        for _ in range(steps):
            at = dict(zip((x, y), here, strict=True))
            here = [sp.expand(v - TIME / steps * loss.diff(s).subs(at)) for v, s in zip(here, (x, y), strict=True)]
        for k, rates in enumerate(path.derivatives, start=1):
            expected = [v.coeff(TIME, k) * sp.factorial(k) for v in here]
            found = [e.subs(path.loss, loss).doit().subs(start).subs(STEPS, steps) for e in rates]
            assert found == expected
    flow = generic_flow(2).derivatives[2]
    assert is_zero(
        path.derivatives[2].applyfunc(lambda e: sp.expand(e).xreplace({1 / STEPS: 0, 1 / STEPS**2: 0})) - flow
    )


def test_descent_weakens_the_loss_but_not_the_curvature_of_the_skill():
    found = descent_law(2)
    g, h, _ = tensors(found.loss, found.parameters)
    score, curvature, _ = tensors(found.log_probability, found.parameters)
    r = range(2)
    through_loss = sum(score[i] * h[i][j] * g[j] for i in r for j in r)
    through_skill = sum(curvature[i][j] * g[i] * g[j] for i in r for j in r)
    assert sp.expand(found.first + sum(score[i] * g[i] for i in r)) == 0
    expected = (1 - 1 / STEPS) * through_loss + through_skill
    assert sp.expand(found.second - expected) == 0
    assert sp.expand(found.coefficient - expected**2 / 8) == 0


def test_descent_leaves_the_circle():
    found = descent_onset(circle().problem)
    assert found.leak == 0
    assert sp.simplify(found.onset_coefficient**2 / 8 - sp.Symbol("lambda", positive=True) / (8 * STEPS**2)) == 0
    for steps in (1, 2, 5):
        with mpmath.workdps(40):
            t, square = mpmath.mpf("1e-6"), mpmath.mpf(1)
            for _ in range(steps):
                square += (t / steps) ** 2 / square  # each step is tangential, of length step size / radius
            ratio = (mpmath.sqrt(square) - 1) ** 2 / 2 / t**4
        assert float(ratio) == pytest.approx(1 / (8 * steps**2), rel=1e-9)


# low-rank adaptation


def second_derivative_map(expansion, direction):
    """Hess L[direction] at W0, as a matrix, from the generic loss."""
    x, at_start = expansion.change, dict.fromkeys(expansion.change, 0)
    return sp.Matrix(
        *x.shape,
        [sum(expansion.loss.diff(e, f).subs(at_start) * v for f, v in zip(x, direction, strict=True)) for e in x],
    )


def gradient_at_start(expansion):
    x = expansion.change
    return sp.Matrix(*x.shape, [expansion.loss.diff(e).subs(dict.fromkeys(x, 0)) for e in x])


@pytest.mark.parametrize(
    ("outputs", "inputs", "rank", "degree", "order"), [(2, 2, 1, 3, 3), (2, 3, 1, 2, 2), (3, 2, 2, 1, 3)]
)
def test_lora_flow(outputs, inputs, rank, degree, order):
    found = lora_flow(outputs, inputs, rank, degree, order)
    g, a = gradient_at_start(found), found.initial
    pi = a.T * a
    assert found.weights[0].shape == (outputs, inputs)
    assert is_zero(found.input_factor[0])
    assert is_zero(found.input_factor[1] - SCALE**2 * a * g.T * g)
    assert is_zero(found.weights[0] + SCALE**2 * g * pi)
    assert is_zero(found.weights[1] - SCALE**4 * second_derivative_map(found, g * pi) * pi)
    assert is_zero(found.weights[0] - found.preconditioned[0])
    assert is_zero(found.weights[1] - found.preconditioned[1])
    if order == 3:
        deviation = SCALE**4 * (3 * g * pi * g.T * g + g * g.T * g * pi)
        assert not is_zero(deviation)
        assert is_zero(found.weights[2] - found.preconditioned[2] + deviation)


def test_lora_descent():
    found = lora_descent(2, 2, 1)
    g, pi = gradient_at_start(found), found.initial.T * found.initial
    assert found.preconditioned == ()
    assert is_zero(found.input_factor[0])
    assert is_zero(found.weights[0] + SCALE**2 * g * pi)
    second = (1 - 1 / STEPS) * SCALE**4 * second_derivative_map(found, g * pi) * pi
    assert is_zero(found.weights[1] - second)


def test_lora_agrees_with_numerical_integration_of_the_factors():
    rng = np.random.default_rng(1)
    target, a0, scale = rng.normal(size=(3, 4)), rng.normal(size=(2, 4)), 1.5

    def slope(w):  # gradient of sum of log cosh(w - target)
        return np.tanh(w - target)

    def factors(_, z):
        a, b = z[:8].reshape(2, 4), z[8:].reshape(3, 2)
        g = slope(scale * b @ a)
        return np.concatenate([-(scale * b.T @ g).ravel(), -(scale * g @ a.T).ravel()])

    def preconditioned(_, w):
        return -(scale**2 * slope(w.reshape(3, 4)) @ a0.T @ a0).ravel()

    t, g, pi = 1e-3, slope(np.zeros((3, 4))), a0.T @ a0
    options = {"method": "DOP853", "rtol": 1e-13, "atol": 1e-16}
    end = solve_ivp(factors, (0, t), np.concatenate([a0.ravel(), np.zeros(6)]), **options).y[:, -1]
    other = solve_ivp(preconditioned, (0, t), np.zeros(12), **options).y[:, -1].reshape(3, 4)
    third = (scale * end[8:].reshape(3, 2) @ end[:8].reshape(2, 4) - other) * 6 / t**3
    expected = -(scale**4) * (3 * g @ pi @ g.T @ g + g @ g.T @ g @ pi)
    assert np.linalg.norm(third - expected) < 0.05 * np.linalg.norm(expected)


def test_problem_exposes_its_flow():
    problem = circle().problem
    assert isinstance(problem, Problem)
    x, y = problem.parameters
    assert problem.at_base == {x: 1, y: 0}
    assert [sp.simplify(f) for f in problem.field] == [-y / (x**2 + y**2), x / (x**2 + y**2)]
