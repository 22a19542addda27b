from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from theory.ledger import section4
from theory.ledger.scenarios import Coefficients
from theory.ledger.section4 import (
    DEGRADATION_BY_CHANCE,
    MEAN_DEGRADATION,
    OVERLAP_BY_CHANCE,
    FlatSkill,
    Frame,
    Subspace,
    degree_five_rule,
)
from theory.ledger.skills import SoftmaxSkill
from theory.null_model import CHERNOFF_CONSTANT, OverlapLaw
from theory.series import rational

POINT_411 = {"prompts": 2, "outcomes": 3, "dimension": 3, "exponent": 2, "seed": 3}
POINT_412B = {"rank": 20.0, "ratio": 50.0, "eps": 0.5, "tail": 0.01, "scale": 3.0, "step": 0.2, "risk": 0.5, "seed": 1}


def test_411_the_frame_has_the_moments_of_the_sphere():
    case = MEAN_DEGRADATION.case(POINT_411)
    g = case.directions()
    assert g.shape == (6, 3)
    np.testing.assert_array_equal(3 * g.T @ g, 6 * np.eye(3, dtype=int))  # exact: second moment I/3
    np.testing.assert_array_equal(np.einsum("ri,rj,rk->ijk", g, g, g), 0)
    assert len({tuple(row) for row in g}) == 6
    assert np.any((g != 0) & (abs(g) != 1))  # not the coordinate axes


def test_411_mean_over_sampled_directions():
    rng = np.random.default_rng(0)
    skill = Coefficients(rng).softmax(3, 2, 3)
    g = rng.standard_normal((1000, 3))
    g /= np.linalg.norm(g, axis=1, keepdims=True)
    scores = skill.scores()
    trace = skill.weights @ np.sum(scores**2, axis=1)
    for eta in (0.02, 0.01):
        # antithetic pairs: the odd orders cancel in each, what is left of order eta^4 is far below the spread
        losses = np.array([(skill.utility_loss(-eta * x) + skill.utility_loss(eta * x)) / 2 for x in g])
        error = 5 * losses.std() / math.sqrt(len(g))
        assert abs(losses.mean() - eta**2 * trace / 6) < error + 10 * eta**4
        assert error < 0.1 * eta**2 * trace / 6


def test_411_coefficients_of_a_coin_by_hand():
    # logits (0, a.D), probabilities 1/2: F = a a^T / 4; a = (3, 4) in the plane, Tr F / (2 n) = 25/16
    logits = Coefficients(np.random.default_rng(0), exact=True).map(2, 2, degree=1)
    logits = replace(logits, linear=rational([[0, 0], [3, 4]]))
    case = Frame(SoftmaxSkill(rational([1]), rational([[1, 1]]) / 2, logits), rational([1, 2]))
    assert list(case.mean_loss()) == [0, 0, Fraction(25, 16), 0]
    assert MEAN_DEGRADATION.check(case).value == 0


def test_411_rejects_a_frame_that_is_not_isotropic_or_not_symmetric():
    case = MEAN_DEGRADATION.case(POINT_411)

    class Half(Frame):
        def directions(self):
            return np.concatenate([super().directions()[:3]] * 2)

    class Long(Frame):
        def directions(self):
            return 2 * super().directions()

    assert MEAN_DEGRADATION.check(case).value == 0
    assert MEAN_DEGRADATION.check(Half(case.skill, case.normal)).value < -1e-3  # the cubic stays
    assert MEAN_DEGRADATION.check(Long(case.skill, case.normal)).value == pytest.approx(-0.75)


def test_411_steepness_scales_the_linear_logits_only():
    plain, steep = (MEAN_DEGRADATION.case(POINT_411 | {"exponent": e}).skill.logits for e in (0, 5))
    np.testing.assert_array_equal(steep.linear, 32 * plain.linear)
    np.testing.assert_array_equal(steep.quadratic, plain.quadratic)


@pytest.mark.parametrize("n", [1, 2, 4, 7])
def test_degree_five_rule_has_the_moments_of_the_sphere(n):
    points, weights = degree_five_rule(n)
    assert points.shape == (2 * n**2, n)
    np.testing.assert_allclose(np.sum(points**2, axis=1), 1, rtol=1e-15)
    assert weights.sum() == pytest.approx(1, rel=1e-14)
    x = np.random.default_rng(n).standard_normal((5, n))
    means = [weights @ (points @ x.T).prod(axis=1)]  # of degree 5: odd
    np.testing.assert_allclose(means, 0, atol=1e-14)
    # Isserlis' theorem with the sphere's factor 1/(n (n + 2))
    a, b, c, d = x[:4]
    expected = ((a @ b) * (c @ d) + (a @ c) * (b @ d) + (a @ d) * (b @ c)) / (n * (n + 2))
    assert weights @ (points @ x[:4].T).prod(axis=1) == pytest.approx(expected, rel=1e-10)
    np.testing.assert_allclose(np.einsum("r,ri,rj->ij", weights, points, points), np.eye(n) / n, atol=1e-15)


def test_412a_moments_are_those_of_scipys_beta():
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((9, 4)))[0]
    points, weights = degree_five_rule(9)
    energies = np.sum((points @ basis) ** 2, axis=1)
    beta = stats.beta(2, 2.5)
    assert weights @ energies == pytest.approx(beta.mean(), rel=1e-13)
    assert weights @ energies**2 == pytest.approx(beta.moment(2), rel=1e-12)
    assert OVERLAP_BY_CHANCE.check(Subspace(basis, 0.5)).holds


def test_412a_rejects_what_is_no_projector():
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((9, 4)))[0]
    longer = OVERLAP_BY_CHANCE.check(Subspace(2 * basis, 0.5))
    assert longer.value == pytest.approx(-(1 - 1 / 16), rel=1e-12)  # second moments 16 times too large
    assert longer.part == "second moment"
    # columns of the right length that are not orthogonal keep the mean, not the second moment
    skewed = np.array([[1.0, 0.6], [0.0, 0.8], [0.0, 0.0]])
    found = OVERLAP_BY_CHANCE.check(Subspace(skewed, 0.5))
    # E |U^T g|^4 = ((Tr G)^2 + 2 Tr G^2)/(n (n + 2)) with the Gram matrix G: 8 + 2 * 0.72 against 8
    assert (found.part, found.value) == ("second moment", pytest.approx(-1.44 / 9.44, rel=1e-12))


def test_412a_cases():
    case = OVERLAP_BY_CHANCE.case({"dimension": 10, "share": 0.32, "eps": 0.4, "seed": 0})
    assert case.basis.shape == (10, 3)
    np.testing.assert_allclose(case.basis.T @ case.basis, np.eye(3), atol=1e-14)
    assert OVERLAP_BY_CHANCE.case({"dimension": 10, "share": 0.0, "eps": 0.4, "seed": 0}).basis.shape == (10, 1)


def test_412b_utility_loss_and_bound_by_hand():
    case = FlatSkill(np.array([4.0, 1.0]), np.array([2, 8]), np.array([0.25, 0.75]), 0.5, 0.1, 0.8)
    assert case.loss() == pytest.approx(0.01 / 2 * (4 * 0.25 + 0.75), rel=1e-14)
    assert case.first_term() == pytest.approx(0.01 * 1.5 * 4 * 0.2, rel=1e-14)
    # bound 0.01/2 (1.2 + 1) against 0.01/2 * 1.75, probability exp(-0.25 * 2 c) against the Beta tail
    loss_room = 1 - 1.75 / 2.2  # the tail cannot pass its mean 0.8 over 0.8: Markov's bound has all the room
    tail_room = 1 - stats.beta(1, 4).sf(0.3) / math.exp(-0.5 * CHERNOFF_CONSTANT)
    assert DEGRADATION_BY_CHANCE.check(case).value == pytest.approx(min(loss_room, tail_room), rel=1e-9)
    assert DEGRADATION_BY_CHANCE.printed(case).value == pytest.approx(1 - 0.00875 / 1.2, rel=1e-12)
    flat = replace(case, eigenvalues=np.array([4.0, 0.1]), energies=np.array([0.0, 1.0]))
    assert DEGRADATION_BY_CHANCE.check(flat).value == pytest.approx(tail_room, rel=1e-9)
    assert DEGRADATION_BY_CHANCE.check(flat).part == "probability"


def test_412b_energies_follow_the_law_given_the_event():
    cases = [DEGRADATION_BY_CHANCE.case(POINT_412B | {"seed": s}) for s in range(1500)]
    assert cases[0].multiplicities.sum() == 1000
    assert cases[0].multiplicities[0] == 20
    law = cases[0].law()
    first = np.array([case.energies[0] for case in cases])
    assert first.max() <= 1.5 * law.mean
    assert stats.kstest(first, lambda x: law.cdf(x) / law.cdf(1.5 * law.mean)).pvalue > 1e-3
    # given the first, the others are those of a random direction in what is left
    shares = np.array([case.energies[1] / (1 - case.energies[0]) for case in cases])
    expected = np.mean([case.multiplicities[1] / 980 for case in cases])
    assert abs(shares.mean() - expected) < 5 * shares.std() / math.sqrt(1500)
    for case in cases[:20]:
        assert case.energies.sum() == pytest.approx(1, rel=1e-14)
        np.testing.assert_allclose(case.eigenvalues[:2], [3.0, 0.03], rtol=1e-14)
        assert case.eigenvalues[3] == 0
        assert case.eigenvalues[2] < case.eigenvalues[1]


def test_412b_violations_are_as_rare_as_stated():
    # directions that are not conditioned on the event
    rng = np.random.default_rng(0)
    d, n, eps, count = 20, 400, 0.3, 20_000
    energies = rng.beta(d / 2, (n - d) / 2, count)
    losses = (energies * 1.0 + (1 - energies) * 0.05) / 2
    violations = np.mean(losses > ((1 + eps) * d / n + 0.05) / 2)
    allowed = math.exp(-CHERNOFF_CONSTANT * eps**2 * d)
    assert 0 < violations < allowed + 3 * math.sqrt(allowed / count)


def test_412b_rejects_a_bound_without_the_tail_and_a_smaller_constant():
    case = DEGRADATION_BY_CHANCE.boundary[0].case()
    assert DEGRADATION_BY_CHANCE.check(case).holds
    outside = replace(case, energies=np.array([3e-7, 1 - 3e-7]))  # outside the event: twice the allowed overlap
    found = DEGRADATION_BY_CHANCE.check(outside)
    assert found.part == "utility loss"
    assert found.value == pytest.approx(1.15 / 1.3 - 1, rel=1e-4)
    forgotten = replace(case, eigenvalues=np.array([1.0, 1e-6, 0.0]), multiplicities=np.array([100, 1, 10**9 - 101]))
    assert DEGRADATION_BY_CHANCE.check(replace(forgotten, energies=np.array([1.5e-7, 0.0, 1 - 1.5e-7]))).holds


class HeavyLaw(OverlapLaw):
    def sf(self, energy):
        return 1.5 * super().sf(energy)


class Heavy(FlatSkill):
    def law(self, space=0):
        found = super().law(space)
        return HeavyLaw(found.dimension, found.rank)


@pytest.mark.parametrize(("index", "part"), [(1, "probability"), (2, "Markov")])
def test_412b_rejects_tails_half_as_heavy_again(index, part):
    case = DEGRADATION_BY_CHANCE.boundary[index].case()
    assert case.eps < 1e-8
    assert case.risk == 1.0
    heavy = Heavy(case.eigenvalues, case.multiplicities, case.energies, case.eps, case.step, case.risk)
    slack = DEGRADATION_BY_CHANCE.check(heavy)
    assert (slack.part, slack.holds) == (part, False)
    # a squared normal number is below its mean with probability erf(1/sqrt 2) = 0.6827
    assert slack.value == pytest.approx(1 / (1.5 * math.erf(math.sqrt(0.5))) - 1, rel=1e-4)


def test_412b_the_tail_passes_its_mean_over_delta_as_rarely_as_stated(monkeypatch):
    # the exact probability of each eigenspace against that of SciPy's Beta law
    case = FlatSkill(np.array([4.0, 1.0, 0.5]), np.array([2, 3, 5]), np.array([0.2, 0.3, 0.5]), 0.5, 0.1, 0.4)
    found = {}
    monkeypatch.setattr(section4, "worst", lambda *slacks: found.update(enumerate(slacks)) or slacks[0])
    DEGRADATION_BY_CHANCE.check(case)
    assert [slack.part for slack in found.values()] == ["utility loss", "probability", "Markov", "Markov"]
    exact = [stats.beta(1.5, 3.5).sf(0.75), stats.beta(2.5, 2.5).sf(1.0)]
    assert [found[2].value, found[3].value] == pytest.approx([1 - p / 0.4 for p in exact], rel=1e-9)
    # and on sampled directions, with both events at once and a tail of one positive eigenvalue
    g = np.random.default_rng(0).standard_normal((20_000, 10)) ** 2
    g /= g.sum(axis=1, keepdims=True)
    loss = (4 * g[:, :2].sum(axis=1) + g[:, 2:5].sum(axis=1)) / 2
    violations = np.mean(loss > (4 * 1.5 * 0.2 + 0.3 / 0.4) / 2)
    assert violations < math.exp(-CHERNOFF_CONSTANT * 0.25 * 2) + 0.4


def test_412b_draws_cover_the_risk():
    cases = [DEGRADATION_BY_CHANCE.case(POINT_412B | {"risk": risk}) for risk in (0.25, 1.0)]
    assert [case.risk for case in cases] == [0.25, 1.0]
    assert DEGRADATION_BY_CHANCE.case(POINT_412B | {"ratio": 1.0}).law().dimension == 23


def test_412b_ratio_to_the_printed_claim_grows_with_the_dimension():
    for n, ratio in ((10**3, 3.333), (10**5, 333.3), (10**7, 33333)):
        case = FlatSkill(np.ones(2), np.array([100, n - 100]), np.array([100 / n, 1 - 100 / n]), 0.5, 0.1)
        assert case.loss() / case.first_term() == pytest.approx(ratio, rel=1e-3)
    counterexample = DEGRADATION_BY_CHANCE.counterexamples[0].case()
    assert counterexample.law().dimension == 10**7
    assert counterexample.loss() == pytest.approx(0.005, rel=1e-12)
    assert DEGRADATION_BY_CHANCE.printed(counterexample).value == pytest.approx(0.003 - 1, rel=1e-9)
    guarantee = 1 - math.exp(-CHERNOFF_CONSTANT * 0.25 * 100)
    assert guarantee == pytest.approx(0.978, abs=5e-4)
