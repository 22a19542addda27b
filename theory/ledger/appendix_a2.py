"""Appendix A.2: what Theorem 4.1 is made of, random directions and quadratic forms."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

import numpy as np

from theory.aic import Estimate, estimate
from theory.ledger.claim import Claim, Example, Parameter, Slack, Verdict, at_least, exact, worst
from theory.ledger.section3 import sensitivity
from theory.null_model import OverlapLaw, concentration_exponent
from theory.statistics import ScoreStatistics


@dataclass(frozen=True, eq=False)
class Form:
    """A vector and a quadratic form with integer entries.

    Attributes:
        vector: g, shape (n,), of int64.
        matrix: A, shape (n, n), of int64, not symmetric.
    """

    vector: np.ndarray
    matrix: np.ndarray

    def orbit(self) -> np.ndarray:
        """The images of g under all changes of sign and all cyclic shifts of the coordinates, (2^n n, n)."""
        n = len(self.vector)
        shifted = np.stack([np.roll(self.vector, k) for k in range(n)])
        signs = np.array(list(itertools.product((-1, 1), repeat=n)))
        return (signs[:, None] * shifted).reshape(-1, n)


def _build_form(rng: np.random.Generator, dimension: int, size: float) -> Form:
    largest = int(size)
    vector, matrix = (rng.integers(-largest, largest + 1, shape) for shape in (dimension, (dimension, dimension)))
    vector[0] = largest  # never zero
    return Form(vector, matrix)


def _check_a1(case: Form) -> Slack:
    orbit, n = case.orbit(), len(case.vector)
    return exact(n * orbit.T @ orbit, len(orbit) * (case.vector @ case.vector) * np.eye(n, dtype=int))


def _check_a2(case: Form) -> Slack:
    orbit = case.orbit()
    mean = Fraction(int(np.einsum("ri,ij,rj->", orbit, case.matrix, orbit)), len(orbit))
    squared = Fraction(int(case.vector @ case.vector))
    return exact(mean / squared, Fraction(int(np.trace(case.matrix)), len(case.vector)))


_FORM_PARAMETERS = (Parameter("dimension", 1, 6), Parameter("size", 1, 1e4, "log"))

SECOND_MOMENT = Claim(
    key="A.1",
    title="A random direction is isotropic",
    source="Lemma A.1, appendix A.2",
    statement=r"For $g$ uniform on the unit sphere of $\mathbb{R}^n$: $\mathbb{E}[g g^T] = \frac{1}{n} I$.",
    hypotheses=(r"$g$ is uniform on the unit sphere.",),
    verdict=Verdict.HOLDS,
    why="the law is invariant under signs and permutations, and the trace is 1",
    derivation=r"""Changing the sign of a coordinate keeps the law, so $\mathbb{E}[g_i g_j] = 0$ for $i \neq j$.
Permuting coordinates keeps it, so all $\mathbb{E}[g_i^2]$ agree, and they sum to $\|g\|^2 = 1$. Only these symmetries
are used: the average of $g g^T$ over the signed cyclic shifts of any one vector is $\|g\|^2 I / n$ already.""",
    evidence=r"""For random integer vectors, the average over all $2^n n$ signed cyclic shifts, in integers: equal to
the last digit. The uniform law is a mixture of such orbits. Sampled directions agree in the tests.""",
    check=_check_a1,
    build=_build_form,
    parameters=_FORM_PARAMETERS,
)

QUADRATIC_MEAN = Claim(
    key="A.2",
    title="The mean of a quadratic form in a random direction",
    source="Lemma A.2, appendix A.2",
    statement=r"""For $g$ uniform on the unit sphere of $\mathbb{R}^n$ and $A$ symmetric:
$\mathbb{E}[g A g^T] = \frac{1}{n} Tr A$.""",
    hypotheses=(r"$g$ is uniform on the unit sphere; $A$ need not be symmetric.",),
    verdict=Verdict.CORRECTED,
    why="misprint only: g A g^T should be g^T A g; symmetry of A is not needed",
    correction=r"$\mathbb{E}[g^T A g] = \frac{1}{n} Tr A$ for every square matrix $A$.",
    derivation=r"""$g^T A g = Tr(A g g^T)$; take the expectation inside the trace and use Lemma A.1. The antisymmetric
part of $A$ adds 0 to both sides.""",
    evidence=r"""For random integer vectors and non-symmetric integer matrices, the average over all signed cyclic
shifts of the vector, in integers: equal to the last digit. Sampled directions agree in the tests.""",
    check=_check_a2,
    build=_build_form,
    parameters=_FORM_PARAMETERS,
)


@dataclass(frozen=True)
class Deviation:
    """A null model and a relative deviation of the energy from its mean.

    Attributes:
        law: the law of the energy.
        eps: in (0, 1).
    """

    law: OverlapLaw
    eps: float


_above = partial(
    at_least, tolerance=1e-11, reason="SciPy's incomplete beta function is good to 1e-11 at these parameters"
)
_SMALLEST = math.ulp(0.0)  # a probability below it is 0 here, and its exponent at least that of this


def concentration(case: Deviation) -> Slack:
    """Lemma A.3 on a case, with the finer one-sided bounds that it follows from."""
    law, eps = case.law, case.eps
    high, low = (1 + eps) * law.mean, (1 - eps) * law.mean
    rate = concentration_exponent(law.rank, eps)
    both = -math.log(max(law.deviation_probability(eps), _SMALLEST))
    above, below = (math.exp(-law.chernoff_exponent(x)) for x in (high, low))
    tails = ((above, float(law.sf(high)), "upper tail"), (below, float(law.cdf(low)), "lower tail"))
    return worst(
        _above(both, min(rate - math.log(2), -math.log(_SMALLEST)), part="both tails, exponents"),
        _above(math.exp(-rate), max(above, below), part="one-sided bounds"),
        # where bound and tail are both below the smallest number there is nothing to compare
        *(_above(bound, tail, part=part) for bound, tail, part in tails if max(bound, tail) > 0),
    )


def _build_deviation(rng: np.random.Generator, rank: float, ratio: float, eps: float) -> Deviation:
    return Deviation(OverlapLaw(round(rank * ratio), round(rank)), eps)


CONCENTRATION = Claim(
    key="A.3",
    title="The energy in a fixed subspace concentrates",
    source="Lemma A.3, appendix A.2",
    statement=r"""For $P$ an orthogonal projector of rank $d$, $g$ uniform on the unit sphere of $\mathbb{R}^n$ and
$\epsilon \in (0, 1)$, with a universal constant $c$: $P(|\|P g\|^2 - \frac{d}{n}| \ge \epsilon \frac{d}{n}) \le 2
\exp(-c \epsilon^2 d)$.""",
    hypotheses=(r"$1 \le d \le n$ and $0 < \epsilon < 1$.",),
    verdict=Verdict.HOLDS,
    why="true with c = (1 - ln 2)/2 = 0.153, the best constant; the printed proof has an error",
    derivation=r"""$\|P g\|^2$ is $A/(A + B)$ with independent chi-squares $A, B$ of $d$ and $n - d$ degrees of
freedom. Markov's inequality for $\exp(s(\beta d (A + B) - n A))$ and the best $s$ of either sign give, for the tail
beyond $\beta d/n$ on either side, $\exp(-\frac{n}{2} KL)$ with the divergence of Bernoulli laws of means $d/n$ and
$\beta d/n$. That is at most $\exp(\frac{d}{2} (1 - \beta + \ln \beta))$. For $\beta = 1 + \epsilon$ use
$\epsilon - \ln(1 + \epsilon) \ge (1 - \ln 2) \epsilon^2$ on (0, 1) (the quotient by $\epsilon^2$ falls, and is
$1 - \ln 2$ at 1); for $\beta = 1 - \epsilon$, $-\epsilon - \ln(1 - \epsilon) \ge \epsilon^2/2$. Add the two tails.
The printed proof ends with $(1 + \epsilon)/(1 - \epsilon) \le 1 + \epsilon$, which is false ($\epsilon = 1/4$: 1.667
against 1.25; $1 + 4 \epsilon$ is right up to $\epsilon = 1/2$) and yields 4 instead of 2; a smaller $c$ repairs both.
The bound is below 1 only for $d > \ln 2/(c \epsilon^2)$, never for $d \le 4$.""",
    evidence=r"""Exact Beta tails, nothing sampled, against the bound with $c = (1 - \ln 2)/2$, for d up to 1,000 and
n up to $10^9$; and the chain that proves it: each tail below its Chernoff bound, those below $\exp(-c \epsilon^2 d)$.
The exponent is attained as $d \to \infty$, $n/d \to \infty$, $\epsilon \to 1$.""",
    check=concentration,
    build=_build_deviation,
    parameters=(
        Parameter("rank", 1, 1e3, "log"),
        Parameter("ratio", 1, 1e6, "log"),
        Parameter("eps", 1e-3, 0.999, "uniform"),
    ),
    boundary=(
        Example(
            "the best constant",
            r"""$d = 4000$, $n = 4 \cdot 10^9$, $\epsilon$ almost 1: the exponent of the exact tail is within 1% of
the bound's, the difference being $\ln \sqrt{\pi d} + \ln 2$.""",
            lambda: Deviation(OverlapLaw(4 * 10**9, 4000), 1 - 1e-9),
        ),
    ),
    tightness=0.01,
)


@dataclass(frozen=True, eq=False)
class Quadratic:
    """Scores, a rank and a vector.

    Attributes:
        scores: s, shape (N, n).
        rank: d.
        vector: g or z, shape (n,).
    """

    scores: np.ndarray
    rank: int
    vector: np.ndarray

    def form(self) -> float:
        """``z^T F z``, as the mean of ``(s.z)^2``."""
        return float(np.mean((self.scores @ self.vector) ** 2))

    def estimate(self) -> Estimate:
        """Eigenvalues, ``|P z|`` and ``|F^(1/2) P z|``, from the Gram matrix."""
        stats = ScoreStatistics.from_scores(self.scores, self.vector, self.vector)
        return estimate(stats, self.rank, resamples=0, splits=1)


def _build_quadratic(
    rng: np.random.Generator, dimension: int, extra: int, rank: int, gap: float, scale: float, focus: float, size: float
) -> Quadratic:
    skill = sensitivity(rng, dimension, extra, rank, gap, scale)
    eigenvectors = np.linalg.eigh(skill.fisher())[1][:, ::-1]
    # both inequalities are equalities in the plane of the first and of the (d+1)-th eigenvector, or at the d-th
    picked = [[0, skill.rank], [skill.rank - 1]][rng.integers(2)]
    near = eigenvectors[:, [k for k in picked if k < dimension]]
    mixed = (1 - focus) * rng.standard_normal(dimension) + focus * near @ rng.standard_normal(near.shape[1])
    return Quadratic(skill.scores, skill.rank, size * mixed / np.linalg.norm(mixed))


_not_below = partial(at_least, tolerance=1e-12, reason="eigenvalues carry rounding in units of the largest")


def _check_a4(case: Quadratic) -> Slack:
    found, squared = case.estimate(), float(case.vector @ case.vector)
    largest, following = found.eigenvalues[0], (*found.eigenvalues, 0.0)[case.rank]
    bound = largest * found.overlap**2 + following * (squared - found.overlap**2)
    return _not_below(bound, case.form(), scale=largest * squared)


def _check_a5(case: Quadratic) -> Slack:
    found = case.estimate()
    inside, unit = found.coupling**2, found.eigenvalues[0] * float(case.vector @ case.vector)
    return worst(
        _not_below(case.form(), inside, scale=unit, part="projection"),
        _not_below(inside, found.sharpness * found.overlap**2, scale=unit, part="sharpness"),
    )


def diagonal(*eigenvalues: float) -> np.ndarray:
    """Scores whose Fisher matrix is diagonal with these eigenvalues, shape (n, n)."""
    return np.diag(np.sqrt(len(eigenvalues) * np.array(eigenvalues)))


_QUADRATIC_PARAMETERS = (
    Parameter("dimension", 1, 8),
    Parameter("extra", 0, 4),
    Parameter("rank", 1, 4),
    Parameter("gap", 1e-12, 1, "log"),
    Parameter("scale", 1e-6, 1e6, "log"),
    Parameter("focus", 0, 1, "uniform"),
    Parameter("size", 1e-3, 1e3, "log"),
)
_PSD = (
    r"$F$ is symmetric, positive semidefinite; where $\lambda_d = \lambda_{d+1}$, any choice of the top-d eigenspace."
)

UPPER_FORM = Claim(
    key="A.4",
    title="A quadratic form is split by the top eigenspace, from above",
    source="Lemma A.4, appendix A.2",
    statement=r"""For a unit vector $g$ and the projector $P$ on the top-d eigenspace of $F$:
$g^T F g \le \lambda_1 \|P g\|^2 + \lambda_{d+1} (1 - \|P g\|^2)$, in particular $g^T F g \le \lambda_1$.""",
    hypotheses=(_PSD, r"$d < n$, or $\lambda_{n+1}$ is read as 0."),
    verdict=Verdict.HOLDS,
    why="the eigenvalues of either part are at most its largest",
    derivation=r"""In the eigenbasis $g^T F g = \sum_j \lambda_j g_j^2$. The first d terms are at most
$\lambda_1 \sum_{j \le d} g_j^2 = \lambda_1 \|P g\|^2$, the others at most
$\lambda_{d+1} \sum_{j>d} g_j^2 = \lambda_{d+1} (1 - \|P g\|^2)$. The particular case follows from
$\lambda_{d+1} \le \lambda_1$. Equality: $g$ in the span of $v_1$ and $v_{d+1}$.""",
    evidence=r"""$\mathbb{E}[(s \cdot g)^2]$ summed over scores, against eigenvalues and projection from the Gram
matrix; gaps from $10^{-12}$, scales over 12 decades, more samples than parameters, vectors of any length; near
equality and at it.""",
    check=_check_a4,
    build=_build_quadratic,
    parameters=_QUADRATIC_PARAMETERS,
    boundary=(
        Example(
            "in the span of two eigenvectors",
            r"$F = diag(4, 2, 1)$, $d = 2$, $g = (0.6, 0, 0.8)$: both sides are 2.08.",
            lambda: Quadratic(diagonal(4.0, 2.0, 1.0), 2, np.array([0.6, 0.0, 0.8])),
        ),
        Example(
            "no eigenvalue left",
            r"$F = 3 I$, $d = n = 2$: both sides are $3 \|g\|^2$.",
            lambda: Quadratic(diagonal(3.0, 3.0), 2, np.array([0.6, 0.8])),
        ),
    ),
    tightness=1e-14,
)

LOWER_FORM = Claim(
    key="A.5",
    title="A quadratic form is at least its sharp part",
    source="Lemma A.5, appendix A.2",
    statement=r"""If $\lambda_d \ge \lambda$ and $P$ is the projector on the top-d eigenspace of $F$, then
$z^T F z \ge \|F^{1/2} P z\|^2 \ge \lambda \|P z\|^2$ for every $z$.""",
    hypotheses=(_PSD,),
    verdict=Verdict.HOLDS,
    why="P commutes with F, and F is at least lambda_d on its range",
    derivation=r"""In the eigenbasis $z^T F z = \sum_j \lambda_j z_j^2 \ge \sum_{j \le d} \lambda_j z_j^2 = \|F^{1/2}
P z\|^2 \ge \lambda_d \sum_{j \le d} z_j^2$. Equality: $z = v_d$ and $\lambda = \lambda_d$.""",
    evidence=r"""As for A.4, with the strictest $\lambda = \lambda_d$, and both inequalities of the chain.""",
    check=_check_a5,
    build=_build_quadratic,
    parameters=_QUADRATIC_PARAMETERS,
    boundary=(
        Example(
            "the d-th eigenvector",
            r"$F = diag(4, 2, 1)$, $d = 2$, $z = 3 v_2$: all three are 18.",
            lambda: Quadratic(diagonal(4.0, 2.0, 1.0), 2, np.array([0.0, 3.0, 0.0])),
        ),
    ),
    tightness=1e-14,
)

CLAIMS = (SECOND_MOMENT, QUADRATIC_MEAN, CONCENTRATION, UPPER_FORM, LOWER_FORM)
