from __future__ import annotations

import itertools
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from theory.ledger.section7 import LOW_RANK, OVERLAP_SCORE, Population, Projected
from theory.spectra import effective_rank

POINT_71 = {"members": 4, "count": 3, "dimension": 3, "spread": 5.0, "scale": 2.0, "seed": 6}
POINT_72 = {"dimension": 3, "rows": 4, "samples": 2, "size": 9.0, "seed": 2}


def sample_spectrum(scores):
    return np.sort(np.linalg.eigvalsh(scores @ scores.T / len(scores)))[::-1]


def test_71_enumeration_by_hand():
    # three scores in the plane, two draws: F = (s s^T + s' s'^T)/2 from its definition
    scores = np.array([[1.0, 0.0], [0.6, 0.8], [0.0, 2.0]])
    p = np.array([0.5, 0.3, 0.2])
    case = Population(scores, p, 2)
    inverse = 0.0
    for i, j in itertools.product(range(3), repeat=2):
        fisher = (np.outer(scores[i], scores[i]) + np.outer(scores[j], scores[j])) / 2
        inverse += p[i] * p[j] * np.trace(fisher @ fisher) / np.trace(fisher) ** 2
    assert case.mean_inverse_rank() == pytest.approx(inverse, rel=1e-13)
    spectra, probabilities = case.draws()
    assert spectra.shape == (9, 2)
    assert probabilities.sum() == pytest.approx(1, rel=1e-14)
    assert probabilities[1] == pytest.approx(0.15, rel=1e-14)
    np.testing.assert_allclose(spectra[0], [1.0, 0.0])
    np.testing.assert_allclose(spectra[1], [0.8, 0.2], rtol=1e-13)  # (1 +- 0.6)/2
    fisher = np.einsum("m,mi,mj->ij", p, scores, scores)
    assert case.effective_rank() == pytest.approx(np.trace(fisher) ** 2 / np.trace(fisher @ fisher), rel=1e-13)
    np.testing.assert_allclose(case.normalised().scores, scores / np.array([[1], [1], [2]]), rtol=1e-15)


def test_71_rejects_a_wrong_population_rank_and_a_wrong_sample_rank():
    case = LOW_RANK.case(POINT_71)
    unit = case.normalised()

    class Wrong(Population):
        def normalised(self):
            return Wrong(*(getattr(super(Wrong, self).normalised(), x) for x in ("scores", "probabilities", "count")))

        def effective_rank(self):
            return 2 * super().effective_rank()

    true, wrong = (1 / 3 + 2 / 3 / (f * unit.effective_rank()) for f in (1, 2))
    assert LOW_RANK.check(case).holds
    found = LOW_RANK.check(Wrong(case.scores, case.probabilities, case.count))
    assert found.value == pytest.approx(wrong / true - 1, rel=1e-9)
    assert found.part == "effective rank"

    class Fuller(Population):
        def draws(self):
            spectra, probabilities = super().draws()
            return np.concatenate([spectra, np.ones((len(spectra), 1))], axis=1), probabilities

    full = LOW_RANK.check(Fuller(np.eye(3), np.full(3, 1 / 3), 2))
    assert (full.part, full.value) == ("rank", pytest.approx(-1 / 3, rel=1e-12))


def test_71_the_rank_is_also_bounded_by_the_dimension():
    case = Population(np.array([[1.0], [2.0], [-3.0]]), np.array([0.2, 0.3, 0.5]), 3)
    assert np.count_nonzero(case.draws()[0], axis=1).max() == 1
    assert LOW_RANK.check(case).holds


def test_71_cases():
    case = LOW_RANK.case(POINT_71)
    assert case.scores.shape == (4, 3)
    assert case.count == 3
    assert case.probabilities.sum() == pytest.approx(1, rel=1e-15)
    # the norms are a Gaussian vector's times at most 5 and at least 1/5 times 2
    wide = [LOW_RANK.case(POINT_71 | {"seed": s, "spread": 100.0}).scores for s in range(200)]
    norms = np.concatenate([np.linalg.norm(x, axis=1) for x in wide]) / 2
    assert np.log(norms).std() == pytest.approx(math.log(100) / math.sqrt(3), rel=0.1)
    assert np.log(norms).mean() == pytest.approx(0.4, abs=0.5)
    within = [np.ptp(np.log(np.linalg.norm(x, axis=1))) for x in wide]
    assert np.median(within) > math.log(10)  # members of one population differ


def test_71_counterexamples():
    isotropic, unequal = (example.case() for example in LOW_RANK.counterexamples)
    assert isotropic.effective_rank() == pytest.approx(16)
    # two draws agree with probability 1/16: ranks 1 and 2
    assert 1 / isotropic.mean_inverse_rank() == pytest.approx(1 / (1 / 16 + 15 / 32), rel=1e-12)
    assert LOW_RANK.printed(isotropic).value == pytest.approx(1 / (1 / 16 + 15 / 32) / 16 - 1, rel=1e-9)
    assert unequal.effective_rank() == pytest.approx(10)
    # same direction: 1; else 1/2 for equal norms and (1 + 100^2)/101^2 for unequal ones
    inverse = 0.1 + 0.9 * (0.5 * 0.5 + 0.5 * 10001 / 101**2)
    assert 1 / unequal.mean_inverse_rank() == pytest.approx(1 / inverse, rel=1e-12)
    assert LOW_RANK.printed(unequal).value == pytest.approx(1 / inverse / 10 - 1, rel=1e-9)


def test_71_isotropic_scores_have_a_flat_spectrum_of_full_rank():
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(4):
        spectrum = sample_spectrum(rng.standard_normal((100, 4096)))
        ratios.append(spectrum[0] / spectrum[-1])
    edges = ((1 + math.sqrt(100 / 4096)) / (1 - math.sqrt(100 / 4096))) ** 2
    assert edges == pytest.approx(1.878, abs=1e-3)
    assert np.mean(ratios) == pytest.approx(1.85, abs=0.03)
    assert max(ratios) < edges


def test_71_decay_from_norms_and_from_a_mean():
    rng = np.random.default_rng(1)
    scores = rng.standard_normal((100, 4096))
    uneven = sample_spectrum(scores * rng.lognormal(0, 1, (100, 1)))
    assert uneven[:10].sum() / uneven.sum() > 0.5
    assert uneven[0] / uneven[-1] > 1000
    shifted = sample_spectrum(scores + 1)
    assert shifted[0] / shifted.sum() == pytest.approx(0.505, abs=0.01)


@pytest.mark.parametrize(("rank", "expected"), [(4096, [49.4, 97.6, 190.7, 364.5]), (20, [14.5, 16.8, 18.3, 19.1])])
def test_71_the_effective_rank_saturates_only_for_low_rank(rank, expected):
    rng = np.random.default_rng(2)
    for count, value in zip((50, 100, 200, 400), expected, strict=True):
        scores = rng.standard_normal((count, rank))
        scores /= np.linalg.norm(scores, axis=1, keepdims=True)
        found = effective_rank(sample_spectrum(scores))
        assert 1 / (1 / count + (1 - 1 / count) / rank) == pytest.approx(value, abs=0.06)
        assert found == pytest.approx(value, rel=0.03)
        # the unbiased estimate of the inverse rank
        assert (count / found - 1) / (count - 1) == pytest.approx(1 / rank, rel=0.1)


def test_72_enumeration_by_hand():
    case = Projected(np.array([[1, 2], [3, -1]]), np.array([2, 5]), 2)
    total = Fraction(0)
    for a, b, c, d in itertools.product((-1, 1), repeat=4):
        r = np.array([[a, b], [c, d]])
        total += sum(Fraction(int((r @ s) @ (r @ case.update)) ** 2, 4) for s in case.scores)
    assert case.mean_projected_score() == total / 32
    assert case.exact_score() == Fraction(12**2 + 1, 2)
    # row by row: the square, and half of (s_1 b_2 + s_2 b_1)^2
    assert case.expected_score() == Fraction(12**2 + 1, 2) + Fraction(9**2 + 13**2, 4)
    assert OVERLAP_SCORE.check(case).value == 0
    assert OVERLAP_SCORE.printed(case).value == pytest.approx(-float(Fraction(250, 4) / (72.5 + 62.5)), rel=1e-12)


def test_72_sampled_projections_to_many_rows():
    rng = np.random.default_rng(0)
    s, b = rng.integers(-3, 4, (2, 30))
    k, draws = 16, 4000
    signs = rng.choice([-1, 1], (draws, k, 30))
    scores = ((signs @ s) * (signs @ b)).mean(axis=1) ** 2
    expected = float(Projected(s[None], b, k).expected_score())
    assert abs(scores.mean() - expected) < 5 * scores.std() / math.sqrt(draws)
    assert abs(scores.mean() - float(Projected(s[None], b, k).exact_score())) > 10 * scores.std() / math.sqrt(draws)


def test_72_rejects_another_floor_and_another_score():
    case = OVERLAP_SCORE.case(POINT_72)

    class NoDiagonal(Projected):
        def expected_score(self):
            squares = (self.scores**2).sum(axis=0)
            return super().expected_score() + Fraction(int(2 * squares @ self.update**2), 2 * self.rows)

    class Signed(Projected):
        def exact_score(self):
            return super().exact_score() * 2

    assert OVERLAP_SCORE.check(case).value == 0
    wrong = NoDiagonal(case.scores, case.update, case.rows)
    assert OVERLAP_SCORE.check(wrong).value == pytest.approx(
        float(case.mean_projected_score() / wrong.expected_score()) - 1, rel=1e-9
    )
    assert OVERLAP_SCORE.check(wrong).value < -1e-3
    assert not OVERLAP_SCORE.check(Signed(case.scores, case.update, case.rows)).holds


def test_72_the_exact_score_is_the_squared_leak():
    case = OVERLAP_SCORE.case(POINT_72)
    fisher = case.scores.T @ case.scores / 2
    assert float(case.exact_score()) == pytest.approx(case.update @ fisher @ case.update, rel=1e-14)

    class Doubled(Projected):
        def exact_score(self):
            return 2 * super().exact_score()

        def expected_score(self):
            return self.mean_projected_score()

    found = OVERLAP_SCORE.check(Doubled(case.scores, case.update, case.rows))
    assert (found.part, found.value) == ("leak", pytest.approx(-0.5))


def test_72_cases():
    case = OVERLAP_SCORE.case(POINT_72)
    assert case.scores.shape == (2, 3)
    assert case.rows == 4
    assert case.update[0] == 9
    assert abs(case.scores).max() <= 9
    assert OVERLAP_SCORE.case(POINT_72 | {"dimension": 5, "rows": 6}).rows == 2
    drawn = [OVERLAP_SCORE.case(POINT_72 | {"seed": s}) for s in range(200)]
    for values in ([x.scores for x in drawn], [x.update[1:] for x in drawn]):
        assert (np.min(values), np.max(values)) == (-9, 9)
    orthogonal = OVERLAP_SCORE.counterexamples[0].case()
    assert orthogonal.exact_score() == 0
    assert orthogonal.mean_projected_score() == Fraction(1, 4)
    assert replace(orthogonal, rows=2).mean_projected_score() == Fraction(1, 2)
