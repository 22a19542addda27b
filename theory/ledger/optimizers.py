"""E1-E3: gradient descent, schedules with momentum and noise, and general update fields."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from theory.ledger.claim import Claim, Example, Parameter, Slack, Verdict, at_least, exact, worst
from theory.ledger.coupling import chain
from theory.ledger.maps import PolynomialMap, polynomial
from theory.ledger.paths import sloped, steps
from theory.ledger.scenarios import Coefficients, Scenario
from theory.ledger.skills import SoftmaxSkill, fisher_at_base, quartic_law
from theory.series import Series, constant, contract, integral_curve, rational, shift

_SIZES = (Parameter("prompts", 1, 2), Parameter("outcomes", 2, 3), Parameter("dimension", 1, 2))
_REGULAR = (
    r"Assumption 1, with $\pi_{\theta^*}(y|x) > 0$ for every response that $\pi_\theta$ can give",
    r"$\ell$ and $L_{FT}$ are $C^3$ near $\theta^*$, with bounded derivatives",
)


@dataclass(frozen=True, eq=False)
class Descent:
    """Steps of an optimiser on a scenario.

    Attributes:
        scenario: over Fractions, softmax, with ``F g = 0``.
        weights: step sizes in units of eta.
        momentum: heavy ball's mu.
        noise: shape (m, n): each step's gradient errs by one of the rows or its negative, all equally likely.
    """

    scenario: Scenario
    weights: tuple[int | Fraction, ...]
    momentum: Fraction
    noise: np.ndarray

    def path(self, order: int, errors: Iterator[np.ndarray] | None = None) -> Series:
        """Displacement after the steps, a series in eta."""
        loss = self.scenario.loss
        assert isinstance(loss, PolynomialMap)

        def field(point: Series) -> Series:
            slope = -loss.jacobian_along(point)[:, 0]
            return slope if errors is None else slope - constant(next(errors), order)

        return steps(field, loss.origin, self.weights, order, self.momentum)


def _scenario(make: Coefficients, prompts: int, outcomes: int, dimension: int) -> Scenario:
    return sloped(make.scenario(dimension + 1, prompts, outcomes, kernel=1))


def _descent_slack(case: Descent, reach: int | Fraction, bend: int | Fraction) -> Slack:
    """Displacement ``-reach eta g + bend eta^2 H g`` and the quartic coefficient that follows from it."""
    scenario, skill = case.scenario, case.scenario.skill
    assert isinstance(skill, SoftmaxSkill)
    path = case.path(4)
    expected = np.stack([reach * scenario.velocity, bend * scenario.acceleration])
    # d = eta^2 (bend s.a + reach^2 h / 2)
    quartic = quartic_law(skill, reach * scenario.velocity, 2 * bend * scenario.acceleration)
    return worst(
        exact(path[1:3], expected, part="displacement"),
        exact(skill.utility_loss_along(path), quartic, part="utility loss"),
    )


def _build_descent(rng: np.random.Generator, count: int, **sizes: int) -> Descent:
    make = Coefficients(rng, exact=True)
    scenario = _scenario(make, **sizes)
    return Descent(scenario, (1,) * count, Fraction(0), make.tensor(0, len(scenario.gradient)))


def _check_descent(case: Descent) -> Slack:
    count = len(case.weights)
    return _descent_slack(case, count, Fraction(count * (count - 1), 2))


_E1 = Claim(
    key="E1",
    title="Gradient descent",
    source="this project",
    statement=r"""$K$ steps of gradient descent with step size $\eta$, $T = K \eta$, move the parameters by
$-T g + \frac{T^2}{2} \left( 1 - \frac{1}{K} \right) H g + O(T^3).$
If $F g = 0$ then $\Delta u = \frac{T^4}{8} \mathbb{E}\left[ \left( (1 - \frac{1}{K}) s \cdot H g + g^T \nabla^2 \ell g
\right)^2 \right] + O(T^5)$. One step feels only the Hessian of the log-probability.""",
    hypotheses=(*_REGULAR, "$F g = 0$ for the second part"),
    verdict=Verdict.HOLDS,
    why="steps bend less than the flow: H g counts 1 - 1/K, the log-probability's Hessian fully",
    derivation=r"""Step $j$ starts at $-j \eta g + O(\eta^2)$, where the gradient is $g - j \eta H g + O(\eta^2)$.
Summing over $j = 0, \ldots, K-1$ gives $-K \eta g + \eta^2 \frac{K(K-1)}{2} H g$, and $K(K-1) \eta^2 = T^2 (1 -
1/K)$. Read as a curve in $T$ with velocity $-g$ and acceleration $(1 - 1/K) H g$, F3 with $k = 2$ gives the loss. The
curvature term enters with the square of the velocity, so it has no factor $1 - 1/K$. On the circle, whose flow keeps
the utility, descent drifts off: $\Delta u = \lambda T^4/(8 K^2)$.""",
    evidence="""Up to five steps carried out on power series in the step size over fractions, with random softmax
skills and cubic losses: both displacement coefficients, and the utility loss up to the fourth power.""",
    check=_check_descent,
    build=_build_descent,
    parameters=(*_SIZES, Parameter("count", 1, 5)),
)


def _build_schedule(rng: np.random.Generator, count: int, heavy: int, **sizes: int) -> Descent:
    make = Coefficients(rng, exact=True)
    scenario = _scenario(make, **sizes)
    weights = tuple(Fraction(int(k), 3) for k in rng.integers(1, 7, count))
    momentum = Fraction(int(rng.integers(1, 9)), 10) if heavy else Fraction(0)
    return Descent(scenario, weights, momentum, make.tensor(1, len(scenario.gradient)))


def gains(weights: tuple[int | Fraction, ...], momentum: Fraction) -> list[Fraction]:
    """How far the gradient of each step moves the parameters by the end: ``w_j (1 - mu^(K-j)) / (1 - mu)``."""
    count = len(weights)
    return [Fraction(w) * (1 - momentum ** (count - j)) / (1 - momentum) for j, w in enumerate(weights)]


def _check_schedule(case: Descent) -> Slack:
    weights, mu = case.weights, case.momentum
    gain = gains(weights, mu)
    before = [sum(gains(weights[:j], mu), Fraction(0)) for j in range(len(weights))]
    bend = sum((a * b for a, b in zip(gain, before, strict=True)), Fraction(0))
    return worst(_descent_slack(case, sum(gain, Fraction(0)), bend), _noise_slack(case))


def _noise_slack(case: Descent) -> Slack:
    """The mean over every sequence of errors of the first two steps, to second order in eta."""
    short = replace(case, weights=case.weights[:2])
    skill = case.scenario.skill
    assert isinstance(skill, SoftmaxSkill)
    sequences = list(itertools.product([*case.noise, *-case.noise], repeat=len(short.weights)))
    losses = [skill.utility_loss_along(short.path(2, iter(errors))) for errors in sequences]
    covariance = case.noise.T @ case.noise / len(case.noise)
    share = sum(a**2 for a in gains(short.weights, case.momentum))
    expected = share * np.trace(fisher_at_base(skill) @ covariance) / 2
    predicted = np.array([0, 0, expected], dtype=object)
    return exact(sum(losses) / len(losses), predicted, part="noise")


_E2 = Claim(
    key="E2",
    title="Schedules, heavy ball and gradient noise",
    source="this project",
    statement=r"""Steps $u_j = \mu u_{j-1} + w_j \nabla L(\theta_j)$, $\theta_{j+1} = \theta_j - \eta u_j$, $j = 0,
\ldots, K-1$, move the parameters by $-\eta A g + \eta^2 B H g + O(\eta^3)$, with the gains $a_j = w_j (1 -
\mu^{K-j})/(1 - \mu)$, $A = \sum_j a_j$, $A_j$ the same sum after $j$ steps, and $B = \sum_j a_j A_j$. Without
momentum $B = (A^2 - \sum_j w_j^2)/2$. If $F g = 0$, $\Delta u = \frac{\eta^4}{2} \mathbb{E}[ (B s \cdot H g +
\frac{A^2}{2} g^T \nabla^2 \ell g)^2 ] + O(\eta^5)$. Gradients with independent errors of mean 0 and covariance
$\Sigma$ add $\frac{\eta^2}{2} \sum_j a_j^2\, \mathrm{tr}(F \Sigma) + O(\eta^3)$ in the mean: $\frac{\eta^2}{2} K\,
\mathrm{tr}(F \Sigma)$ for plain SGD, linear in the time $T = K \eta$ at fixed $\eta$.""",
    hypotheses=(*_REGULAR, "$F g = 0$ for the losses", "errors bounded, independent of each other and of the path"),
    verdict=Verdict.HOLDS,
    why="only the two moments A and B of the step sizes count; noise adds a loss linear in time",
    derivation=r"""Unrolled, $u_j = \sum_{i \le j} \mu^{j-i} w_i \nabla L(\theta_i)$, so $\nabla L(\theta_i)$ is counted
$w_i (1 + \mu + \cdots + \mu^{K-1-i}) = a_i$ times in the end. With $\theta_i = \theta^* - \eta A_i g + O(\eta^2)$ its
value is $g - \eta A_i H g + O(\eta^2)$, and the sum is the displacement. For $\mu = 0$, $\sum_j w_j \sum_{i<j} w_i =
(A^2 - \sum w_j^2)/2$. The loss is F3 with $k = 2$. With errors $\xi_j$ the displacement has the first-order part
$-\eta (A g + \sum_j a_j \xi_j)$, whose Fisher form has the mean $\eta^2 (A^2 g^T F g + \sum_j a_j^2\, \mathrm{tr}(F
\Sigma))$.""",
    evidence="""The steps carried out on power series in eta over fractions, random step sizes and momentum; the mean
over all sequences of errors of two steps, each a random vector or its negative.""",
    check=_check_schedule,
    build=_build_schedule,
    parameters=(*_SIZES, Parameter("count", 1, 4), Parameter("heavy", 0, 1)),
)


@dataclass(frozen=True, eq=False)
class UpdateField:
    """``theta' = -(M(theta) + t N) grad L`` on a softmax skill over Fractions, with ``F M g = 0`` at the start.

    Attributes:
        skill: the skill.
        loss: the loss.
        metric: M at the base point, shape (n, n).
        slope: ``M(theta) - M(theta*)``, a map to R^(n n).
        drift: N, shape (n, n).
        base: ``theta*`` itself, shape (n,), which weight decay pulls on.
        decay: the rate of the weight decay.
    """

    skill: SoftmaxSkill
    loss: PolynomialMap
    metric: np.ndarray
    slope: PolynomialMap
    drift: np.ndarray
    base: np.ndarray
    decay: Fraction

    def field(self, point: Series) -> Series:
        """The update at a series of points, whose variable is the time."""
        order = len(point) - 1
        changed = self.slope.value_along(point).reshape(order + 1, *self.metric.shape)
        matrix = constant(self.metric, order) + changed + shift(constant(self.drift, order))
        return -contract(matrix, self.loss.jacobian_along(point)[:, 0])

    def decayed(self, point: Series) -> Series:
        """The update with weight decay, ``-decay theta``."""
        return self.field(point) - self.decay * (constant(self.base, len(point) - 1) + point)


def _build_field(rng: np.random.Generator, prompts: int, outcomes: int, dimension: int) -> UpdateField:
    make, n = Coefficients(rng, exact=True), dimension + 1
    loss, metric = make.loss(n, 2), make.tensor(n, n)
    g = loss.linear[0]
    g += 7  # not 0: entries are at most 6
    metric[:dimension] -= np.multiply.outer(metric[:dimension] @ g, g) / (g @ g)  # M g in the kernel, g not
    skill = make.softmax(n, prompts, outcomes, kernel=1)
    assert isinstance(skill.logits, PolynomialMap)
    skill.logits.linear[0, 0] += 13  # so that F is not 0: entries differ by at most 12
    decay = Fraction(int(rng.integers(1, 9)), 10)
    return UpdateField(skill, loss, metric, make.map(n * n, n, 2), make.tensor(n, n), make.tensor(n), decay)


def opposed_field() -> UpdateField:
    """A fair coin with the logit ``y + x^2``, moved by the gradient of ``-x + 3 x y`` along x.

    ``F a = -3/4 e_y``, and ``DF[v] v = e_y/2`` takes from it as much as the norm of ``DF[v]`` allows.
    """
    linear, bend = rational([[0, 1], [0, 0]]), rational([[[2, 0], [0, 0]], [[0, 0], [0, 0]]])
    skill = SoftmaxSkill(rational([1]), rational([[1, 1]]) / 2, polynomial(linear, bend))
    loss = polynomial(rational([[-1, 0]]), rational([[[0, 3], [3, 0]]]))
    unit = rational([[1, 0], [0, 1]])
    slope = polynomial(rational([[0, 0]] * 4))
    return UpdateField(skill, loss, unit, slope, 0 * unit, rational([0, 1]), Fraction(1))


def _check_field(case: UpdateField) -> Slack:
    skill, gradient, hessian = case.skill, case.loss.linear[0], case.loss.quadratic[0]
    moved = case.metric @ gradient
    turn = (case.slope.linear @ moved).reshape(case.metric.shape)
    acceleration = case.metric @ hessian @ moved + (turn - case.drift) @ gradient
    path = integral_curve(case.field, case.loss.origin, 4)
    numbers = chain(skill, -moved, acceleration, 1)
    bound = numbers.coupling - numbers.lipschitz / math.sqrt(numbers.sharpness)
    reason = "rounding of the estimator"
    return worst(
        exact(2 * path[2], acceleration, part="acceleration"),
        exact(skill.utility_loss_along(path), quartic_law(skill, -moved, acceleration), part="utility loss"),
        at_least(numbers.onset, bound, 1e-9, reason, scale=numbers.scale, part="coupling"),
        _decay_slack(case),
    )


def _decay_slack(case: UpdateField) -> Slack:
    """With weight decay the loss starts at ``decay^2 theta*^T F theta* t^2/2``."""
    path = integral_curve(case.decayed, case.loss.origin, 2)
    leak_square = case.decay**2 * (case.base @ fisher_at_base(case.skill) @ case.base)
    predicted = np.array([0, 0, leak_square / 2], dtype=object)
    return exact(case.skill.utility_loss_along(path), predicted, part="weight decay")


_E3 = Claim(
    key="E3",
    title="General update fields",
    source="this project",
    statement=r"""For $\theta' = v(\theta, t)$ with $F v = 0$ at the start, $\Delta u = \gamma_*^2 t^4/8 + O(t^5)$ with
$\gamma_*^2 = \mathbb{E}[(s \cdot a + v^T \nabla^2 \ell v)^2]$ and $a = \partial_t v + (Dv) v$. For $v = -M(\theta)
\nabla L$, $a = M H M g + DM[M g] g$. The condition is $F v = 0$, not $F g = 0$. For every $d$ with $\lambda_d > 0$,
$\gamma_* \ge \|F^{1/2} P a\| - L_F \|v\|^2/\sqrt{\lambda_d}$.
Weight decay, a term $-w \theta$ more in $v$, leaks where $F \theta^* \ne 0$: then $\Delta u = \frac{w^2}{2}
\theta^{*T} F \theta^*\, t^2 + O(t^3)$.""",
    hypotheses=(*_REGULAR, "$v$ is $C^2$", "$F v = 0$ at the start"),
    verdict=Verdict.HOLDS,
    why="the law needs the velocity and acceleration of the update, whatever the optimiser",
    derivation=r"""$\theta'' = \partial_t v + (Dv) \theta' = a$. For $v = -M \nabla L$ with no explicit time,
$(Dv) v = -DM[v] g - M H v = DM[M g] g + M H M g$. From $F v = 0$, $\ell' = s \cdot v = 0$ almost surely, and F3 with
$k = 2$ gives the loss. The bound is Q3's, whose proof uses only $s \cdot v = 0$ and $\mathbb{E}[s \ell''] = F a +
DF[v] v$. Weight decay adds $-w \theta^*$ to the velocity at the start, so $\ell' = -w s \cdot \theta^*$, and F3 with
$k = 1$ gives its loss.""",
    evidence="""Random matrices M(theta) + t N, not symmetric, with M g in the kernel of F but g outside it: the
series of the path and of the utility loss over fractions, with no tolerance; the bound from the estimator's
coupling. The same fields with weight decay about a random base point, to second order.""",
    check=_check_field,
    build=_build_field,
    parameters=_SIZES,
    boundary=(
        Example(
            "curvature against acceleration",
            r"""A fair coin with logit $y + x^2$, loss $-x + 3 x y$: $\|F^{1/2} P a\| = 3/2$, $\|DF[v]\|
\|v\|/\sqrt{\lambda} = 1$, and $\gamma_* = 1/2$ is their difference.""",
            opposed_field,
        ),
    ),
)

CLAIMS = (_E1, _E2, _E3)
