"""The exact quartic law on generic models: gradient flow, gradient descent, and a skill for every loss.

Where ``F g = 0`` gradient flow loses ``Delta u = gamma_*^2 t^4/8 + E[l''l'''] t^5/12 + O(t^6)``. This is the exact
form of Corollary 6.3 of "The Geometry of Alignment Collapse", which has gamma in the place of gamma_*. The two
differ by the curvature of the log-probabilities, and :func:`immune_skill` shows that gamma alone decides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import sympy as sp

from theory.symbolic.expansion import (
    along,
    derivatives_of,
    descent_series,
    flow_series,
    generic_loss,
    generic_polynomial,
    gradient,
    hessian,
    lie_derivatives,
)
from theory.symbolic.moments import binary_policy, derivative_symbols, onset_law
from theory.symbolic.skills import CategoricalSkill, GaussianSkill, Onset, Problem, onset


@dataclass(frozen=True)
class SoftmaxLaw:
    """A generic two-outcome softmax and a generic loss in two parameters, with ``F g = 0``.

    Attributes:
        problem: logit and loss with a symbol for every coefficient up to degree 3.
        onset: its onset quantities, from the derivatives of the model at the base point.
        direct: coefficients of ``t^0 .. t^5`` of the Kullback-Leibler divergence along the flow.
        mixed_moment: ``E[l'' l''']`` by Lie derivatives of the log-probabilities.
    """

    problem: Problem
    onset: Onset
    direct: tuple[sp.Expr, ...]
    mixed_moment: sp.Expr


def softmax_law() -> SoftmaxLaw:
    """Derive the coefficients of the utility loss on a generic two-outcome softmax with ``F g = 0``."""
    parameters = sp.symbols("x y", real=True)
    p = sp.Symbol("p", positive=True)
    # no term linear in y in the logit and none in x in the loss: the score is orthogonal to g
    bend = generic_polynomial("q", parameters, 3).subs(sp.Symbol("q1", real=True), 0)
    logit = sp.log(p / (1 - p)) + bend
    loss = generic_polynomial("c", parameters, 3).subs(sp.Symbol("c0", real=True), 0)
    skill = CategoricalSkill(parameters, ((logit, sp.Integer(0)),), (sp.Integer(1),))
    problem = Problem(skill, loss, (sp.Integer(0), sp.Integer(0)))
    # the fourth coefficient of the path meets only l' = 0 before t^6
    path = flow_series(problem.field, parameters, problem.at_base, 3)
    policy = binary_policy(5)
    moved = [sp.factorial(k) * along(logit, parameters, problem.at_base, path, k) for k in range(1, 6)]
    values = {policy.probability: p, **dict(zip(policy.logit_derivatives, moved, strict=True))}
    derivatives = [lie_derivatives(log_p, problem.field, parameters, 3) for log_p in skill.log_probabilities]
    mixed = [(d[2] * d[3]).subs(problem.at_base) for d in derivatives]
    return SoftmaxLaw(
        problem,
        onset(problem),
        tuple(sp.factor(c.xreplace(values)) for c in policy.direct),
        sp.factor(sp.simplify(skill.expectation(mixed, problem.at_base))),
    )


@dataclass(frozen=True)
class DescentLaw:
    """The quartic law for K steps of gradient descent of size t/K, generic loss and generic log-probability.

    Attributes:
        parameters: n symbols, the base point.
        loss: undefined function L of them.
        log_probability: undefined function l of them, of one outcome.
        first: ``l' = -s.g``.
        second: ``l'' = (1 - 1/K) s.Hg + g^T Hess(l) g``.
        coefficient: the integrand of ``t^4`` where l' vanishes, ``l''^2/8``.
    """

    parameters: tuple[sp.Symbol, ...]
    loss: sp.Expr
    log_probability: sp.Expr
    first: sp.Expr
    second: sp.Expr
    coefficient: sp.Expr


def descent_law(dimension: int) -> DescentLaw:
    """Derive l' and l'' along gradient descent: only the curvature of the loss is weakened by ``1 - 1/K``."""
    parameters, loss = generic_loss(dimension)
    log_probability = sp.Function("l", real=True)(*parameters)
    path = descent_series(loss, parameters, {}, 2)
    first, second = (sp.factorial(k) * along(log_probability, parameters, {}, path, k) for k in (1, 2))
    coefficient = onset_law(2, 4)[4].xreplace({derivative_symbols(2)[1]: second})
    return DescentLaw(parameters, loss, log_probability, first, sp.expand(second), coefficient)


def descent_onset(problem: Problem) -> Onset:
    """Onset quantities of K steps of gradient descent of size t/K on a problem, for a symbolic K."""
    velocity, acceleration = derivatives_of(descent_series(problem.loss, problem.parameters, problem.at_base, 2))
    return onset(problem, velocity, acceleration)


@dataclass(frozen=True)
class ImmuneSkill:
    """A skill that a given loss hardly touches although its gamma is positive.

    Attributes:
        problem: generic loss with a symbol for every coefficient up to degree 3, and the skill.
        normal: (n, 1) gradient p of the skill's mean, orthogonal to g.
        onset: its onset quantities: leak and gamma_* vanish, gamma is ``sqrt(lambda) |p.Hg|``.
        mean_series: coefficients of ``t, t^2, t^3`` of the skill's mean along the flow; the first two vanish.
        leading: the coefficient of ``t^6`` in the utility loss ``lambda/2 (mean - mean(0))^2``.
    """

    problem: Problem
    normal: sp.ImmutableMatrix
    onset: Onset
    mean_series: tuple[sp.Expr, ...]
    leading: sp.Expr


def immune_skill(dimension: int) -> ImmuneSkill:
    """For a generic loss, a Gaussian skill with ``F g = 0``, no tail and gamma > 0 whose loss is only O(t^6).

    Its mean is ``p.x + x^T S x / 2`` with p orthogonal to g and ``S = -(p.Hg) g g^T / |g|^4``, which bends with the
    flow. It contradicts the ``Omega(lambda gamma^2 t^4)`` of Corollary 6.3 wherever H g is not parallel to g.

    Raises:
        ValueError: if the dimension is not 2 or 3.
    """
    if dimension not in (2, 3):
        raise ValueError(f"expected dimension 2 or 3, got {dimension}")
    parameters = sp.symbols(f"x1:{dimension + 1}", real=True)
    loss = generic_polynomial("c", parameters, 3)
    base = dict.fromkeys(parameters, sp.Integer(0))
    g, hess = gradient(loss, parameters).subs(base), hessian(loss, parameters).subs(base)
    if dimension == 2:
        normal = sp.ImmutableMatrix([-g[1], g[0]])
    else:
        normal = g.cross(sp.ImmutableMatrix(sp.symbols("w1:4", real=True)))
    x = sp.ImmutableMatrix(parameters)
    mean = normal.dot(x) - normal.dot(hess * g) * g.dot(x) ** 2 / (2 * g.dot(g) ** 2)
    precision = sp.Symbol("lambda", positive=True)
    problem = Problem(GaussianSkill(parameters, (mean,), precision), loss, tuple(base.values()))
    path = flow_series(problem.field, parameters, base, 3)
    first, second = (sp.factor(along(mean, parameters, base, path, k)) for k in (1, 2))
    third = along(mean, parameters, base, path, 3)
    return ImmuneSkill(problem, normal, onset(problem), (first, second, third), precision / 2 * third**2)
