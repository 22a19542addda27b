"""Corollary 6.3, the quartic scaling law as printed, and the skills that refute it."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from theory.ledger.claim import Claim, Example, Parameter, Slack, Verdict, at_least, equal
from theory.ledger.maps import NegativeAngle, PolynomialMap, Radius, SmoothMap, polynomial
from theory.ledger.scenarios import Coefficients, Scenario, circle
from theory.ledger.skills import GaussianSkill, SoftmaxSkill

_MEASURED = "the onset coefficient is a float64, and paths without a power series are extrapolated"


@dataclass(frozen=True)
class WithReference:
    """One logit and a second that is always zero: a binary softmax.

    Attributes:
        logit: a map with one output.
    """

    logit: SmoothMap

    @property
    def origin(self) -> np.ndarray:
        """Shape (n,)."""
        return self.logit.origin

    def value(self, displacement: np.ndarray) -> np.ndarray:
        """Shape (2,)."""
        return _and_zero(self.logit.value(displacement))

    def jacobian(self, displacement: np.ndarray) -> np.ndarray:
        """Shape (2, n)."""
        return _and_zero(self.logit.jacobian(displacement))

    def hessian(self, displacement: np.ndarray) -> np.ndarray:
        """Shape (2, n, n)."""
        return _and_zero(self.logit.hessian(displacement))


def _and_zero(values: np.ndarray) -> np.ndarray:
    return np.concatenate([values, np.zeros_like(values)])


@dataclass(frozen=True)
class CrossEntropy:
    """``f = -log sigmoid(z) + log 2`` for a binary answer whose logit z vanishes at the base point.

    Attributes:
        negative_logit: ``-z``, a map with one output.
    """

    negative_logit: SmoothMap

    @property
    def origin(self) -> np.ndarray:
        """Shape (n,)."""
        return self.negative_logit.origin

    def value(self, displacement: np.ndarray) -> np.ndarray:
        """Shape (1,)."""
        return np.logaddexp(0.0, self.negative_logit.value(displacement)) - np.log(2.0)

    def jacobian(self, displacement: np.ndarray) -> np.ndarray:
        """Shape (1, n)."""
        return self._wrong(displacement) * self.negative_logit.jacobian(displacement)

    def hessian(self, displacement: np.ndarray) -> np.ndarray:
        """Shape (1, n, n)."""
        wrong, slope = self._wrong(displacement), self.negative_logit.jacobian(displacement)[0]
        return wrong * self.negative_logit.hessian(displacement) + wrong * (1 - wrong) * np.outer(slope, slope)

    def _wrong(self, displacement: np.ndarray) -> float:
        """The probability of the wrong answer."""
        return float(1 / (1 + np.exp(-self.negative_logit.value(displacement)[0])))


def two_prompts(steepness: float) -> Scenario:
    """A binary softmax model of two prompts: ``sigmoid(steepness r)`` for safety, ``sigmoid(angle)`` for a task.

    The base point is (1, 0). The skill is the safety prompt; fine-tuning minimises the task's cross-entropy.
    """
    safe = 1 / (1 + np.exp(-steepness))
    logits = WithReference(Radius(factor=steepness))
    skill = SoftmaxSkill(np.ones(1), np.array([[safe, 1 - safe]]), logits)
    return Scenario(skill, CrossEntropy(NegativeAngle()))


def first_integral(loss: PolynomialMap, direction: np.ndarray, precision: int | Fraction) -> Scenario:
    """A Gaussian skill with a quadratic mean m that the flow of this loss leaves alone up to t^2.

    ``m = p.D - (p.Hg) (g.D)^2 / (2 |g|^4)`` with p the part of ``direction`` orthogonal to g: ``m' = p.v = 0``
    and ``m'' = p.Hg + v^T (Hess m) v = 0``, so that the utility loss is of order t^6.
    """
    g, hessian = loss.linear[0], loss.quadratic[0]
    p = direction - g * (direction @ g) / (g @ g)
    bend = -np.outer(g, g) * (p @ hessian @ g) / (g @ g) ** 2
    return Scenario(GaussianSkill(polynomial(p[None], bend[None]), precision), loss)


def _build(
    rng: np.random.Generator, sharp: int, kernel: int, prompts: int, outcomes: int, scale: float, degree: int = 3
) -> Scenario:
    """A random softmax skill with ``F g = 0``, over Fractions; its projector holds all of F."""
    coefficients = Coefficients(rng, exact=True)
    skill = coefficients.softmax(sharp + kernel, prompts, outcomes, degree, kernel)
    return Scenario(skill, coefficients.loss(sharp + kernel, 3, kernel).scaled(Fraction(scale)), rank=sharp)


def _log_linear(rng: np.random.Generator) -> Scenario:
    return _build(rng, 2, 1, 2, 3, 1.0, degree=1)


def _random_first_integral() -> Scenario:
    coefficients = Coefficients(np.random.default_rng(0), exact=True)
    return first_integral(coefficients.loss(3), coefficients.tensor(3), 4)


def _quartic_law(scenario: Scenario) -> Slack:
    found = scenario.estimate
    assert found.onset_coefficient is not None
    scale = max(found.onset_coefficient**2, found.eigenvalues[0] * found.acceleration_norm**2)
    return equal(8 * scenario.quartic_coefficient, found.onset_coefficient**2, 1e-10, _MEASURED, scale=scale)


def printed_onset(scenario: Scenario) -> Slack:
    """``liminf utility loss / t^4 > 0`` if gamma > 0: at least a millionth of ``gamma^2 / 8``."""
    floor = 1e-6 * scenario.estimate.coupling**2 / 8
    return at_least(float(scenario.quartic_coefficient), floor, 0.0, "a rate below this is none")


def sharper_reading(scenario: Scenario) -> Slack:
    """``utility loss / t^4 -> gamma^2 / 8``, which the corollary does not say: gamma as the rate itself."""
    coefficient, rate = float(scenario.quartic_coefficient), scenario.estimate.coupling**2 / 8
    return equal(coefficient, rate, 1e-10, _MEASURED)


_COUNTEREXAMPLES = (
    Example(
        "circle",
        r"Skill $N(\|\theta\|, 1)$, $\theta^* = (1, 0)$, $L = -\mathrm{angle}(\theta)$: $g = (0, -1)$, $H g = (-1, "
        r"0)$, $F = \mathrm{diag}(1, 0)$, no tail, $P g = 0$, $\gamma = 1$. The loss does not change along rays, so "
        r"the flow stays on the circle: $\Delta u = 0$ for all time.",
        circle,
    ),
    Example(
        "two-prompt language model",
        r"Binary softmax, $\theta^* = (1, 0)$: $P(\mathrm{safe}) = \sigma(3 \|\theta\|)$ on the safety prompt, "
        r"$\sigma(\mathrm{angle})$ on the task prompt, fine-tuned by cross-entropy on the task. $g = (0, -1/2)$, "
        r"$H g = (-1/4, -1/8)$, $\gamma = \sqrt{F_{11}} / 4 > 0$, and $\Delta u = 0$ for all time.",
        lambda: two_prompts(3.0),
    ),
    Example(
        "first integral of a random loss",
        r"For every loss with $H g$ not parallel to $g$: take $p$ with $p \cdot g = 0$, $p \cdot H g \ne 0$, and the "
        r"skill $N(m, 1/\mu)$, $m = p \cdot D - (p \cdot H g) (g \cdot D)^2 / (2 \|g\|^4)$. Then $\gamma > 0$, no "
        r"tail, $P g = 0$, and $\Delta u = O(t^6)$. Here the loss is a random cubic in three variables. (A true "
        r"first integral of the flow, which the flow-box theorem gives, has $\Delta u = 0$.)",
        _random_first_integral,
    ),
)

QUARTIC_SCALING = Claim(
    key="6.3",
    title="Quartic scaling law",
    source="Corollary 6.3, section 6",
    statement=r"""Under the alignment instability condition there is $t_0 > 0$ such that for all $t \in [0, t_0]$
$\Delta u(\theta(t)) \ge \Omega(\lambda \gamma^2 t^4)$.

Read in its mildest case, $P g = 0$ and no tail ($\epsilon = 0$), where constant and $t_0$ may depend on everything:
where $\gamma > 0$, $\liminf \Delta u / t^4 > 0$ as $t \to 0$.""",
    hypotheses=(
        r"Gradient flow $\theta' = -g(\theta)$; $\log \pi_\theta$ three times and $g$ twice continuously "
        r"differentiable.",
        r"$F g = 0$ (the paper's $\epsilon = 0$: $P g = 0$ and no tail).",
        "The base policy is optimal for the data and gives every outcome that can occur nearby a positive probability.",
    ),
    verdict=Verdict.REFUTED,
    why="the skill's own curvature enters at the same order and can cancel gamma entirely",
    correction=r"""$\Delta u(\theta(t)) = \frac{\gamma_\star^2}{8} t^4 + O(t^5)$ with
$\gamma_\star^2 = \mathbb{E}[(s \cdot H g + g^T (\nabla^2 \ell) g)^2]$, the mean square of $\ell''$ along the path. For
log-linear policies with no tail $\gamma_\star = \gamma$.""",
    derivation=r"""$F g = 0$ means $\mathbb{E}[(s \cdot g)^2] = 0$: $\ell' = 0$ for every outcome. Hence $\ell(t) -
\ell(0) = \frac{t^2}{2} \ell'' + O(t^3)$. Because $\Delta u = \mathbb{E}[\varphi(\ell(t) - \ell(0))]$ with
$\varphi(d) = e^d - 1 - d = d^2/2 + O(d^3)$, $\Delta u = \frac{t^4}{8} \mathbb{E}[(\ell'')^2] + O(t^5)$. For gradient
flow $\ell'' = s \cdot H g + g^T (\nabla^2 \ell) g$. The paper keeps the first part only.

The flaw in the proof is the error term of Theorem 6.1: $O(\|D\|^3)$ is $O(t^3)$ along the flow, larger than the
$t^4$ to be shown. The true error there is of the order $t^4$, the same as the main term, so no bookkeeping can leave
$\nabla^2 \ell$ out.

For logits linear in $\theta$, $\nabla^2 \ell$ is minus the covariance of the features, the same for every outcome of
a prompt, and $g^T (\nabla^2 \ell) g = -\mathbb{E}[(s \cdot g)^2]$ for that prompt, which is 0.

A sharper reading, which the corollary does not print, takes $\gamma$ for the rate: $\Delta u = \gamma^2 t^4 / 8$ to
leading order. It is right for log-linear policies with no tail, and fails from both sides. On the three
counterexamples the rate is 0 and $\gamma > 0$. And $\gamma = 0$ does not protect: for the skill $N(\|\theta\|, 1)$ at
$\theta^* = (1, 0)$ and $L = -y$, $H g = 0$ and $\gamma = 0$, yet $\Delta u = (\sqrt{1 + t^2} - 1)^2 / 2 = t^4 / 8 +
O(t^6)$. This last is no counterexample to the corollary, which claims nothing where $\gamma = 0$.

Two more defects. $\lambda$ is counted twice, since $\gamma$ contains $F^{1/2}$ already. And for $\epsilon > 0$ no
interval $[0, t_0]$ will do: the flat skill in the derivation of Theorem 6.2 returns to $\Delta u = 0$ at $T = 2 \,
\mathrm{artanh}(\epsilon) / h$.""",
    evidence=r"""Random softmax skills with several prompts and random cubic losses with $F g = 0$: the coefficient
of $t^4$ of the utility loss along the flow is an exact fraction, compared with $\gamma_\star^2 / 8$ estimated from
scores and Hessians. On the circle and the language model it is extrapolated from the stable utility loss at five
times. The printed statement is asked for a positive rate only: at least a millionth of $\gamma^2 / 8$. The sharper
reading is rejected in the tests on the three counterexamples (rate 0, $\gamma > 0$) and for $\gamma = 0$ (rate 1/8;
$\Delta u = 0.00697$ at $t = 1/2$), and accepted for log-linear policies.""",
    check=_quartic_law,
    build=_build,
    parameters=(
        Parameter("sharp", 1, 2),
        Parameter("kernel", 1, 2),
        Parameter("prompts", 1, 3),
        Parameter("outcomes", 2, 3),
        Parameter("scale", 1e-6, 1e6, "log"),
    ),
    printed=printed_onset,
    counterexamples=_COUNTEREXAMPLES,
    accepted=_log_linear,
)
