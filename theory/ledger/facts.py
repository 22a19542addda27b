"""Facts 1-4: the utility loss along any curve, exactly, statically, at its onset and at finite time."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, localcontext

import numpy as np

from theory import onset
from theory.ledger.claim import Claim, Example, Parameter, Slack, Verdict, at_least, equal, exact, worst
from theory.ledger.maps import PolynomialMap, polynomial
from theory.ledger.paths import curve, flattened
from theory.ledger.scenarios import Coefficients
from theory.ledger.skills import SoftmaxSkill, statistics
from theory.series import Series, evaluate, multiply

_DIGITS = 60  # of the decimal arithmetic that stands for the exact value
_GRID = (1 - np.cos(np.linspace(0, np.pi, 33))) / 2  # Chebyshev's points of [0, 1], both ends included

SKILL_SIZES = (Parameter("prompts", 1, 3), Parameter("outcomes", 2, 4), Parameter("dimension", 2, 4))


@dataclass(frozen=True, eq=False)
class Move:
    """A softmax skill moved by a displacement."""

    skill: SoftmaxSkill
    displacement: np.ndarray


def _build_move(rng: np.random.Generator, prompts: int, outcomes: int, dimension: int, size: float) -> Move:
    make = Coefficients(rng)
    return Move(make.softmax(dimension, prompts, outcomes), size * make.tensor(dimension))


def divergence(case: Move) -> float:
    """``E_x KL(pi* || pi_theta)`` from the two probability tables, in decimal arithmetic."""
    skill = case.skill
    logits = skill.logits.value(case.displacement).reshape(skill.base.shape)
    with localcontext() as context:
        context.prec = _DIGITS
        total = Decimal(0)
        for prompt, row, z in zip(skill.prompts, skill.base, logits, strict=True):
            counts = [Decimal(float(p)) for p in row]
            base = [p / sum(counts) for p in counts]
            raised = [p * Decimal(float(x)).exp() for p, x in zip(base, z, strict=True)]
            moved = [q / sum(raised) for q in raised]
            total += Decimal(float(prompt)) * sum(
                (p * (p / q).ln() for p, q in zip(base, moved, strict=True)), Decimal(0)
            )
        return float(total)


def _check_identity(case: Move) -> Slack:
    reason = "rounding of the logits and of the probabilities, some 1e-15 of either"
    return equal(case.skill.utility_loss(case.displacement), divergence(case), 1e-13, reason)


_F1 = Claim(
    key="F1",
    title="Stable form of the utility loss",
    source="this project",
    statement=r"""With $d = \ell_\theta(x,y) - \ell_{\theta^*}(x,y)$,
$\Delta u = \mathbb{E}[-d] = \mathbb{E}[\varphi(d)], \quad \varphi(d) = e^d - 1 - d \ge 0.$
Every term on the right is non-negative, so that the sum stays accurate to rounding where the terms $-d$ cancel.""",
    hypotheses=(
        r"the data come from the base policy (Assumption 1)",
        r"every response that $\pi_\theta$ can give has $\pi_{\theta^*}(y|x) > 0$",
        r"$\mathbb{E}|d|$ is finite",
    ),
    verdict=Verdict.HOLDS,
    why="E[e^d] = 1, so e^d - 1 may be added under the mean; no cancellation is left",
    derivation=r"""$\mathbb{E}[e^d] = \mathbb{E}_x \sum_y \pi_{\theta^*}(y|x)
\frac{\pi_\theta(y|x)}{\pi_{\theta^*}(y|x)} = 1$ because $\pi_\theta(\cdot|x)$ sums to 1 on the support of
$\pi_{\theta^*}(\cdot|x)$. Adding $\mathbb{E}[e^d - 1] = 0$ to $\mathbb{E}[-d]$ gives $\mathbb{E}[\varphi(d)]$, and
$\varphi \ge 0$ because $e^d$ is convex. Near a base point with $d = O(t^2)$ the loss is of order $t^4$ while the
terms $-d$ are of order $t^2$: their sum in double precision has a relative error of about $10^{-16}/t^2$ at best, and
$10^{-16}/t^4$ where the log-probabilities themselves are subtracted.""",
    evidence="""The stable form in double precision against the Kullback-Leibler divergence of the two probability
tables in 60-digit decimal arithmetic, for displacements of size 1e-8 to 1 in every parameter: a relative difference
of 1e-13 would fail. At the small end the direct formula has no correct digit.""",
    check=_check_identity,
    build=_build_move,
    parameters=(*SKILL_SIZES, Parameter("size", 1e-8, 1.0, "log")),
)


@dataclass(frozen=True, eq=False)
class Contact:
    """A curve from the base point of a softmax skill, and the order of what is claimed about it.

    Attributes:
        skill: over Fractions.
        curve: displacements as a series, shape (p + 1, n).
        order: the last coefficient of the claim (F2), or the first derivative that does not vanish (F3).
    """

    skill: SoftmaxSkill
    curve: Series
    order: int


def _build_static(rng: np.random.Generator, prompts: int, outcomes: int, dimension: int, kernel: int) -> Contact:
    make = Coefficients(rng, exact=True)
    skill = make.softmax(dimension, prompts, outcomes, kernel=kernel)
    direction, rest = make.tensor(dimension), make.tensor(dimension)
    if kernel:
        direction[: dimension - kernel] *= 0
    return Contact(skill, curve([direction, rest], 4), 4 if kernel else 2)


def _check_static(case: Contact) -> Slack:
    second = polynomial(case.skill.scores(), case.skill.log_hessians()).value_along(case.curve)
    predicted = multiply(second, second) @ case.skill.weights / 2
    measured = case.skill.utility_loss_along(case.curve)
    return exact(measured[: case.order + 1], predicted[: case.order + 1])


_F2 = Claim(
    key="F2",
    title="Refined static expansion",
    source="this project",
    statement=r"""For $\theta = \theta^* + D$ near the base point
$\Delta u = \frac{1}{2} \mathbb{E}\left[ \left( s \cdot D + \frac{1}{2} D^T \nabla^2 \ell D \right)^2 \right] + R,
\quad |R| \le C \|D\| \left( \|F^{1/2} D\| + \|D\|^2 \right)^2.$
On the kernel of $F$ the error is of relative order $\|D\|$, where the quadratic form of Proposition 3.3 is 0.""",
    hypotheses=(
        r"Assumption 1, with $\pi_{\theta^*}(y|x) > 0$ for every response that $\pi_\theta$ can give",
        r"$\ell$ is $C^3$ near $\theta^*$, with bounded scores and third derivatives (finite prompts and responses)",
    ),
    verdict=Verdict.HOLDS,
    why="keeps the Hessian of the log-probability, which is all there is on the kernel of F",
    derivation=r"""By Taylor $d = q + r$ with $q = s \cdot D + \frac{1}{2} D^T \nabla^2 \ell D$ and $|r| \le
C\|D\|^3$. By F1 $\Delta u = \mathbb{E}[\varphi(d)]$ and $|\varphi(d) - d^2/2| \le C |d|^3 \le C \|D\| d^2$. Also
$\|d\|_{L^2}, \|q\|_{L^2} \le \|F^{1/2} D\| + C\|D\|^2 =: m$, so
$|\mathbb{E}[d^2] - \mathbb{E}[q^2]| \le \|r\|_{L^2} (\|d\|_{L^2} + \|q\|_{L^2}) \le C \|D\|^3 m \le C \|D\| m^2$,
because $\|D\|^2 \le m$. The two errors add up to $C \|D\| m^2$.""",
    evidence=r"""On $D = \tau k + \tau^2 x$ with $F k = 0$ the bound is $C \tau^5$, and on a general line $C \tau^3$:
these two scales allow exactly the monomials that the bound allows. The coefficients of both sides up to $\tau^4$, and
up to $\tau^2$ on a general curve, are compared as fractions. The left side comes from the series of the log-partition
function, the right side from scores and Hessians. The next coefficient differs, so the orders are sharp.""",
    check=_check_static,
    build=_build_static,
    parameters=(*SKILL_SIZES, Parameter("kernel", 0, 1)),
)


def _build_onset(rng: np.random.Generator, prompts: int, outcomes: int, dimension: int, first: int) -> Contact:
    make = Coefficients(rng, exact=True)
    skill = make.softmax(dimension, prompts, outcomes, kernel=1)
    derivatives = [make.tensor(dimension) for _ in range(3)]
    if first > 1:
        derivatives[0][:-1] *= 0
        derivatives[0][-1] += 7  # not 0: entries are at most 6
    if first > 2:
        skill = flattened(skill, *derivatives[:2])
    return Contact(skill, curve(derivatives, 2 * first), first)


def _check_onset(case: Contact) -> Slack:
    leading = case.skill.log_ratios_along(case.curve)[case.order]  # l^(k) / k!
    predicted = case.curve[:, 0] * 0
    predicted[2 * case.order] = case.skill.weights @ leading**2 / 2
    return exact(case.skill.utility_loss_along(case.curve), predicted)


_F3 = Claim(
    key="F3",
    title="Onset law for any curve",
    source="this project",
    statement=r"""If $\ell', \ldots, \ell^{(k-1)}$ vanish at $t = 0$ for almost every prompt and response, then
$\Delta u = \frac{t^{2k}}{2 (k!)^2} \mathbb{E}\left[ (\ell^{(k)})^2 \right] + O(t^{2k+1}).$
So the onset exponent is always even: $t^2/2$, $t^4/8$, $t^6/72$ times the mean square for $k = 1, 2, 3$.""",
    hypotheses=(
        r"the curve $t \mapsto \theta(t)$ and $\ell$ are $C^{k+1}$, with bounded derivatives",
        r"Assumption 1, with $\pi_{\theta^*}(y|x) > 0$ for every response that $\pi_\theta$ can give",
    ),
    verdict=Verdict.HOLDS,
    why="the loss is half the mean square of d to leading order, so its onset is even",
    derivation=r"""By Taylor $d = \frac{t^k}{k!} \ell^{(k)} + O(t^{k+1})$ uniformly, and by F1
$\Delta u = \mathbb{E}[\varphi(d)] = \frac{1}{2} \mathbb{E}[d^2] + O(|d|^3)$. The square is
$\frac{t^{2k}}{(k!)^2} \mathbb{E}[(\ell^{(k)})^2] + O(t^{2k+1})$ and the cube is $O(t^{3k})$, no larger. If
$\mathbb{E}[(\ell^{(k)})^2] = 0$ then $\ell^{(k)} = 0$ and the law holds with $k + 1$.""",
    evidence=r"""Random curves with $k = 1, 2, 3$ (for $k = 3$ the logits are bent until $\ell''$ vanishes). All
coefficients of $\mathbb{E}[-d]$ up to $t^{2k}$ as fractions: those below are 0, the last is the mean square.""",
    check=_check_onset,
    build=_build_onset,
    parameters=(*SKILL_SIZES, Parameter("first", 1, 3)),
)


@dataclass(frozen=True, eq=False)
class TimedCurve:
    """The curve ``theta* + t v + t^2 a/2`` of a softmax skill, at one time."""

    skill: SoftmaxSkill
    velocity: np.ndarray
    acceleration: np.ndarray
    time: float

    @property
    def path(self) -> Series:
        """The displacement, to the order 6 that cubic logits along it have."""
        return curve([self.velocity, self.acceleration], 6)

    @property
    def log_ratios(self) -> np.ndarray:
        """``l(t) - l(0)`` of every outcome."""
        return self.skill.log_ratios(evaluate(self.path, self.time))

    @property
    def onset(self) -> tuple[float, float]:
        """Leak and onset coefficient."""
        stats = statistics(self.skill, self.velocity, self.acceleration)
        return onset.leak(stats), onset.onset_coefficient(stats)


def largest_third_derivative(case: TimedCurve) -> float:
    """The largest root mean square of ``l'''`` on [0, t], over 33 times.

    For logits z(t), ``l''' = z''' - E z''' - 3 Cov(z', z'') - E(z' - E z')^3`` under the moved policy.
    """
    skill, times = case.skill, case.time * _GRID
    if not isinstance(skill.logits, PolynomialMap):
        raise ValueError("the third derivative is computed for polynomial logits only")
    jet = [skill.logits.value_along(case.path)]
    for _ in range(3):
        jet.append(np.polynomial.polynomial.polyder(jet[-1]))
    z, *rates = (
        np.moveaxis(np.polynomial.polynomial.polyval(times, c), -1, 0).reshape(len(times), *skill.base.shape)
        for c in jet
    )
    policy = skill.base * np.exp(z)
    policy /= policy.sum(axis=2, keepdims=True)

    def mean(values: np.ndarray) -> np.ndarray:
        return np.asarray((policy * values).sum(axis=2, keepdims=True))

    first, second, third = (rate - mean(rate) for rate in rates)
    change = third - 3 * mean(first * second) - mean(first**3)
    return float(np.sqrt((change**2).reshape(len(times), -1) @ skill.weights).max())


def build_timed(
    rng: np.random.Generator, prompts: int, outcomes: int, dimension: int, leak: float, time: float
) -> TimedCurve:
    """A random curve that starts in the kernel of F but for a part of size ``leak``."""
    make = Coefficients(rng)
    skill = make.softmax(dimension, prompts, outcomes, kernel=1)
    velocity = make.tensor(dimension)
    velocity[:-1] *= leak
    return TimedCurve(skill, velocity, make.tensor(dimension), time)


def rare_change(change: float, time: float) -> TimedCurve:
    """A rare response whose logit is ``change`` at a time, and quadratic in t: F4 with neither leak nor M_3.

    Its probability is so small that the third derivative's part of the bounds is 1e-4 of the second's, or less.
    """
    rare = 1e-16 * np.exp(-2 * max(change, 0.0))
    logits = polynomial(np.zeros((2, 1)), np.array([[[2 * change / time**2]], [[0.0]]]))
    return TimedCurve(SoftmaxSkill(np.ones(1), np.array([[rare, 1 - rare]]), logits), np.ones(1), np.zeros(1), time)


def _build_two_sided(
    rng: np.random.Generator, kind: int, change: float, time: float, leak: float, **sizes: int
) -> TimedCurve:
    """kind 0: a random curve; 1 and 2: a rare response that falls or rises by ``change``."""
    if kind == 0:
        return build_timed(rng, leak=leak, time=time, **sizes)
    return rare_change(change if kind == 2 else -change, time)


def _check_two_sided(case: TimedCurve) -> Slack:
    measured = float(np.sqrt(2 * onset.utility_loss(case.log_ratios, case.skill.weights)))
    drop, rise = max(-case.log_ratios.min(), 0.0), max(case.log_ratios.max(), 0.0)
    bounds = onset.finite_time_bounds(case.time, *case.onset, largest_third_derivative(case), drop, rise)
    reason = "rounding of d, some 1e-15 of the logits, seen relative to the root mean square of d"
    return worst(
        at_least(measured, float(bounds.lower), 1e-10, reason, part="lower bound"),
        at_least(float(bounds.upper), measured, 1e-10, reason, part="upper bound"),
    )


def _early(leak: float, time: float) -> TimedCurve:
    return build_timed(np.random.default_rng(0), 2, 3, 3, leak, time)


_F4 = Claim(
    key="F4",
    title="Finite-time law, two-sided",
    source="this project",
    statement=r"""For any $C^3$ curve and every $t$ in its domain
$\sqrt{1 - \frac{D}{3}} \left( \frac{\gamma_* t^2}{2} - v t - \frac{M_3 t^3}{6} \right)_+ \le \sqrt{2 \Delta u(t)} \le
e^{D_2/2} \left( \frac{\gamma_* t^2}{2} + v t + \frac{M_3 t^3}{6} \right),$
with the leak $v = \|\ell'(0)\|$, $\gamma_* = \|\ell''(0)\|$, $M_3 = \sup_{\tau \le t} \|\ell'''(\tau)\|$ in $L^2$ of
the base policy, the largest drop $D = \max(\ell(0) - \ell(t))_+$ and rise $D_2 = \max(\ell(t) - \ell(0))_+$ of a
log-probability. For $D > 3$ the lower bound is 0.""",
    hypotheses=(
        r"Assumption 1, with $\pi_{\theta^*}(y|x) > 0$ for every response that $\pi_\theta$ can give",
        r"$\ell$ is $C^3$ along the curve, with $\ell'''$ square integrable",
    ),
    verdict=Verdict.HOLDS,
    why="no asymptotics: bounds at every time from leak, onset coefficient and third derivative",
    derivation=r"""For $d \ge 0$, $\varphi(d) \ge d^2/2$; for $d < 0$, $\varphi(d) \ge d^2/2 + d^3/6$. Hence
$\varphi(d) \ge \frac{d^2}{2} (1 - D/3)$ for $d \ge -D$. From $\varphi(d) = d^2 \int_0^1 (1-\sigma) e^{\sigma d}
d\sigma$, $\varphi(d) \le \frac{d^2}{2} e^{D_2}$ for $d \le D_2$. So by F1 $\sqrt{2 \Delta u}$ lies between
$\sqrt{1 - D/3} \|d\|$ and $e^{D_2/2} \|d\|$. Taylor with integral remainder gives
$d = t \ell' + \frac{t^2}{2} \ell'' + r$, $\|r\| \le M_3 t^3/6$, and the triangle inequality does the rest.""",
    evidence=r"""Random softmax skills along parabolas; $\Delta u$ from the moved policy, $v$ and $\gamma_*$ from score
statistics, $M_3$ as the largest of 33 exact third derivatives. Both bounds are reached as $t \to 0$ without leak, the
upper one also where the leak dominates. The outer factors are put to the test by a rare response, on which $\sqrt{2
\Delta u}$ is $\sqrt{2 p \varphi(d)}$ and the brackets are $\sqrt{p} |d|$, for $|d|$ from $10^{-3}$ to 30: $1 - D/3$ is
right to first order in $D$, and $e^{D_2}$ is the best exponential for all $D_2$, because $\varphi(D_2)/D_2^2$ grows
like $e^{D_2}/D_2^2$.""",
    check=_check_two_sided,
    build=_build_two_sided,
    parameters=(
        *SKILL_SIZES,
        Parameter("leak", 1e-7, 1.0, "log"),
        Parameter("time", 1e-6, 1.0, "log"),
        Parameter("kind", 0, 2),
        Parameter("change", 1e-3, 30.0, "log"),
    ),
    boundary=(
        Example(
            "early, without leak",
            r"A random skill with $F v = 0$ at $t = 10^{-6}$: both bounds are within $10^{-5}$ of $\gamma_* t^2/2$.",
            lambda: _early(0.0, 1e-6),
        ),
        Example(
            "early, with leak",
            r"The same with a leak at $t = 10^{-6}$: the upper bound is within $10^{-5}$ of $v t$.",
            lambda: _early(1.0, 1e-6),
        ),
        Example(
            "rare response falls",
            r"A response with probability $10^{-16}$ falls by $D = 0.01$: the lower bound is reached to $D^2/24$.",
            lambda: rare_change(-0.01, 1.0),
        ),
    ),
    tightness=2e-5,
)

CLAIMS = (_F1, _F2, _F3, _F4)
