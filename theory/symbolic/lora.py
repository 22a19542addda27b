"""What low-rank adaptation does to the weights, order by order in time.

``W = W0 + c B A`` with ``B(0) = 0`` and ``A(0) = A0`` (c = alpha/r), trained by gradient flow or by K steps of
gradient descent on A and B. With ``Pi = A0^T A0`` and G the gradient with respect to W at W0,

    W'(0) = -c^2 G Pi,      W''(0) = c^4 Hess L[G Pi] Pi,

as for gradient descent on W preconditioned by ``c^2 Pi``. The movement of A is first felt in W'''(0), which differs
from that of the preconditioned flow by ``-c^4 (3 G Pi G^T G + G G^T G Pi)``.
"""

from __future__ import annotations

from dataclasses import dataclass

import sympy as sp

from theory.symbolic.expansion import along, derivatives_of, descent_series, flow_series, generic_polynomial, gradient

SCALE = sp.Symbol("c", positive=True)


@dataclass(frozen=True)
class LoraExpansion:
    """Low-rank adaptation on a generic polynomial loss of a (p, q) weight matrix.

    Attributes:
        change: (p, q) symbols X of the weight change ``W - W0``.
        loss: generic polynomial in X without constant term.
        initial: (r, q) symbols A0.
        input_factor: (r, q) derivatives of A at t = 0: first, second, ....
        weights: (p, q) derivatives of ``W = W0 + c B A``.
        preconditioned: (p, q) derivatives of W for ``W' = -c^2 G(W) Pi``; empty for gradient descent.
    """

    change: sp.ImmutableMatrix
    loss: sp.Expr
    initial: sp.ImmutableMatrix
    input_factor: tuple[sp.ImmutableMatrix, ...]
    weights: tuple[sp.ImmutableMatrix, ...]
    preconditioned: tuple[sp.ImmutableMatrix, ...]


def lora_flow(outputs: int, inputs: int, rank: int, degree: int = 2, order: int = 3) -> LoraExpansion:
    """Gradient flow on the factors of an (outputs, inputs) weight matrix, for a generic loss of the given degree."""
    x, loss, a, b = _adapter(outputs, inputs, rank, degree)
    parameters, base = [*a, *b], dict.fromkeys(b, sp.Integer(0))
    path = flow_series(tuple(-gradient(_adapted(loss, x, a, b), parameters)), parameters, base, order)
    slope = sp.ImmutableMatrix(outputs, inputs, list(gradient(loss, list(x))))
    direct = flow_series(list(-(SCALE**2) * slope * a.T * a), list(x), dict.fromkeys(x, sp.Integer(0)), order)
    preconditioned = tuple(sp.ImmutableMatrix(outputs, inputs, list(d)) for d in derivatives_of(direct))
    return LoraExpansion(x, loss, a, *_weights(a, b, path), preconditioned)


def lora_descent(outputs: int, inputs: int, rank: int, degree: int = 2, order: int = 2) -> LoraExpansion:
    """K steps of gradient descent of size t/K on the factors.

    ``W - W0 = -t c^2 G Pi + t^2/2 (1 - 1/K) c^4 Hess L[G Pi] Pi + O(t^3)``.
    """
    x, loss, a, b = _adapter(outputs, inputs, rank, degree)
    path = descent_series(_adapted(loss, x, a, b), [*a, *b], dict.fromkeys(b, sp.Integer(0)), order)
    return LoraExpansion(x, loss, a, *_weights(a, b, path), ())


def _adapter(
    outputs: int, inputs: int, rank: int, degree: int
) -> tuple[sp.ImmutableMatrix, sp.Expr, sp.ImmutableMatrix, sp.ImmutableMatrix]:
    """Weight change, generic loss of it, and the two factors."""

    def symbols(name: str, rows: int, columns: int) -> sp.ImmutableMatrix:
        return sp.ImmutableMatrix(rows, columns, lambda i, j: sp.Symbol(f"{name}{i}{j}", real=True))

    x = symbols("X", outputs, inputs)
    return x, generic_polynomial("L", list(x), degree), symbols("A", rank, inputs), symbols("B", outputs, rank)


def _adapted(loss: sp.Expr, x: sp.ImmutableMatrix, a: sp.ImmutableMatrix, b: sp.ImmutableMatrix) -> sp.Expr:
    return loss.xreplace(dict(zip(x, SCALE * b * a, strict=True)))


def _weights(
    a: sp.ImmutableMatrix, b: sp.ImmutableMatrix, path: list[list[sp.Expr]]
) -> tuple[tuple[sp.ImmutableMatrix, ...], tuple[sp.ImmutableMatrix, ...]]:
    """Derivatives of A(t) and of ``W0 + c B(t) A(t)``, from the coefficients of (A, B), where B starts at zero."""
    factors = [*a, *b]
    base = dict.fromkeys(b, sp.Integer(0))
    weights = [[along(w, factors, base, path, m) for w in SCALE * b * a] for m in range(1, len(path) + 1)]
    return (
        tuple(sp.ImmutableMatrix(*a.shape, list(d)[: len(a)]) for d in derivatives_of(path)),
        tuple(sp.ImmutableMatrix(b.rows, a.cols, list(d)) for d in derivatives_of(weights)),
    )
