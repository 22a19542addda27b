"""Power series of the paths that gradient flow and gradient descent take, and exact flows of quadratic losses.

All series come from one operation: the expansion of a function along a displacement that is itself a power
series (:func:`along`). Integrating it gives the flow, summing it gives gradient descent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import sympy as sp

TIME = sp.Symbol("t", nonnegative=True)
STEPS = sp.Symbol("K", positive=True, integer=True)


def gradient(f: sp.Expr, parameters: Sequence[sp.Symbol]) -> sp.ImmutableMatrix:
    """Column of the first derivatives of ``f``."""
    return sp.ImmutableMatrix([f.diff(p) for p in parameters])


def hessian(f: sp.Expr, parameters: Sequence[sp.Symbol]) -> sp.ImmutableMatrix:
    """Matrix of the second derivatives of ``f``."""
    return sp.ImmutableMatrix([[f.diff(p, q) for q in parameters] for p in parameters])


def lie_derivative(f: sp.Expr, field: Sequence[sp.Expr], parameters: Sequence[sp.Symbol]) -> sp.Expr:
    """``d/dt f(theta(t))`` along ``theta' = field(theta)``, as a function of theta."""
    return sp.Add(*(v * f.diff(p) for v, p in zip(field, parameters, strict=True)))


def lie_derivatives(
    f: sp.Expr, field: Sequence[sp.Expr], parameters: Sequence[sp.Symbol], order: int
) -> tuple[sp.Expr, ...]:
    """``f`` and its first ``order`` derivatives along ``theta' = field(theta)``, as functions of theta."""
    derivatives = [f]
    for _ in range(order):
        derivatives.append(lie_derivative(derivatives[-1], field, parameters))
    return tuple(derivatives)


def along(
    f: sp.Expr,
    parameters: Sequence[sp.Symbol],
    base: Mapping[sp.Symbol, sp.Expr],
    path: Sequence[Sequence[sp.Expr]],
    order: int,
) -> sp.Expr:
    """Coefficient of ``t^order`` in ``f(base + t path[0] + t^2 path[1] + ...)``; coefficients left out are zero.

    Total derivatives in the coordinates (theta, c_1, c_2, ...), where ``d/dt`` takes ``c_j`` to ``(j+1) c_{j+1}``.
    They never expand in t, and need no more of ``f`` than its partial derivatives: it may be an undefined function.

    Args:
        f: a function of the parameters.
        parameters: n symbols.
        base: values of the parameters at the base point; empty to keep a generic base point.
        path: coefficients of the path, n expressions each.
        order: the power wanted.
    """
    jets = [list(parameters), *([sp.Dummy() for _ in parameters] for _ in range(order))]
    coordinates = [c for jet in jets[:-1] for c in jet]
    field = [j * c for j, jet in enumerate(jets[1:], start=1) for c in jet]
    coefficient = lie_derivatives(f, field, coordinates, order)[order] / sp.factorial(order)
    known = [*path, *([sp.Integer(0)] * len(parameters) for _ in range(order - len(path)))]
    values = {c: value for jet, row in zip(jets[1:], known, strict=False) for c, value in zip(jet, row, strict=True)}
    return sp.expand(coefficient.xreplace({**base, **values}))


def _series(
    field: Sequence[sp.Expr],
    parameters: Sequence[sp.Symbol],
    base: Mapping[sp.Symbol, sp.Expr],
    order: int,
    accumulate: Callable[[sp.Expr, int], sp.Expr],
) -> list[list[sp.Expr]]:
    """Path whose m-th coefficient accumulates coefficient m - 1 of the field along the path."""
    path: list[list[sp.Expr]] = []
    for m in range(1, order + 1):
        path.append([accumulate(along(v, parameters, base, path, m - 1), m) for v in field])
    return path


def flow_series(
    field: Sequence[sp.Expr], parameters: Sequence[sp.Symbol], base: Mapping[sp.Symbol, sp.Expr], order: int
) -> list[list[sp.Expr]]:
    """Coefficients of ``t, ..., t^order`` in the solution of ``theta' = field(theta)`` from ``base``.

    An empty ``base`` keeps a generic base point: the coefficients are then functions of the parameters.
    """
    return _series(field, parameters, base, order, lambda coefficient, m: sp.expand(coefficient / m))


def descent_series(
    loss: sp.Expr, parameters: Sequence[sp.Symbol], base: Mapping[sp.Symbol, sp.Expr], order: int
) -> list[list[sp.Expr]]:
    """Coefficients of ``t, ..., t^order`` after K steps of gradient descent of size ``t/K``, for a symbolic K.

    ``theta_{k+1} = theta_k - eta grad loss(theta_k)`` is solved order by order in eta: each coefficient is a
    polynomial in k, and the next one is a sum over k of known polynomials.
    """
    k, j = sp.Dummy("k"), sp.Dummy("j")

    def total_over_steps(coefficient: sp.Expr, _: int) -> sp.Expr:
        powers = sp.Poly(coefficient, k).all_coeffs()[::-1]
        return sp.expand(sp.Add(*(c * sp.summation(j**i, (j, 0, k - 1)) for i, c in enumerate(powers))))

    path = _series(tuple(-gradient(loss, parameters)), parameters, base, order, total_over_steps)
    return [
        [sp.expand(x.xreplace({k: STEPS}) / STEPS**m) for x in coefficient] for m, coefficient in enumerate(path, 1)
    ]


def quadratic_flow(
    loss: sp.Expr, parameters: Sequence[sp.Symbol], base: Mapping[sp.Symbol, sp.Expr]
) -> sp.ImmutableMatrix:
    """Exact gradient flow ``theta(t)`` of a quadratic loss.

    ``theta' = -g - H (theta - base)``, so that the component of -g along an eigenvector of eigenvalue mu of H is
    multiplied by ``(1 - exp(-mu t))/mu``.

    Raises:
        ValueError: if the loss is not a polynomial of degree at most 2 in the parameters.
    """
    if not loss.is_polynomial(*parameters) or sp.Poly(loss, *parameters).total_degree() > 2:
        raise ValueError(f"expected a loss of degree at most 2 in {tuple(parameters)}, got {loss}")
    velocity = -gradient(loss, parameters).xreplace(dict(base))
    path = sp.ImmutableMatrix([base[p] for p in parameters])
    for mu, _, vectors in hessian(loss, parameters).eigenvects():
        factor = TIME if mu == 0 else (1 - sp.exp(-mu * TIME)) / mu
        for u in sp.GramSchmidt(vectors):
            path += u * (u.dot(velocity) / u.dot(u) * factor)
    return sp.ImmutableMatrix(path.applyfunc(_hyperbolic))


def _hyperbolic(f: sp.Expr) -> sp.Expr:
    """Expanded, with exponentials written as hyperbolic functions."""
    return sp.expand(f.replace(sp.exp, lambda x: sp.cosh(x) + sp.sinh(x)))


def flow_residual(
    path: sp.ImmutableMatrix, field: Sequence[sp.Expr], parameters: Sequence[sp.Symbol]
) -> sp.ImmutableMatrix:
    """``theta'(t) - field(theta(t))``, simplified: zero if and only if the path solves the flow."""
    at_path = dict(zip(parameters, path, strict=True))
    residual = [
        sp.simplify((x.diff(TIME) - v.xreplace(at_path)).rewrite(sp.exp)) for x, v in zip(path, field, strict=True)
    ]
    return sp.ImmutableMatrix(residual)


def generic_polynomial(name: str, variables: Sequence[sp.Symbol], degree: int) -> sp.Expr:
    """Polynomial without constant term whose monomials have symbols as coefficients.

    That of ``x_i x_j ...`` is ``name`` followed by the indices from 0, as in ``c0_1``.
    """
    monomials = [
        (indices, sp.Mul(*(variables[i] for i in indices)))
        for d in range(1, degree + 1)
        for indices in combinations_with_replacement(range(len(variables)), d)
    ]
    return sp.Add(*(sp.Symbol(name + "_".join(map(str, i)), real=True) * m for i, m in monomials))


def generic_loss(dimension: int) -> tuple[tuple[sp.Symbol, ...], sp.Expr]:
    """The parameters theta1, theta2, ... and an undefined function L of them."""
    parameters = sp.symbols(f"theta1:{dimension + 1}", real=True)
    return parameters, sp.Function("L", real=True)(*parameters)


@dataclass(frozen=True)
class GenericPath:
    """A path of a generic loss ``L(theta_1, ..., theta_n)`` from a generic base point.

    Attributes:
        parameters: n symbols, the base point.
        loss: an undefined function of them.
        derivatives: (n, 1) first, second, ... derivative of the path at t = 0.
    """

    parameters: tuple[sp.Symbol, ...]
    loss: sp.Expr
    derivatives: tuple[sp.ImmutableMatrix, ...]


def derivatives_of(path: Sequence[Sequence[sp.Expr]]) -> tuple[sp.ImmutableMatrix, ...]:
    """(n, 1) derivatives at t = 0 of a path given by its coefficients."""
    return tuple(
        sp.ImmutableMatrix([sp.expand(sp.factorial(m) * x) for x in coefficient])
        for m, coefficient in enumerate(path, start=1)
    )


def generic_flow(dimension: int, order: int = 3) -> GenericPath:
    """Gradient flow of a generic loss: ``-t g + t^2/2 H g - t^3/6 (D^2 g[g, g] + H^2 g) + ...`` (section 5.1)."""
    parameters, loss = generic_loss(dimension)
    path = flow_series(tuple(-gradient(loss, parameters)), parameters, {}, order)
    return GenericPath(parameters, loss, derivatives_of(path))


def generic_descent(dimension: int, order: int = 2) -> GenericPath:
    """K steps of gradient descent on a generic loss: ``-t g + t^2/2 (1 - 1/K) H g + ...`` with step size t/K."""
    parameters, loss = generic_loss(dimension)
    return GenericPath(parameters, loss, derivatives_of(descent_series(loss, parameters, {}, order)))


def flow_remainder(dimension: int) -> sp.ImmutableMatrix:
    """``theta'''`` at every point of the gradient flow of a generic loss, by three Lie derivatives.

    It is ``-(D^2 g[g, g] + (Dg)^2 g)``, so that the remainder of the second-order expansion of section 5.1 is
    at most ``t^3/6`` times the supremum of its norm along the path.
    """
    parameters, loss = generic_loss(dimension)
    field = tuple(-gradient(loss, parameters))
    return sp.ImmutableMatrix([sp.expand(lie_derivatives(p, field, parameters, 3)[3]) for p in parameters])
