from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.polynomial import polynomial as P

from theory.ledger.scenarios import Coefficients
from theory.ledger.skills import SoftmaxSkill, second_derivatives
from theory.series import (
    constant,
    contract,
    evaluate,
    exponential,
    integral_curve,
    logarithm,
    multiply,
    rational,
    reciprocal,
    shift,
    zeros,
)

F = Fraction
FRACTIONS = st.fractions(min_value=-4, max_value=4, max_denominator=6)


def series(size: int = 6) -> st.SearchStrategy[np.ndarray]:
    return st.lists(FRACTIONS, min_size=size, max_size=size).map(lambda x: np.array(x, dtype=object))


def test_rational_is_exact_and_keeps_the_shape():
    values = rational([[0.1, 2], [F(1, 3), -4]])
    assert values.shape == (2, 2)
    assert values.dtype == object
    assert values[0, 0] == F(3602879701896397, 36028797018963968)  # the double nearest to 0.1
    assert [type(x) for x in values.ravel()] == [Fraction] * 4
    assert values[1].tolist() == [F(1, 3), F(-4)]


def test_zeros_are_of_the_scalars_of_the_model():
    floats, exact = zeros((2, 3), np.ones(1)), zeros((2, 3), rational([1]))
    assert floats.dtype == np.float64
    assert floats.shape == exact.shape == (2, 3)
    assert exact.dtype == object
    assert not floats.any()
    assert all(isinstance(x, Fraction) and x == 0 for x in exact.ravel())


def test_a_constant_has_one_coefficient():
    value = np.array([[1.0, 2.0], [3.0, 4.0]])
    result = constant(value, 3)
    assert result.shape == (4, 2, 2)
    np.testing.assert_array_equal(result[0], value)
    assert not result[1:].any()
    np.testing.assert_array_equal(constant(value, 0), value[None])


@given(series(), series())
def test_a_product_is_numpys_polynomial_product(a, b):
    expected = P.polymul(a.astype(float), b.astype(float))[:6]
    result = multiply(a, b).astype(float)
    np.testing.assert_allclose(result[: len(expected)], expected, rtol=1e-12, atol=1e-12)
    assert not result[len(expected) :].any()


def test_a_product_is_elementwise_and_a_contraction_is_not():
    a = np.arange(12.0).reshape(3, 2, 2)
    b = np.arange(6.0).reshape(3, 2) - 2
    elementwise = multiply(a[:, 0], b)
    for i in range(2):
        np.testing.assert_allclose(elementwise[:, i], P.polymul(a[:, 0, i], b[:, i])[:3])
    product = contract(a, b)
    assert product.shape == (3, 2)
    for i in range(2):
        expected = P.polymul(a[:, i, 0], b[:, 0])[:3] + P.polymul(a[:, i, 1], b[:, 1])[:3]
        np.testing.assert_allclose(product[:, i], expected)


@pytest.mark.parametrize("product", [multiply, contract])
def test_only_one_order_multiplies(product):
    with pytest.raises(ValueError, match="got orders 2 and 1"):
        product(np.ones((3, 2)), np.ones((2, 2)))


def test_a_shift_multiplies_by_t():
    np.testing.assert_array_equal(shift(np.array([5.0, 6.0, 7.0])), [0, 5, 6])
    exact = shift(rational([[5, 1], [6, 2]]))
    assert exact.tolist() == [[0, 0], [5, 1]]
    assert isinstance(exact[0, 0], Fraction)


@settings(max_examples=min(settings().max_examples, 30))  # SymPy takes long over each
@given(series())
def test_exponential_and_logarithm_are_inverse_and_sympys(a):
    a[0] = F(0)
    e = exponential(a)
    assert np.all(logarithm(e) == a)
    t = sympy.Symbol("t")
    power = sum(sympy.Rational(x.numerator, x.denominator) * t**k for k, x in enumerate(a))
    terms = sum(power**k / sympy.factorial(k) for k in range(6))
    coefficients = sympy.Poly(sympy.expand(terms), t).all_coeffs()[::-1] + [0] * 6
    assert [F(int(c.p), int(c.q)) for c in map(sympy.Rational, coefficients[:6])] == e.tolist()


def test_exponential_of_t_and_logarithm_of_one_plus_t():
    t = rational([0, 1, 0, 0, 0])
    assert exponential(t).tolist() == [1, 1, F(1, 2), F(1, 6), F(1, 24)]
    assert logarithm(t + rational([1, 0, 0, 0, 0])).tolist() == [0, 1, F(-1, 2), F(1, 3), F(-1, 4)]


@pytest.mark.parametrize(
    ("function", "start", "message"),
    [
        (exponential, 1, "starts at 0"),
        (logarithm, 0, "starts at 1"),
        (logarithm, 2, "starts at 1"),
        (reciprocal, 0, "does not start at 0"),
    ],
)
def test_a_series_that_starts_wrong_is_refused(function, start, message):
    good = 1 if function is not exponential else 0
    with pytest.raises(ValueError, match=message):
        function(rational([[good, start], [1, 1]]))


@given(series(5), st.fractions(min_value=1, max_value=3, max_denominator=5))
def test_a_reciprocal_times_the_series_is_one(a, start):
    a[0] = start
    assert multiply(a, reciprocal(a)).tolist() == [1, 0, 0, 0, 0]


def test_the_integral_curve_of_a_linear_field_is_the_matrix_exponential():
    matrix, start = rational([[0, 1], [-2, F(1, 3)]]), rational([1, F(-1, 2)])
    curve = integral_curve(lambda c: np.stack([matrix @ point for point in c]), start, 6)
    term = start
    for k in range(7):
        assert curve[k].tolist() == term.tolist()
        term = matrix @ term / (k + 1)


def test_the_integral_curve_of_a_quadratic_field_is_one_over_one_minus_t():
    curve = integral_curve(lambda c: multiply(c, c), rational([1]), 7)
    assert curve[:, 0].tolist() == [1] * 8
    assert integral_curve(lambda c: multiply(c, c), rational([3]), 0).tolist() == [[3]]


def test_the_integral_curve_agrees_with_sympys_series_of_the_tangent():
    curve = integral_curve(lambda c: multiply(c, c) + constant(rational([1]), len(c) - 1), rational([0]), 7)
    t = sympy.Symbol("t")
    expected = sympy.Poly(sympy.series(sympy.tan(t), t, 0, 8).removeO(), t).all_coeffs()[::-1]
    assert curve[:, 0].tolist() == [F(int(c.p), int(c.q)) for c in expected]


def test_a_series_is_evaluated_in_float64():
    values = evaluate(rational([[1, 2], [F(1, 2), 0], [4, -1]]), 0.5)
    assert values.dtype == np.float64
    np.testing.assert_array_equal(values, [2.25, 1.75])


@pytest.mark.parametrize("number", range(30))
def test_the_quartic_law_to_the_fifth_power_on_a_random_softmax_model(number):
    """No floating point: two to three prompts, rank of F up to 4, random cubic logits and losses."""
    rng = np.random.default_rng([number, 20])
    make = Coefficients(rng, exact=True)
    prompts, outcomes, kernel = 2 + number % 2, 2 + number % 3, 1 + number % 2
    scenario = make.scenario(2 + kernel, prompts, outcomes, kernel=kernel)
    scenario.loss.linear[0, -1] += 7  # not 0: entries are at most 6
    skill = scenario.skill
    assert isinstance(skill, SoftmaxSkill)
    second = second_derivatives(skill, scenario.velocity, scenario.acceleration)
    curve = scenario.series(5)
    third = third_derivatives(skill, 6 * curve[3], scenario)
    loss = skill.utility_loss_along(curve)
    assert loss[:4].tolist() == [0] * 4
    assert loss[4] == skill.weights @ second**2 / 8 > 0
    assert loss[5] == skill.weights @ (second * third) / 12
    assert all(isinstance(x, Fraction) for x in loss)


def third_derivatives(skill: SoftmaxSkill, jerk: np.ndarray, scenario) -> np.ndarray:
    """``l'''`` by the chain rule on the logits, where ``z' - E z' = 0`` at the start.

    Then ``(log sum p e^z)''' = E z''' + 3 Cov(z', z'') + kappa_3(z') = E z'''``, so that l''' is z''' less its mean.
    """
    v, a = scenario.velocity, scenario.acceleration
    logits = skill.logits
    z = logits.linear @ jerk + 3 * logits.quadratic @ v @ a + logits.cubic @ v @ v @ v
    grouped = z.reshape(skill.base.shape)
    return (grouped - (skill.base * grouped).sum(axis=1, keepdims=True)).ravel()
