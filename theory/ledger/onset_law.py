"""The onset law: facts about any curve, Theorem Q, and what a leak does to it (E9)."""

from __future__ import annotations

import numpy as np

from theory import onset
from theory.ledger import coupling, facts, theorem_q
from theory.ledger.claim import Claim, Parameter, Slack, Verdict, equal, worst
from theory.ledger.facts import EXACT
from theory.ledger.paths import sloped
from theory.ledger.scenarios import Coefficients, Scenario
from theory.ledger.skills import SoftmaxSkill, second_derivatives


def _build_leaky(rng: np.random.Generator, prompts: int, outcomes: int, dimension: int, leak: float) -> Scenario:
    """A flow whose loss pushes on the range of F by a gradient of about the size ``leak``."""
    make = Coefficients(rng, exact=True)
    skill, loss = make.softmax(dimension, prompts, outcomes, kernel=1), make.loss(dimension, kernel=1)
    loss.linear[0, :-1] = (make.tensor(dimension - 1) + 7) / round(1 / leak)  # not 0: entries are at most 6
    return sloped(Scenario(skill, loss))


def _check_coefficients(case: Scenario) -> Slack:
    skill = case.skill
    assert isinstance(skill, SoftmaxSkill)
    mean, change = skill.weights, skill.log_ratios_along(case.series(4))
    first, third = skill.scores() @ case.velocity, 6 * change[3]
    second = second_derivatives(skill, case.velocity, case.acceleration)
    cubic = mean @ (first * second / 2 + first**3 / 6)
    quartic = mean @ (second**2 / 8 + first * third / 6 + first**2 * second / 4 + first**4 / 24)
    predicted = np.array([0, 0, mean @ first**2 / 2, cubic, quartic], dtype=object)
    return equal(-change @ mean, predicted, 0.0, EXACT, part="coefficients")


def _check_slope(case: Scenario) -> Slack:
    """``t A'(t) = 3 A(t)`` at the crossover."""
    stats = case.statistics
    turn = onset.crossover(onset.leak(stats), onset.onset_coefficient(stats))
    loss = onset.predicted_loss(stats, np.array([turn]))
    rate = 2 * loss.leak_part + 3 * loss.cross_part + 4 * loss.quartic_part
    reason = "rounding, relative to the leak part, which may cancel against the cross part"
    return equal(rate, 3 * loss.utility_loss, 1e-12, reason, scale=loss.leak_part[0], part="slope")


def _check_crossover(case: Scenario) -> Slack:
    coefficients = _check_coefficients(case)
    leaks = np.any(case.skill.scores() @ case.velocity != 0)  # else there is no crossover
    return worst(coefficients, _check_slope(case)) if leaks else coefficients


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
uniformly in the leak $v$, and the local slope $d \log A / d \log t$ at the crossover $t_c = 2 v/\gamma_*$ is exactly
3 for every $c > -1$, between 2 (leak) and 4 (onset coefficient). At $c = -1$, $A(t_c) = 0$: the loss returns to 0 to
this order.""",
    hypotheses=(
        r"$\ell$ and the path are $C^4$ (the $t^4$ term; $C^3$ for the uniform bound), with bounded derivatives",
        r"Assumption 1, with $\pi_{\theta^*}(y|x) > 0$ for every response that $\pi_\theta$ can give",
        r"$v > 0$ and $\gamma_* > 0$ for the crossover",
    ),
    verdict=Verdict.HOLDS,
    why="quadratic before 2 leak/gamma_*, quartic after it; the slope there does not depend on c",
    derivation=r"""Put $d = t \ell' + \frac{t^2}{2} \ell'' + \frac{t^3}{6} \ell^{(3)} + O(t^4)$ into
$\Delta u = \mathbb{E}[\varphi(d)] = \mathbb{E}[d^2/2 + d^3/6 + d^4/24] + O(t^5)$ and collect powers. The uniform
bound is F2 on the path: $\|F^{1/2} D\| \le t v + C t^2$ and $\|D\| \le C t$, and replacing $s \cdot D + \frac{1}{2}
D^T \nabla^2 \ell D$ by $t \ell' + \frac{t^2}{2} \ell''$ changes it by $O(t^3)$. What $A$ leaves out at order $t^3$ is
$\mathbb{E}[(\ell')^3]/6 = O(v^2)$. At $t_c$ the leak part and the quartic part of $A$ are the same number $m = 2
v^4/\gamma_*^2$, and the cross part is $2 c m$; so $t A' = 2 m + 3 \cdot 2 c m + 4 m = 3 (2 m + 2 c m) = 3 A$.""",
    evidence="""The coefficients up to t^4 of the exact series of E[-d] along random flows with leaks over six orders of
magnitude, as fractions. The slope from the parts of the predicted loss at the estimated crossover, with correlations of
both signs.""",
    check=_check_crossover,
    build=_build_leaky,
    parameters=(
        Parameter("prompts", 1, 3),
        Parameter("outcomes", 2, 4),
        Parameter("dimension", 2, 4),
        Parameter("leak", 1e-6, 1.0, "log"),
    ),
)

CLAIMS = (*facts.CLAIMS, *sorted((*theorem_q.CLAIMS, *coupling.CLAIMS), key=lambda claim: claim.key), _E9)
