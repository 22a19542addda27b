from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numeric_oracle import gradient, hessian, taylor

from sim.fields import Field, GradientFlow, LowRank, Preconditioned
from sim.flow import DivergedError, adam, descend, flow, flow_many, trajectory
from sim.losses import minus_angle, random_smooth, straight, tight
from sim.problems import circle, radius_skill, softmax
from sim.projections import StaticProjection, TrackedProjection
from sim.skills import random_softmax

seeds = st.integers(0, 10**6)
NOWHERE = GradientFlow(lambda theta: 0 * theta.sum())


def normal(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def problem(seed, n=4):
    base = normal(n, seed=seed) / 2
    return random_smooth(base, 0, seed + 1), base


class Power(Field):
    """``v = theta^p`` in each coordinate."""

    def __init__(self, power):
        self.power = power

    def __call__(self, state):
        return state**self.power


@pytest.mark.parametrize("sharpness", [1.0, 9.0])
def test_the_circle(sharpness):
    """The flow runs along the unit circle at unit speed, between the steps of the solver as well."""
    case = circle(sharpness)
    t = np.concatenate([[0.0], np.geomspace(1e-6, 1, 60), np.linspace(1.01, 3.0, 200)])
    path = flow(GradientFlow(case.loss), case.skill.base, t)
    assert float((path.norm(dim=1) - 1).abs().max()) < 1e-12
    np.testing.assert_allclose(path, np.stack([np.cos(t), np.sin(t)], axis=1), rtol=0, atol=1e-12)
    assert case.skill.utility_losses(path).max() < 1e-24


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.5])
def test_the_hyperbolic_path(beta):
    t = np.linspace(0, 1.5, 40)
    path = flow(GradientFlow(tight(beta)), radius_skill().base, t)
    exact = np.stack([1 - 2 * np.sinh(beta * t / 2) ** 2 / beta, np.sinh(beta * t) / beta], axis=1)
    np.testing.assert_allclose(path, exact, rtol=1e-12, atol=1e-13)


def test_a_straight_path():
    path = flow(GradientFlow(straight), radius_skill().base, np.array([1e-8, 0.5, 100.0]))
    np.testing.assert_allclose(path, [[1, 1e-8], [1, 0.5], [1, 100]], rtol=1e-13)


@given(seeds, st.floats(0.1, 3))
def test_a_linear_field_against_its_eigenvectors(seed, last):
    """``theta' = -H theta``, by the spectral decomposition."""
    square = normal(4, 4, seed=seed)
    h, base = (square + square.T) / 2, normal(4, seed=seed + 1)
    t = np.linspace(0, last, 5)
    values, vectors = torch.linalg.eigh(h)
    exact = torch.stack([vectors @ ((-s * values).exp() * (vectors.T @ base)) for s in t.tolist()])
    path = flow(GradientFlow(lambda theta: theta @ h @ theta / 2), base, t)
    assert float((path - exact).norm()) < 1e-11 * float(exact.norm())


def test_many_paths_are_each_its_own():
    case = softmax(6, 2, 3, 0, 3)
    bases = case.skill.base + 0.3 * normal(5, 6, seed=1)
    t = np.array([0.0, 0.01, 0.3, 0.7])
    for field in (GradientFlow(case.loss), TrackedProjection(case.loss, case.skill, 4)):
        together = flow_many(field, bases, t)
        assert together.shape == (5, 4, 6)
        assert torch.equal(together[:, 0], bases)
        for base, path in zip(bases, together, strict=True):
            torch.testing.assert_close(path, flow(field, base, t), rtol=0, atol=1e-11)


def test_a_low_rank_path_starts_at_its_base_point():
    loss, base = problem(1, 6)
    field = LowRank(loss, base, normal(1, 3, seed=4))
    t = np.array([0.0, 0.1])
    path = flow(field, base, t)
    assert torch.equal(path[0], base)
    torch.testing.assert_close(flow_many(field, torch.stack([base, base]), t)[1], path, rtol=0, atol=1e-13)
    fine = descend(field, base, [1e-4] * 1000)[-1]
    torch.testing.assert_close(path[1], fine, rtol=0, atol=1e-4)


def test_time_zero_alone():
    case = circle()
    assert torch.equal(flow(GradientFlow(case.loss), case.skill.base, np.array([0.0])), case.skill.base[None])


@pytest.mark.parametrize("times", [[], [-0.1, 1], [0, 1, 1], [1, 0.5], [0, np.nan], [np.nan], [0, np.inf]])
def test_impossible_times(times):
    with pytest.raises(ValueError, match="times of a path must be finite and increase from at least 0"):
        flow(GradientFlow(minus_angle), radius_skill().base, np.array(times, dtype=float))


def test_no_base_point():
    with pytest.raises(ValueError, match="expected base points and a finite end of at least 0, got 0 and"):
        flow_many(GradientFlow(minus_angle), torch.zeros(0, 2, dtype=torch.float64), np.array([1.0]))


@pytest.mark.parametrize("end", [-1.0, float("nan"), float("inf")])
def test_impossible_ends(end):
    with pytest.raises(ValueError, match="a finite end of at least 0, got 1 and"):
        trajectory(GradientFlow(minus_angle), radius_skill().base[None], end)


def test_a_trajectory_is_read_at_any_time():
    path = trajectory(GradientFlow(minus_angle), radius_skill().base[None].expand(2, 2), 1.5)
    t = np.array([1.5, 0.0, 0.7])
    exact = np.stack([np.cos(t), np.sin(t)], axis=1)
    np.testing.assert_allclose(path(t), np.stack([exact, exact]), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("start", "power", "time"), [(1.0, 2, 1.0), (0.5, 2, 2.0), (2.0, 3, 0.125), (0.01, 2, 100.0)])
def test_a_path_that_ends_in_finite_time(start, power, time):
    base = torch.tensor([start, 0.0], dtype=torch.float64)
    with pytest.raises(DivergedError, match="the path diverges near t = ") as error:
        flow(Power(power), base, np.array([time / 2, 2 * time]))
    assert error.value.time == pytest.approx(time, rel=1e-6)
    assert flow(Power(power), base, np.array([0.9 * time]))[0, 0] > 1.1 * start  # before the end all is well


def test_a_path_that_grows_out_of_every_bound():
    base = torch.ones(1, dtype=torch.float64)
    with pytest.raises(DivergedError) as error:
        flow(Power(1), base, np.array([1.0, 1000.0]))
    assert error.value.time == pytest.approx(np.log(1e12), abs=0.5)


def test_a_field_that_is_not_a_number():
    with pytest.raises(DivergedError, match=r"near t = 0$") as error:
        flow(GradientFlow(lambda theta: float("nan") * theta.sum()), radius_skill().base, np.array([1.0]))
    assert error.value.time == 0


@given(seeds, st.integers(1, 6), st.data())
def test_schedules_displace_by_their_second_order_law(seed, count, data):
    """``-T g + (T^2 - sum eta_k^2)/2 H g``; with equal steps ``T^2/2 (1 - 1/K) H g``."""
    loss, base = problem(seed)
    shape = np.array(data.draw(st.lists(st.floats(0.1, 2), min_size=count, max_size=count)))
    shape /= shape.sum()
    g, h = gradient(loss, base), hessian(loss, base)

    def ends(scale):
        return taylor(
            lambda sizes: torch.stack([descend(GradientFlow(loss), base, size * scale)[-1] for size in sizes]), 0.02
        )

    start, first, second = ends(shape)[:3]
    torch.testing.assert_close(start, base, rtol=0, atol=1e-12)
    torch.testing.assert_close(first, -g, rtol=0, atol=1e-10)
    torch.testing.assert_close(second, (1 - (shape**2).sum()) * (h @ g), rtol=0, atol=1e-8)
    equal = ends(np.full(count, 1 / count))
    torch.testing.assert_close(equal[2], (1 - 1 / count) * (h @ g), rtol=0, atol=1e-8)


@given(seeds, st.integers(1, 6), st.floats(0, 0.95))
def test_the_heavy_ball_displaces_by_its_second_order_law(seed, count, momentum):
    loss, base = problem(seed)
    g, h = gradient(loss, base), hessian(loss, base)

    def ends(sizes):
        return torch.stack([descend(GradientFlow(loss), base, [s] * count, momentum=momentum)[-1] for s in sizes])

    _, first, second = taylor(ends, 0.004)[:3]
    pushes = [[(1 - momentum ** (k - j)) / (1 - momentum) for j in range(k)] for k in range(count + 1)]
    reach = [sum(row) for row in pushes]  # A_k
    torch.testing.assert_close(first, -reach[count] * g, rtol=0, atol=1e-9)
    expected = 2 * sum(a * reach[j] for j, a in enumerate(pushes[count])) * (h @ g)
    torch.testing.assert_close(second, expected, rtol=1e-6, atol=1e-6)


@given(seeds, st.integers(0, 5), st.floats(0, 0.9))
def test_the_steps_are_the_plain_recursion(seed, count, momentum):
    loss, base = problem(seed)
    noise, sizes = normal(count, 4, seed=seed + 2), np.linspace(0.05, 0.2, count)
    path = descend(GradientFlow(loss), base, sizes, momentum=momentum, noise=noise)
    theta, push = base, torch.zeros_like(base)
    assert path.shape == (count + 1, 4)
    assert torch.equal(path[0], base)
    for k, eta in enumerate(sizes.tolist()):
        push = momentum * push + eta * (noise[k] - gradient(loss, theta))
        theta = theta + push
        torch.testing.assert_close(path[k + 1], theta, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_onset_under_gradient_descent(steps):
    """``u / T^4 -> E[((1 - 1/K) s.Hg + g^T Hess(l) g)^2]/8``: only the path's own curvature fades with the step."""
    skill = random_softmax(6, 2, 3, 3, 4)
    field = GradientFlow(random_smooth(skill.base, 3, 5))
    path = field.derivatives(skill.base)
    stats = skill.statistics(path.velocity, path.acceleration)
    second = (1 - 1 / steps) * stats.acceleration + stats.curvature
    horizons = np.array([1, 2, 4]) * 1e-3
    ends = torch.stack([descend(field, skill.base, [t / steps] * steps)[-1] for t in horizons])
    quotient = skill.utility_losses(ends) / horizons**4
    assert (8 * quotient[0] - 6 * quotient[1] + quotient[2]) / 3 == pytest.approx(
        stats.expectation(second**2) / 8, rel=1e-5
    )


@pytest.mark.parametrize("steps", [1, 3, 20])
def test_gradient_descent_drifts_off_the_circle(steps):
    """``r_{k+1}^2 = r_k^2 + eta^2 / r_k^2``, so that ``u -> lambda T^4 / (8 K^2)``."""
    case = circle(4.0)
    eta = 0.02 / steps
    path = descend(GradientFlow(case.loss), case.skill.base, [eta] * steps)
    square = [1.0]
    for _ in range(steps):
        square.append(square[-1] + eta**2 / square[-1])
    np.testing.assert_allclose(path.norm(dim=1) ** 2, square, rtol=1e-14)
    loss = float(case.skill.utility_losses(path[-1:])[0])
    assert loss == pytest.approx(4.0 * 0.02**4 / (8 * steps**2), rel=2e-3)


def test_noise_alone_is_a_random_walk():
    noise = normal(7, 2, seed=3)
    path = descend(NOWHERE, torch.zeros(2, dtype=torch.float64), [0.1] * 7, noise=noise)
    torch.testing.assert_close(path[1:], 0.1 * noise.cumsum(0))


def test_a_projector_is_renewed_when_it_says():
    case = softmax(8, 2, 3, 0, 2)
    field, sizes = TrackedProjection(case.loss, case.skill, case.rank), [0.05] * 6
    for refresh in (1, 2, 4):
        path = descend(field, case.skill.base, sizes, refresh=refresh)
        theta = case.skill.base
        for k, eta in enumerate(sizes):
            if k % refresh == 0:
                held = case.skill.top_directions(theta, case.rank)
            g = gradient(case.loss, theta)
            theta = theta - eta * (g - held @ (held.T @ g))
            torch.testing.assert_close(path[k + 1], theta, rtol=0, atol=1e-13)
    static = StaticProjection(case.loss, case.skill.top_directions(case.skill.base, case.rank))
    for refresh in (6, 100):
        fixed = descend(field, case.skill.base, sizes, refresh=refresh)
        torch.testing.assert_close(fixed, descend(static, case.skill.base, sizes), rtol=0, atol=1e-14)


@pytest.mark.parametrize(("steps", "refresh"), [(8, 1), (8, 2), (12, 4)])
def test_what_a_stale_projector_leaves(steps, refresh):
    """``(R/K)^2`` of the static projection's quartic, for F of constant rank d and R a divisor of K."""
    case = softmax(8, 2, 3, 0, 2)
    field, horizon = TrackedProjection(case.loss, case.skill, case.rank), 2e-3
    static = StaticProjection(case.loss, case.skill.top_directions(case.skill.base, case.rank))
    velocity = static(case.skill.base)
    stats = case.skill.statistics(velocity, torch.zeros_like(velocity))
    end = descend(field, case.skill.base, [horizon / steps] * steps, refresh=refresh)[-1:]
    expected = horizon**4 * stats.expectation(stats.curvature**2) / 8 * (refresh / steps) ** 2
    assert float(case.skill.utility_losses(end)[0]) == pytest.approx(expected, rel=0.02)


@given(seeds, st.floats(0.01, 0.3), st.booleans())
def test_adam_is_its_recursion(seed, decay, decays):
    """Kingma and Ba's Algorithm 1, with the decoupled decay of Loshchilov and Hutter."""
    loss, base = problem(seed)
    decay, sizes, (b1, b2), epsilon = decay if decays else 0.0, [0.01, 0.03, 0.02, 0.005], (0.8, 0.95), 1e-6
    path = adam(GradientFlow(loss), base, sizes, betas=(b1, b2), epsilon=epsilon, decay=decay)
    theta, mean, square = base, torch.zeros_like(base), torch.zeros_like(base)
    assert torch.equal(path[0], base)
    for k, eta in enumerate(sizes):
        g = gradient(loss, theta)
        mean, square = b1 * mean + (1 - b1) * g, b2 * square + (1 - b2) * g**2
        corrected, scale = mean / (1 - b1 ** (k + 1)), (square / (1 - b2 ** (k + 1))).sqrt()
        theta = theta - eta * decay * theta - eta * corrected / (scale + epsilon)
        torch.testing.assert_close(path[k + 1], theta, rtol=1e-11, atol=1e-12)


def test_adam_is_torchs_on_the_loss():
    loss, base = problem(5)
    parameter = base.clone().requires_grad_(True)
    optimizer = torch.optim.AdamW([parameter], lr=0.05, weight_decay=0.1)
    expected = [base]
    for _ in range(5):
        optimizer.zero_grad()
        loss(parameter).backward()
        optimizer.step()
        expected.append(parameter.detach().clone())
    path = adam(GradientFlow(loss), base, [0.05] * 5, decay=0.1)
    torch.testing.assert_close(path, torch.stack(expected), rtol=1e-13, atol=1e-13)
    assert torch.equal(path[0], base)  # what was given is not moved


@given(seeds)
def test_adams_first_step_is_the_sign(seed):
    loss, base = problem(seed)
    g = gradient(loss, base)
    step = adam(GradientFlow(loss), base, [0.01])[1] - base
    torch.testing.assert_close(step, -0.01 * g / (g.abs() + 1e-8), rtol=1e-9, atol=1e-15)


def test_discrete_paths_of_low_rank_updates():
    """``-K eta c^2 G Pi + eta^2 K (K-1)/2 c^4 Hess[G Pi] Pi``, as under right multiplication by ``c^2 Pi``."""
    loss, base = problem(3, 6)
    first, c = normal(2, 3, seed=4), 0.7
    right = Preconditioned(loss, torch.kron(torch.eye(2, dtype=torch.float64), c**2 * first.T @ first))
    both = [
        taylor(lambda sizes, f=f: torch.stack([descend(f, base, [s] * 4)[-1] for s in sizes]), 0.01)
        for f in (LowRank(loss, base, first, c), right)
    ]
    torch.testing.assert_close(both[0][1], both[1][1], rtol=0, atol=1e-9)
    torch.testing.assert_close(both[0][2], both[1][2], rtol=0, atol=1e-6)
    velocity, acceleration = right.closed_form(base)
    torch.testing.assert_close(both[0][1], 4 * velocity, rtol=0, atol=1e-9)
    torch.testing.assert_close(both[0][2], 12 * acceleration, rtol=0, atol=1e-6)
    assert adam(LowRank(loss, base, first, c), base, [0.1]).shape == (2, 6)


def test_steps_that_diverge_say_when():
    base = torch.ones(1, dtype=torch.float64)
    with pytest.raises(DivergedError) as error:
        descend(Power(1), base, [9.0, 9.0, 9e12, 1.0])  # 10, 100, then more than 10^12
    assert error.value.time == pytest.approx(18 + 9e12)
    with pytest.raises(DivergedError, match=r"near t = 0\.5"):
        descend(GradientFlow(lambda theta: float("nan") * theta.sum()), base, np.array([0.5, 0.5]))
    with pytest.raises(DivergedError, match=r"near t = 3e\+12"):
        adam(Power(2), base, [1.0, 3e12])


def test_impossible_steps():
    base = torch.ones(2, dtype=torch.float64)
    for momentum in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"the momentum must lie in \[0, 1\), got"):
            descend(NOWHERE, base, [0.1], momentum=momentum)
    with pytest.raises(ValueError, match="refreshed every 1 or more steps, got 0"):
        descend(NOWHERE, base, [0.1], refresh=0)
    with pytest.raises(ValueError, match="one row of noise for each of the 3 steps, got 2"):
        descend(NOWHERE, base, [0.1] * 3, noise=torch.zeros(2, 2, dtype=torch.float64))
