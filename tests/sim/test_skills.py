from __future__ import annotations

import itertools

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from numeric_oracle import curvatures, gradient, hessian, scores, taylor

from sim.fields import GradientFlow
from sim.flow import flow
from sim.losses import random_smooth
from sim.skills import GaussianSkill, Polynomial, SoftmaxSkill, path_derivatives, random_softmax
from theory import onset

seeds = st.integers(0, 10**6)


def normal(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_polynomial(base, outputs, seed):
    n = len(base)
    square, cube = normal(outputs, n, n, seed=seed), normal(outputs, n, n, n, seed=seed + 1)
    turned = [cube.permute(0, *order) for order in itertools.permutations((1, 2, 3))]
    return Polynomial(base, normal(outputs, n, seed=seed + 2), (square + square.mT) / 2, sum(turned) / 6)


@st.composite
def softmax_skills(draw, kernel=None):
    n = draw(st.integers(2, 6))
    kernel = draw(st.integers(0, n - 1)) if kernel is None else kernel
    return random_softmax(n, draw(st.integers(1, 3)), draw(st.integers(2, 4)), kernel, draw(seeds))


@st.composite
def gaussian_skills(draw):
    seed = draw(seeds)
    base = normal(draw(st.integers(1, 5)), seed=seed)
    return GaussianSkill(random_polynomial(base, draw(st.integers(1, 3)), seed + 1), draw(st.floats(0.1, 20)), base)


skills = st.one_of(softmax_skills(), gaussian_skills())


def policies(skill, theta):
    """Probabilities of the outcomes at theta, one prompt at a time."""
    rows = torch.softmax(skill.logits(theta), dim=1)
    return torch.cat([p * row for p, row in zip(skill.prompts, rows, strict=True)])


@given(softmax_skills(), seeds)
def test_the_softmax_fisher_is_the_sum_over_outcomes(skill, seed):
    theta = skill.base + 0.5 * normal(skill.dimension, seed=seed)
    expected = sum(p * torch.outer(s, s) for p, s in zip(policies(skill, theta), scores(skill, theta), strict=True))
    torch.testing.assert_close(skill.fisher(theta), expected, rtol=0, atol=1e-14)


@given(gaussian_skills(), seeds)
def test_the_gaussian_fisher_is_the_jacobians_square(skill, seed):
    theta = skill.base + 0.5 * normal(skill.dimension, seed=seed)
    rows = [gradient(lambda t, i=i: skill.mean(t)[i], theta) for i in range(len(skill.mean(theta)))]
    expected = sum(skill.precision * torch.outer(row, row) for row in rows)
    torch.testing.assert_close(skill.fisher(theta), expected, rtol=1e-13, atol=1e-13)


@given(skills)
def test_at_the_base_point_the_quadrature_gives_the_same_fisher(skill):
    s = skill.scores()
    torch.testing.assert_close(s, scores(skill, skill.base), rtol=1e-12, atol=1e-13)
    assert float(skill.weights.sum()) == pytest.approx(1, abs=1e-14)
    scale = 1 + float(s.norm()) ** 2
    assert float((skill.weights @ s).norm()) < 1e-14 * scale  # Assumption 1: the mean score vanishes
    assert float((s.T @ (skill.weights[:, None] * s) - skill.fisher(skill.base)).norm()) < 1e-14 * scale


@given(softmax_skills())
def test_the_softmax_fisher_is_the_hessian_of_the_divergence(skill):
    base = skill.log_probabilities(skill.base)
    divergence = hessian(
        lambda theta: (
            base.exp()
            @ torch.repeat_interleave(skill.prompts, len(base) // len(skill.prompts)).mul(
                base - skill.log_probabilities(theta)
            )
        ),
        skill.base,
    )
    torch.testing.assert_close(skill.fisher(skill.base), divergence, rtol=0, atol=1e-13)


@given(gaussian_skills())
def test_the_gaussian_fisher_is_the_hessian_of_the_divergence(skill):
    def divergence(theta):
        return skill.precision * (skill.mean(theta) - skill.mean(skill.base)).square().sum() / 2

    expected = hessian(divergence, skill.base)
    torch.testing.assert_close(skill.fisher(skill.base), expected, rtol=1e-12, atol=1e-12)


@given(skills, seeds)
def test_top_directions_are_the_top_eigenvectors(skill, seed):
    theta = skill.base + 0.3 * normal(skill.dimension, seed=seed)
    full = min(skill.fisher_factor(theta).shape)
    values, vectors = torch.linalg.eigh(skill.fisher(theta))
    for rank in range(1, full + 1):
        columns = skill.top_directions(theta, rank)
        torch.testing.assert_close(columns.T @ columns, torch.eye(rank, dtype=torch.float64), rtol=0, atol=1e-13)
        energies = (columns.T @ skill.fisher(theta) @ columns).diagonal()
        torch.testing.assert_close(energies, values.flip(0)[:rank], rtol=0, atol=1e-12 * float(values[-1]))
        if rank < len(values) and values[-rank] - values[-rank - 1] > 1e-3 * values[-1]:
            projector = vectors[:, -rank:] @ vectors[:, -rank:].T
            torch.testing.assert_close(columns @ columns.T, projector, rtol=0, atol=1e-10)
    for rank in (0, full + 1):
        with pytest.raises(ValueError, match=rf"the rank must lie in 1\.\.{full} for this skill, got {rank}"):
            skill.top_directions(theta, rank)


@given(skills, seeds)
def test_statistics_are_the_naive_transcription(skill, seed):
    v, a = normal(skill.dimension, seed=seed), normal(skill.dimension, seed=seed + 1)
    stats = skill.statistics(v, a)
    s = scores(skill, skill.base)
    close = {"rtol": 1e-11, "atol": 1e-11 * float(1 + s.norm()) ** 2}
    np.testing.assert_allclose(stats.gram, [[float(x @ y) for y in s] for x in s], **close)
    np.testing.assert_allclose(stats.velocity, [float(x @ v) for x in s], **close)
    np.testing.assert_allclose(stats.acceleration, [float(x @ a) for x in s], **close)
    np.testing.assert_allclose(stats.curvature, curvatures(skill, v), **close)
    np.testing.assert_allclose(stats.sample_weights, skill.weights, rtol=1e-15)
    assert stats.velocity_squared == pytest.approx(float(v @ v), rel=1e-14)
    assert stats.acceleration_squared == pytest.approx(float(a @ a), rel=1e-14)
    assert stats.velocity_dot_acceleration == pytest.approx(float(v @ a), rel=1e-12, abs=1e-14)
    assert stats.dimension == skill.dimension
    assert stats.fisher == "exact"


@given(gaussian_skills(), seeds)
def test_gaussian_moments_along_a_path_in_closed_form(skill, seed):
    v, a, j = (normal(skill.dimension, seed=seed + i) for i in range(3))
    m1, m2, m3 = path_derivatives(skill.mean, skill.base, v, a, j)
    first, second, third = path_derivatives(skill.log_probabilities, skill.base, v, a, j)
    p, w = skill.precision, skill.weights
    speed, turn = m1 @ m1, m1 @ m2
    closed = {
        w @ first: 0 * speed,
        w @ first**2: p * speed,
        w @ (first * second): p * turn,
        w @ second: -p * speed,
        w @ second**2: p * m2 @ m2 + p**2 * speed**2,
        w @ first**3: 0 * speed,
        w @ first**4: 3 * p**2 * speed**2,
        w @ (second * third): p * m2 @ m3 + 3 * p**2 * speed * turn,
    }
    scale = float(1 + (w @ (first**2 + second**2 + third**2)) ** 2)
    for moment, expected in closed.items():
        assert float(moment) == pytest.approx(float(expected), rel=1e-11, abs=1e-13 * scale)
    stats = skill.statistics(v, a)
    assert onset.leak(stats) ** 2 == pytest.approx(float(p * speed), rel=1e-11, abs=1e-13 * scale)
    assert onset.onset_coefficient(stats) ** 2 == pytest.approx(float(p * m2 @ m2 + p**2 * speed**2), rel=1e-11)
    assert skill.fifth(v, a, j) == pytest.approx(float(w @ (second * third)), rel=1e-12)


@given(seeds, st.integers(1, 4))
def test_path_derivatives_of_polynomials(seed, n):
    base = normal(n, seed=seed)
    v, a, j = (normal(n, seed=seed + i) for i in (1, 2, 3))
    p = random_polynomial(base, 2, seed + 4)
    first, second, third = path_derivatives(p, base, v, a, j)
    torch.testing.assert_close(first, p.linear @ v)
    torch.testing.assert_close(second, p.linear @ a + torch.einsum("kij,i,j->k", p.quadratic, v, v))
    cubic = torch.einsum("kijl,i,j,l->k", p.cubic, v, v, v)
    torch.testing.assert_close(third, p.linear @ j + 3 * torch.einsum("kij,i,j->k", p.quadratic, v, a) + cubic)
    straight = path_derivatives(p, base, v)
    torch.testing.assert_close(straight[1], torch.einsum("kij,i,j->k", p.quadratic, v, v))
    torch.testing.assert_close(straight[2], cubic)


@given(seeds, st.integers(1, 4))
def test_the_polynomial_is_what_it_says(seed, n):
    base, theta = normal(n, seed=seed), normal(n, seed=seed + 1)
    p, d = random_polynomial(base, 3, seed + 2), theta - base
    quadratic = p.linear @ d + torch.einsum("kij,i,j->k", p.quadratic, d, d) / 2
    torch.testing.assert_close(p(theta), quadratic + torch.einsum("kijl,i,j,l->k", p.cubic, d, d, d) / 6)
    torch.testing.assert_close(Polynomial(base, p.linear, p.quadratic)(theta), quadratic)


@given(softmax_skills(), seeds)
def test_derivatives_along_a_curved_path_against_interpolation(skill, seed):
    v, a, j = (normal(skill.dimension, seed=seed + i) for i in range(3))

    def values_at(times):
        return [skill.log_probabilities(skill.base + t * v + t**2 / 2 * a + t**3 / 6 * j) for t in times]

    expected = taylor(lambda times: torch.stack(values_at(times)), radius=0.02)[1:]
    for order, value in enumerate(path_derivatives(skill.log_probabilities, skill.base, v, a, j)):
        scale = 1 + float(value.norm())
        torch.testing.assert_close(value, expected[order], rtol=0, atol=(1e-11, 1e-9, 1e-6)[order] * scale)


@given(seeds, st.floats(-8, 0))
def test_the_softmax_utility_loss_is_the_divergence_near_and_far(seed, exponent):
    """Against 60 digits; the rounding of a log-probability, about 1e-16, is all that a loss of size d^2 may show."""
    offsets, base = normal(2, 3, seed=seed), torch.zeros(2, dtype=torch.float64)
    flat = random_polynomial(base, 6, seed + 1)
    prompts = torch.tensor([0.25, 0.75], dtype=torch.float64)
    skill = SoftmaxSkill(lambda theta: offsets + flat(theta).reshape(2, 3), prompts, base)
    theta = 10**exponent * normal(2, seed=seed + 5)
    with mpmath.workdps(60):
        x = [mpmath.mpf(float(value)) for value in theta]
        exact = exact_divergence(offsets, flat, prompts, x)
        change = max(abs(float(c)) for c in skill.log_probabilities(theta) - skill.log_probabilities(base))
        assume(change > 0)
        error = abs(mpmath.mpf(float(skill.utility_losses(theta[None])[0])) - exact)
    assert error < 5e-15 * (change + change**2)


def exact_divergence(offsets, flat, prompts, x):
    def log_probabilities(prompt, point):
        logits = []
        for k in range(3):
            value, i = mpmath.mpf(float(offsets[prompt, k])), 3 * prompt + k
            for a, xa in enumerate(point):
                value += mpmath.mpf(float(flat.linear[i, a])) * xa
                for b, xb in enumerate(point):
                    value += mpmath.mpf(float(flat.quadratic[i, a, b])) * xa * xb / 2
                    for c, xc in enumerate(point):
                        value += mpmath.mpf(float(flat.cubic[i, a, b, c])) * xa * xb * xc / 6
            logits.append(value)
        total = mpmath.log(sum(mpmath.exp(value) for value in logits))
        return [value - total for value in logits]

    loss = mpmath.mpf(0)
    for prompt, share in enumerate(prompts):
        old, new = log_probabilities(prompt, [0 * value for value in x]), log_probabilities(prompt, x)
        loss += mpmath.mpf(float(share)) * sum(mpmath.exp(o) * (o - n) for o, n in zip(old, new, strict=True))
    return loss


@given(gaussian_skills(), seeds)
def test_the_gaussian_utility_loss_is_the_divergence_of_two_normals(skill, seed):
    thetas = skill.base + 0.2 * normal(3, skill.dimension, seed=seed)
    for theta, loss in zip(thetas, skill.utility_losses(thetas), strict=True):
        dense = [
            torch.distributions.MultivariateNormal(
                skill.mean(t), precision_matrix=skill.precision * torch.eye(len(skill.mean(t)), dtype=torch.float64)
            )
            for t in (skill.base, theta)
        ]
        assert loss == pytest.approx(float(torch.distributions.kl_divergence(*dense)), rel=1e-9, abs=1e-14)


@given(skills, seeds)
def test_the_coordinates_carry_the_utility_loss_up_to_the_distortion(skill, seed):
    thetas = skill.base + torch.tensor([[0.0], [1e-3], [0.1], [0.5]]) * normal(skill.dimension, seed=seed)
    c = torch.stack([skill.coordinates(theta) for theta in thetas])
    drop, rise = skill.distortion(c)
    size = (c.square() @ skill.coordinate_weights).sqrt().numpy()
    assert size[0] == 0
    root = np.sqrt(2 * skill.utility_losses(thetas))
    assert (np.sqrt(np.maximum(1 - drop / 3, 0)) * size <= root * (1 + 1e-12) + 1e-15).all()
    assert (root <= np.exp(rise / 2) * size * (1 + 1e-12) + 1e-15).all()
    if isinstance(skill, GaussianSkill):
        assert not drop.any()
        assert not rise.any()


@given(st.integers(2, 6), st.integers(1, 3), st.integers(2, 4), seeds, st.data())
def test_the_quartic_law_and_its_next_term(n, prompts, outcomes, seed, data):
    """With ``F g = 0``: ``u / t^4 = gamma_*^2/8 + E[l'' l'''] t/12 + O(t^2)`` under gradient flow."""
    kernel = data.draw(st.integers(1, n - 1))
    skill = random_softmax(n, prompts, outcomes, kernel, seed)
    field = GradientFlow(random_smooth(skill.base, kernel, seed + 1))
    path = field.derivatives(skill.base)
    stats = skill.statistics(path.velocity, path.acceleration)
    leak, gamma = onset.leak(stats), onset.onset_coefficient(stats)
    fifth = skill.fifth(*path)
    assume(gamma > 0.05)
    low, high = onset.quartic_window(leak, gamma, fifth)
    assert low < 1e-12
    last = min(high, 0.04)
    t = last * (1 + np.cos(np.pi * (np.arange(9) + 0.5) / 9)[::-1]) / 2
    t[0] = last / 60
    quotient = skill.utility_losses(flow(field, skill.base, t)) / t**4
    fit = np.polynomial.polynomial.polyfit(t / last, quotient, 6, w=t / last)
    assert fit[0] == pytest.approx(gamma**2 / 8, rel=1e-6)
    assert fit[1] / last == pytest.approx(fifth / 12, abs=1e-4 * (gamma**2 + abs(fifth)))


def test_the_random_softmax_is_blind_to_its_kernel_and_no_more():
    skill = random_softmax(7, 3, 4, 3, 5)
    fisher = skill.fisher(skill.base)
    assert not fisher[4:].any()
    assert not fisher[:, 4:].any()
    assert int(torch.linalg.matrix_rank(fisher)) == 4
    assert float(skill.prompts.sum()) == pytest.approx(1)
    again, other = random_softmax(7, 3, 4, 3, 5), random_softmax(7, 3, 4, 3, 6)
    theta = normal(7, seed=1)
    assert torch.equal(again.log_probabilities(theta), skill.log_probabilities(theta))
    assert not torch.equal(other.log_probabilities(theta), skill.log_probabilities(theta))
    doubled = random_softmax(7, 3, 4, 3, 5, scale=2.0)
    change = skill.logits(theta) - skill.logits(skill.base)
    torch.testing.assert_close(doubled.logits(theta) - doubled.logits(doubled.base), 2 * change)


@pytest.mark.parametrize("sizes", [(0, 1, 2, 0), (3, 0, 2, 0), (3, 1, 1, 0), (3, 1, 2, 3), (3, 1, 2, -1)])
def test_impossible_random_softmax_sizes(sizes):
    with pytest.raises(ValueError, match="outcomes from 2 and a kernel in 0"):
        random_softmax(*sizes, seed=0)


BASE = torch.zeros(2, dtype=torch.float64)


@pytest.mark.parametrize(
    ("prompts", "logits", "base", "message"),
    [
        ([0.5, 0.6], torch.zeros(2, 3), BASE, r"probabilities that sum to 1, got \[0.5, 0.6"),
        ([1.5, -0.5], torch.zeros(2, 3), BASE, "probabilities that sum to 1"),
        ([0.5, 0.5], torch.zeros(4, 3), BASE, r"logits of shape \(2, K\), one row a prompt, got \(4, 3\)"),
        ([0.5, 0.5], torch.zeros(6), BASE, r"got \(6,\)"),
        ([0.5, 0.5], torch.zeros(2, 3), BASE.float(), "must be a float64 vector, got torch.float32 of shape"),
        ([0.5, 0.5], torch.zeros(2, 3), BASE[None], r"float64 vector, got torch.float64 of shape \(1, 2\)"),
    ],
)
def test_impossible_softmax_skills(prompts, logits, base, message):
    with pytest.raises(ValueError, match=message):
        SoftmaxSkill(lambda theta: logits, torch.tensor(prompts, dtype=torch.float64), base)


@pytest.mark.parametrize("precision", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_precisions(precision):
    with pytest.raises(ValueError, match="the precision must be positive and finite"):
        GaussianSkill(lambda theta: theta, precision, BASE)


@pytest.mark.parametrize("outputs", [torch.zeros(()), torch.zeros(0), torch.zeros(5), torch.zeros(2, 2)])
def test_impossible_means(outputs):
    with pytest.raises(ValueError, match="a vector of 1 to 4 outputs"):
        GaussianSkill(lambda theta: outputs, 1.0, BASE)
