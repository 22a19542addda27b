from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from numeric_oracle import gradient, hessian, relative_error, taylor

from sim.fields import Derivatives, Field, GradientFlow, LowRank, Preconditioned, SignDescent, WeightDecay
from sim.flow import flow
from sim.losses import random_smooth
from sim.problems import softmax
from sim.projections import StaticProjection, TrackedProjection, TrustRegion

seeds = st.integers(0, 10**6)
SIZE = 6


def normal(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient_flow(loss, base, seed):
    return GradientFlow(loss)


def diagonal(loss, base, seed):
    return Preconditioned(loss, normal(SIZE, seed=seed).exp())


def matrix(loss, base, seed):
    return Preconditioned(loss, normal(SIZE, SIZE, seed=seed) / 2)


def weight_decay(loss, base, seed):
    return WeightDecay(loss, 0.7)


def sign_descent(loss, base, seed):
    return SignDescent(loss, epsilon=0.5)


def low_rank(loss, base, seed):
    return LowRank(loss, base, normal(2, 3, seed=seed), 0.8)


def static(loss, base, seed):
    return StaticProjection(loss, torch.linalg.qr(normal(SIZE, 2, seed=seed)).Q)


def trust_region(loss, base, seed):
    return TrustRegion(loss, softmax(SIZE, 2, 3, 2, seed % 100).skill, 3.0)


def tracked(loss, base, seed):
    return TrackedProjection(loss, softmax(SIZE, 2, 3, 0, seed % 100).skill, 1 + seed % 4)


builders = [gradient_flow, diagonal, matrix, weight_decay, sign_descent, low_rank, static, trust_region]


class Backwards(Field):
    """The same path, run the other way."""

    def __init__(self, field):
        self.field = field

    def __call__(self, state):
        return -self.field(state)

    def start(self, base):
        return self.field.start(base)

    def parameters(self, state):
        return self.field.parameters(state)


def path_by_flow(field, base, radius):
    """Derivatives of the path at 0 by interpolation between points that the flow reaches, before and after."""

    def values_at(times):
        half = len(times) // 2
        before, after = flow(Backwards(field), base, -times[:half][::-1]), flow(field, base, times[half:])
        return torch.cat([before.flip(0), after])

    return taylor(values_at, radius)


def problem(seed):
    base = normal(SIZE, seed=seed) / 2
    return random_smooth(base, 0, seed + 1), base


@pytest.mark.parametrize("build", builders)
@given(seed=seeds)
def test_the_closed_form_is_the_nested_derivative(build, seed):
    loss, base = problem(seed)
    field = build(loss, base, seed)
    velocity, acceleration = field.closed_form(base)
    nested = field.derivatives(base)
    assert relative_error(velocity, nested.velocity) < 1e-13
    assert relative_error(acceleration, nested.acceleration) < 1e-11


@pytest.mark.parametrize("build", [*builders, tracked])
@pytest.mark.parametrize("seed", [3, 17])
def test_derivatives_are_those_of_the_flow(build, seed):
    loss, base = problem(seed)
    field = build(loss, base, seed)
    if build is sign_descent:  # |g| has kinks, which the interpolation must not straddle
        assert gradient(loss, base).abs().min() > 0.02
    radius = 0.01 if build is sign_descent else 0.1
    expected = path_by_flow(field, base, radius)
    path = field.derivatives(base)
    torch.testing.assert_close(expected[0], base, rtol=0, atol=1e-12)
    for order, tolerance in ((1, 1e-10), (2, 1e-8), (3, 1e-6)):
        scale = 1e3 ** (order - 1) if build is sign_descent else 1
        assert float((expected[order] - path[order - 1]).norm()) < tolerance * scale


@given(seeds)
def test_the_definitions_against_dense_autograd(seed):
    loss, base = problem(seed)
    g, h = gradient(loss, base), hessian(loss, base)
    m = normal(SIZE, SIZE, seed=seed + 2)
    q = torch.linalg.qr(normal(SIZE, 2, seed=seed + 3)).Q
    outside = torch.eye(SIZE, dtype=torch.float64) - q @ q.T
    decayed = g + 0.3 * base
    expected = {
        GradientFlow(loss): (-g, h @ g),
        Preconditioned(loss, m): (-m @ g, m @ h @ m @ g),
        Preconditioned(loss, m[0]): (-m[0] * g, m[0] * (h @ (m[0] * g))),
        WeightDecay(loss, 0.3): (-decayed, h @ decayed + 0.3 * decayed),
        StaticProjection(loss, q): (-outside @ g, outside @ h @ outside @ g),
    }
    for field, (velocity, acceleration) in expected.items():
        path = field.derivatives(base)
        torch.testing.assert_close(path.velocity, velocity, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(path.acceleration, acceleration, rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(field(base), velocity, rtol=1e-12, atol=1e-13)


@given(seeds)
def test_sign_descent_tends_to_the_sign(seed):
    loss, base = problem(seed)
    g = gradient(loss, base)
    assume(g.abs().min() > 1e-3)
    velocity, acceleration = SignDescent(loss).closed_form(base)
    torch.testing.assert_close(velocity, -g.sign(), rtol=0, atol=1e-4)
    exact = SignDescent(loss, epsilon=0.0)
    assert torch.equal(exact(base), -g.sign())
    assert not exact.closed_form(base)[1].any()
    assert float(acceleration.abs().max()) < 1e-1


@given(seeds, st.integers(1, 3))
def test_low_rank_updates(seed, rank):
    """W' and W'' with dense matrices, and how W''' departs from that of the preconditioned flow."""
    loss, base = problem(seed)
    first, c = normal(rank, 3, seed=seed + 5), 0.8
    path = LowRank(loss, base, first, c).derivatives(base)
    g, pi = gradient(loss, base).reshape(2, 3), first.T @ first
    turned = (hessian(loss, base) @ (g @ pi).flatten()).reshape(2, 3)
    velocity, acceleration = (-(c**2) * g @ pi).flatten(), (c**4 * turned @ pi).flatten()
    torch.testing.assert_close(path.velocity, velocity, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(path.acceleration, acceleration, rtol=1e-11, atol=1e-11)

    right = torch.kron(torch.eye(2, dtype=torch.float64), c**2 * pi)  # G -> c^2 G Pi on flattened rows
    preconditioned = Preconditioned(loss, right).derivatives(base)
    torch.testing.assert_close(path.acceleration, preconditioned.acceleration, rtol=1e-11, atol=1e-11)
    departure = -(c**4) * (3 * g @ pi @ g.T @ g + g @ g.T @ g @ pi).flatten()
    torch.testing.assert_close(path.jerk - preconditioned.jerk, departure, rtol=1e-9, atol=1e-9)


def test_low_rank_states():
    loss, base = problem(1)
    first = normal(2, 3, seed=2)
    field = LowRank(loss, base, first, 0.5)
    state = field.start(base)
    assert state.shape == (2 * 3 + 2 * 2,)
    assert torch.equal(state[:6].reshape(2, 3), first)
    assert torch.equal(field.parameters(state), base)
    moved = state + normal(10, seed=3)
    a, b = moved[:6].reshape(2, 3), moved[6:].reshape(2, 2)
    torch.testing.assert_close(field.parameters(moved), base + 0.5 * (b @ a).flatten())
    with pytest.raises(ValueError, match="starts from its own W0 only"):
        field.start(base + 1)


def test_fields_without_a_projector_are_their_own_frozen_selves():
    loss, base = problem(1)
    field = GradientFlow(loss)
    assert field.frozen(base) is field
    assert field.start(base) is base
    assert field.parameters(base) is base


def test_a_field_without_a_formula_has_none():
    class Spiral(Field):
        def __call__(self, state):
            return torch.stack([-state[1], state[0]])

    base = torch.tensor([1.0, 0.0], dtype=torch.float64)
    assert Spiral().closed_form(base) is None
    expected = Derivatives(*(torch.tensor(x, dtype=torch.float64) for x in ([0.0, 1.0], [-1.0, 0.0], [0.0, -1.0])))
    for got, want in zip(Spiral().derivatives(base), expected, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("shape", [(), (2, 3), (2, 2, 2)])
def test_impossible_preconditioners(shape):
    with pytest.raises(ValueError, match="a vector or a square matrix, got shape"):
        Preconditioned(torch.sum, torch.ones(shape))


@pytest.mark.parametrize("epsilon", [-1e-8, float("nan")])
def test_impossible_epsilons(epsilon):
    with pytest.raises(ValueError, match="epsilon must be at least 0"):
        SignDescent(torch.sum, epsilon)


@pytest.mark.parametrize("shape", [(3,), (2, 4), (1, 2, 3)])
def test_impossible_first_factors(shape):
    with pytest.raises(ValueError, match=r"expected A0 of shape \(r, q\) with q dividing 6"):
        LowRank(torch.sum, torch.zeros(6, dtype=torch.float64), torch.ones(shape, dtype=torch.float64))
