from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands_of_sim import Refusal, result, run
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, hessian

from commands.progress import Progress
from sim.experiments import optimizers
from sim.experiments.optimizers import Options, Runs, adam_acceleration, matrix_problem, moments, transposed
from sim.fields import GradientFlow
from sim.optimizers import main, tables

OPTIONS = Options(4, 5, 1e-4, 0.2, 0.9, 3e-4, 1e-4, 2, 4000, 0)
QUIET = (
    "gradient flow", "gradient descent", "cosine schedule", "heavy ball", "SGD", "weight decay", "LoRA, output side",
)  # fmt: skip
LOUD = ("LoRA, input side", "preconditioned", "sign descent", "Adam")


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    torch.set_num_threads(1)
    return optimizers.compute(OPTIONS, Progress(quiet=True))


def test_every_optimiser_is_there(found: dict[str, Any]) -> None:
    assert set(found["optimizers"]) == {*QUIET, *LOUD}


@pytest.mark.parametrize("name", QUIET)
def test_quiet_updates_have_the_predicted_leak_coefficient_and_crossover(found: dict[str, Any], name: str) -> None:
    one = found["optimizers"][name]
    assert one["measured_leak"] == pytest.approx(one["leak"], rel=5e-3)
    assert one["coefficient"] == pytest.approx(one["predicted_coefficient"], rel=5e-3)
    assert one["crossover"] == pytest.approx(one["predicted_crossover"], rel=2e-2)


@pytest.mark.parametrize("name", LOUD)
def test_loud_updates_leak_though_the_gradient_does_not(found: dict[str, Any], name: str) -> None:
    one = found["optimizers"][name]
    assert one["leak"] > 100 * found["optimizers"]["gradient flow"]["leak"]
    assert one["measured_leak"] == pytest.approx(one["leak"], rel=1e-3)
    assert one["coefficient"] is None


def test_the_leak_of_the_gradient_is_the_one_asked_for() -> None:
    problem = matrix_problem(4, 1e-3, 1)
    fisher = problem.skill.fisher(problem.skill.base)
    g = grad(problem.loss)(problem.skill.base)
    largest = torch.linalg.eigvalsh(fisher)[-1]
    assert float(g @ fisher @ g) == pytest.approx(1e-6 * float(largest), rel=1e-9)
    quiet = grad(matrix_problem(4, 0.0, 1).loss)(problem.skill.base)
    assert float((fisher @ quiet).abs().max()) < 1e-14
    assert float(quiet.abs().min()) > 0  # no coordinate of it is special


def test_steps_cut_the_hessian_and_noise_adds_a_leak(found: dict[str, Any]) -> None:
    problem = matrix_problem(4, 1e-4, 0)
    skill, base = problem.skill, problem.skill.base
    g, fisher = grad(problem.loss)(base), skill.fisher(base)
    turned = hessian(problem.loss)(base) @ g
    log_hessian = hessian(lambda theta: skill.log_probabilities(theta))(base)
    curvature = torch.einsum("yij,i,j->y", log_hessian, g, g)
    weights = skill.weights
    for name, factor in (("gradient flow", 1.0), ("gradient descent", 1 - 1 / 5), ("SGD", 1 - 1 / 5)):
        second = factor * skill.scores() @ turned + curvature
        expected = float(weights @ second.square()) ** 0.5
        assert found["optimizers"][name]["onset_coefficient"] == pytest.approx(expected, rel=1e-9)
    leak = float(g @ fisher @ g) + 3e-4**2 * float(fisher.trace()) / 5
    assert found["optimizers"]["SGD"]["leak"] == pytest.approx(leak**0.5, rel=1e-9)


def test_the_noise_has_exactly_its_covariance() -> None:
    problem = matrix_problem(4, 1e-4, 0)
    n, steps, noise = 16, 3, 0.1
    optimizer = optimizers._noisy(problem, steps, noise, torch.Generator().manual_seed(0))
    t = 1e-3
    ends = optimizer.path(np.array([t]))[0]
    assert len(ends) == 2 * n * steps
    moved = (ends - ends.mean(dim=0)) / t  # to first order the mean of the noise over the steps
    covariance = moved.T @ moved / len(ends)
    expected = noise**2 / steps * torch.eye(n, dtype=torch.float64)
    assert float((covariance - expected).abs().max()) < 5e-3 * noise**2 / steps


@pytest.mark.parametrize("name", [*QUIET, *LOUD])
def test_velocity_and_acceleration_are_those_of_the_path(name: str) -> None:
    torch.set_num_threads(1)
    optimizer = optimizers.optimizers(matrix_problem(4, 1e-2, 3), Options(4, 5, 1e-2, 1.0, 0.5, 1e-6, 0.1, 2, 80, 3))[
        name
    ]
    t = np.array([1.0, 2.0, 4.0]) * (5e-5 if name in ("Adam", "sign descent") else 1e-3)
    moved = optimizer.path(t).mean(dim=1) - optimizer.problem.skill.base
    # of the cubic through 0 and three points
    velocity, acceleration, _ = np.linalg.solve(np.stack([t, t**2 / 2, t**3 / 6], axis=1), moved.numpy())
    assert velocity == pytest.approx(optimizer.velocity.numpy(), abs=2e-6)
    scale = max(1.0, float(optimizer.acceleration.abs().max()))
    assert acceleration == pytest.approx(optimizer.acceleration.numpy(), abs=5e-4 * scale)


@given(st.lists(st.floats(0.1, 2), min_size=1, max_size=8), st.floats(0, 0.95))
def test_moments_are_those_of_the_steps(weights: list[float], momentum: float) -> None:
    # on the loss g theta + h theta^2 / 2 to first order in h: theta = -A g + B h g
    push, first, bend, bent = 0.0, 0.0, 0.0, 0.0
    for w in weights:
        push, bend = momentum * push + w, momentum * bend + w * first
        first, bent = first + push, bent + bend
    reach, second, squares = moments(np.array(weights), momentum)
    assert reach == pytest.approx(first, rel=1e-12)
    assert second == pytest.approx(bent, rel=1e-12, abs=1e-14)
    if momentum == 0:
        assert second == pytest.approx((reach**2 - sum(w * w for w in weights)) / 2, rel=1e-9, abs=1e-9)
        assert squares == pytest.approx(sum(w * w for w in weights), rel=1e-12)


def test_moments_of_equal_steps_in_closed_form() -> None:
    assert moments(np.ones(7), 0.0) == (7, 21, 7)


def test_one_step_of_adam_does_not_bend() -> None:
    problem = matrix_problem(4, 1e-3, 0)
    assert float(adam_acceleration(problem.loss, problem.skill.base, 1).abs().max()) == 0


def test_transposing_changes_nothing_but_the_order() -> None:
    problem = matrix_problem(4, 1e-3, 0)
    other = transposed(problem, 4)
    theta = problem.skill.base + torch.linspace(-1, 1, 16, dtype=torch.float64)
    turned = theta.reshape(4, 4).T.flatten()
    assert float(other.loss(turned)) == float(problem.loss(theta))
    assert other.skill.utility_losses(turned[None]) == problem.skill.utility_losses(theta[None])


def test_runs_move_each_for_its_own_time() -> None:
    field = GradientFlow(lambda theta: (theta**4).sum())
    states = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    moved = Runs(field, torch.tensor([1.0, 0.5], dtype=torch.float64))(states.flatten()).reshape(2, 2)
    assert torch.equal(moved, -4 * states**3 * torch.tensor([[1.0], [0.5]]))


def test_adams_first_step_leaks_36_per_cent_of_chance(found: dict[str, Any]) -> None:
    for one in found["sign_step"]:
        assert abs(one["share"] - one["predicted_share"]) < 4.5 * one["standard_error"]
        assert one["standard_error"] < 0.01
    assert found["sign_step"][-1]["predicted_share"] == pytest.approx(1 - 2 / math.pi, abs=1e-3)


def test_without_an_overlap_there_is_no_crossover() -> None:
    torch.set_num_threads(1)
    problem = matrix_problem(4, 0.0, 0)
    options = Options(4, 4, 0.0, 0.1, 0.9, 0.0, 0.0, 1, 80, 0)
    chosen = optimizers.optimizers(problem, options)
    for name in ("gradient flow", "heavy ball", "SGD", "LoRA, output side"):
        one = optimizers.measure(chosen[name], np.geomspace(1e-4, 0.1, 41))
        assert one["leak"] == 0
        assert one["measured_leak"] == 0
        assert one["predicted_crossover"] is None
        assert one["crossover"] is None
        assert one["coefficient"] == pytest.approx(one["predicted_coefficient"], rel=5e-3), name


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--width", "3"], "--width must lie in 4..8, got 3"),
        (["--steps", "1"], "--steps must lie in 2..32, got 1"),
        (["--overlap", "-1"], "--overlap must be 0 or lie in 1e-05..1, got -1.0"),
        (["--horizon", "0"], "--horizon must lie in 0.01..1, got 0.0"),
        (["--momentum", "1"], "--momentum must lie in [0, 1), got 1.0"),
        (["--noise", "nan"], "--noise must lie in 0..1, got nan"),
        (["--decay", "2"], "--decay must lie in 0..1, got 2.0"),
        (["--lora-rank", "6"], "--lora-rank must lie in 1..5, got 6"),
        (["--trials", "1"], "--trials must lie in 80..1000000, got 1"),
        (["--seed", "-1"], "--seed must lie in 0.."),
    ],
)
def test_wrong_input_is_one_line(refusal: Refusal, arguments: list[str], words: str) -> None:
    assert words in refusal(main, "--json", *arguments)


def test_the_command_writes_result_picture_and_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    few = ("--width", "4", "--steps", "2", "--trials", "80")
    assert run(monkeypatch, main, *few, "--plot", "--out", str(tmp_path / "run")) == 0
    shown = capsys.readouterr().out
    assert "LoRA, input side" in shown
    assert "arcsine law" in shown
    assert (tmp_path / "run" / "optimizers.png").read_bytes().startswith(b"\x89PNG")
    again = result(monkeypatch, capsys, main, tmp_path / "run", *few)
    assert again["schema_version"] == 1
    assert len(tables(again)) == 2
