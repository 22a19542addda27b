from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from numeric_oracle import gradient, hessian

from commands.errors import UserError
from sim import problems
from sim.fields import GradientFlow
from sim.flow import flow
from sim.problems import Dials, dialled
from theory.aic import estimate

seeds = st.integers(0, 10**6)
sizes = st.one_of(st.just(0.0), st.floats(1e-3, 10))


@st.composite
def dials(draw):
    sharpness = draw(st.floats(0.1, 30))
    return Dials(
        sharpness=sharpness,
        overlap=draw(sizes),
        coupling=draw(sizes),
        curvature=draw(st.one_of(st.just(0.0), st.floats(-5, 5))),
        tail=sharpness * draw(st.sampled_from([0.0, 0.01, 0.5, 0.9])),
        dimension=draw(st.integers(3, 15)),
    )


def measured(problem, rank=None):
    path = GradientFlow(problem.loss).derivatives(problem.skill.base)
    stats = problem.skill.statistics(path.velocity, path.acceleration)
    return estimate(stats, rank or problem.rank, resamples=0)


@given(dials(), seeds)
def test_the_dials_are_what_is_measured(dial, seed):
    problem = dialled(dial, seed, "a case")
    assert problem.skill.dimension == dial.dimension
    assert problem.rank == 1
    assert problem.note == "a case"
    found = measured(problem)
    slope = 0.5 if dial.tail > 0 else 0.0
    leak = np.sqrt(dial.sharpness * dial.overlap**2 + dial.tail * slope**2)
    scale = 1 + dial.overlap + dial.coupling
    assert found.sharpness == pytest.approx(dial.sharpness, rel=1e-12)
    assert found.tail == pytest.approx(dial.tail, rel=1e-10, abs=1e-12 * dial.sharpness)
    assert found.gap == pytest.approx(dial.sharpness - dial.tail, rel=1e-10)
    assert found.overlap == pytest.approx(dial.overlap, rel=1e-10, abs=1e-12 * scale)
    assert found.coupling == pytest.approx(dial.coupling, rel=1e-10, abs=1e-11 * scale * (1 + dial.sharpness))
    assert found.leak == pytest.approx(leak, rel=1e-10, abs=1e-12 * scale * (1 + dial.sharpness))
    assert found.dimension == dial.dimension


@given(dials(), seeds)
def test_the_fisher_of_the_dials(dial, seed):
    """diag(lambda, 0, tail) in some orthonormal coordinates, and 0 in all others."""
    skill = dialled(dial, seed, "").skill
    values = torch.linalg.eigvalsh(skill.fisher(skill.base)).flip(0).numpy()
    expected = [dial.sharpness, dial.tail, *[0.0] * (dial.dimension - 2)]
    np.testing.assert_allclose(values, expected, rtol=1e-12, atol=1e-13 * dial.sharpness)


@given(dials(), seeds)
def test_without_a_leak_the_onset_coefficient_is_coupling_against_curvature(dial, seed):
    dial = dataclasses.replace(dial, overlap=0.0, tail=0.0)
    expected = abs(dial.coupling - np.sqrt(dial.sharpness) * dial.curvature)
    problem = dialled(dial, seed, "")
    assert measured(problem).onset_coefficient == pytest.approx(expected, rel=1e-10, abs=1e-11 * (1 + dial.coupling))
    assume(expected > 0.1)
    t = np.array([1e-3, 2e-3])
    quotient = problem.skill.utility_losses(flow(GradientFlow(problem.loss), problem.skill.base, t)) / t**4
    assert 2 * quotient[0] - quotient[1] == pytest.approx(expected**2 / 8, rel=1e-2)


@given(dials(), seeds)
def test_the_dialled_loss_in_its_own_coordinates(dial, seed):
    """The gradient's norm and the Hessian's eigenvalues, which no turn of the coordinates changes."""
    problem = dialled(dial, seed, "")
    g, h = gradient(problem.loss, problem.skill.base), hessian(problem.loss, problem.skill.base)
    slope = 0.5 if dial.tail > 0 else 0.0
    assert float(g.norm()) == pytest.approx(np.sqrt(1 + dial.overlap**2 + slope**2), rel=1e-12)
    b = dial.coupling / np.sqrt(dial.sharpness)
    expected = np.array([-b, *[0.0] * (dial.dimension - 2), b])
    np.testing.assert_allclose(torch.linalg.eigvalsh(h), expected, rtol=1e-12, atol=1e-13 * (1 + b))


def test_the_seed_turns_the_dialled_problem():
    one, same, other = (dialled(Dials(), seed, "") for seed in (1, 1, 2))
    theta = torch.linspace(-1, 1, 12, dtype=torch.float64)
    assert torch.equal(one.skill.base, same.skill.base)
    assert float(one.loss(theta)) == float(same.loss(theta))
    assert not torch.equal(one.skill.base, other.skill.base)
    assert float(one.loss(one.skill.base)) == 0


@pytest.mark.parametrize(
    ("dial", "message"),
    [
        ({"sharpness": 0.0}, r"--sharpness \(lambda\) must be positive, got 0.0"),
        ({"sharpness": -1.0}, r"--sharpness \(lambda\) must be positive, got -1.0"),
        ({"sharpness": float("nan")}, "--sharpness must be a finite number, got nan"),
        ({"curvature": float("inf")}, "--curvature must be a finite number, got inf"),
        ({"overlap": -0.5}, "--overlap must be at least 0, got -0.5"),
        ({"coupling": -2.0}, "--coupling must be at least 0, got -2.0"),
        ({"tail": -0.1}, "--tail must be at least 0, got -0.1"),
        ({"tail": 4.0}, "--tail must be below --sharpness, 4.0, got 4.0"),
        ({"sharpness": 1.0, "tail": 2.0}, "--tail must be below --sharpness, 1.0, got 2.0"),
        ({"dimension": 2}, "--dimension must be at least 3, got 2"),
    ],
)
def test_impossible_dials(dial, message):
    with pytest.raises(UserError, match=message):
        dialled(Dials(**dial), 0, "")


def test_the_circle_problem():
    problem = problems.circle(4.0)
    found = measured(problem)
    assert found.sharpness == pytest.approx(4)
    assert found.overlap == pytest.approx(0, abs=1e-15)
    assert found.coupling == pytest.approx(2)  # the paper's gamma, sqrt(lambda)
    assert found.leak == pytest.approx(0, abs=1e-15)
    assert found.onset_coefficient == pytest.approx(0, abs=1e-14)
    with pytest.raises(ValueError, match="the precision must be positive"):
        problems.radius_skill(-1.0)


@given(seeds, st.integers(1, 3), st.integers(2, 4), st.integers(3, 8), st.data())
def test_random_softmax_problems(seed, prompts, outcomes, n, data):
    kernel = data.draw(st.integers(0, n - 1))
    problem = problems.softmax(n, prompts, outcomes, kernel, seed)
    skill = problem.skill
    assert problem.rank == problems.fisher_rank(skill) == min(n - kernel, prompts * (outcomes - 1))
    g = gradient(problem.loss, skill.base)
    assert float(g.norm()) == pytest.approx(1)
    if kernel:
        assert not (skill.fisher(skill.base) @ g).any()
    for rank in range(1, problem.rank + 1):
        assert problems.softmax(n, prompts, outcomes, kernel, seed, rank).rank == rank
    for rank in (0, problem.rank + 1):
        with pytest.raises(UserError, match=rf"--rank must lie in 1\.\.{problem.rank}, .* got {rank}"):
            problems.softmax(n, prompts, outcomes, kernel, seed, rank)


@pytest.mark.parametrize(("overlap", "rank"), [(0.0, 12), (0.25, 12)])
def test_the_perceptron_problem(overlap, rank):
    problem = problems.perceptron(1, overlap)
    assert problem.rank == rank  # 6 prompts of 3 classes
    found = measured(problem)
    assert found.overlap == pytest.approx(overlap, rel=1e-9, abs=1e-12)
    assert found.numerical_rank == rank
    assert found.onset_coefficient > 0.01
    assert "2,931 parameters" in problem.note


def test_the_transformer_problem():
    problem = problems.transformer(1)
    assert problem.rank == 4 * 35  # 4 prompts of 36 responses
    found = measured(problem)
    assert found.overlap < 1e-11
    assert found.onset_coefficient > 0.01
    assert "9,648 parameters" in problem.note
