"""E7: updates kept out of the sensitive subspace by a projector that follows it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from theory.ledger.claim import Claim, Example, Parameter, Slack, Verdict, at_least, equal, worst
from theory.ledger.coupling import chain, with_spectrum
from theory.ledger.maps import PolynomialMap, polynomial
from theory.ledger.projections import SMOOTH, SUPPORT
from theory.ledger.scenarios import Coefficients, Scenario, integrate, limit_at_zero, quadratic_loss
from theory.ledger.skills import GaussianSkill, fisher_derivative
from theory.spectra import projector


@dataclass(frozen=True, eq=False)
class TrackedProjection:
    """A flow projected by the P of where it is.

    Attributes:
        scenario: a skill whose F has the rank d everywhere, and a loss.
        time: how long it runs.
        bend: kappa of the skill whose rank is not constant.
        rising: a random scenario whose F has the eigenvalues 2 and 1 at the start only, and a larger rank beside it.
    """

    scenario: Scenario
    time: float
    bend: float
    rising: Scenario


def tracked_loss(scenario: Scenario, time: float) -> float:
    """Utility loss at a time under ``theta' = -(I - P(theta)) grad L``, P on the top ``scenario.rank`` of F(theta)."""
    skill, loss = scenario.skill, scenario.loss

    def field(displacement: np.ndarray) -> np.ndarray:
        gradient = loss.jacobian(displacement)[0]
        return projector(skill.fisher(displacement), scenario.rank) @ gradient - gradient

    return skill.utility_loss(integrate(field, loss.origin, np.array([time]))[0])


def rising_rank(bend: float) -> Scenario:
    """Skill ``N((x, kappa y^2/2), I)``, loss ``-y``: F has rank 1 at the base point and 2 beside it."""
    quadratic = np.zeros((2, 2, 2))
    quadratic[1, 1, 1] = bend
    mean = polynomial(np.array([[1.0, 0.0], [0.0, 0.0]]), quadratic)
    return Scenario(GaussianSkill(mean, 1.0, 2), quadratic_loss(np.array([0.0, -1.0]), np.zeros((2, 2))))


def tracked_limit(scenario: Scenario, power: int) -> float:
    """``lim tracked_loss / t^power`` as t -> 0, extrapolated from three times."""
    velocity = scenario.projector @ scenario.gradient - scenario.gradient
    bent = np.abs(scenario.skill.log_hessians() @ velocity).max()
    turned = np.linalg.norm(fisher_derivative(scenario.skill, velocity))
    times = 2.0 ** np.arange(-13, -10) / max(np.linalg.norm(scenario.hessian), bent, turned)
    return limit_at_zero(times, np.array([tracked_loss(scenario, t) for t in times]) / times**power)


def _build_rising(rng: np.random.Generator, prompts: int, kernel: int) -> Scenario:
    make = Coefficients(rng)
    skill = make.softmax(2 + kernel, prompts, 4, kernel=kernel)
    return Scenario(with_spectrum(skill, np.array([2.0, 1.0])), make.loss(2 + kernel), 2)


def _build_tracked(rng: np.random.Generator, prompts: int, kernel: int, time: float, bend: float) -> TrackedProjection:
    make, n = Coefficients(rng), prompts + kernel
    scenario = make.scenario(n, prompts, 2, rank=prompts)
    return TrackedProjection(scenario, time, bend, _build_rising(rng, prompts, kernel))


def tail_only(case: TrackedProjection) -> TrackedProjection:
    """The case with a rising scenario whose gradient is the second eigenvector of F."""
    gradient = np.linalg.eigh(case.rising.fisher)[1][:, -2]
    loss = case.rising.loss
    assert isinstance(loss, PolynomialMap)
    return replace(case, rising=replace(case.rising, loss=replace(loss, linear=gradient[None])))


def _check_tracked(case: TrackedProjection) -> Slack:
    plain = case.scenario.utility_losses(np.array([case.time]))[0]
    kept = tracked_loss(case.scenario, case.time)
    reason = "the square of the integrator's error, some 1e-12 of the displacement, over the size of d"
    end = 0.5 / case.bend
    return worst(
        at_least(0.0, kept, 1e-18, reason, scale=plain, part="constant rank"),
        equal(
            tracked_loss(rising_rank(case.bend), end),
            case.bend**2 * end**4 / 8,
            1e-12,
            "rounding of the integrator",
            part="rising rank",
        ),
        *_check_limits(case.rising),
    )


def _check_limits(scenario: Scenario) -> list[Slack]:
    """The quartic coefficient where the rank rises, and the quadratic one where only the first direction is tracked."""
    free = np.eye(len(scenario.fisher)) - scenario.projector
    velocity = -free @ scenario.gradient
    unexplained = chain(scenario.skill, velocity, 0 * velocity, scenario.rank).residual
    one = replace(scenario, rank=1)
    left = one.gradient - one.projector @ one.gradient
    tail = tracked_limit(one, 2)
    most = np.linalg.eigvalsh(one.fisher)[-2] * (one.gradient @ one.gradient) / 2
    reason = "extrapolation to t = 0 from times of 1e-3 and less, with an error of their third power"
    return [
        equal(tracked_limit(scenario, 4), unexplained**2 / 8, 1e-8, reason, scale=most**2, part="unexplained"),
        equal(tail, left @ one.fisher @ left / 2, 1e-8, reason, scale=most, part="tail"),
        at_least(most, tail, 1e-8, reason, scale=most, part="tail bound"),
    ]


_E7 = Claim(
    key="E7",
    title="Tracked projection",
    source="this project",
    statement=r"""Let $\theta' = -(I - P(\theta)) \nabla L(\theta)$ with $P(\theta)$ on the top $d$ eigenvectors of
$F(\theta)$. If $F$ has rank $d$ all along the path, $\Delta u = 0$ identically: no prompt's policy moves at all. If
the rank is $d$ only at the start, $\Delta u = \frac{1}{8} \mathbb{E}[h_\perp^2] t^4 + O(t^5)$, with $h_\perp$ the
part of $h = v^T \nabla^2 \ell v$ that is orthogonal to the span of the scores. It need not vanish: skill $N((x,
\kappa y^2/2), I)$, $L = -y$, $d = 1$ has $\Delta u = \kappa^2 t^4/8$ while $\kappa |t| < 1$. If the rank is larger
than $d$ at the start, the tail $F_{tail} = (I - P) F (I - P)$ leaks: $\Delta u = \frac{1}{2} g^T F_{tail} g\, t^2 +
O(t^3) \le \frac{1}{2} \lambda_{d+1} \|g\|^2 t^2 (1 + O(t))$.""",
    hypotheses=(
        SUPPORT,
        SMOOTH,
        r"$F(\theta(t))$ of rank $d$ for $\Delta u = 0$",
        r"$\lambda_d - \lambda_{d+1}$ bounded away from 0, so that $P$ is Lipschitz",
    ),
    verdict=Verdict.HOLDS,
    why="a projector that follows the Fisher matrix keeps the policy fixed where the rank is constant",
    derivation=r"""With rank $F(\theta) = d$, $F(\theta) \theta' = -F (I - P) \nabla L = 0$, so
$\mathbb{E}_\theta[(s_\theta \cdot \theta')^2] = 0$ and $\frac{d}{dt} \pi_\theta(y|x) = \pi_\theta(y|x)\, s_\theta
\cdot \theta' = 0$ for every response with positive probability; where it is 0 its derivative is 0, because 0 is a
minimum. So the policy is constant on the skill's prompts. In general $F \theta' = F_{tail} \theta'$, and $F_{tail}(t)
= O(t^2)$, because it is positive semidefinite and 0 at the start; so $\mathbb{E}[s \ell''] = \frac{d}{dt} F \theta' =
0$ at 0: $\ell'' = s \cdot a + h$ is orthogonal to the scores, hence equal to $h_\perp$, and F3 gives the loss. In the
example $F = \mathrm{diag}(1, \kappa^2 y^2)$ has the top direction $e_x$ while $\kappa |y| < 1$: $y = t$, and $\Delta
u = \frac{1}{2} (\kappa t^2/2)^2$. With a tail, $\ell'(0) = -s \cdot (I - P) g$ has the mean square $g^T F_{tail} g \le
\lambda_{d+1} \|g\|^2$, and F3 with $k = 1$ gives the loss.""",
    evidence="""Random skills with two responses to each prompt, whose Fisher matrix has as its rank the number of
prompts: the projector from an eigenvalue decomposition at every stage of a Runge-Kutta method of order 8. The utility
loss is 1e-28 of the plain flow's, the square of the integrator's error. The example at kappa t = 1/2. Random
skills with four responses whose F has the eigenvalues 2 and 1 at the start and a larger rank beside it: the loss over
t^4 with d = 2, and over t^2 with d = 1, extrapolated to t = 0, against h_perp by least squares and the tail.""",
    check=_check_tracked,
    build=_build_tracked,
    parameters=(
        Parameter("prompts", 1, 3),
        Parameter("kernel", 1, 2),
        Parameter("time", 1e-3, 0.2, "log"),
        Parameter("bend", 1e-3, 1e3, "log"),
    ),
    boundary=(
        Example(
            "three prompts",
            r"Three prompts with two responses each, in five dimensions: $\Delta u = 0$ to the integrator's error.",
            lambda: _build_tracked(np.random.default_rng(0), 3, 2, 0.1, 1.0),
        ),
        Example(
            "gradient in the tail",
            r"The gradient is the second eigenvector of $F$ and $d = 1$: the bound on the tail is reached.",
            lambda: tail_only(_build_tracked(np.random.default_rng(0), 2, 1, 0.1, 1.0)),
        ),
    ),
    tightness=1e-12,
)

CLAIMS = (_E7,)
