"""Appendix B: projectors that move, from closed forms and naive policies."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from doctored import doctored, fisher
from scipy.linalg import subspace_angles

from theory.ledger import appendix_b, rotation
from theory.ledger.appendix_b import DAVIS_KAHAN, PROJECTOR_LIPSCHITZ
from theory.ledger.maps import PolynomialMap, polynomial
from theory.ledger.rotation import ROTATING_ONSET, ROTATING_SUBSPACE
from theory.ledger.scenarios import Scenario, circle, prescribed_spectrum, quadratic_loss, tight_family
from theory.ledger.skills import GaussianSkill, SoftmaxSkill


def top(matrix: np.ndarray, d: int) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    basis = vectors[:, np.argsort(values)[::-1][:d]]
    return basis @ basis.T


# --- B.1


def test_the_spectrum_is_the_one_asked_for() -> None:
    for seed in range(10):
        skill, rank = prescribed_spectrum(np.random.default_rng(seed), 4, 2, 3, 1e-3, 7.0)
        values = np.linalg.eigvalsh(fisher(skill, np.zeros(4)))[::-1]
        assert 1 <= rank <= 3
        assert values[rank - 1] == pytest.approx(7 * 1.001, rel=1e-6)
        assert values[rank] == pytest.approx(7.0, rel=1e-6)
        assert values[-1] >= 0.699
        assert values[0] <= 14.1
        assert skill.logits.hessian(np.zeros(4)).any()


def test_the_projectors_are_those_of_the_policy_at_each_point() -> None:
    ball = PROJECTOR_LIPSCHITZ.build(np.random.default_rng(3), 3, 2, 3, 0.3, 0.5, 1.0)
    assert isinstance(ball.skill, SoftmaxSkill)
    distances = np.linalg.norm(ball.points, axis=1)
    assert ball.points.shape == (8, 3)
    assert distances.max() <= 0.5
    assert distances.min() >= 0.005
    base = fisher(ball.skill, np.zeros(3))
    moved = [fisher(ball.skill, d) for d in ball.points]
    steepness = max(np.linalg.norm(f - base, 2) / r for f, r in zip(moved, distances, strict=True))
    assert ball.lipschitz == pytest.approx(steepness, rel=1e-6)
    slacks = [
        1 - np.linalg.norm(top(f, ball.rank) - top(base, ball.rank), 2) * 0.3 / (2 * steepness * r)
        for f, r in zip(moved, distances, strict=True)
    ]
    assert PROJECTOR_LIPSCHITZ.check(ball).value == pytest.approx(min(slacks), rel=1e-5)


def test_the_exchange_attains_the_bound() -> None:
    ball = appendix_b._exchanged(1e-3, 0.01)
    moved = ball.skill.fisher(ball.points[0])
    np.testing.assert_allclose(np.diag(moved), [1 - 5e-4 * 1.01, 1 - 5e-4 * 0.99], rtol=1e-12)
    assert PROJECTOR_LIPSCHITZ.check(ball).value == pytest.approx(0.01 / 1.01, rel=1e-6)


def test_a_gap_that_is_too_large_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appendix_b, "gap_of", lambda matrix, d: 2e-6)
    slack = PROJECTOR_LIPSCHITZ.check(PROJECTOR_LIPSCHITZ.boundary[0].case())
    assert not slack.holds
    assert slack.value == pytest.approx(-1.0, rel=1e-3)


def test_the_printed_left_side_is_the_displacement() -> None:
    printed = PROJECTOR_LIPSCHITZ.printed
    assert printed is not None
    ball = appendix_b._exchanged(0.1, 0.5)  # 2 L_F / gap = 1.5 / sqrt 2 for one point at distance sqrt 2
    assert printed(ball).value == pytest.approx(1 - math.sqrt(2) / 1.5)
    flat = PROJECTOR_LIPSCHITZ.counterexamples[0].case()
    assert (flat.lipschitz, printed(flat).value) == (0.0, -1.0)


def test_gaps_end_with_zero() -> None:
    matrix = np.diag([2.0, 5.0, 4.5])
    assert [appendix_b.gap_of(matrix, d) for d in (1, 2, 3)] == [0.5, 2.5, 2.0]


# --- B.2


@pytest.mark.parametrize("planar", [0, 1])
def test_pairs_have_the_gap_and_the_change_asked_for(planar: int) -> None:
    for seed in range(10):
        pair = DAVIS_KAHAN.build(np.random.default_rng(seed), 4, 0.01, 3.0, 100.0, planar)
        assert appendix_b.gap_of(pair.matrix, pair.rank) == pytest.approx(1.0)
        assert np.linalg.norm(pair.change, 2) == pytest.approx(3.0)
        np.testing.assert_allclose(pair.change, pair.change.T, atol=1e-12)
        np.testing.assert_allclose(pair.matrix, pair.matrix.T, atol=1e-12)
        assert np.linalg.matrix_rank(pair.change, tol=1e-9) == (2 if planar else 4)
        if planar:
            values, vectors = np.linalg.eigh(pair.matrix)
            plane = vectors[:, ::-1][:, pair.rank - 1 : pair.rank + 1]
            np.testing.assert_allclose(plane @ plane.T @ pair.change, pair.change, atol=1e-8)
            block = plane.T @ pair.change @ plane
            assert block[0, 0] < 0 < block[1, 1]  # towards an exchange
            assert values[-1] < 300


def test_the_check_compares_the_principal_angle(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    monkeypatch.setattr(appendix_b, "worst", lambda *slacks: found.update({s.part: s for s in slacks}) or slacks[0])
    pair = DAVIS_KAHAN.build(np.random.default_rng(5), 5, 0.5, 0.3, 1.0, 0)
    DAVIS_KAHAN.check(pair)
    before, after = (np.linalg.eigh(m)[1][:, -pair.rank :] for m in (pair.matrix, pair.matrix + pair.change))
    sine = math.sin(subspace_angles(before, after).max())
    assert found["2 e / gap"].value == pytest.approx(1 - sine / 0.6)
    assert found["sharp bound"].value == pytest.approx(1 - sine * math.sqrt(10))


def test_a_sharper_bound_than_the_sharp_one_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    edge, turn = (example.case() for example in DAVIS_KAHAN.boundary)
    monkeypatch.setattr(appendix_b, "sharp_davis_kahan_bound", lambda size, gap: size / gap)
    slack = DAVIS_KAHAN.check(turn)
    assert (slack.part, slack.holds) == ("sharp bound", False)
    assert slack.value == pytest.approx(1 - 1 / math.sqrt(10) / 0.3)
    monkeypatch.setattr(appendix_b, "sharp_davis_kahan_bound", lambda size, gap: 10.0)
    assert DAVIS_KAHAN.check(edge).value == pytest.approx(1e-9, rel=1e-6)
    monkeypatch.setattr(appendix_b, "davis_kahan_bound", lambda size, gap: size / gap)
    slack = DAVIS_KAHAN.check(edge)
    assert (slack.part, slack.value) == ("2 e / gap", pytest.approx(-1.0))


# --- B.3


def test_the_parabola_has_its_closed_forms() -> None:
    for curvature, bend, sharpness in ((0.5, 3.0, 1.0), (0.7, 0.4, 9.0)):
        scenario = rotation.bent_mean(curvature, bend, sharpness)
        root = math.sqrt(sharpness)
        assert scenario.estimate.coupling == pytest.approx(root * bend)
        assert rotation.rotation_cost(scenario) == pytest.approx(root * curvature)
        assert rotation.moving_rate(scenario) == pytest.approx(root * abs(bend / 2 - curvature), rel=1e-9)


def test_the_moving_rate_of_the_circle_is_half_its_coupling() -> None:
    for sharpness in (1.0, 4.0):
        scenario = circle(sharpness)
        assert rotation.moving_rate(scenario) == pytest.approx(math.sqrt(sharpness) / 2, rel=1e-9)
        assert rotation.rotation_cost(scenario) == pytest.approx(math.sqrt(sharpness))


def test_the_moving_rate_is_that_of_the_naive_policy() -> None:
    scenario = ROTATING_SUBSPACE.build(np.random.default_rng(6), 3, 2, 3, 0.5, 2.0, 0)
    assert isinstance(scenario.skill, SoftmaxSkill)
    assert isinstance(scenario.loss, PolynomialMap)
    sensitive = top(fisher(scenario.skill, np.zeros(3)), scenario.rank)
    assert np.linalg.norm(sensitive @ scenario.gradient) < 1e-6 * np.linalg.norm(scenario.gradient)
    rates = []
    for t in (2e-3, 1e-3):
        d = scenario.flow(np.array([t]))[0]
        moved = top(fisher(scenario.skill, d), scenario.rank) @ d
        rates.append(math.sqrt(moved @ fisher(scenario.skill, np.zeros(3)) @ moved) / t**2)
    assert rotation.moving_rate(scenario) == pytest.approx(2 * rates[1] - rates[0], rel=1e-3)


def test_the_cost_is_the_turn_of_the_fisher_matrix() -> None:
    scenario = ROTATING_SUBSPACE.build(np.random.default_rng(6), 3, 2, 3, 0.5, 2.0, 0)
    g, step = scenario.gradient, 1e-4
    assert isinstance(scenario.skill, SoftmaxSkill)
    ahead, behind = (fisher(scenario.skill, s * g) for s in (step, -step))
    turned = np.linalg.norm(ahead - behind, 2) / (2 * step)
    values = np.linalg.eigvalsh(fisher(scenario.skill, np.zeros(3)))[::-1]
    expected = math.sqrt(values[0]) * turned * np.linalg.norm(g) / 0.5
    assert rotation.rotation_cost(scenario) == pytest.approx(expected, rel=1e-4)


def test_a_cost_that_is_too_small_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    scenario = ROTATING_SUBSPACE.boundary[0].case()  # gamma / 2 = 1, cost 0.5
    loose = ROTATING_SUBSPACE.check(doctored(scenario, coupling=1.0))
    assert loose.value == pytest.approx(0.5)  # 0.5 against 0, in units of 1
    slack = ROTATING_SUBSPACE.check(doctored(scenario, coupling=4.0))
    assert (slack.value, slack.holds) == (pytest.approx((0.5 - 1.5) / 2.5), False)
    monkeypatch.setattr(rotation, "rotation_cost", lambda scenario: 0.25)
    slack = ROTATING_SUBSPACE.check(scenario)
    assert slack.value == pytest.approx(-0.25 / 1.25, rel=1e-4)


def test_the_planar_family_is_the_tight_one() -> None:
    scenario = ROTATING_SUBSPACE.build(np.random.default_rng(1), 3, 2, 3, 0.5, 4.0, 1)
    assert scenario.estimate.sharpness == pytest.approx(4.0)
    assert ROTATING_SUBSPACE.check(scenario).value == pytest.approx(0.0, abs=1e-9)
    assert scenario.estimate.coupling >= 2 * rotation.rotation_cost(scenario)


# --- B.4


@pytest.mark.parametrize("beta", [0.5, 1.0, 1.7, 4.0])
def test_the_tight_family_has_its_closed_forms(beta: float) -> None:
    for sharpness in (1.0, 9.0):
        scenario, root = tight_family(beta, sharpness), math.sqrt(sharpness)
        assert scenario.estimate.coupling == pytest.approx(root * beta)
        assert rotation.rotation_cost(scenario) == pytest.approx(root)
        assert rotation._measured_onset(scenario) == pytest.approx(root * abs(beta - 1), rel=1e-8, abs=1e-5)
        slack = ROTATING_ONSET.check(rotation._Rotating(scenario, 2 * root))
        assert slack.value == pytest.approx((abs(beta - 1) - (beta - 1)) / (beta + 1), abs=1e-5)


def test_a_quarter_of_rho_would_be_too_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotation, "rotation_cost", lambda scenario: 0.5)
    slack = ROTATING_ONSET.check(ROTATING_ONSET.boundary[1].case())
    assert (slack.value, slack.holds) == (pytest.approx(-0.5 / 3.5), False)  # 2 against 3 - 1/2


def test_the_rho_of_a_case_is_the_explicit_one() -> None:
    for planar in (0, 1):
        case = ROTATING_ONSET.build(np.random.default_rng(2), 2, 1, 2, 3, 2.0, planar)
        assert case.rho == 2 * rotation.rotation_cost(case.scenario)
        assert case.scenario.estimate.leak == pytest.approx(0.0, abs=1e-12)
        assert case.scenario.estimate.gap > 0
    planar_case = ROTATING_ONSET.build(np.random.default_rng(2), 2, 1, 2, 3, 2.0, 1)
    assert planar_case.scenario.estimate.sharpness == pytest.approx(2.0)


def test_a_spectrum_without_a_gap_is_drawn_again() -> None:
    for seed in range(30):
        scenario = rotation._with_gap(np.random.default_rng(seed), 2, 1, 1, 2, Fraction(1))
        assert scenario.rank == 1
        assert scenario.estimate.gap > 1e-6 * scenario.estimate.eigenvalues[0]


def test_the_printed_corollary_speaks_only_where_its_hypotheses_hold() -> None:
    printed = ROTATING_ONSET.printed
    assert printed is not None
    on_circle = rotation._Rotating(circle(), 0.0)
    assert printed(on_circle).value == -1.0
    assert printed(replace(on_circle, rho=0.99)).value == -1.0
    assert printed(replace(on_circle, rho=1.0)).value == 0.0  # gamma = rho
    steep = rotation._Rotating(rotation.bent_mean(1.0, 1.5, 1.0), 0.0)  # rate 1/4 < gamma / 2 - 0
    assert printed(steep).value == 0.0
    assert printed(replace(steep, rho=0.6)).value == pytest.approx(1 - 1e-3 * 0.9 / 0.5, rel=1e-6)  # gamma_* = 1/2


def test_log_linear_skills_do_not_rotate() -> None:
    assert ROTATING_ONSET.accepted is not None
    case = ROTATING_ONSET.accepted(np.random.default_rng(1))
    assert case.rho == 0.0
    assert rotation._measured_onset(case.scenario) >= case.scenario.estimate.coupling * (1 - 1e-12)


def test_the_moving_projection_says_nothing_of_the_utility() -> None:
    still = rotation.bent_mean(0.5, 1.0, 1.0)  # beta = 2 kappa
    assert rotation.moving_rate(still) == pytest.approx(0.0, abs=1e-9)
    assert float(still.quartic_coefficient) == pytest.approx(0.25 / 8)
    flat = rotation.bent_mean(0.5, 0.5, 1.0)  # beta = kappa
    assert rotation.moving_rate(flat) == pytest.approx(0.25)
    assert float(flat.quartic_coefficient) == pytest.approx(0.0, abs=1e-15)


def test_the_rate_needs_no_loss_with_a_series() -> None:
    mean = polynomial(np.array([[1.0, 0.0]]), np.diag([0.0, 0.5])[None])
    loss = quadratic_loss(np.array([0.0, -1.0]), np.array([[0.0, 3.0], [3.0, 0.0]]))
    scenario = Scenario(GaussianSkill(mean, 1.0), loss)
    times = np.array([0.01, 0.1])
    np.testing.assert_allclose(rotation._displacements(scenario, times), scenario.flow(times), rtol=1e-6)
    np.testing.assert_array_equal(rotation._displacements(circle(), times), circle().flow(times))


def test_random_cases_have_every_rank() -> None:
    scenarios = [rotation._with_gap(np.random.default_rng(seed), 2, 1, 2, 3, Fraction(3)) for seed in range(12)]
    assert {scenario.rank for scenario in scenarios} == {1, 2}
    parabola = rotation.bent_mean(0.5, 2.0, 3.0)
    np.testing.assert_array_equal(parabola.hessian, [[0.0, 2.0], [2.0, 0.0]])
    np.testing.assert_array_equal(parabola.gradient, [0.0, -1.0])
