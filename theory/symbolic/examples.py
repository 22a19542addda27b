"""Exactly solvable problems that decide claims of "The Geometry of Alignment Collapse".

Each is derived: flows of quadratic losses by the matrix exponential, other flows by checking that the path solves
the equation, and everything else from the log-probabilities. Angles and radii are those of the plane (x, y).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import sympy as sp

from theory.symbolic.expansion import TIME, flow_residual, lie_derivatives, quadratic_flow
from theory.symbolic.skills import CategoricalSkill, GaussianSkill, Onset, Problem, onset

X, Y = PARAMETERS = sp.symbols("x y", real=True)
PRECISION = sp.Symbol("lambda", positive=True)
BETA = sp.Symbol("beta", positive=True)
RADIUS = sp.sqrt(X**2 + Y**2)
ANGLE = sp.atan2(Y, X)
ORIGIN = (sp.Integer(0), sp.Integer(0))
UNIT_X = (sp.Integer(1), sp.Integer(0))


@dataclass(frozen=True)
class Example:
    """A problem together with its exact gradient flow.

    Attributes:
        problem: skill, fine-tuning loss and base point.
        path: (2, 1) the flow theta(t).
    """

    problem: Problem
    path: sp.ImmutableMatrix

    @cached_property
    def onset(self) -> Onset:
        """Onset quantities of the gradient flow."""
        return onset(self.problem)

    @cached_property
    def utility_loss(self) -> sp.Expr:
        """The utility loss at every t."""
        return self.problem.utility_loss(tuple(self.path))

    @property
    def residual(self) -> sp.ImmutableMatrix:
        """Zero, because the path solves the flow."""
        return flow_residual(self.path, self.problem.field, PARAMETERS)

    def coefficient(self, order: int) -> sp.Expr:
        """Coefficient of ``t^order`` in the utility loss."""
        return sp.factor(self.utility_loss.diff(TIME, order).subs(TIME, 0) / sp.factorial(order))


def _radial_skill() -> GaussianSkill:
    return GaussianSkill(PARAMETERS, (RADIUS,), PRECISION)


def _flat_skill() -> GaussianSkill:
    return GaussianSkill(PARAMETERS, (X,), PRECISION)


def _quadratic(skill: GaussianSkill, loss: sp.Expr, base: tuple[sp.Expr, sp.Expr]) -> Example:
    problem = Problem(skill, loss, base)
    return Example(problem, quadratic_flow(loss, PARAMETERS, problem.at_base))


def circle() -> Example:
    """Skill ``N(r, 1/lambda)``, loss ``-angle``: gamma = sqrt(lambda), yet the utility loss is 0 for all t.

    The flow from (1, 0) runs along the circle on which the skill does not change. It refutes Corollary 6.3.
    """
    return Example(Problem(_radial_skill(), -ANGLE, UNIT_X), sp.ImmutableMatrix([sp.cos(TIME), sp.sin(TIME)]))


def circle_of_slopes() -> Problem:
    """As :func:`circle` with the loss ``-y/x``, whose flow takes the same circle at another pace."""
    return Problem(_radial_skill(), -Y / X, UNIT_X)


def tangent() -> Example:
    """Skill ``N(r, 1/lambda)``, loss ``-y``: H = 0 and gamma = 0, yet the utility loss is ``lambda t^4/8 + ...``.

    A straight path leaves the circle on which the skill does not change: gamma = 0 does not protect.
    """
    return _quadratic(_radial_skill(), -Y, UNIT_X)


def bent_tangent(bend: sp.Expr = BETA) -> Example:
    """Skill ``N(r, 1/lambda)``, loss ``-y + bend (x - 1) y``: gamma_* = sqrt(lambda) |bend - 1|.

    It attains ``gamma_* >= gamma - L_F |g|^2 / sqrt(lambda_d)`` for bend >= 1. With bend = 1 the loss is quadratic,
    gamma = sqrt(lambda), and the utility loss only ``O(t^8)``.
    """
    return _quadratic(_radial_skill(), -Y + bend * (X - 1) * Y, UNIT_X)


def constant_fisher() -> Example:
    """Skill ``N(x, 1/lambda)``, loss ``-y + beta x y``: F is constant, the flow is curved nonetheless.

    It refutes the remark of section 5.2 that with a constant F gradient flow would run in straight lines; here the
    utility loss is ``gamma^2 t^4/8 + ...`` and gamma_* = gamma.
    """
    return _quadratic(_flat_skill(), -Y + BETA * X * Y, ORIGIN)


def reparametrised(shear: sp.Expr) -> Onset:
    """Onset of :func:`constant_fisher` in the coordinates (X, Y) with ``x = X + shear Y^2/2``, ``y = Y``.

    The same curve of distributions, with velocity and acceleration those of the transported curve: gamma changes to
    ``sqrt(lambda) |beta + shear|``, gamma_* does not.
    """
    original = constant_fisher().problem
    inverse = (X - shear * Y**2 / 2, Y)
    rates = [lie_derivatives(f, original.field, PARAMETERS, 2) for f in inverse]
    velocity, acceleration = (sp.ImmutableMatrix([rate[k].subs(original.at_base) for rate in rates]) for k in (1, 2))
    forward = {X: X + shear * Y**2 / 2}
    skill = GaussianSkill(PARAMETERS, (X.subs(forward),), PRECISION)
    return onset(Problem(skill, original.loss.subs(forward), ORIGIN), velocity, acceleration)


def language_model() -> Problem:
    """Two prompts, two responses each, cross-entropy loss: gamma > 0, yet the utility loss is 0 for all t.

    The logit of the first response is ``k r`` on the safety prompt and the angle on the task prompt. Fine-tuning on
    the first response of the task prompt from (1, 0) never changes r: Corollary 6.3 fails for softmax models.
    """
    sharpness = sp.Symbol("k", positive=True)
    one_prompt = (sp.Integer(1),)
    safety = CategoricalSkill(PARAMETERS, ((sharpness * RADIUS, sp.Integer(0)),), one_prompt)
    task = CategoricalSkill(PARAMETERS, ((ANGLE, sp.Integer(0)),), one_prompt)
    return Problem(safety, -task.log_probabilities[0], UNIT_X)


def unrealisable() -> Example:
    """Skill ``N((x, y^3), I)`` on data from ``N((0, 1), I)``, loss ``-y + 2xy``: utility IMPROVES as ``-t^3``.

    F = diag(1, 0), ``P g = 0`` and gamma = 2, so that without Assumption 1 not even the sign of Corollary 6.3
    survives, against Lemma C.2.
    """
    data_mean = (sp.Integer(0), sp.Integer(1))
    skill = GaussianSkill(PARAMETERS, (X, Y**3), sp.Integer(1), data_mean)
    return _quadratic(skill, -Y + 2 * X * Y, ORIGIN)


@dataclass(frozen=True)
class Hyperbolic:
    """The flat example of Theorem 6.2, with overlap epsilon and curvature h of the loss.

    Attributes:
        example: skill ``N(x, 1/lambda)``, loss ``-y + epsilon x - h x y`` at the origin.
        overlap: epsilon = norm of ``P g``, in (0, 1).
        curvature: h.
        return_time: the T > 0 at which x(T) = 0: the sharp direction is left and met again.
        printed_bound: ``gamma T^2/2 - epsilon T``, the bound of Theorem 6.2 as printed, without its cubic term.
        corrected_bound: ``gamma T^2/2 - sqrt(lambda) epsilon T``, that of Lemma A.6, likewise.
    """

    example: Example
    overlap: sp.Symbol
    curvature: sp.Symbol
    return_time: sp.Expr
    printed_bound: sp.Expr
    corrected_bound: sp.Expr


def hyperbolic() -> Hyperbolic:
    """Derive the example in which the distance ``|F^(1/2) P (theta - theta*)| = sqrt(lambda) |x|`` returns to 0.

    There Theorem 6.2 as printed promises ``2 (sqrt(lambda) - 1) epsilon^2/h`` to leading order. For lambda > 1 that is
    positive and, where the constant of the cubic term does not depend on epsilon, larger than that term, which is
    ``O(epsilon^3)``. The bound of Lemma A.6 is ``O(epsilon^4)`` before its cubic term, which outweighs it.
    """
    overlap, curvature = sp.symbols("epsilon h", positive=True)
    example = _quadratic(_flat_skill(), -Y + overlap * X - curvature * X * Y, ORIGIN)
    growth = sp.Symbol("u", positive=True)  # exp(h t)
    height = example.path[0].rewrite(sp.exp).subs(TIME, sp.log(growth) / curvature)
    (ratio,) = (u for u in sp.solve(sp.numer(sp.together(sp.simplify(height))), growth) if u != 1)
    time = sp.log(ratio) / curvature
    gamma = example.onset.coupling
    distance = gamma * time**2 / 2
    return Hyperbolic(
        example, overlap, curvature, time, distance - overlap * time, distance - sp.sqrt(PRECISION) * overlap * time
    )


@dataclass(frozen=True)
class StaticProjection:
    """Gradient flow with every update projected off the sharp direction of the base point.

    Attributes:
        problem: skill, loss and base point of :func:`circle`.
        height: y, which parametrises the path (1, y).
        time: t as a function of y.
        utility_loss: the utility loss as a function of y.
        onset: onset quantities of the projected path.
    """

    problem: Problem
    height: sp.Symbol
    time: sp.Expr
    utility_loss: sp.Expr
    onset: Onset


def static_projection() -> StaticProjection:
    """The defence that does harm: on the circle the unprojected flow loses nothing, the projected one ``t^4``.

    The projected flow ``theta' = -(I - P) g`` with P fixed keeps x = 1, and ``y + y^3/3 = t``.
    """
    problem = circle().problem
    metric = onset(problem).fisher
    kept = sp.eye(2) - metric / metric.trace()  # F has rank 1: P = F / lambda
    field = tuple(kept * sp.ImmutableMatrix(problem.field))
    rates = [lie_derivatives(p, field, PARAMETERS, 2) for p in PARAMETERS]
    velocity, acceleration = (sp.ImmutableMatrix([r[k].subs(problem.at_base) for r in rates]) for k in (1, 2))
    height = sp.Symbol("s", nonnegative=True)
    time = sp.integrate(sp.expand(sp.simplify(1 / field[1].subs(X, 1).subs(Y, height))), (height, 0, Y)).subs(Y, height)
    loss = problem.utility_loss((sp.Integer(1), height))
    return StaticProjection(problem, height, time, loss, onset(problem, velocity, acceleration))
