"""Skills as symbolic families of distributions, and the onset of their utility loss along an update path.

A skill gives the log-probability of each outcome as an expression in the parameters, and expectations under the
distribution at a base point. Fisher matrix, utility loss and onset quantities follow from these two alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import sympy as sp

from theory.symbolic.expansion import gradient, hessian, lie_derivative

Point = Mapping[sp.Symbol, sp.Expr]


@dataclass(frozen=True)
class GaussianSkill:
    """``y ~ N(mean(theta), I/precision)``: one outcome, which holds the response as symbols y1, y2, ....

    Attributes:
        parameters: n symbols.
        mean: expressions in the parameters.
        precision: lambda, a positive expression.
        data_mean: mean of the data where it is not the model's own (violates Assumption 1); None otherwise.
    """

    parameters: tuple[sp.Symbol, ...]
    mean: tuple[sp.Expr, ...]
    precision: sp.Expr
    data_mean: tuple[sp.Expr, ...] | None = None

    @property
    def _response(self) -> tuple[sp.Symbol, ...]:
        return sp.symbols(f"y1:{len(self.mean) + 1}", real=True)

    @property
    def log_probabilities(self) -> tuple[sp.Expr, ...]:
        """Log-density of the response, without its constant."""
        squares = ((y - m) ** 2 for y, m in zip(self._response, self.mean, strict=True))
        return (-self.precision / 2 * sp.Add(*squares),)

    def expectation(self, values: Sequence[sp.Expr], base: Point) -> sp.Expr:
        """Mean over responses to the model at ``base`` (or to the data) of the one value, a polynomial in them."""
        (value,) = values
        noise = sp.symbols(f"xi1:{len(self.mean) + 1}", real=True)
        centre = self.data_mean or tuple(m.subs(dict(base)) for m in self.mean)
        drawn = {y: m + xi / sp.sqrt(self.precision) for y, m, xi in zip(self._response, centre, noise, strict=True)}
        terms = sp.Poly(value.subs(drawn), *noise).terms()
        return sp.Add(*(c * sp.Mul(*(_normal_moment(k) for k in powers)) for powers, c in terms))


def _normal_moment(order: int) -> sp.Expr:
    """``E[xi^order]`` of a standard normal variable."""
    return sp.Integer(0) if order % 2 else sp.factorial2(order - 1)


@dataclass(frozen=True)
class CategoricalSkill:
    """Softmax over finitely many responses, for one or more prompts.

    Attributes:
        parameters: n symbols.
        logits: one tuple of expressions per prompt.
        prompt_weights: probability of each prompt.
    """

    parameters: tuple[sp.Symbol, ...]
    logits: tuple[tuple[sp.Expr, ...], ...]
    prompt_weights: tuple[sp.Expr, ...]

    @property
    def log_probabilities(self) -> tuple[sp.Expr, ...]:
        """Log-probability of each response given its prompt, prompt by prompt."""
        normalisers = [sp.log(sp.Add(*map(sp.exp, row))) for row in self.logits]
        return tuple(z - normaliser for row, normaliser in zip(self.logits, normalisers, strict=True) for z in row)

    def probabilities(self, base: Point) -> tuple[sp.Expr, ...]:
        """Joint probability of each prompt and response, in the order of ``log_probabilities``."""
        rows = [[sp.exp(z.subs(dict(base))) for z in row] for row in self.logits]
        return tuple(
            weight * e / sp.Add(*row) for weight, row in zip(self.prompt_weights, rows, strict=True) for e in row
        )

    def expectation(self, values: Sequence[sp.Expr], base: Point) -> sp.Expr:
        """Mean over prompts and responses to the model at ``base`` of one value for each."""
        return sp.Add(*(p * v for p, v in zip(self.probabilities(base), values, strict=True)))


Skill = GaussianSkill | CategoricalSkill


def fisher(skill: Skill, base: Point) -> sp.ImmutableMatrix:
    """``E[s s^T]`` at ``base``, from the scores ``s`` of all outcomes."""
    scores = [gradient(log_p, skill.parameters).subs(dict(base)) for log_p in skill.log_probabilities]
    n = len(skill.parameters)
    entries = {
        (i, j): _tidy(skill.expectation([s[i] * s[j] for s in scores], base))
        for i, j in combinations_with_replacement(range(n), 2)
    }
    return sp.ImmutableMatrix(n, n, lambda i, j: entries[min(i, j), max(i, j)])


def utility_loss(skill: Skill, base: Point, point: Point) -> sp.Expr:
    """``E[l(base) - l(point)]``, the utility lost by moving from ``base`` to ``point`` (Lemma 3.2)."""
    drops = [log_p.subs(dict(base)) - log_p.subs(dict(point)) for log_p in skill.log_probabilities]
    return sp.simplify(skill.expectation(drops, base))


@dataclass(frozen=True)
class Problem:
    """A skill, a fine-tuning loss on the same parameters, and the base point."""

    skill: Skill
    loss: sp.Expr
    base: tuple[sp.Expr, ...]

    @property
    def parameters(self) -> tuple[sp.Symbol, ...]:
        """The n parameters of the skill."""
        return self.skill.parameters

    @property
    def at_base(self) -> dict[sp.Symbol, sp.Expr]:
        """The base point by parameter."""
        return dict(zip(self.parameters, self.base, strict=True))

    @property
    def field(self) -> tuple[sp.Expr, ...]:
        """The gradient flow ``-grad loss``, n functions of the parameters."""
        return tuple(-gradient(self.loss, self.parameters))

    def utility_loss(self, path: Sequence[sp.Expr]) -> sp.Expr:
        """The utility loss at each point of a path."""
        return utility_loss(self.skill, self.at_base, dict(zip(self.parameters, path, strict=True)))

    def drift(self) -> sp.ImmutableMatrix:
        """``d/dt`` of every log-probability along the gradient flow, at every point and for every outcome.

        Where it is identically zero the flow leaves the policy as it is: the utility loss is 0 for all t.
        """
        rates = [lie_derivative(log_p, self.field, self.parameters) for log_p in self.skill.log_probabilities]
        return sp.ImmutableMatrix([sp.simplify(rate) for rate in rates])


@dataclass(frozen=True)
class Onset:
    """How the utility loss of a skill sets in along a path with given velocity v and acceleration a.

    Attributes:
        gradient: (n, 1) gradient g of the fine-tuning loss.
        curved_gradient: (n, 1) H g, the acceleration of gradient flow.
        velocity: (n, 1) v.
        acceleration: (n, 1) a.
        fisher: (n, n) F.
        first: l' of each outcome.
        second: l'' of each outcome.
        leak: ``sqrt(E l'^2) = sqrt(v^T F v)``.
        coupling: gamma, the norm of ``F^(1/2) P a`` with P the projector on the range of F (the tail is zero).
        onset_coefficient: gamma_*, ``sqrt(E l''^2)``.
    """

    gradient: sp.ImmutableMatrix
    curved_gradient: sp.ImmutableMatrix
    velocity: sp.ImmutableMatrix
    acceleration: sp.ImmutableMatrix
    fisher: sp.ImmutableMatrix
    first: tuple[sp.Expr, ...]
    second: tuple[sp.Expr, ...]
    leak: sp.Expr
    coupling: sp.Expr
    onset_coefficient: sp.Expr


def onset(
    problem: Problem, velocity: sp.ImmutableMatrix | None = None, acceleration: sp.ImmutableMatrix | None = None
) -> Onset:
    """Derive the onset quantities at the base point; gradient flow (v = -g, a = H g) unless told otherwise."""
    skill, base = problem.skill, problem.at_base
    g = gradient(problem.loss, problem.parameters).subs(base)
    hg = sp.ImmutableMatrix((hessian(problem.loss, problem.parameters).subs(base) * g).applyfunc(_tidy))
    v = -g if velocity is None else velocity
    a = hg if acceleration is None else acceleration
    first, second = _derivatives_along(problem, v, a)
    metric = fisher(skill, base)
    return Onset(
        gradient=g,
        curved_gradient=hg,
        velocity=v,
        acceleration=a,
        fisher=metric,
        first=first,
        second=second,
        leak=_root_mean_square(skill, first, base),
        coupling=_root((a.T * metric * a)[0]),
        onset_coefficient=_root_mean_square(skill, second, base),
    )


def _derivatives_along(
    problem: Problem, v: sp.ImmutableMatrix, a: sp.ImmutableMatrix
) -> tuple[tuple[sp.Expr, ...], tuple[sp.Expr, ...]]:
    """``l' = s.v`` and ``l'' = s.a + v^T Hess(l) v`` of each outcome at the base point."""
    first, second = [], []
    for log_p in problem.skill.log_probabilities:
        score = gradient(log_p, problem.parameters).subs(problem.at_base)
        curvature = hessian(log_p, problem.parameters).subs(problem.at_base)
        first.append(_tidy(score.dot(v)))
        second.append(_tidy(score.dot(a) + (v.T * curvature * v)[0]))
    return tuple(first), tuple(second)


def fisher_derivative(problem: Problem, direction: Sequence[sp.Expr]) -> sp.ImmutableMatrix:
    """``DF[u]`` at the base point, F being the Fisher matrix of the model at each point.

    Where ``F v = 0``, ``DF[v] v = E[s v^T Hess(l) v]``: the rotation of the sharp directions that gamma leaves out.
    """
    here = {p: p for p in problem.parameters}
    moving = fisher(problem.skill, here).applyfunc(lambda f: lie_derivative(f, direction, problem.parameters))
    return moving.subs(problem.at_base).applyfunc(_tidy)


def _root_mean_square(skill: Skill, values: Sequence[sp.Expr], base: Point) -> sp.Expr:
    return _root(skill.expectation([x**2 for x in values], base))


def _root(x: sp.Expr) -> sp.Expr:
    return sp.sqrt(_tidy(x))


def _tidy(x: sp.Expr) -> sp.Expr:
    """Simplified; algebraic expressions only by factoring, which is much faster and finds every zero."""
    return sp.simplify(x) if x.has(sp.Function) else sp.factor(x)
