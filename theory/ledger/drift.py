"""Theorem 6.2 and Lemma A.6: how far the path is bent into the sensitive subspace."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from theory.ledger.claim import Claim, Example, Parameter, Slack, Verdict, at_least
from theory.ledger.maps import PolynomialMap, polynomial
from theory.ledger.scenarios import Coefficients, Scenario, integrate, quadratic_loss
from theory.ledger.section5 import taylor_constant
from theory.ledger.skills import GaussianSkill


@dataclass(frozen=True)
class _Hyperbolic:
    """Skill ``N(sqrt(sharpness) p, 1)`` and loss ``L = overlap p - q - bend p q``, whose flow is hyperbolic."""

    overlap: float
    bend: float
    sharpness: float
    time: float

    @cached_property
    def loss(self) -> PolynomialMap:
        """L."""
        return quadratic_loss(np.array([self.overlap, -1.0]), -self.bend * np.array([[0.0, 1.0], [1.0, 0.0]]))

    @cached_property
    def scenario(self) -> Scenario:
        """Skill and loss."""
        mean = polynomial(np.array([[np.sqrt(self.sharpness), 0.0]]))
        return Scenario(GaussianSkill(mean, 1.0), self.loss)

    @property
    def displacement(self) -> np.ndarray:
        """``(p(t), q(t))`` in closed form, shape (2,)."""
        swing = np.sinh(self.bend * self.time)
        lift = 2 * np.sinh(self.bend * self.time / 2) ** 2  # cosh - 1 without cancellation
        return np.array([lift - self.overlap * swing, swing - self.overlap * lift]) / self.bend


def _build_hyperbolic(
    rng: np.random.Generator, overlap: float, bend: float, sharpness: float, reach: float
) -> _Hyperbolic:
    return _Hyperbolic(overlap, bend, sharpness, reach * overlap / bend)


def _drift_slack(
    scenario: Scenario, distance: float, time: float, points: np.ndarray, weight: float, tolerance: float, reason: str
) -> Slack:
    """``distance >= gamma t^2/2 - weight |P g| t - C' t^3``, in units of the first two terms."""
    found = scenario.estimate
    assert isinstance(scenario.loss, PolynomialMap)
    bent, leaked = found.coupling * time**2 / 2, weight * found.overlap * time
    rest = np.sqrt(found.eigenvalues[0]) * taylor_constant(scenario.loss, points) * time**3
    return at_least(distance, bent - leaked - rest, tolerance, reason, scale=bent + leaked)


def _hyperbolic_slack(case: _Hyperbolic, weight: float) -> Slack:
    end = case.displacement
    distance = np.sqrt(2 * case.scenario.skill.utility_loss(end))
    points = np.stack([np.zeros(2), end])  # |theta'''|^2 is convex along this flow: largest at an end
    return _drift_slack(case.scenario, distance, case.time, points, weight, 1e-12, "closed forms, rounding")


def _drift_bound(case: _Hyperbolic) -> Slack:
    return _hyperbolic_slack(case, np.sqrt(case.sharpness))


def _drift_bound_as_printed(case: _Hyperbolic) -> Slack:
    return _hyperbolic_slack(case, 1.0)


def _returning(overlap: float, sharpness: float) -> _Hyperbolic:
    """At the time at which the path is back at ``p = 0``."""
    return _Hyperbolic(overlap, 1.0, sharpness, 2 * float(np.arctanh(overlap)))


DRIFT_THEOREM = Claim(
    key="6.2",
    title="Drift into the sensitive subspace",
    source="Theorem 6.2, section 6",
    statement=r"""Under the alignment instability condition there is $t_0 > 0$ such that for $0 \le t \le t_0$
$\|F^{1/2} P(\theta(t) - \theta^*)\| \ge \frac{\gamma}{2} t^2 - \epsilon t - O(t^3)$.""",
    hypotheses=(
        r"Gradient flow $\theta' = -g(\theta)$ with $g$ twice continuously differentiable.",
        r"$\|P g\| \le \epsilon$ and $\|F^{1/2} P H g\| \ge \gamma$ at $\theta^*$.",
    ),
    verdict=Verdict.VACUOUS,
    why="with t0 after epsilon the bound may stay below 0; uniformly in epsilon a factor is missing",
    correction=r"""$\|F^{1/2} P(\theta(t) - \theta^*)\| \ge \frac{\gamma}{2} t^2 - \sqrt{\lambda_{1}} \epsilon t - C'
t^3$ with $C'$ independent of $\epsilon$, as in Lemma A.6. Without $\sqrt{\lambda_{1}}$ this is false for
$\lambda_{1} > 1$.""",
    derivation=r"""As printed, $t_0$ and the constant of the error term may depend on $\epsilon$. For $\epsilon > 0$
the right side is not positive while $t \le 2 \epsilon / \gamma$, so that choosing $t_0$ there makes the theorem true
and empty. What Corollary 6.3 uses is a bound with constants that do not depend on $\epsilon$. That bound is Lemma
A.6, in which the first-order term is $\|F^{1/2} P g\| \, t \le \sqrt{\lambda_{1}} \|P g\| \, t$.

The factor cannot be dropped: for $L = \epsilon p - q - h p q$ and the skill $N(\sqrt{\lambda} p, 1)$ the flow is
$p(t) = (\cosh(h t) - 1) / h - \epsilon \sinh(h t) / h$, which is 0 again at $T = 2 \, \mathrm{artanh}(\epsilon) /
h$, where the printed right side is $2 (\sqrt{\lambda} - 1) \epsilon^2 / h - O(\epsilon^3)$.""",
    evidence=r"""The hyperbolic family above in closed form, with $\epsilon$ from $10^{-7}$ to $0.3$ and times of a
few $\epsilon / h$. The left side is $\sqrt{2 \Delta u}$; $\gamma$, $\|P g\|$ and $\lambda_{1}$ are estimated from
the scores; $C' = \frac{1}{6} \sqrt{\lambda_{1}} \sup \|\theta'''\|$ over the path.""",
    check=_drift_bound,
    build=_build_hyperbolic,
    parameters=(
        Parameter("overlap", 1e-7, 0.3, "log"),
        Parameter("bend", 1e-3, 1e3, "log"),
        Parameter("sharpness", 1e-6, 1e6, "log"),
        Parameter("reach", 0.2, 12.0, "uniform"),
    ),
    printed=_drift_bound_as_printed,
    counterexamples=(
        Example(
            "sharpness 4",
            r"$\lambda = 4$, $h = 1$, $\epsilon = 0.001$ at $T = 2 \, \mathrm{artanh}(\epsilon)$: the left side is "
            r"0, the printed right side about $2 \epsilon^2$.",
            lambda: _returning(1e-3, 4.0),
        ),
        Example(
            "sharpness 1.21",
            r"$\lambda = 1.21$, $h = 1$, $\epsilon = 0.001$ at the same time: the right side is about $0.2 "
            r"\epsilon^2$.",
            lambda: _returning(1e-3, 1.21),
        ),
    ),
    accepted=lambda rng: _build_hyperbolic(
        rng, float(10 ** rng.uniform(-7, -1)), 1.0, float(rng.uniform(0.01, 1.0)), float(rng.uniform(0.2, 12.0))
    ),
    boundary=(
        Example(
            "small overlap",
            r"$\epsilon = 10^{-7}$, $\lambda = 4$, $h = 1$, $t = 4 \epsilon$: equality up to a relative $O(t)$.",
            lambda: _Hyperbolic(1e-7, 1.0, 4.0, 4e-7),
        ),
    ),
    tightness=1e-6,
)


@dataclass(frozen=True, eq=False)
class _Drift:
    """A scenario with a polynomial loss, and a time within which its flow is tame."""

    scenario: Scenario
    time: float


def _build_drift(
    rng: np.random.Generator, dimension: int, prompts: int, outcomes: int, overlap: float, share: float, scale: float
) -> _Drift:
    """The part of the gradient in the sensitive subspace is multiplied by ``overlap``."""
    plain = Coefficients(rng).scenario(dimension, prompts, outcomes, rank=int(rng.integers(1, dimension + 1)))
    assert isinstance(plain.loss, PolynomialMap)
    gradient = plain.gradient - (1 - overlap) * plain.projector @ plain.gradient
    loss = polynomial(gradient[None], plain.loss.quadratic, plain.loss.cubic).scaled(scale)
    rate = np.linalg.norm(loss.quadratic) + np.sqrt(np.linalg.norm(loss.cubic) * np.linalg.norm(loss.linear))
    return _Drift(Scenario(plain.skill, loss, plain.rank), float(share / rate))


def _drift(case: _Drift) -> Slack:
    scenario = case.scenario
    points = integrate(lambda d: -scenario.loss.jacobian(d)[0], np.zeros(len(scenario.fisher)), case.time * _STEPS)
    inside = scenario.projector @ points[-1]
    distance = np.sqrt(inside @ scenario.fisher @ inside)
    weight = np.sqrt(scenario.estimate.eigenvalues[0])
    reason = "the flow is integrated to 1e-13, and its part in the subspace may be 1e-4 of it"
    return _drift_slack(scenario, float(distance), case.time, points, float(weight), 1e-9, reason)


_STEPS = np.linspace(0.0, 1.0, 17)


DRIFT_LEMMA = Claim(
    key="A.6",
    title="Drift, with explicit constants",
    source="Lemma A.6, appendix A.3",
    statement=r"""$\|F^{1/2} P(\theta(t) - \theta^*)\| \ge \frac{\gamma}{2} t^2 - \sqrt{\lambda_{1}} \epsilon t - C'
t^3$ for $0 \le t \le t_0$.""",
    hypotheses=(
        r"Gradient flow $\theta' = -g(\theta)$ on $[0, t_0]$ with $g$ twice continuously differentiable.",
        r"$\|P g\| \le \epsilon$ and $\|F^{1/2} P H g\| \ge \gamma$ at $\theta^*$.",
    ),
    verdict=Verdict.HOLDS,
    why="Taylor and the triangle inequality; the constant does not depend on epsilon",
    derivation=r"""$\theta(t) - \theta^* = -t g + \frac{t^2}{2} H g + R$ with $\|R\| \le \frac{t^3}{6} \sup \|D^2
g[g, g] + (Dg)^2 g\|$. Apply $F^{1/2} P$, whose norm is $\sqrt{\lambda_{1}}$, and use the triangle inequality: the
second-order term has norm at least $\gamma t^2 / 2$, the first-order one at most $\sqrt{\lambda_{1}} \epsilon t$,
the remainder at most $C' t^3$ with $C' = \frac{1}{6} \sqrt{\lambda_{1}} \sup \|D^2 g[g, g] + (Dg)^2 g\|$.""",
    evidence=r"""Random softmax skills with a tail and random cubic losses, the overlap $\|P g\|$ from $10^{-7}$ to 1
of what it would be at random. The flow is integrated by DOP853 and projected densely; $\gamma$, $\epsilon$ and
$\lambda_{1}$ come from the Gram matrix of the scores. The supremum is taken over 17 points of the path.""",
    check=_drift,
    build=_build_drift,
    parameters=(
        Parameter("dimension", 2, 4),
        Parameter("prompts", 1, 3),
        Parameter("outcomes", 2, 4),
        Parameter("overlap", 1e-7, 1.0, "log"),
        Parameter("share", 0.01, 0.3, "uniform"),
        Parameter("scale", 1e-6, 1e6, "log"),
    ),
    boundary=(
        Example(
            "hyperbolic flow",
            r"$L = \epsilon p - q - p q$, skill $N(2 p, 1)$, $\epsilon = 10^{-4}$, $t = 4 \epsilon$: equality up to "
            r"a relative $O(t)$.",
            lambda: _Drift(_Hyperbolic(1e-4, 1.0, 4.0, 4e-4).scenario, 4e-4),
        ),
    ),
    tightness=1e-3,
)
