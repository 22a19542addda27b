"""The onset law: facts about any curve, Theorem Q, and what a leak does to it (E9)."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from theory import onset
from theory.ledger import coupling, facts, theorem_q
from theory.ledger.claim import Claim, Example, Parameter, Slack, Verdict, at_least, equal, exact, worst
from theory.ledger.facts import TimedCurve, largest_third_derivative
from theory.ledger.maps import polynomial
from theory.ledger.paths import sloped
from theory.ledger.scenarios import Coefficients, Scenario
from theory.ledger.skills import SoftmaxSkill, cubic_moment, second_derivatives, statistics
from theory.series import rational


@dataclass(frozen=True, eq=False)
class Leaky:
    """A flow over Fractions, and the time at which the uniform bound is looked at."""

    scenario: Scenario
    time: float

    @property
    def parabola(self) -> TimedCurve:
        """The curve with the flow's velocity and acceleration, in float64."""
        skill = self.scenario.skill
        assert isinstance(skill, SoftmaxSkill)
        velocity, acceleration = (x.astype(float) for x in (self.scenario.velocity, self.scenario.acceleration))
        return TimedCurve(skill.in_floats(), velocity, acceleration, self.time)


def _build_leaky(
    rng: np.random.Generator, prompts: int, outcomes: int, dimension: int, leak: float, time: float
) -> Leaky:
    """A flow whose loss pushes on the range of F by a gradient of about the size ``leak``."""
    make = Coefficients(rng, exact=True)
    skill, loss = make.softmax(dimension, prompts, outcomes, kernel=1), make.loss(dimension, kernel=1)
    loss.linear[0, :-1] = (make.tensor(dimension - 1) + 7) / round(1 / leak)  # not 0: entries are at most 6
    return Leaky(sloped(Scenario(skill, loss)), time)


def _check_coefficients(case: Scenario) -> Slack:
    skill = case.skill
    assert isinstance(skill, SoftmaxSkill)
    mean, change = skill.weights, skill.log_ratios_along(case.series(4))
    first, third = skill.scores() @ case.velocity, 6 * change[3]
    second = second_derivatives(skill, case.velocity, case.acceleration)
    quartic = mean @ (second**2 / 8 + first * third / 6 + first**2 * second / 4 + first**4 / 24)
    predicted = np.array([0, 0, mean @ first**2 / 2, cubic_moment(mean, first, second), quartic], dtype=object)
    return exact(-change @ mean, predicted, part="coefficients")


def _check_slope(case: Scenario) -> Slack:
    """``t A'(t) = 3 A(t)`` at the crossover."""
    stats = case.statistics
    turn = onset.crossover(onset.leak(stats), onset.onset_coefficient(stats))
    loss = onset.predicted_loss(stats, np.array([turn]))
    rate = 2 * loss.leak_part + 3 * loss.cross_part + 4 * loss.quartic_part
    reason = "rounding, relative to the leak part, which may cancel against the cross part"
    return equal(rate, 3 * loss.utility_loss, 1e-12, reason, scale=loss.leak_part[0], part="slope")


def _check_uniform(curve: TimedCurve) -> Slack:
    """``|Delta u - A|`` against the explicit bound, in units of it."""
    time, change, (leak, gamma) = curve.time, curve.log_ratios, curve.onset
    stats = statistics(curve.skill, curve.velocity, curve.acceleration)
    predicted = onset.predicted_loss(stats, np.array([time])).utility_loss[0]
    error = abs(onset.utility_loss(change, curve.skill.weights) - predicted)
    main, rest = time * leak + time**2 * gamma / 2, time**3 * largest_third_derivative(curve) / 6
    convex = np.abs(change).max() * np.exp(max(change.max(), 0.0)) / 6 * (main + rest) ** 2
    bound = float(convex + rest * (main + rest / 2))
    reason = "rounding of the loss, some 1e-14 of it, over the bound, which is smaller by the order of t"
    return at_least(bound, error, 1e-9, reason, scale=bound, part="uniform bound")


def _check_crossover(case: Leaky) -> Slack:
    scenario = case.scenario
    slacks = [_check_coefficients(scenario), _check_uniform(case.parabola)]
    leaks = np.any(scenario.skill.scores() @ scenario.velocity != 0)  # else there is no crossover
    return worst(*slacks, _check_slope(scenario)) if leaks else worst(*slacks)


def rare_leak(push: int, bend: int, time: float) -> Leaky:
    """A response with probability 1e-16 and the logit ``push x + x^2 / 2 + bend x^3 / 6``, moved along x."""
    one = rational([[1], [0]])
    logits = polynomial(push * one, one[:, :, None], bend * one[:, :, None, None])
    rare = Fraction(1, 10**16)
    skill = SoftmaxSkill(rational([1]), rational([[rare, 1 - rare]]), logits)
    return Leaky(Scenario(skill, polynomial(rational([[-1]]))), time)


_E9 = Claim(
    key="E9",
    title="Leak and crossover",
    source="this project",
    statement=r"""Along any smooth path
$\Delta u = \frac{t^2}{2} v^2 + t^3 \left( \frac{\mathbb{E}[\ell' \ell'']}{2} + \frac{\mathbb{E}[(\ell')^3]}{6}
\right) + t^4 \left( \frac{\mathbb{E}[(\ell'')^2]}{8} + \frac{\mathbb{E}[\ell' \ell^{(3)}]}{6} +
\frac{\mathbb{E}[(\ell')^2 \ell'']}{4} + \frac{\mathbb{E}[(\ell')^4]}{24} \right) + O(t^5).$
With the correlation $c$ of $\ell'$ and $\ell''$ let $A(t) = \frac{1}{2} \mathbb{E}[(t \ell' + \frac{t^2}{2}
\ell'')^2] = \frac{1}{2} (v^2 t^2 + c v \gamma_* t^3 + \gamma_*^2 t^4/4)$. Then $|\Delta u - A| \le C t (t v + t^2)^2$
uniformly in the leak $v$, at every time $|\Delta u - A| \le \frac{B}{6} e^{D_2} (m + r)^2 + r (m + \frac{r}{2})$ with
$m = v t + \frac{1}{2} \gamma_* t^2$, $r = \frac{1}{6} M_3 t^3$, the largest change $B$ and rise $D_2$ of a
log-probability and $M_3$ as in F4, and the local slope $d \log A / d \log t$ at the crossover $t_c = 2 v/\gamma_*$
is exactly 3 for every $c > -1$, between 2 (leak) and 4 (onset coefficient). At $c = -1$, $A(t_c) = 0$: the loss returns
to 0 to this order.""",
    hypotheses=(
        r"$\ell$ and the path are $C^4$ (the $t^4$ term; $C^3$ for the uniform bound), with bounded derivatives",
        r"Assumption 1, with $\pi_{\theta^*}(y|x) > 0$ for every response that $\pi_\theta$ can give",
        r"$v > 0$ and $\gamma_* > 0$ for the crossover",
    ),
    verdict=Verdict.HOLDS,
    why="quadratic before 2 leak/gamma_*, quartic after it; the slope there does not depend on c",
    derivation=r"""Put $d = t \ell' + \frac{t^2}{2} \ell'' + \frac{t^3}{6} \ell^{(3)} + O(t^4)$ into
$\Delta u = \mathbb{E}[\varphi(d)] = \mathbb{E}[d^2/2 + d^3/6 + d^4/24] + O(t^5)$ and collect powers. For the bound
let $q = t \ell' + \frac{t^2}{2} \ell''$, so that $\|q\| \le m$ and $\|d - q\| \le r$. From $\varphi(d) - d^2/2 =
d^3 \int_0^1 \frac{1}{2} (1-\sigma)^2 e^{\sigma d} d\sigma$, $|\varphi(d) - d^2/2| \le \frac{1}{6} |d|^3 e^{D_2} \le
\frac{B}{6} e^{D_2} d^2$ with $\|d\| \le m + r$; and $\frac{1}{2} |\mathbb{E}[d^2] - \mathbb{E}[q^2]| \le \frac{1}{2}
\|d - q\| \|d + q\| \le \frac{1}{2} r (2 m + r)$. It is uniform because $B = O(t)$, $r = O(t^3)$ and $m \le C (t v +
t^2)$, with constants that do not depend on $v$ as long as it is bounded. What $A$ leaves out at order $t^3$ is
$\mathbb{E}[(\ell')^3]/6 = O(v^2)$. At $t_c$ the leak part and the quartic part of $A$ are the same number $m = 2
v^4/\gamma_*^2$, and the cross part is $2 c m$; so $t A' = 2 m + 3 \cdot 2 c m + 4 m = 3 (2 m + 2 c m) = 3 A$.""",
    evidence="""The coefficients up to t^4 of the exact series of E[-d] along random flows with leaks over six orders of
magnitude, as fractions. The slope from the parts of the predicted loss at the estimated crossover, with correlations of
both signs. The explicit bound on the parabola with the same velocity and acceleration, in double precision, at times
from 1e-4 to 0.05, so with $v$ far below $t$, of its size and far above; each of its two parts is reached by a rare
response as $t \to 0$.""",
    check=_check_crossover,
    build=_build_leaky,
    parameters=(
        Parameter("prompts", 1, 3),
        Parameter("outcomes", 2, 4),
        Parameter("dimension", 2, 4),
        Parameter("leak", 1e-6, 1.0, "log"),
        Parameter("time", 1e-4, 0.05, "log"),
    ),
    boundary=(
        Example(
            "rare response with a leak",
            r"Probability $10^{-16}$, logit $10^3 x + x^2/2$, at $t = 10^{-8}$: the first part is reached.",
            lambda: rare_leak(1000, 0, 1e-8),
        ),
        Example(
            "rare response with a third derivative",
            r"The same with the logit $x^2/2 + 10^4 x^3/6$ at $t = 10^{-4}$: the second part is reached.",
            lambda: rare_leak(0, 10**4, 1e-4),
        ),
    ),
    tightness=1e-5,
)

CLAIMS = (*facts.CLAIMS, *sorted((*theorem_q.CLAIMS, *coupling.CLAIMS), key=lambda claim: claim.key), _E9)
