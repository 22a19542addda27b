from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from numeric_oracle import gradient, hessian, taylor

from sim.losses import minus_angle, random_smooth, straight, tight, with_overlap
from sim.problems import radius_skill, softmax
from sim.skills import random_softmax

seeds = st.integers(0, 10**6)


def normal(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.floats(-3, 3), st.floats(0.1, 2), st.floats(0, 3))
def test_the_plane_losses(angle, radius, beta):
    x, y = radius * math.cos(angle), radius * math.sin(angle)
    theta = torch.tensor([x, y], dtype=torch.float64)
    assert float(minus_angle(theta)) == pytest.approx(-angle, abs=1e-12)
    assert float(gradient(minus_angle, theta) @ theta) == pytest.approx(0, abs=1e-14)
    assert float(gradient(minus_angle, theta).norm()) == pytest.approx(1 / radius)
    assert float(straight(theta)) == -theta[1]
    assert float(tight(beta)(theta)) == pytest.approx(-y + beta * (x - 1) * y, abs=1e-12)


@given(seeds, st.integers(2, 6), st.data())
def test_the_random_loss_is_a_quadratic_up_to_third_order(seed, n, data):
    kernel = data.draw(st.integers(0, n))
    base = normal(n, seed=seed)
    loss = random_smooth(base, kernel, seed + 1)
    g = gradient(loss, base)
    assert float(loss(base)) == 0
    assert float(g.norm()) == pytest.approx(1)
    if kernel:
        assert not g[: n - kernel].any()
    u = normal(n, seed=seed + 2) / n**0.5
    _, first, second, third = taylor(lambda ts: torch.stack([loss(base + t * u)[None] for t in ts]), radius=0.2)
    assert float(first) == pytest.approx(float(g @ u), abs=1e-11)
    assert float(second) == pytest.approx(float(u @ hessian(loss, base) @ u), abs=1e-9)
    assert abs(float(third)) > 1e-6  # not a quadratic
    flat = random_smooth(base, kernel, seed + 1, waves=0)
    torch.testing.assert_close(hessian(flat, base), hessian(loss, base), rtol=0, atol=1e-12)
    assert torch.equal(random_smooth(base, kernel, seed + 1)(base + u), loss(base + u))


@pytest.mark.parametrize("kernel", [-1, 4])
def test_impossible_kernels(kernel):
    with pytest.raises(ValueError, match=rf"the kernel must lie in 0\.\.3, got {kernel}"):
        random_smooth(torch.zeros(3, dtype=torch.float64), kernel, 0)


@given(seeds, st.integers(1, 4), st.one_of(st.just(0.0), st.floats(1e-6, 10)))
def test_an_overlap_to_order(seed, rank, overlap):
    skill = random_softmax(6, 2, 3, 0, seed)
    loss = random_smooth(skill.base, 0, seed + 1)
    values, vectors = torch.linalg.eigh(skill.fisher(skill.base))
    assume(values[-rank] - values[-rank - 1] > 1e-2 * values[-1])
    top = vectors[:, -rank:]
    before, g = gradient(loss, skill.base), gradient(with_overlap(loss, skill, rank, overlap), skill.base)
    assert float((top.T @ g).norm()) == pytest.approx(overlap, rel=1e-7, abs=1e-12)
    torch.testing.assert_close(g - top @ (top.T @ g), before - top @ (top.T @ before), rtol=0, atol=1e-11)
    moved = skill.base + normal(6, seed=seed)
    after = with_overlap(loss, skill, rank, overlap)
    torch.testing.assert_close(hessian(after, moved), hessian(loss, moved), rtol=0, atol=1e-12)
    if overlap:  # the direction inside stays
        torch.testing.assert_close(
            top @ (top.T @ g) / overlap * (top.T @ before).norm(), top @ (top.T @ before), rtol=0, atol=1e-7
        )


def test_no_overlap_with_the_whole_range_is_no_leak():
    case = softmax(6, 2, 3, 0, 3)
    g = gradient(with_overlap(case.loss, case.skill, case.rank, 0.0), case.skill.base)
    # F itself is rounded, so that g^T F g would say no more than eps |F| |g|^2; its factor says eps^2 of that
    factor = case.skill.fisher_factor(case.skill.base)
    assert float((factor @ g).norm()) < 1e-14 * float(factor.norm() * g.norm())


def test_overlaps_that_cannot_be_had():
    skill = radius_skill()
    for overlap in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="the overlap is a norm, finite and not negative, got"):
            with_overlap(straight, skill, 1, overlap)
    with pytest.raises(ValueError, match="no overlap that could be scaled; give the loss one, or ask for 0"):
        with_overlap(straight, skill, 1, 0.1)
    g = gradient(with_overlap(straight, skill, 1, 0.0), skill.base)
    torch.testing.assert_close(g, torch.tensor([0.0, -1.0], dtype=torch.float64))


@pytest.mark.parametrize("seed", range(5))
def test_rounding_is_no_overlap(seed):
    case = softmax(7, 3, 4, 3, seed)  # F g = 0 by construction
    with pytest.raises(ValueError, match="no overlap that could be scaled"):
        with_overlap(case.loss, case.skill, case.rank, 0.1)
