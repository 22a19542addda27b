"""Q3 and Q4 of Theorem Q: how far the paper's coupling gamma bounds the onset coefficient from below."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from theory.aic import estimate
from theory.ledger.claim import Claim, Example, Parameter, Slack, Verdict, at_least, equal, worst
from theory.ledger.maps import PolynomialMap, polynomial
from theory.ledger.scenarios import Coefficients, Scenario, quadratic_loss, tight_family
from theory.ledger.skills import (
    Skill,
    SoftmaxSkill,
    fisher_at_base,
    fisher_derivative,
    second_derivatives,
    statistics,
)

_ACTIVE = 3  # parameters outside the kernel of F
_REASON = "rounding, enlarged by the smallest eigenvalue gap and share, at most 1e4"


@dataclass(frozen=True, eq=False)
class Chain:
    """The numbers between the onset coefficient and the coupling of a path ``theta' = v``, ``theta'' = a``.

    Attributes:
        onset: gamma_*.
        mixed: ``E[s l'']``, shape (n,).
        product: ``F a + DF[v] v``, which is the same without a leak, shape (n,).
        projected: ``|(F P)^(+1/2) P E[s l'']|``.
        spanned: the same with all of F, ``|F^(+1/2) E[s l'']|``.
        residual: root mean square of l'' after the linear span of the scores is taken out.
        coupling: ``gamma = |F^(1/2) P a|``.
        sharpness: lambda_d.
        rotation: ``|DF[v] v|``.
        lipschitz: ``|DF[v]| |v|``, at most ``L_F |v|^2``.
        leak: ``v``, with ``leak_rate`` its factor in Q4.
        leak_rate: kappa, the largest root mean square of ``u^T (F P)^(+1/2) (Hess l + s s^T) v`` over unit u.
    """

    onset: float
    mixed: np.ndarray
    product: np.ndarray
    projected: float
    spanned: float
    residual: float
    coupling: float
    sharpness: float
    rotation: float
    lipschitz: float
    leak: float
    leak_rate: float

    @property
    def scale(self) -> float:
        """What the numbers are compared in: the coupling and the loss of it."""
        return self.onset + self.coupling + self.lipschitz / math.sqrt(self.sharpness)


def chain(skill: Skill, velocity: np.ndarray, acceleration: np.ndarray, rank: int) -> Chain:
    """All of :class:`Chain` in float64; F must have at least ``rank`` eigenvalues above 0."""
    v, a = velocity.astype(np.float64), acceleration.astype(np.float64)
    scores, weights = skill.scores().astype(np.float64), skill.weights.astype(np.float64)
    numbers = estimate(statistics(skill, v, a), rank, resamples=0, splits=1)
    second = second_derivatives(skill, velocity, acceleration).astype(np.float64)
    mixed = (weights * second) @ scores
    fisher, turn = fisher_at_base(skill).astype(np.float64), fisher_derivative(skill, velocity).astype(np.float64)
    values, vectors = np.linalg.eigh(fisher)
    kept = values > 1e-10 * values[-1]
    whitened = mixed @ vectors[:, kept] / np.sqrt(values[kept])
    root = np.sqrt(weights)
    explained = (root[:, None] * scores) @ np.linalg.lstsq(root[:, None] * scores, root * second, rcond=1e-10)[0]
    bent = skill.log_hessians().astype(np.float64) @ v + scores * (scores @ v)[:, None]
    top = vectors[:, -rank:] / np.sqrt(values[-rank:])
    assert numbers.onset_coefficient is not None
    return Chain(
        onset=numbers.onset_coefficient,
        mixed=mixed,
        product=fisher @ a + turn @ v,
        projected=float(np.linalg.norm(whitened[-rank:])),
        spanned=float(np.linalg.norm(whitened)),
        residual=float(np.linalg.norm(root * second - explained)),
        coupling=numbers.coupling,
        sharpness=numbers.sharpness,
        rotation=float(np.linalg.norm(turn @ v)),
        lipschitz=float(np.linalg.norm(turn, 2) * np.linalg.norm(v)),
        leak=numbers.leak,
        leak_rate=float(np.linalg.norm(root[:, None] * bent @ top, 2)),
    )


@dataclass(frozen=True, eq=False)
class Coupled:
    """A scenario, its projector's rank, and whether F has constant rank near the base point."""

    scenario: Scenario
    constant_rank: bool = False

    @property
    def chain(self) -> Chain:
        """Its numbers."""
        scenario = self.scenario
        return chain(scenario.skill, scenario.velocity, scenario.acceleration, scenario.rank)


def with_spectrum(skill: SoftmaxSkill, eigenvalues: np.ndarray) -> SoftmaxSkill:
    """The skill with its first parameters transformed until F has these eigenvalues there, and is 0 elsewhere."""
    logits, size = skill.logits, len(eigenvalues)
    assert isinstance(logits, PolynomialMap)
    values, vectors = np.linalg.eigh(fisher_at_base(skill)[:size, :size])
    linear = logits.linear.copy()
    linear[:, :size] = linear[:, :size] @ (vectors / np.sqrt(values) * np.sqrt(eigenvalues))
    return replace(skill, logits=replace(logits, linear=linear))


def rare_response(rare: float, push: float, sharpness: float, scale: float) -> Coupled:
    """One parameter, and two responses, one with a small probability p; ``F = sharpness``, ``DF = 0``.

    The logit is ``b D - (1 - 2 p) b^2 D^2 / 4`` and the loss ``scale (D + push b D^2 / 2)``, ``b^2 p (1 - p)`` the
    sharpness. Q4's bound is tight as p -> 0, with the coupling ``push v`` and the leak term ``v/2``.
    """
    slope = math.sqrt(sharpness / rare / (1 - rare))
    quadratic = np.array([[[(rare - 0.5) * slope**2]], [[0.0]]])
    skill = SoftmaxSkill(np.ones(1), np.array([[rare, 1 - rare]]), polynomial(np.array([[slope], [0.0]]), quadratic))
    return Coupled(Scenario(skill, quadratic_loss(np.array([scale]), np.array([[scale * push * slope]]))), True)


def build_coupled(
    rng: np.random.Generator,
    kind: int,
    prompts: int,
    rank: int,
    gap: float,
    sharpness: float,
    scale: float,
    leak: float = 0.0,
) -> Coupled:
    """kind 0: a random softmax skill; 1: with two responses, so that F has constant rank; 2: the tight family; 3: a
    rare response and a leak.
    """
    if kind == 3:
        return rare_response(0.5 * 10.0 ** (-12 * rng.random()), 1 + rng.random(), sharpness, scale)
    if kind == 2:
        tight = tight_family(4 * rng.random(), sharpness)
        return Coupled(replace(tight, loss=quadratic_loss(scale * tight.gradient, scale * tight.hessian)), True)
    make = Coefficients(rng)
    sizes = (prompts, 4) if kind == 0 else (_ACTIVE, 2)
    skill = make.softmax(_ACTIVE + 2, *sizes, kernel=2)
    spectrum = np.array([*(1 + rng.random(rank - 1)), 1, 1 - gap, (1 - gap) / 4])[:_ACTIVE]
    loss = make.loss(_ACTIVE + 2, 2)
    loss.linear[0, :_ACTIVE] *= leak
    flow = quadratic_loss(scale * loss.linear[0], scale * loss.quadratic[0])
    return Coupled(Scenario(with_spectrum(skill, sharpness * spectrum), flow, rank), kind == 1)


def _check_chain(case: Coupled) -> Slack:
    c = case.chain
    root = math.sqrt(c.sharpness)
    checks = [
        equal(c.mixed, c.product, 1e-11, _REASON, scale=root * c.scale, part="identity for z"),
        at_least(c.onset, c.projected, 1e-11, _REASON, scale=c.scale, part="projection"),
        at_least(c.projected, c.coupling - c.rotation / root, 1e-11, _REASON, scale=c.scale, part="rotation"),
        at_least(c.onset, c.coupling - c.lipschitz / root, 1e-11, _REASON, scale=c.scale, part="Lipschitz"),
        equal(c.onset, math.hypot(c.spanned, c.residual), 1e-11, _REASON, scale=c.scale, part="Pythagoras"),
    ]
    if case.constant_rank:
        checks.append(equal(c.onset, c.spanned, 1e-11, _REASON, scale=c.scale, part="constant rank"))
    return worst(*checks)


_PARAMETERS = (
    Parameter("kind", 0, 2),
    Parameter("prompts", 1, 3),
    Parameter("rank", 1, _ACTIVE),
    Parameter("gap", 1e-4, 0.9, "log"),
    Parameter("sharpness", 1e-6, 1e6, "log"),
    Parameter("scale", 1e-6, 1e6, "log"),
)


def _tight(beta: float, sharpness: float) -> Coupled:
    return Coupled(tight_family(beta, sharpness), True)


_BOUNDARY = (
    Example(
        "tight family",
        r"""Skill $N(r, 1/\lambda)$, $r = \|\theta\|$, at $(1, 0)$ with $\lambda = 4$, loss $-y + \beta (x-1) y$ with
$\beta = 3$: $\gamma = \sqrt{\lambda} \beta = 6$, $\|DF[g] g\| = \lambda$, $\gamma_* = \sqrt{\lambda} |\beta - 1| =
4$.""",
        lambda: _tight(3.0, 4.0),
    ),
    Example(
        "circle's rate",
        r"The same with $\beta = 1$, where the bound is $0 = \gamma_*$: the flow follows the circle to this order.",
        lambda: _tight(1.0, 4.0),
    ),
)


_Q3 = Claim(
    key="Q3",
    title="Coupling as a lower bound, without leak",
    source="this project",
    statement=r"""Let $F g = 0$ and $z = F H g + DF(\theta^*)[g]\, g$. Then $z = \mathbb{E}[s\, \ell'']$, it is the
derivative at $t = 0$ of $F(\theta(t)) \theta'(t)$, and for every $d$ with $\lambda_d > 0$
$\gamma_* \ge \|(FP)^{+1/2} P z\| \ge \gamma - \frac{\|DF[g] g\|}{\sqrt{\lambda_d}} \ge
\gamma - \frac{L_F \|g\|^2}{\sqrt{\lambda_d}}.$
Moreover $\gamma_*^2 = \|F^{+1/2} z\|^2 + \mathbb{E}[h_\perp^2]$, where $h_\perp$ is $g^T \nabla^2 \ell g$ less its
projection on the span of the scores; it is 0 where $F$ has constant rank near $\theta^*$.""",
    hypotheses=(
        "the hypotheses of Q1",
        "$F g = 0$; the tail need not vanish",
        r"$L_F$: Lipschitz constant of $F$ near $\theta^*$ in the operator norm",
    ),
    verdict=Verdict.HOLDS,
    why="the rotation of the Fisher matrix can take from gamma at most L_F |g|^2 / sqrt(lambda_d)",
    derivation=r"""Differentiate $F(\theta) = \mathbb{E}_\theta[s s^T]$, expectation included, along $g$ and apply it
to $g$: $DF[g] g = \mathbb{E}[\nabla^2 \ell g (s \cdot g)] + \mathbb{E}[s\, g^T \nabla^2 \ell g] + \mathbb{E}[(s \cdot
g)^2 s]$. As $F g = 0$, $s \cdot g = 0$ almost surely and only the middle term is left. With $F H g = \mathbb{E}[s (s
\cdot H g)]$ this gives $z = \mathbb{E}[s \ell'']$. The functions $s \cdot v_j / \sqrt{\lambda_j}$, $j \le d$, are
orthonormal in $L^2$, and the projection of $\ell''$ on their span has the norm $\|(FP)^{+1/2} P z\|$: Bessel's
inequality is the first bound. Since $(FP)^{+1/2} P F H g = F^{1/2} P H g$ has the norm $\gamma$, the triangle
inequality gives the second, and $\|DF\| \le L_F$ the third. With all $d = $ rank $F$ directions, Pythagoras gives the
identity. If the rank is constant, differentiate $F(\theta) k(\theta) = 0$ for a smooth $k$ with $k(\theta^*) = g$:
$s_\theta \cdot k = 0$ for every response, and along $g$: $g^T \nabla^2 \ell g + s \cdot Dk[g] = 0$, so $h$ lies in
the span of the scores and $h_\perp = 0$.""",
    evidence=r"""Random softmax skills with prescribed Fisher spectra (near-degenerate gaps, $\lambda$ and loss over
twelve decades each, rank $F \ge d$) and the tight family. $\gamma_*$, $\gamma$ and $\lambda_d$ from the estimators,
$z$ once as $\mathbb{E}[s \ell'']$ and once from the derivative of the Fisher matrix, $h_\perp$ by least squares.
Equality along the whole chain on the tight family for all $\beta \ge 1$.""",
    check=_check_chain,
    build=build_coupled,
    parameters=_PARAMETERS,
    boundary=_BOUNDARY,
    tightness=1e-12,
)


def _check_leaky(case: Coupled) -> Slack:
    c = case.chain
    bound = c.coupling - c.lipschitz / math.sqrt(c.sharpness) - c.leak * c.leak_rate
    return at_least(c.onset, bound, 1e-11, _REASON, scale=c.scale)


_Q4 = Claim(
    key="Q4",
    title="Coupling as a lower bound, with a leak",
    source="this project",
    statement=r"""With the leak $v^2 = g^T F g$, for every $d$ with $\lambda_d > 0$
$\gamma_* \ge \gamma - \frac{L_F \|g\|^2}{\sqrt{\lambda_d}} - \kappa v, \quad \kappa = \sup_{\|u\| = 1} \|u^T
(FP)^{+1/2} (\nabla^2 \ell + s s^T) g\|_{L^2} \le \|s \cdot g\|_\infty + \frac{k_2}{\sqrt{\lambda_d}}, \quad k_2 =
\sup_{\|u\| = 1} \|u^T \nabla^2 \ell g\|_{L^2}.$
The factor 1 of $\kappa v$ is the best.""",
    hypotheses=(
        "the hypotheses of Q1 but for $F g = 0$",
        r"$\kappa$ finite; $s \cdot g$ bounded for the last bound (finite sets of prompts and responses)",
    ),
    verdict=Verdict.HOLDS,
    why="Q3 is continuous in the leak",
    derivation=r"""The derivative of $F$ in Q3's proof gives $\mathbb{E}[s \ell''] = F H g + DF[g] g -
\mathbb{E}[\nabla^2 \ell g (s \cdot g)] - \mathbb{E}[(s \cdot g)^2 s]$. Apply $(FP)^{+1/2} P$. The last two terms are
$-\mathbb{E}[w (s \cdot g)]$ with the vector $w = (FP)^{+1/2} (\nabla^2 \ell + s s^T) g$, and for a unit $u$,
$\mathbb{E}[(u \cdot w)(s \cdot g)] \le \|u \cdot w\|_{L^2} v \le \kappa v$ by Cauchy and Schwarz. The first two are as
in Q3. For the bound on $\kappa$, $x = (FP)^{+1/2} u$ has $\|x\| \le 1/\sqrt{\lambda_d}$ and $\|s \cdot x\|_{L^2} \le
1$, so $\|x^T \nabla^2 \ell g\|_{L^2} \le k_2/\sqrt{\lambda_d}$ and $\|(s \cdot x)(s \cdot g)\|_{L^2} \le \|s \cdot
g\|_\infty$.

Best: two responses, the first with the probability $p$ and the logit $x - (1 - 2p) x^2/4$, one parameter, $g = H = 1$.
Then $F = p (1-p)$, $DF = 0$, $\gamma = v = \sqrt{F}$, $\gamma_* = \sqrt{F (1/4 + 2p)}$, $\kappa = \frac{1}{2} - p$, and
$\gamma - \kappa v - \gamma_* = (\frac{1}{2} + p - \sqrt{1/4 + 2p}) v = -(p + O(p^2)) v$.""",
    evidence=r"""The cases of Q3 with a part of $g$ outside the kernel of $F$, from $10^{-6}$ to all of it, and the two
responses of the proof with $p$ from $10^{-12}$ to $1/2$, on which the bound without the leak term fails. $\kappa$ is
the largest singular value of the whitened $(\nabla^2 \ell + s s^T) g$ over the outcomes. Tight at $v = 0$ on the tight
family, and as $p \to 0$ with $\kappa v = \gamma/2$.""",
    check=_check_leaky,
    build=build_coupled,
    parameters=(Parameter("kind", 0, 3), *_PARAMETERS[1:], Parameter("leak", 1e-6, 1.0, "log")),
    boundary=(
        *_BOUNDARY,
        Example(
            "rare response with a leak",
            r"""Two responses, one with probability $10^{-13}$, and $\gamma = v$: $\gamma_*$ is half of it, and so is
$\kappa v$.""",
            lambda: rare_response(1e-13, 1.0, 1.0, 1.0),
        ),
    ),
    tightness=1e-12,
)

CLAIMS = (_Q3, _Q4)
