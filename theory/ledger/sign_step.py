"""E4: the first step of Adam is a sign, and a sign does not keep out of the sensitive subspace."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from theory.ledger.claim import Claim, Example, Parameter, Slack, Verdict, at_least, equal, worst


@dataclass(frozen=True, eq=False)
class SignStep:
    """A gradient drawn from the standard normal law and projected off a subspace.

    Attributes:
        plane: orthonormal rows, shape (2, n): the gradient lies in this plane (the subspace has n - 2 dimensions).
        basis: orthonormal columns, shape (m, d): the subspace of the bounds.
    """

    plane: np.ndarray
    basis: np.ndarray


def sign_energy(projector: np.ndarray) -> float:
    """``E|P sign(g)|^2`` for ``g`` normal with mean 0 and covariance ``I - P``, by the arcsine law.

    ``E[sign(g_i) sign(g_j)] = (2/pi) arcsin(rho_ij)``, with the correlations rho of g. No coordinate axis may lie in
    the subspace: such a coordinate of g has no sign.

    Args:
        projector: P, shape (n, n), orthogonal.

    Raises:
        ValueError: if an axis lies in the subspace.
    """
    free = 1 - np.diagonal(projector)
    if free.min() <= 1e-12:
        raise ValueError(
            f"expected no coordinate axis in the subspace, got axis {int(free.argmin())} inside: a gradient projected "
            "off it has no sign there; leave that coordinate out"
        )
    correlation = -projector / np.sqrt(np.outer(free, free))
    np.fill_diagonal(correlation, 1.0)
    return float((projector * np.arcsin(np.clip(correlation, -1.0, 1.0))).sum() * 2 / math.pi)


def plane_energy(plane: np.ndarray) -> float:
    """``E|P sign(g)|^2`` for g normal in a plane, P the projector off it, by integration over the angle.

    ``g ~ cos(a) plane[0] + sin(a) plane[1]`` with a uniform; its signs are constant between the 2 n angles at which
    a coordinate vanishes.
    """
    zero = np.arctan2(-plane[0], plane[1]) % np.pi
    turns = np.sort(np.concatenate([zero, zero + np.pi]))
    lengths = np.diff(np.append(turns, turns[0] + 2 * np.pi))
    middle = turns + lengths / 2
    signs = np.sign(np.outer(np.cos(middle), plane[0]) + np.outer(np.sin(middle), plane[1]))
    inside = signs.shape[1] - ((signs @ plane.T) ** 2).sum(axis=1)
    return float(lengths @ inside / (2 * np.pi))


def _orthonormal(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    return np.asarray(np.linalg.qr(rng.standard_normal((rows, columns)))[0])


def _build(rng: np.random.Generator, size: int, dimension: int, rank: int, dominant: int, rest: float) -> SignStep:
    """Where ``dominant`` is not 0, all coordinates of the subspace but so many are reduced by the factor ``rest``."""
    plane, spread = _orthonormal(rng, size, 2).T, rng.standard_normal((dimension, rank))
    if dominant:
        spread[dominant:] *= rest
    return SignStep(plane, np.asarray(np.linalg.qr(spread)[0]))


def _check(case: SignStep) -> Slack:
    plane, basis = case.plane, case.basis
    exact = equal(
        sign_energy(np.eye(plane.shape[1]) - plane.T @ plane),
        plane_energy(plane),
        1e-6,
        "arcsin turns rounding of 1e-16 near a correlation of 1 into 1e-8, once for each such pair",
        part="arcsine law",
    )
    rank = basis.shape[1]
    projector = basis @ basis.T
    share = sign_energy(projector) / rank
    diagonal = np.diagonal(projector)
    apart = 2 / math.pi * (1 - diagonal @ diagonal / rank)
    bound = min(diagonal.max() / (1 - diagonal.max()), 1.0)
    most, least = 1 - apart, 1 - apart * (1 + (math.pi / 2 - 1) * bound**2) / (1 - diagonal.max())
    reason = "rounding of the projector"
    return worst(
        exact,
        at_least(most, share, 1e-10, reason, part="upper bound", scale=1.0),
        at_least(share, least, 1e-10, reason, part="lower bound", scale=1.0),
    )


def even_subspace(size: int) -> SignStep:
    """The direction whose coordinates are equal."""
    return SignStep(_orthonormal(np.random.default_rng(0), 5, 2).T, np.full((size, 1), size**-0.5))


_E4 = Claim(
    key="E4",
    title="Adam's first step",
    source="this project",
    statement=r"""Adam's first step is $-\eta\, \mathrm{sign}(g)$: $v = -\mathrm{sign}(g)$, $a = 0$ almost everywhere.
Even if $P g = 0$, $P v$ is not 0. For $g$ standard normal, projected off the range of $P$ (the normal law with
covariance $I - P$),
$\mathbb{E} \|P\, \mathrm{sign}(g)\|^2 = \frac{2}{\pi} \sum_{ij} P_{ij} \arcsin \rho_{ij}, \quad \rho_{ij} =
\frac{(I - P)_{ij}}{\sqrt{(1 - P_{ii})(1 - P_{jj})}}.$
With $p = \max_i P_{ii}$, $q = \min(p/(1-p), 1)$ and $S = \frac{1}{d} \sum_i P_{ii}^2 \le p$, as a share of the $d$ of a
random sign vector, this lies between
$1 - \frac{2}{\pi} \frac{1 + (\pi/2 - 1) q^2}{1 - p} (1 - S)$ and $1 - \frac{2}{\pi} (1 - S)$: for a subspace that is
spread over many coordinates, $1 - 2/\pi = 36\%$ of what a random direction has, however well the gradient avoids
it.""",
    hypotheses=(
        r"$g$ normal with mean 0 and covariance $I - P$, $P$ an orthogonal projector of rank $d$, all $P_{ii} < 1$",
        "Adam's constant in the denominator negligible",
    ),
    verdict=Verdict.HOLDS,
    why="a sign forgets the projection: 1 - 2/pi of the random overlap comes back",
    derivation=r"""Adam's first step is $-\eta\, \hat m/\sqrt{\hat v} = -\eta\, g/|g|$ in each coordinate, which is
locally constant. For a centred normal pair with correlation $\rho$, $\mathbb{E}[\mathrm{sign}\, \mathrm{sign}] =
\frac{2}{\pi} \arcsin \rho$ (Sheppard). Sum against $P_{ij}$. The diagonal gives $d$. Off it $\rho_{ij}$ has the sign
of $-P_{ij}$, $|\arcsin \rho_{ij}| \ge |\rho_{ij}| \ge |P_{ij}|$, and $\sum_{i \ne j} P_{ij}^2 = d - \sum_i P_{ii}^2 =
d (1 - S)$, which is the upper bound. For the lower one $|P_{ij}| \le p$, so $|\rho_{ij}| \le q$ and $|\rho_{ij}| \le
|P_{ij}|/(1-p)$; $\arcsin x \le x + (\pi/2 - 1) x^3$ on $[0, 1]$, because $(\arcsin x - x)/x^3$ increases to $\pi/2 -
1$; and the same sum.""",
    evidence="""Gradients in random planes of R^3 to R^8: their signs are constant on arcs, so that the mean is an
exact finite sum, and agrees with the arcsine law. The bounds on subspaces of 1 to 4 of 8 to 64 dimensions, spread out
or with up to three dominant coordinates; both tend to 1 - 2/pi on the direction with many equal coordinates, and the
lower one is reached at p = 1/2 on that with two.""",
    check=_check,
    build=_build,
    parameters=(
        Parameter("size", 3, 8),
        Parameter("dimension", 8, 64),
        Parameter("rank", 1, 4),
        Parameter("dominant", 0, 3),
        Parameter("rest", 1e-2, 1.0, "log"),
    ),
    boundary=(
        Example(
            "equal coordinates",
            r"$P$ projects on $(1, \ldots, 1)/\sqrt{n}$ with $n = 1000$: both bounds are within $1/n$ of the share.",
            lambda: even_subspace(1000),
        ),
        Example(
            "two coordinates",
            r"$P$ projects on $(1, 1)/\sqrt{2}$: the signs of $g$ are opposite, the share and the lower bound are 0.",
            lambda: even_subspace(2),
        ),
    ),
    tightness=1e-3,
)

CLAIMS = (_E4,)
