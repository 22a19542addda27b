"""The utility loss as a power series in time, from moments of the derivatives of the log-probabilities.

Along any smooth curve write ``l', l'', ...`` for the derivatives at t = 0 of the log-probability of an outcome,
``d = l(t) - l(0) = t l' + t^2/2 l'' + ...``, and E for the mean over the base policy. Because probabilities sum
to one, ``E[e^d] = 1``, hence ``Delta u = E[-d] = E[phi(d)]`` with ``phi(d) = e^d - 1 - d``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import sympy as sp

from theory.symbolic.expansion import TIME, lie_derivatives


def derivative_symbols(order: int) -> tuple[sp.Symbol, ...]:
    """The symbols l1, l2, ... for the first ``order`` derivatives of a log-probability along the curve."""
    return sp.symbols(f"l1:{order + 1}", real=True)


def _powers_of_change(order: int) -> list[sp.Expr]:
    """``d^j / j!`` up to ``t^order``, for j = 0..order."""
    change = sp.Add(*(x * TIME**k / sp.factorial(k) for k, x in enumerate(derivative_symbols(order), start=1)))
    powers = [sp.Integer(1)]
    for j in range(1, order + 1):
        product = sp.Poly(sp.expand(powers[-1] * change / j), TIME)
        powers.append(sp.Add(*(c * TIME**k for (k,), c in product.terms() if k <= order)))
    return powers


def utility_loss_coefficients(order: int) -> tuple[sp.Expr, ...]:
    """Coefficients of ``t^0 .. t^order`` of ``phi(d)``, as polynomials in l1, l2, ...

    Their expectations under the base policy are the coefficients of the utility loss:
    ``[t^2] = E[l'^2]/2``, ``[t^3] = E[l'l'']/2 + E[l'^3]/6``,
    ``[t^4] = E[l''^2]/8 + E[l'l''']/6 + E[l'^2 l'']/4 + E[l'^4]/24``, and so on.
    """
    series = sp.expand(sp.Add(*_powers_of_change(order)[2:]))
    return tuple(series.coeff(TIME, k) for k in range(order + 1))


def normalisation_identities(order: int) -> tuple[sp.Expr, ...]:
    """Derivatives 1..order of ``e^d`` at t = 0: polynomials in l1, l2, ... of expectation zero.

    The first two say ``E[l'] = 0`` and ``E[l''] = -E[l'^2]``: without leak, ``gamma_*^2`` is a variance.
    """
    series = sp.expand(sp.Add(*_powers_of_change(order)))
    return tuple(series.coeff(TIME, k) * sp.factorial(k) for k in range(1, order + 1))


def onset_law(first: int, order: int) -> tuple[sp.Expr, ...]:
    """Coefficients of ``t^0 .. t^order`` when the derivatives before the ``first``-th vanish.

    The leading one is ``E[(l^(k))^2] / (2 k!^2)`` at ``t^(2k)``, k = ``first``: the onset exponent is even for
    every curve. With k = 2, which is ``F g = 0``, the series starts ``gamma_*^2/8 t^4 + E[l''l''']/12 t^5``: the
    exact law that corrects Corollary 6.3.
    """
    vanishing = dict.fromkeys(derivative_symbols(order)[: first - 1], sp.Integer(0))
    return tuple(sp.expand(c.xreplace(vanishing)) for c in utility_loss_coefficients(order))


def mean_of_polynomial(
    polynomial: sp.Expr, weights: tuple[sp.Expr, ...], derivatives: tuple[tuple[sp.Expr, ...], ...]
) -> sp.Expr:
    """Expectation of a polynomial in l1, l2, ... over finitely many outcomes.

    Args:
        polynomial: as returned by the functions of this module.
        weights: base probability of each outcome.
        derivatives: for each outcome its l1, l2, ..., at least as many as the polynomial holds.
    """
    return sp.Add(
        *(
            weight * polynomial.xreplace(dict(zip(derivative_symbols(len(values)), values, strict=True)))
            for weight, values in zip(weights, derivatives, strict=True)
        )
    )


@dataclass(frozen=True)
class BinaryPolicy:
    """A policy with two outcomes whose logit is a generic power series in t.

    Attributes:
        probability: base probability p of the first outcome.
        logit_derivatives: z1, z2, ..., derivatives of the logit at t = 0.
        direct: coefficients ``t^0 .. t^order`` of the Kullback-Leibler divergence, differentiated as it is defined.
        from_moments: the same from :func:`utility_loss_coefficients`.
    """

    probability: sp.Symbol
    logit_derivatives: tuple[sp.Symbol, ...]
    direct: tuple[sp.Expr, ...]
    from_moments: tuple[sp.Expr, ...]


@cache
def binary_policy(order: int) -> BinaryPolicy:
    """Derive the utility loss of a generic two-outcome softmax in two ways, up to ``t^order``."""
    p, q = sp.symbols("p q", positive=True)
    z = sp.symbols(f"z1:{order + 1}", real=True)
    coordinates = (q, *z)
    # q = sigmoid(z) moves as q' = q (1 - q) z', and each derivative of the logit as the next one
    field = (q * (1 - q) * z[0], *z[1:], sp.Integer(0))
    outcomes = ((p, q), (1 - p, 1 - q))
    divergence = sp.Add(*(base * sp.log(base / moved) for base, moved in outcomes))
    direct = [
        sp.factor(d.subs(q, p) / sp.factorial(k))
        for k, d in enumerate(lie_derivatives(divergence, field, coordinates, order))
    ]
    derivatives = tuple(
        tuple(sp.factor(d.subs(q, p)) for d in lie_derivatives(sp.log(moved), field, coordinates, order)[1:])
        for _, moved in outcomes
    )
    weights = tuple(base for base, _ in outcomes)
    moments = [sp.factor(mean_of_polynomial(c, weights, derivatives)) for c in utility_loss_coefficients(order)]
    return BinaryPolicy(p, z, tuple(direct), tuple(moments))
