"""What each optimiser does to leak, onset coefficient and crossover on one problem, and what a sign step leaks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, vmap

from commands.errors import UserError
from commands.progress import Progress
from sim import problems
from sim.experiments.readings import NoFitError, onset_fit, predict, slope_crosses
from sim.fields import (
    Derivatives,
    Field,
    GradientFlow,
    LowRank,
    Preconditioned,
    SignDescent,
    WeightDecay,
    hessian_product,
)
from sim.flow import DivergedError, adam, descend, flow
from sim.problems import Problem
from sim.skills import SoftmaxSkill
from theory import onset
from theory.ledger.optimizers import gains
from theory.ledger.sign_step import sign_energy
from theory.null_model import OverlapLaw

POINTS = 61
BETAS = (0.9, 0.999)  # of Adam, its defaults
_BEFORE_CROSSOVER = 30.0
_DECADES = 1e-3  # times shown below the horizon at least
_FIT = 0.3  # of the horizon: where leak and onset coefficient are read
_EARLY = 0.03  # of the horizon: a crossover before it leaves a decade of quartic onset to read
_PROMPTS, _OUTCOMES = 2, 3
_SIGN_RANK = 4
_SIGN_DIMENSIONS = (16, 64, 256, 1024)
_SUBSPACES = 8


@dataclass(frozen=True)
class Options:
    """The options of the command.

    Attributes:
        width: the parameters are a matrix of width x width.
        steps: K of the discrete optimisers.
        overlap: epsilon, of the gradient with the sharpest direction.
        horizon: T.
        momentum: mu of heavy ball.
        noise: standard deviation of each coordinate of the gradient in SGD.
        decay: c of weight decay.
        lora_rank: r.
        trials: gradients of the sign-step experiment in each dimension.
        seed: of everything random.
    """

    width: int
    steps: int
    overlap: float
    horizon: float
    momentum: float
    noise: float
    decay: float
    lora_rank: int
    trials: int
    seed: int


@dataclass(frozen=True, eq=False)
class Optimizer:
    """A path of parameters as a function of the time T that was trained, and its derivatives at 0.

    Attributes:
        problem: what it moves on.
        velocity: shape (n,).
        acceleration: of the path in T, the number of steps fixed, shape (n,).
        path: times (T,) to parameters (T, B, n), B runs to be averaged.
        noise_leak: what noise adds to the square of the leak.
    """

    problem: Problem
    velocity: Tensor
    acceleration: Tensor
    path: Callable[[np.ndarray], Tensor]
    noise_leak: float = 0.0


def matrix_problem(width: int, overlap: float, seed: int) -> Problem:
    """A softmax skill of a matrix W and a loss whose gradient is ``epsilon u + (a matrix in the kernel of F)``.

    F sees only some of the outputs (rows) of W, after a turn of the outputs at random, so that no coordinate is
    special; u is the sharpest direction, unit length. The base point is not the origin, so that weight decay pulls.
    """
    n, kernel = width**2, width // 2 * width
    flat = problems.softmax(n, _PROMPTS, _OUTCOMES, kernel, seed)
    assert isinstance(flat.skill, SoftmaxSkill)
    inner = flat.skill
    rng = torch.Generator().manual_seed(seed + 2)
    turn = torch.linalg.qr(torch.randn(width, width, generator=rng, dtype=torch.float64)).Q
    base = torch.randn(n, generator=rng, dtype=torch.float64)

    def turned(theta: Tensor) -> Tensor:
        return (turn @ (theta - base).reshape(width, width)).flatten()

    skill = SoftmaxSkill(lambda theta: inner.logits(turned(theta)), inner.prompts, base)
    sharpest = skill.top_directions(base, 1)[:, 0]

    def loss(theta: Tensor) -> Tensor:
        return flat.loss(turned(theta)) + overlap * sharpest @ (theta - base)

    return Problem(skill, loss, flat.rank, f"{flat.note} in a {width} x {width} matrix, F of rank {flat.rank}")


def transposed(problem: Problem, width: int) -> Problem:
    """The same problem in the entries of the transposed matrix: nothing changes, except for LoRA."""
    skill = problem.skill
    assert isinstance(skill, SoftmaxSkill)

    def turn(theta: Tensor) -> Tensor:
        return theta.reshape(width, width).T.flatten()

    other = SoftmaxSkill(lambda theta: skill.logits(turn(theta)), skill.prompts, turn(skill.base))
    return Problem(other, lambda theta: problem.loss(turn(theta)), problem.rank, problem.note)


def compute(options: Options, progress: Progress) -> dict[str, Any]:
    """Every optimiser on the problem, and the sign step; the result of the command.

    Raises:
        UserError: if a path diverges.
    """
    problem = matrix_problem(options.width, options.overlap, options.seed)
    chosen = optimizers(problem, options)
    start = _first_time(chosen, options.horizon)
    times = np.geomspace(start, options.horizon, POINTS)
    times[-1] = options.horizon
    found = {}
    with progress.stage("optimisers", len(chosen)) as tick:
        for name, optimizer in chosen.items():
            try:
                found[name] = measure(optimizer, times)
            except DivergedError as error:
                raise UserError(f"--horizon must be below {options.horizon:g} for {name}: {error}") from error
            except NoFitError as error:
                raise UserError(f"--horizon or --overlap must be another for {name}: {error}") from error
            tick()
    with progress.stage("sign steps", len(_SIGN_DIMENSIONS)) as tick:
        signs = [sign_steps(n, options.trials, options.seed, tick) for n in _SIGN_DIMENSIONS]
    note = f"{problem.note}; {options.steps} steps where discrete"
    return {"schema_version": 1, "note": note, "optimizers": found, "sign_step": signs}


def _first_time(chosen: dict[str, Optimizer], horizon: float) -> float:
    """Early enough to show every crossover."""
    crossovers = [c for c in (_expected(optimizer)[2] for optimizer in chosen.values()) if c]
    return min([horizon * _DECADES, *(c / _BEFORE_CROSSOVER for c in crossovers)])


def _expected(optimizer: Optimizer) -> tuple[float, float, float | None]:
    """Leak, onset coefficient and crossover; noise moves the policy at first order, as a leak does."""
    path = Derivatives(optimizer.velocity, optimizer.acceleration, torch.zeros_like(optimizer.velocity))
    found = predict(optimizer.problem.skill, path, optimizer.problem.rank)
    leak = (found.leak**2 + optimizer.noise_leak) ** 0.5
    return leak, found.gamma_star, onset.crossover(leak, found.gamma_star) or None


def measure(optimizer: Optimizer, times: np.ndarray) -> dict[str, Any]:
    """Loss along the path; leak, onset coefficient and crossover, predicted and as the loss shows them.

    The t^4 coefficient is that of the onset only where the leak is small: None where the crossover is not early.

    Raises:
        DivergedError: if the path diverges.
    """
    leak, gamma, crossover = _expected(optimizer)
    thetas = optimizer.path(times)
    runs = thetas.shape[1]
    losses = optimizer.problem.skill.utility_losses(thetas.flatten(0, 1)).reshape(-1, runs).mean(axis=1)
    early = crossover is None or crossover < _EARLY * times[-1]
    coefficient, measured_leak = None, 0.0
    if early:
        fitted = onset_fit(times, losses, _FIT * times[-1], 2 if leak > 0 else 4)
        coefficient, measured_leak = fitted[4], max(2 * fitted.get(2, 0.0), 0.0) ** 0.5
    elif leak > 0:
        measured_leak = float((2 * losses[0]) ** 0.5 / times[0])
    shown = crossover is not None and crossover < times[-1]
    values = vmap(optimizer.problem.loss)(thetas[-1]) - optimizer.problem.loss(optimizer.problem.skill.base)
    return {
        "leak": leak,
        "onset_coefficient": gamma,
        "predicted_coefficient": gamma**2 / 8,
        "predicted_crossover": crossover,
        "measured_leak": measured_leak,
        "coefficient": coefficient,
        "crossover": slope_crosses(times, losses, 3.0) if shown else None,
        "runs": runs,
        "end": {"t": float(times[-1]), "utility_loss": float(losses[-1]), "fine_tuning_loss": float(values.mean())},
        "curve": {"t": times.tolist(), "utility_loss": losses.tolist()},
    }


def optimizers(problem: Problem, options: Options) -> dict[str, Optimizer]:
    """All of them by name."""
    rng = torch.Generator().manual_seed(options.seed + 3)
    loss, base = problem.loss, problem.skill.base
    scale = torch.randn(len(base), generator=rng, dtype=torch.float64).exp()
    first = torch.randn(options.lora_rank, options.width, generator=rng, dtype=torch.float64) / options.lora_rank**0.5
    plain = GradientFlow(loss)
    constant = np.ones(options.steps)
    cosine = 1 + np.cos(np.pi * np.arange(options.steps) / options.steps)
    other = transposed(problem, options.width)
    return {
        "gradient flow": _continuous(problem, plain),
        "gradient descent": _discrete(problem, plain, constant),
        "cosine schedule": _discrete(problem, plain, cosine),
        "heavy ball": _discrete(problem, plain, constant, options.momentum),
        "SGD": _noisy(problem, options.steps, options.noise, rng),
        "weight decay": _continuous(problem, WeightDecay(loss, options.decay)),
        "LoRA, output side": _continuous(problem, LowRank(loss, base, first)),
        "LoRA, input side": _continuous(other, LowRank(other.loss, other.skill.base, first)),
        "preconditioned": _continuous(problem, Preconditioned(loss, scale)),
        "sign descent": _discrete(problem, SignDescent(loss), constant),
        "Adam": _adam(problem, options.steps),
    }


def _continuous(problem: Problem, field: Field) -> Optimizer:
    velocity, acceleration, _ = field.derivatives(problem.skill.base)
    return Optimizer(problem, velocity, acceleration, lambda times: flow(field, problem.skill.base, times)[:, None])


def moments(weights: np.ndarray, momentum: float) -> tuple[float, float, float]:
    """A, B and the sum of squared gains of steps with these sizes: they move by ``-A g + B H g``."""
    sizes, mu = tuple(Fraction(float(w)) for w in weights), Fraction(momentum)
    gain = gains(sizes, mu)
    bend = sum((a * sum(gains(sizes[:j], mu), Fraction(0)) for j, a in enumerate(gain)), Fraction(0))
    return float(sum(gain)), float(bend), float(sum(a**2 for a in gain))


@dataclass(frozen=True, eq=False)
class Runs(Field):
    """Many runs as one state: run b moves by ``T_b v``, so that steps of sum 1 train it for the time T_b."""

    field: Field
    times: Tensor

    def __call__(self, state: Tensor) -> Tensor:
        """Shape (B n,)."""
        return (self.times[:, None] * vmap(self.field)(state.reshape(len(self.times), -1))).flatten()


def _endpoints(
    field: Field, base: Tensor, times: np.ndarray, weights: np.ndarray, momentum: float, noise: Tensor | None
) -> Tensor:
    """Parameters after the last step, shape (T, B, n): B runs with noise (B, K, n) for each time, or one without."""
    runs = 1 if noise is None else len(noise)
    every = torch.from_numpy(times).repeat_interleave(runs)
    added = None
    if noise is not None:
        added = (every[:, None, None] * noise.repeat(len(times), 1, 1)).transpose(0, 1).flatten(1)
    start = base.repeat(len(every))
    path = descend(Runs(field, every), start, weights, momentum=momentum, noise=added)
    return path[-1].reshape(len(times), runs, -1)


def _discrete(problem: Problem, field: Field, weights: np.ndarray, momentum: float = 0.0) -> Optimizer:
    """K steps; time counts the weight of the gradient in the whole displacement."""
    reach, bend, _ = moments(weights, momentum)
    base = problem.skill.base
    velocity, acceleration, _ = field.derivatives(base)
    return Optimizer(
        problem,
        velocity,
        2 * bend / reach**2 * acceleration,
        lambda times: _endpoints(field, base, times, weights / reach, momentum, None),
    )


def _noisy(problem: Problem, steps: int, noise: float, rng: torch.Generator) -> Optimizer:
    """SGD, averaged over runs whose noise has exactly the covariance asked for: rows of an orthogonal matrix, +-."""
    skill, n = problem.skill, problem.skill.dimension
    weights = np.full(steps, 1 / steps)
    plain = _discrete(problem, GradientFlow(problem.loss), weights)
    rows = torch.linalg.qr(torch.randn(steps * n, steps * n, generator=rng, dtype=torch.float64)).Q
    draws = (noise * (steps * n) ** 0.5 * rows).reshape(-1, steps, n)
    both = torch.cat([draws, -draws])
    field = GradientFlow(problem.loss)
    trace = float(skill.fisher_factor(skill.base).square().sum())
    return Optimizer(
        problem,
        plain.velocity,
        plain.acceleration,
        lambda times: _endpoints(field, skill.base, times, weights, 0.0, both),
        noise**2 * trace * moments(weights, 0.0)[2],
    )


def adam_acceleration(loss: Callable[[Tensor], Tensor], base: Tensor, steps: int) -> Tensor:
    """Second derivative in T of K Adam steps of size T/K, its small constant left out.

    With ``v = -sign(g)`` the gradient of step j is ``g + j eta H v``. The moments average it with weights that sum
    to 1, and their quotient is ``sign(g) + (m_k - s_k) eta H v / |g|``, where m_k and s_k are the mean steps of the
    two averages.
    """
    g = grad(loss)(base)
    late = 0.0
    for k in range(steps):
        ages = np.arange(k + 1)
        first, second = (np.average(k - ages, weights=beta**ages) for beta in BETAS)
        late += first - second
    return -2 * late / steps**2 * hessian_product(loss, base, -g.sign()) / g.abs()


def _adam(problem: Problem, steps: int) -> Optimizer:
    base, field = problem.skill.base, GradientFlow(problem.loss)
    velocity = SignDescent(problem.loss, 0.0)(base)

    def path(times: np.ndarray) -> Tensor:
        return torch.stack([adam(field, base, np.full(steps, t / steps), betas=BETAS)[-1:] for t in times])

    return Optimizer(problem, velocity, adam_acceleration(problem.loss, base, steps), path)


def sign_steps(dimension: int, trials: int, seed: int, tick: Callable[[], None]) -> dict[str, Any]:
    """Adam's first step where the gradient has no overlap: its share of a random direction's energy in the subspace.

    Normal gradients are projected off random subspaces of rank d; one Adam step on the linear loss ``g . theta``
    moves by ``eta`` times a sign vector q, and the share is ``|P q|^2 / |q|^2`` over ``d/n``.
    """
    rng = torch.Generator().manual_seed(seed + 4)
    chance = OverlapLaw(dimension=dimension, rank=_SIGN_RANK).mean
    each = max(trials // _SUBSPACES, 1)
    shares, predicted = [], []
    for _ in range(_SUBSPACES):
        basis = torch.linalg.qr(torch.randn(dimension, _SIGN_RANK, generator=rng, dtype=torch.float64)).Q
        g = torch.randn(each, dimension, generator=rng, dtype=torch.float64)
        g = (g - g @ basis @ basis.T).flatten()
        step = adam(GradientFlow(partial(torch.dot, g)), torch.zeros_like(g), [1.0])[-1]
        moved = step.reshape(each, dimension)
        shares.append((moved @ basis).square().sum(dim=1) / moved.square().sum(dim=1) / chance)
        predicted.append(sign_energy((basis @ basis.T).numpy()) / _SIGN_RANK)
    tick()
    all_shares = torch.cat(shares)
    return {
        "dimension": dimension,
        "rank": _SIGN_RANK,
        "gradients": len(all_shares),
        "share": float(all_shares.mean()),
        "standard_error": float(all_shares.std() / len(all_shares) ** 0.5),
        "predicted_share": float(np.mean(predicted)),
    }
