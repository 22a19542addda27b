"""Section 7: what a few samples, and random projections of them, can show."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

import numpy as np

from theory import onset
from theory.ledger.claim import Claim, Example, Parameter, Slack, Verdict, at_least, equal, exact, worst
from theory.spectra import effective_rank, participation_ratio, without_rounding
from theory.statistics import ScoreStatistics


@dataclass(frozen=True, eq=False)
class Population:
    """A finite population of scores, from which N independent samples are drawn.

    Attributes:
        scores: s, non-zero, shape (M, n).
        probabilities: positive, shape (M,).
        count: N.
    """

    scores: np.ndarray
    probabilities: np.ndarray
    count: int

    def normalised(self) -> Population:
        """The population of the scores' directions."""
        norms = np.linalg.norm(self.scores, axis=1, keepdims=True)
        return Population(self.scores / norms, self.probabilities, self.count)

    def effective_rank(self) -> float:
        """Participation ratio of the population's Fisher matrix."""
        fisher = (self.scores * self.probabilities[:, None]).T @ self.scores
        return effective_rank(np.linalg.eigvalsh(fisher))

    def draws(self) -> tuple[np.ndarray, np.ndarray]:
        """Spectra of the Fisher matrices of all M^N samples, descending, (M^N, N), and their probabilities."""
        picked = np.array(list(itertools.product(range(len(self.scores)), repeat=self.count)))
        gram = self.scores @ self.scores.T
        grams = gram[picked[:, :, None], picked[:, None, :]] / self.count
        spectra = np.linalg.eigvalsh(grams)[:, ::-1]
        return without_rounding(spectra, self.count), self.probabilities[picked].prod(axis=1)

    def mean_inverse_rank(self) -> float:
        """``E[1 / effective rank]`` over the samples."""
        spectra, probabilities = self.draws()
        return float(probabilities @ (1 / participation_ratio(spectra)))


def _build_population(
    rng: np.random.Generator, members: int, count: int, dimension: int, spread: float, scale: float
) -> Population:
    norms = scale * spread ** rng.uniform(-1, 1, (members, 1))
    weights = rng.integers(1, 10, members)
    return Population(norms * rng.standard_normal((members, dimension)), weights / weights.sum(), count)


_no_more = partial(at_least, tolerance=0.0, reason="integers")
_same_rank = partial(equal, tolerance=1e-12, reason="eigenvalues of small matrices, those at rounding set to 0")


def _check_71(case: Population) -> Slack:
    ranks = np.count_nonzero(case.draws()[0], axis=1)
    unit, count = case.normalised(), case.count
    inverse = 1 / count + (1 - 1 / count) / unit.effective_rank()
    return worst(
        _no_more(min(case.count, case.scores.shape[1]), int(ranks.max()), part="rank"),
        _same_rank(unit.mean_inverse_rank(), inverse, part="effective rank"),
    )


def _printed_71(case: Population) -> Slack:
    return _same_rank(1 / case.mean_inverse_rank(), case.effective_rank())


def _isotropic() -> Population:
    return Population(np.eye(16), np.full(16, 1 / 16), 2)


def _unequal_norms() -> Population:
    scores = np.concatenate([np.eye(10), 10 * np.eye(10)])
    return Population(scores, np.full(20, 1 / 20), 2)


def _rank_one(rng: np.random.Generator) -> Population:
    lengths = rng.choice([-1.0, 1.0], (4, 1)) * rng.uniform(1, 2)
    return Population(lengths * rng.standard_normal(5), np.full(4, 1 / 4), 3)


LOW_RANK = Claim(
    key="7.1",
    title="Sharp low-rank structure, seen in 100 samples",
    source="section 7.1",
    statement=r"""The Fisher matrix estimated from $N = 100$ per-completion gradients in 4096 (projected) dimensions
has few sizeable eigenvalues and a fast decay: evidence for the low-rank sensitivity of condition 1.""",
    hypotheses=(
        "The N samples are independent.",
        "For the diagnostic: every score is divided by its norm; a common mean counts as one direction.",
    ),
    verdict=Verdict.VACUOUS,
    why="N samples have rank <= N whatever the model; decay inside comes from norms and a mean",
    correction=r"""$rank \hat F \le N$ always. For scores of unit norm the effective rank (participation ratio)
$\hat r$ of $\hat F$ satisfies $\mathbb{E}[1/\hat r] = \frac{1}{N} + (1 - \frac{1}{N}) \frac{1}{r}$ exactly, with $r$
that of the population: low rank shows as saturation of $\hat r$ when N grows, and $(N/\hat r - 1)/(N - 1)$ estimates
$1/r$ without bias.""",
    derivation=r"""$\hat F$ is a sum of N matrices of rank 1. With unit scores $Tr \hat F = 1$, so
$1/\hat r = Tr \hat F^2 = \frac{1}{N^2} \sum_{ij} (s_i \cdot s_j)^2$: N terms are 1, and each of the other $N(N - 1)$
has the mean $\mathbb{E}[s^T F s] = Tr F^2 = 1/r$. Decay inside the N eigenvalues: for orthogonal scores they are
$\|s_i\|^2/N$, whatever the norms are; and a common mean, which labels that are data and not samples of the model
leave, is one large eigenvalue. An isotropic Gaussian population gives a flat spectrum,
$\lambda_1/\lambda_N \approx ((1 + \sqrt{N/n})/(1 - \sqrt{N/n}))^2 = 1.88$ for $N = 100$, $n = 4096$ (Marchenko and
Pastur); its $\hat r$ is 49, 98, 191, 364 for $N = 50, 100, 200, 400$, while that of a population of rank 20 stays
below 20.""",
    evidence=r"""All $M^N$ samples of N from random populations of M scores are enumerated, with their probabilities:
the largest rank, and the mean of $1/\hat r$ from eigenvalues, against the population's effective rank. Norms over 6
decades.""",
    check=_check_71,
    build=_build_population,
    parameters=(
        Parameter("members", 1, 5),
        Parameter("count", 1, 4),
        Parameter("dimension", 1, 6),
        Parameter("spread", 1, 1e3, "log"),
        Parameter("scale", 1e-6, 1e6, "log"),
    ),
    printed=_printed_71,
    counterexamples=(
        Example(
            "an isotropic population",
            r"""16 orthonormal scores of equal probability, $N = 2$: the population has effective rank 16, every
sample at most 2.""",
            _isotropic,
        ),
        Example(
            "unequal norms",
            r"""Ten orthogonal directions, each with norms 1 and 10, $N = 2$: the effective rank of the sample follows
the norms and is below 2, that of the population is 10.""",
            _unequal_norms,
        ),
    ),
    accepted=_rank_one,
    boundary=(
        Example(
            "all samples different",
            "Three orthonormal scores, N = 3: the rank N is attained.",
            lambda: Population(np.eye(3), np.full(3, 1 / 3), 3),
        ),
    ),
    tightness=1e-14,
)


@dataclass(frozen=True, eq=False)
class Projected:
    """Integer scores, an integer update and a number of random signed projections.

    Attributes:
        scores: s, shape (N, n), of int64.
        update: the weight change b, shape (n,), of int64.
        rows: k, with ``k n <= 12``, so that all sign matrices can be enumerated.
    """

    scores: np.ndarray
    update: np.ndarray
    rows: int

    def exact_score(self) -> Fraction:
        """``OS = (1/N) sum_i (s_i . b)^2``."""
        return Fraction(int(((self.scores @ self.update) ** 2).sum()), len(self.scores))

    def mean_projected_score(self) -> Fraction:
        """The mean of the overlap score after ``x -> R x``, over all R in {+-1/sqrt k}^(k x n)."""
        n = len(self.update)
        signs = np.array(list(itertools.product((-1, 1), repeat=self.rows * n))).reshape(-1, self.rows, n)
        inner = np.einsum("rkn,rk->rn", signs, signs @ self.update) @ self.scores.T
        return Fraction(int((inner**2).sum()), self.rows**2 * inner.size)

    def expected_score(self) -> Fraction:
        """The same in closed form."""
        squares = (self.scores**2).sum(axis=0)  # N times the diagonal of F
        b = self.update
        noise = Fraction(int((b @ b) * squares.sum() - 2 * (squares @ b**2)), len(self.scores))
        return self.exact_score() + (noise + self.exact_score()) / self.rows


def _build_projected(rng: np.random.Generator, dimension: int, rows: int, samples: int, size: float) -> Projected:
    largest = int(size)
    scores = rng.integers(-largest, largest + 1, (samples, dimension))
    update = rng.integers(-largest, largest + 1, dimension)
    update[0] = largest  # never zero
    return Projected(scores, update, min(rows, 12 // dimension))


_same_leak = partial(equal, tolerance=1e-14, reason="a sum of rounded squares")


def _check_72(case: Projected) -> Slack:
    update = case.update.astype(np.float64)
    stats = ScoreStatistics.from_scores(case.scores.astype(np.float64), update, update)
    return worst(
        exact(case.mean_projected_score(), case.expected_score()),
        _same_leak(onset.leak(stats) ** 2, float(case.exact_score()), part="leak"),
    )


def _printed_72(case: Projected) -> Slack:
    return exact(case.mean_projected_score(), case.exact_score())


def _orthogonal() -> Projected:
    return Projected(np.array([[1, 0, 0]]), np.array([0, 1, 0]), 4)


def _without_noise(rng: np.random.Generator) -> Projected:
    a, b = rng.integers(1, 10, 2)
    return Projected(np.array([[a, b], [2 * a, 2 * b]]), np.array([a, -b]), int(rng.integers(1, 7)))


OVERLAP_SCORE = Claim(
    key="7.2",
    title="The overlap score of projected gradients",
    source="section 7.2",
    statement=r"""The Overlap Score $\frac{1}{N} \sum_i (\tilde s_i \cdot \Delta \tilde W)^2$, with scores and weight
change projected by one random matrix of signs $\pm 1/\sqrt{k}$, $k = 4096$, measures the overlap of a fine-tuning
update with the sensitive directions.""",
    hypotheses=(r"The entries of the $k \times n$ projection are independent fair signs over $\sqrt{k}$.",),
    verdict=Verdict.CORRECTED,
    why="its mean has a floor of about 1/k of the norms: below |cos| = 1/64 it measures norms",
    correction=r"""The exact score is $OS = \Delta W^T \hat F \Delta W$, the squared leak of $\Delta W$. After
projection $\mathbb{E}[OS_k] = OS + \frac{1}{k} (\|\Delta W\|^2 Tr \hat F + OS - 2 \sum_j \hat F_{jj} \Delta W_j^2)$.
For unit vectors at angle $\phi$ that is $\cos^2 \phi + \frac{1}{k}$ up to smaller terms: with $k = 4096$ the floor is
larger than the signal unless $|\cos \phi| > 1/64$.""",
    derivation=r"""For one row of signs $e$, $(e \cdot s)(e \cdot b) = s \cdot b + \sum_{i<j} e_i e_j (s_i b_j + s_j
b_i)$. The products $e_i e_j$ are uncorrelated and of mean 0, so the variance is $\sum_{i<j} (s_i b_j + s_j b_i)^2 =
\|s\|^2 \|b\|^2 + (s \cdot b)^2 - 2 \sum_j s_j^2 b_j^2$. The projected inner product is the mean of k independent such
terms; its mean square is $(s \cdot b)^2$ plus 1/k of that variance. Average over the scores.""",
    evidence=r"""All $2^{k n}$ sign matrices are enumerated for integer scores and updates with $k n \le 12$, in
integers: equal to the last digit. The exact score is also compared with the squared leak of the update.""",
    check=_check_72,
    build=_build_projected,
    parameters=(
        Parameter("dimension", 1, 6),
        Parameter("rows", 1, 6),
        Parameter("samples", 1, 4),
        Parameter("size", 1, 100, "log"),
    ),
    printed=_printed_72,
    counterexamples=(
        Example(
            "an update that no score sees",
            r"""$s = e_1$, $\Delta W = e_2$: the overlap score is 0, its projection has the mean $1/k$.""",
            _orthogonal,
        ),
    ),
    accepted=_without_noise,
)

CLAIMS = (LOW_RANK, OVERLAP_SCORE)
