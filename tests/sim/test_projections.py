from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from numeric_oracle import curvatures, gradient, relative_error, taylor

from sim.fields import GradientFlow
from sim.flow import flow
from sim.losses import minus_angle, random_smooth, straight
from sim.problems import fisher_rank, radius_skill, softmax
from sim.projections import StaticProjection, TrackedProjection, TrustRegion
from sim.skills import GaussianSkill
from theory import onset

seeds = st.integers(0, 10**6)


def normal(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gap(skill, theta, rank):
    values = torch.linalg.eigvalsh(skill.fisher(theta)).flip(0)
    return float((values[rank - 1] - values[rank]) / values[0])


@given(seeds, st.integers(1, 4), st.booleans())
def test_the_tracked_acceleration_is_the_derivative_along_itself(seed, rank, at_base):
    """For every rank up to that of F (4 here), at the base point and away from it, by interpolating the velocity."""
    problem = softmax(6, 2, 3, 0, seed)
    theta = problem.skill.base + (0 if at_base else 0.3) * normal(6, seed=seed)
    assume(gap(problem.skill, theta, rank) > 0.02)
    field = TrackedProjection(problem.loss, problem.skill, rank)
    velocity, acceleration = field.closed_form(theta)
    torch.testing.assert_close(velocity, field(theta), rtol=0, atol=1e-14)
    expected = taylor(lambda times: torch.stack([field(theta + t * velocity) for t in times]), radius=1e-3)[1]
    assert float((acceleration - expected).norm()) < 1e-7 * (1 + float(acceleration.norm()))


@given(seeds, st.integers(1, 5))
def test_the_tracked_velocity_is_projected_out(seed, rank):
    problem = softmax(6, 2, 3, 0, seed)
    fisher, g = problem.skill.fisher(problem.skill.base), gradient(problem.loss, problem.skill.base)
    rank = min(rank, problem.rank)
    vectors = torch.linalg.eigh(fisher).eigenvectors[:, -rank:]
    field = TrackedProjection(problem.loss, problem.skill, rank)
    expected = -(g - vectors @ (vectors.T @ g))
    torch.testing.assert_close(field(problem.skill.base), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(field.frozen(problem.skill.base)(problem.skill.base), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("seed", range(4))
def test_tracking_a_constant_rank_keeps_every_probability(seed):
    problem = softmax(8, 2, 3, 0, seed)
    times = np.linspace(0.1, 1.0, 10)
    defended = flow(TrackedProjection(problem.loss, problem.skill, problem.rank), problem.skill.base, times)
    assert {fisher_rank_at(problem.skill, theta) for theta in defended} == {4}
    assert float((defended[-1] - problem.skill.base).norm()) > 0.1
    assert problem.skill.utility_losses(defended).max() <= 1e-20
    undefended = flow(GradientFlow(problem.loss), problem.skill.base, times)
    assert problem.skill.utility_losses(undefended).min() > 1e-4


def fisher_rank_at(skill, theta):
    return int(torch.linalg.matrix_rank(skill.fisher_factor(theta)))


def test_tracking_a_gaussian_of_constant_rank_keeps_its_mean():
    square = normal(2, 5, 5, seed=1)
    linear = normal(2, 5, seed=2)
    base = normal(5, seed=3)
    skill = GaussianSkill(lambda th: linear @ (th - base) + (square @ (th - base)) @ (th - base) / 4, 3.0, base)
    loss = random_smooth(base, 0, 4)
    times = np.array([0.3, 0.6])
    assert skill.utility_losses(flow(TrackedProjection(loss, skill, 2), base, times)).max() <= 1e-20
    assert skill.utility_losses(flow(GradientFlow(loss), base, times)).min() > 1e-4


@pytest.mark.parametrize("kappa", [0.5, 2.0])
def test_tracking_fails_where_the_rank_changes(kappa):
    """``m = (x, kappa y^2/2)``: the second eigenvalue is born along the path, beyond d = 1."""
    base = torch.tensor([1.0, 0.0], dtype=torch.float64)
    skill = GaussianSkill(lambda th: torch.stack([th[0], kappa * th[1] ** 2 / 2]), 1.0, base)
    t = np.geomspace(1e-3, 0.4, 7)
    losses = skill.utility_losses(flow(TrackedProjection(straight, skill, 1), base, t))
    np.testing.assert_allclose(losses, kappa**2 * t**4 / 8, rtol=1e-9)


@given(seeds)
def test_a_static_projection_leaves_the_quartic_of_the_curvature(seed):
    """``u / t^4 -> E[(v^T Hess l v)^2]/8`` for d the rank of F: nothing is left of the coupling."""
    problem = softmax(6, 2, 3, 2, seed)
    skill = problem.skill
    field = StaticProjection(random_smooth(skill.base, 0, seed + 7), skill.top_directions(skill.base, problem.rank))
    velocity = field(skill.base)
    expected = float(skill.weights @ curvatures(skill, velocity) ** 2) / 8
    assume(expected > 1e-6)
    path = field.derivatives(skill.base)
    stats = skill.statistics(path.velocity, path.acceleration)
    assert onset.leak(stats) < 1e-13
    assert onset.onset_coefficient(stats) ** 2 / 8 == pytest.approx(expected, rel=1e-9)
    t = np.array([1, 2, 4]) * 1e-3
    quotient = skill.utility_losses(flow(field, skill.base, t)) / t**4
    limit = (8 * quotient[0] - 6 * quotient[1] + quotient[2]) / 3
    assert limit == pytest.approx(expected, rel=1e-5)
    moved = flow(field, skill.base, np.array([0.5]))[0] - skill.base
    assert float((field.directions.T @ moved).norm()) < 1e-13


@pytest.mark.parametrize("sharpness", [1.0, 4.0])
def test_a_static_projection_in_closed_form_where_it_helps_nothing_and_where_it_harms(sharpness):
    skill = radius_skill(sharpness)
    first = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    t = np.array([1e-2, 0.3, 1.0])
    helpless = skill.utility_losses(flow(StaticProjection(straight, first), skill.base, t))
    np.testing.assert_allclose(helpless, sharpness / 2 * (np.sqrt(1 + t**2) - 1) ** 2, rtol=1e-10)
    path = flow(StaticProjection(minus_angle, first), skill.base, t)
    y = path[:, 1].numpy()
    np.testing.assert_allclose(y + y**3 / 3, t, rtol=1e-12)
    np.testing.assert_allclose(path[:, 0], 1, rtol=1e-15)
    harm = skill.utility_losses(path)
    np.testing.assert_allclose(harm, sharpness / 2 * (np.sqrt(1 + y**2) - 1) ** 2, rtol=1e-10)
    assert skill.utility_losses(flow(GradientFlow(minus_angle), skill.base, t)).max() < 1e-24 < harm.min()


@given(seeds, st.floats(0, 100))
def test_the_trust_region_step_minimises_its_model(seed, strength):
    problem = softmax(6, 2, 3, 1, seed)
    theta = 0.3 * normal(6, seed=seed)
    field = TrustRegion(problem.loss, problem.skill, strength)
    g, fisher = gradient(problem.loss, theta), problem.skill.fisher(theta)
    step = field(theta)
    assert float((g + step + strength * fisher @ step).norm()) < 1e-12 * (1 + strength)


@given(seeds)
def test_the_trust_region_between_its_two_limits(seed):
    problem = softmax(6, 2, 3, 0, seed)
    theta = problem.skill.base
    assert torch.equal(TrustRegion(problem.loss, problem.skill, 0.0)(theta), GradientFlow(problem.loss)(theta))
    tracked = TrackedProjection(problem.loss, problem.skill, problem.rank)(theta)
    least = float(torch.linalg.svdvals(problem.skill.fisher_factor(theta))[problem.rank - 1] ** 2)
    assume(least > 1e-3)
    size = float(gradient(problem.loss, theta).norm())
    for strength in (1e2, 1e4, 1e6):
        distance = float((TrustRegion(problem.loss, problem.skill, strength)(theta) - tracked).norm())
        assert distance <= size / (1 + strength * least) + 1e-9


def test_a_strong_trust_region_follows_the_tracked_path():
    problem = softmax(8, 2, 3, 0, 1)
    times = np.array([0.2, 0.4])
    tracked = flow(TrackedProjection(problem.loss, problem.skill, problem.rank), problem.skill.base, times)
    errors = [
        relative_error(flow(TrustRegion(problem.loss, problem.skill, mu), problem.skill.base, times), tracked)
        for mu in (1e3, 1e4)
    ]
    assert errors[1] < 0.02
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.3)  # of order 1/mu


def test_a_path_that_stands_still():
    skill = radius_skill()
    path = TrackedProjection(lambda theta: 0 * theta.sum(), skill, 1).derivatives(skill.base)
    assert not any(part.any() for part in path)


def test_no_derivative_of_the_projector_without_a_gap():
    base = torch.zeros(3, dtype=torch.float64)
    skill = GaussianSkill(lambda theta: theta[:2] + theta[2] ** 2, 1.0, base)
    with pytest.raises(ValueError, match="the projector of rank 1 turns abruptly here"):
        TrackedProjection(torch.sum, skill, 1).closed_form(base)
    TrackedProjection(torch.sum, skill, 2).closed_form(base)
    problem = softmax(8, 2, 3, 0, 0)
    assert fisher_rank(problem.skill) == 4
    with pytest.raises(ValueError, match="the projector of rank 5 turns abruptly here"):
        TrackedProjection(problem.loss, problem.skill, 5).closed_form(problem.skill.base)


def test_tracking_every_direction_stands_still():
    base = torch.zeros(2, dtype=torch.float64)
    skill = GaussianSkill(lambda theta: theta * torch.tensor([1.0, 2.0]) + theta**2, 1.0, base)
    velocity, acceleration = TrackedProjection(lambda theta: theta.sum() + theta[0] ** 2, skill, 2).closed_form(base)
    assert float(velocity.norm() + acceleration.norm()) < 1e-14


@pytest.mark.parametrize("directions", [torch.ones(3, 1), torch.ones(3), torch.eye(3)[:, [0, 0]], torch.ones(1, 2)])
def test_impossible_directions(directions):
    with pytest.raises(ValueError, match=r"the directions must be orthonormal columns \(n, d\), got shape"):
        StaticProjection(torch.sum, directions.double())


@pytest.mark.parametrize("strength", [-1.0, float("nan"), float("inf")])
def test_impossible_strengths(strength):
    with pytest.raises(ValueError, match="the strength mu must be at least 0 and finite"):
        TrustRegion(torch.sum, radius_skill(), strength)
