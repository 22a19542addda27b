"""E5: low-rank adaptation as a preconditioned flow, and what it does to orthogonality."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from theory.ledger.claim import Claim, Parameter, Slack, Verdict, equal, exact, worst
from theory.ledger.maps import PolynomialMap
from theory.ledger.paths import steps
from theory.ledger.scenarios import Coefficients
from theory.ledger.skills import SoftmaxSkill
from theory.series import Series, contract, integral_curve


@dataclass(frozen=True, eq=False)
class Adapter:
    """A low-rank adapter ``W = W0 + c B A`` at its start ``B = 0``, over Fractions.

    Attributes:
        loss: of the entries of ``W - W0``, row by row.
        rows: A at the start, shape (r, m).
        scale: c.
        outputs: number of rows of W.
        count: steps of gradient descent.
        axes: orthonormal columns in R^3 for the mean over random A of as many rows; the first is w.
        subspace: k, the next columns.
        skill: softmax, over the entries of ``W - W0``, whose Fisher matrix does not see the adapter's velocity.
    """

    loss: PolynomialMap
    rows: np.ndarray
    scale: Fraction
    outputs: int
    count: int
    axes: np.ndarray
    subspace: int
    skill: SoftmaxSkill

    @property
    def gradient(self) -> np.ndarray:
        """G, shape (outputs, m)."""
        return self.loss.linear[0].reshape(self.outputs, -1)

    @property
    def filter(self) -> np.ndarray:
        """``Pi = A^T A``, shape (m, m)."""
        return self.rows.T @ self.rows

    def hessian(self, direction: np.ndarray) -> np.ndarray:
        """``Hess L [direction]``, of W's shape."""
        return (self.loss.quadratic[0] @ direction.ravel()).reshape(direction.shape)

    def loss_gradient(self, change: Series) -> Series:
        """Gradient along ``W - W0``, shape (p + 1, outputs, m)."""
        along = self.loss.jacobian_along(change.reshape(len(change), -1))
        return along.reshape(len(change), self.outputs, -1)

    def split(self, point: Series) -> tuple[Series, Series]:
        """B and A from the parameters laid end to end."""
        rank, inputs = self.rows.shape
        cut = self.outputs * rank
        return point[:, :cut].reshape(-1, self.outputs, rank), point[:, cut:].reshape(-1, rank, inputs)

    def product(self, point: Series) -> Series:
        """``W - W0 = c B A``."""
        return self.scale * contract(*self.split(point))

    def field(self, point: Series) -> Series:
        """``B' = -c G A^T``, ``A' = -c B^T G``."""
        left, right = self.split(point)
        gradient = self.loss_gradient(self.product(point))
        rates = contract(gradient, right.swapaxes(1, 2)), contract(left.swapaxes(1, 2), gradient)
        return -self.scale * np.concatenate([rate.reshape(len(point), -1) for rate in rates], axis=1)

    @property
    def start(self) -> np.ndarray:
        """B = 0 and A, laid end to end."""
        rank = len(self.rows)
        return np.concatenate([self.rows.ravel()[:1].repeat(self.outputs * rank) * 0, self.rows.ravel()])


def _build(rng: np.random.Generator, outputs: int, inputs: int, rank: int, count: int, subspace: int) -> Adapter:
    make, size = Coefficients(rng, exact=True), outputs * inputs
    loss, rows = make.map(1, size), make.tensor(rank, inputs)
    skill = make.softmax(size, 1, 3)
    assert isinstance(skill.logits, PolynomialMap)
    seen = (loss.linear[0].reshape(outputs, inputs) @ rows.T @ rows).ravel()
    if np.any(seen != 0):
        skill.logits.linear[:] -= np.multiply.outer(skill.logits.linear @ seen, seen) / (seen @ seen)
    return Adapter(
        loss=loss,
        rows=rows,
        scale=Fraction(int(rng.integers(1, 7)), int(rng.integers(1, 4))),
        outputs=outputs,
        count=count,
        axes=np.linalg.qr(rng.standard_normal((3, 3)))[0],
        subspace=subspace,
        skill=skill,
    )


def _check_flow(case: Adapter) -> Slack:
    change = case.product(integral_curve(case.field, case.start, 4))
    filtered = -(case.scale**2) * case.filter  # the preconditioner, with the sign of descent
    plain = integral_curve(
        lambda point: (case.loss_gradient(point) @ filtered).reshape(len(point), -1), case.loss.origin, 4
    ).reshape(change.shape)
    g, pi, c = case.gradient, case.filter, case.scale
    turn = -(c**4) * (3 * g @ pi @ g.T @ g + g @ g.T @ g @ pi)
    second = c**4 * case.hessian(g @ pi) @ pi
    expected = np.stack([change[0] * 0, -(c**2) * g @ pi, second / 2, plain[3] + turn / 6])
    losses = [case.skill.utility_loss_along(path.reshape(len(path), -1)) for path in (change, plain)]
    return worst(exact(change[:4], expected, part="flow"), exact(*losses, part="utility loss"))


def _check_steps(case: Adapter) -> Slack:
    change = case.product(steps(case.field, case.start, (1,) * case.count, 2))
    g, pi, c, count = case.gradient, case.filter, case.scale, case.count
    bend = Fraction(count * (count - 1), 2) * c**4
    expected = np.stack([-count * c**2 * g @ pi, bend * case.hessian(g @ pi) @ pi])
    return exact(change[1:], expected, part="descent")


def input_energies(rank: int, axes: np.ndarray) -> np.ndarray:
    """Mean squares of the components of ``w Pi`` along the columns of ``axes``, for A with standard normal entries.

    The mean is a sum over three Gauss-Hermite nodes for each entry of A, exact because w Pi squared has degree four.

    Args:
        rank: r, rows of A.
        axes: shape (m, q); the first column is w.
    """
    nodes = np.array(list(itertools.product((-math.sqrt(3), 0.0, math.sqrt(3)), repeat=rank * len(axes))))
    weights = np.where(nodes == 0, 2 / 3, 1 / 6).prod(axis=1)
    seen = nodes.reshape(-1, rank, len(axes)) @ axes  # A u for every column u
    return np.asarray(weights @ (seen[:, :, :1] * seen).sum(axis=1) ** 2)


def _check_energy(case: Adapter) -> Slack:
    rank, inputs = len(case.rows), len(case.axes)
    energies = input_energies(rank, case.axes)
    inside = energies[1 : 1 + case.subspace].sum()
    measured = np.array([inside / energies.sum(), inside / energies[0]])
    expected = np.array([case.subspace / (inputs + rank + 1), case.subspace / (rank + 2)])
    return equal(measured, expected, 1e-12, "rounding of sums over at most 729 nodes", part="input side")


def _check(case: Adapter) -> Slack:
    return worst(_check_flow(case), _check_steps(case), _check_energy(case))


_E5 = Claim(
    key="E5",
    title="Low-rank adaptation",
    source="this project",
    statement=r"""Let $W = W_0 + c B A$ with $B(0) = 0$, $A(0) = A_0$, $\Pi = A_0^T A_0$, $G = \nabla_W L$, and let
$A$ and $B$ follow gradient flow. Then at $t = 0$
$W' = -c^2 G \Pi, \quad W'' = c^4 \nabla^2 L[G \Pi]\, \Pi, \quad W''' = W'''_\Pi - c^4 (3 G \Pi G^T G + G G^T G \Pi),$
with $W_\Pi$ the flow $W' = -c^2 \nabla L\, \Pi$: to second order the adapter is gradient flow preconditioned on the
right, and the $t^4$ term of the utility loss is that of this flow where $F v = 0$, $v = -c^2 G \Pi$. $K$ steps of
descent move by $-K \eta c^2 G \Pi + \eta^2 \frac{K(K-1)}{2} c^4 \nabla^2 L[G \Pi]\, \Pi + O(\eta^3)$. A gradient with
$U^T G = 0$ keeps $U^T G \Pi = 0$; a row $w$ of $G$ that is orthogonal to a $k$-dimensional input subspace does not:
for $A_0$ with independent normal entries the subspace gets the share $\mathbb{E}\|U^T \Pi w\|^2/\mathbb{E}\|\Pi w\|^2
= k/(m + r + 1)$, and $k/(r + 2)$ relative to the component along $w$.""",
    hypotheses=(
        "$L$ is $C^3$",
        "$B(0) = 0$, as LoRA starts",
        "$A_0$ with independent centred normal entries of one variance, $r$ rows, $m$ columns, for the shares",
    ),
    verdict=Verdict.HOLDS,
    why="to second order a right preconditioner; output-side orthogonality survives, input-side does not",
    derivation=r"""The flow is $B' = -c\, G A^T$, $A' = -c B^T G$, so $W' = -c^2 (G A^T A + B B^T G)$. At 0, $B = 0$
and $A' = 0$: $W' = -c^2 G \Pi$; $B B^T = O(t^2)$ and $A - A_0 = O(t^2)$, so $W'' = -c^2 G' \Pi$ with $G' = \nabla^2
L[W']$. One order further $A'' = -c B'^T G = c^2 A_0 G^T G$, so $(A^T A)'' = c^2 (\Pi G^T G + G^T G \Pi)$ and
$(B B^T)'' = 2 c^2 G \Pi G^T$: both add to the preconditioned flow's $W'''$. By Q1 a change of $t^3$ in the path changes
only the $t^5$ term of the loss. Descent is E1 for this field: $A$ moves at order
$\eta^2$ only, so that $W$ is linear in the steps of $B$ to second order. Input side: for
a unit $w$ put $y = A_0 w$. Along $w$, $\Pi w$ has the component $|y|^2$, with mean square $r (r + 2)$; along a unit
$u \perp w$ it is $y \cdot A_0 u$, normal with variance $|y|^2$ given $y$, with mean square $r$. In total $r (r + 2) +
(m - 1) r = r (m + r + 1)$.""",
    evidence="""The flow of (A, B) as an exact power series to the third order against the formulas, with the
preconditioned flow's own series; the utility loss of both up to the fourth power, for a softmax skill over the entries
of W with $F v = 0$; up to four steps of descent as series in the step size. The shares as exact sums
over Gauss-Hermite nodes for every entry of A, with m = 3 inputs and r = 1, 2.""",
    check=_check,
    build=_build,
    parameters=(
        Parameter("outputs", 1, 2),
        Parameter("inputs", 2, 3),
        Parameter("rank", 1, 2),
        Parameter("count", 1, 4),
        Parameter("subspace", 1, 2),
    ),
)

CLAIMS = (_E5,)
