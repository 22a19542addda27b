"""Section 5: the numbers behind its claims, from closed forms and naive policies."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from doctored import divergence, doctored, fisher

from theory.ledger import section5, section5_prose
from theory.ledger.claim import Slack
from theory.ledger.maps import PolynomialMap, polynomial
from theory.ledger.scenarios import Coefficients, Scenario, quadratic_loss
from theory.ledger.section5 import DEFINITION_5_1, FIRST_ORDER, SECOND_ORDER
from theory.ledger.section5_prose import CONSTANT_FISHER, STATIC_PROJECTION
from theory.ledger.skills import GaussianSkill
from theory.series import rational


def parts(monkeypatch: pytest.MonkeyPatch, module: object) -> dict[str, Slack]:
    """Every part of the next check by its name, not only the worst one."""
    found: dict[str, Slack] = {}

    def record(*slacks: Slack) -> Slack:
        found.update({slack.part: slack for slack in slacks})
        return min(slacks, key=lambda slack: slack.margin)

    monkeypatch.setattr(module, "worst", record)
    return found


# --- 5.1


def test_the_leak_is_measured_on_the_policy() -> None:
    scenario = DEFINITION_5_1.build(np.random.default_rng(3), 3, 2, 3, 1.0, 1.0)
    g = scenario.gradient.astype(float)
    measured = float(2 * section5.quadratic_coefficient(scenario))
    assert measured == pytest.approx(g @ fisher(scenario.skill, np.zeros(3)) @ g, rel=1e-7)
    t = 1e-4 / np.linalg.norm(g)
    ratios = [2 * divergence(scenario.skill, -s * g) / s**2 for s in (t, -t)]
    assert sum(ratios) / 2 == pytest.approx(measured, rel=1e-5)


def test_loss_and_sharpness_have_the_sizes_asked_for() -> None:
    one, two = (DEFINITION_5_1.build(np.random.default_rng(0), 3, 2, 3, s, k) for s, k in ((1.0, 1.0), (8.0, 4.0)))
    np.testing.assert_array_equal(two.gradient, 8 * one.gradient)
    np.testing.assert_allclose(two.fisher, 16 * one.fisher, rtol=1e-14)
    assert one.rank in (1, 2, 3)


def test_the_leak_bound_has_its_closed_form() -> None:
    scenario = section5._plane((1.0, 0.01), (0.6, -0.8))
    assert DEFINITION_5_1.check(scenario).value == pytest.approx((0.37 - 0.3664) / 0.37, rel=1e-10)
    assert DEFINITION_5_1.printed is not None
    assert DEFINITION_5_1.printed(scenario).value == pytest.approx((0.36 - 0.3664) / 0.3664, rel=1e-10)
    assert not DEFINITION_5_1.printed(scenario).holds


def test_a_tail_that_is_left_out_is_noticed() -> None:
    scenario = section5._plane((1.0, 0.01), (0.0, -1.0))
    assert DEFINITION_5_1.check(doctored(scenario, tail=0.0)).value == -1.0
    half = DEFINITION_5_1.check(doctored(scenario, tail=0.005))
    assert half.value == pytest.approx(-0.5)
    assert not half.holds


# --- 5.1, first order


def test_the_first_order_rates_have_their_closed_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    found = parts(monkeypatch, section5)
    FIRST_ORDER.check(section5._FirstOrder(section5._plane((4.0, 1.0), (-3.0, 2.0)), 1.5))
    assert found["distance"].value == pytest.approx(0.0, abs=1e-15)  # |Pg| = 3 both ways
    assert found["utility loss"].value == pytest.approx(0.0, abs=1e-15)  # 40 both ways
    assert found["lower bound"].value == pytest.approx((40 - 9) / 52)


def test_the_distance_is_that_of_the_flow() -> None:
    case = FIRST_ORDER.build(
        np.random.default_rng(1), share=0.5, dimension=3, prompts=2, outcomes=3, scale=1.0, sharpness=1.0
    )
    vectors = np.linalg.eigh(fisher(case.scenario.skill, np.zeros(3)))[1][:, ::-1][:, : case.scenario.rank]
    assert 2 * case.overlap == pytest.approx(np.linalg.norm(vectors.T @ case.scenario.gradient.astype(float)), rel=1e-6)


def test_first_order_lies_are_noticed() -> None:
    (case,) = (example.case() for example in FIRST_ORDER.boundary)
    far = FIRST_ORDER.check(replace(case, overlap=6.0))
    assert (far.part, far.holds) == ("lower bound", False)
    assert far.value == pytest.approx(-3.0)  # 36 against 144
    sharp = FIRST_ORDER.check(replace(case, scenario=doctored(case.scenario, sharpness=8.0)))
    assert (sharp.part, sharp.value) == ("lower bound", pytest.approx(-1.0))  # 36 against 72


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_wrong_overlap_is_noticed(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plane = section5._plane((4.0, 1.0), (-3.0, 2.0), min(rank, 2))
    speed = 3.0 if rank == 1 else math.sqrt(13)
    assert section5._initial_speed(plane) == pytest.approx(speed)
    assert plane.estimate.overlap == pytest.approx(speed)
    gap = 3.0 if rank == 1 else 1.0
    lie = doctored(plane, overlap=1.5 * speed)
    slack = FIRST_ORDER.check(section5._FirstOrder(lie, 0.0))
    assert (slack.part, slack.holds) == ("distance", False)
    assert slack.value == pytest.approx(-gap * speed / 2 / (4 * math.sqrt(13)))
    # the path is measured by itself: a path at twice the speed does not agree with the estimate
    right = section5._initial_speed
    monkeypatch.setattr(section5, "_initial_speed", lambda scenario: 2 * right(scenario))
    slack = FIRST_ORDER.check(section5._FirstOrder(plane, 0.0))
    assert (slack.part, slack.value) == ("distance", pytest.approx(-gap * speed / (4 * math.sqrt(13))))


def test_directions_on_which_the_fisher_matrix_vanishes_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    flat = section5._plane((4.0, 0.0), (-3.0, 2.0), rank=2)
    assert section5._initial_speed(flat) == pytest.approx(math.sqrt(13))
    assert flat.estimate.overlap == pytest.approx(3.0)
    slack = section5._distance_rate(flat)
    assert (slack.holds, slack.value) == (True, pytest.approx(0.0, abs=1e-15))
    assert section5._distance_rate(section5._plane((0.0, 0.0), (-3.0, 2.0), rank=2)).holds
    right = section5._initial_speed
    monkeypatch.setattr(section5, "_initial_speed", lambda scenario: 2 * right(scenario))
    assert section5._distance_rate(flat).value == pytest.approx(-3 / math.sqrt(13))  # 6 against 3, of sqrt 13


def test_each_printed_first_order_reading_is_tested() -> None:
    printed = FIRST_ORDER.printed
    assert printed is not None
    plane = section5._plane((1.0, 0.5), (-1.0, 0.0))
    assert printed(section5._FirstOrder(plane, 1.0)).value == pytest.approx(0.9)
    assert printed(section5._FirstOrder(plane, 0.01)).value == pytest.approx(-0.9)
    assert printed(section5._FirstOrder(section5._plane((1.0, 1e-7), (0.0, 1.0), 2), 1.0)).value == pytest.approx(-0.9)


# --- 5.1, second order


def test_the_third_derivative_has_its_closed_forms() -> None:
    swing = quadratic_loss(np.array([-1.0, 0.0]), np.array([[0.0, 2.0], [2.0, 0.0]]))
    np.testing.assert_array_equal(section5.third_derivative(swing, np.zeros(2)), [4.0, 0.0])
    tangent = polynomial(np.array([[-1.0]]), None, np.array([[[[-1.0]]]]))  # theta' = 1 + theta^2 / 2
    for x in (0.0, 0.7):
        speed = 1 + x**2 / 2
        assert section5.third_derivative(tangent, np.array([x])) == pytest.approx([speed * (speed + x**2)])
    points = np.array([[0.0], [0.7], [0.2]])
    assert section5.taylor_constant(tangent, points) == pytest.approx(1.245 * (1.245 + 0.49) / 6)


def test_the_remainder_is_that_of_the_tangent(monkeypatch: pytest.MonkeyPatch) -> None:
    found = parts(monkeypatch, section5)
    tangent = polynomial(np.array([[-1.0]]), None, np.array([[[[-1.0]]]]))
    t = 0.3
    x = math.sqrt(2) * math.tan(t / math.sqrt(2))
    bound = t**3 / 6 * (1 + x**2 / 2) * (1 + 3 * x**2 / 2)
    assert SECOND_ORDER.check(section5._Path(tangent, t)).holds
    assert found["remainder"].value == pytest.approx((bound - (x - t)) / bound, rel=1e-8)
    assert list(found) == ["velocity", "acceleration", "third derivative", "remainder"]


def test_the_remainder_is_nearly_its_bound_at_short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    found = parts(monkeypatch, section5)
    SECOND_ORDER.check(SECOND_ORDER.boundary[0].case())
    assert 0 < found["remainder"].value < 1e-3


def test_a_bound_of_half_the_size_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = section5.taylor_constant
    monkeypatch.setattr(section5, "taylor_constant", lambda loss, points: right(loss, points) / 2)
    slack = SECOND_ORDER.check(SECOND_ORDER.boundary[0].case())
    assert (slack.part, slack.holds) == ("remainder", False)
    assert slack.value == pytest.approx(-0.5, abs=1e-3)


def test_wrong_derivatives_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(section5, "third_derivative", lambda loss, point: np.array([2.0, 0.0]))
    slack = SECOND_ORDER.check(SECOND_ORDER.boundary[0].case())  # the true one is (1, 0)
    assert (slack.part, slack.value) == ("third derivative", -0.5)


def test_the_flow_time_is_a_share_of_the_loss_s_own_time() -> None:
    one = SECOND_ORDER.build(np.random.default_rng(0), 3, 0.2, 1.0)
    fast = SECOND_ORDER.build(np.random.default_rng(0), 3, 0.4, 8.0)
    assert fast.time == pytest.approx(one.time / 4)
    c, q, g = (np.linalg.norm(x) for x in (one.loss.cubic, one.loss.quadratic, one.loss.linear))
    assert one.time == pytest.approx(0.2 / (q + math.sqrt(c * g)))


# --- 5.2


def test_the_flat_skill_on_a_bent_path_has_its_closed_form() -> None:
    scenario = CONSTANT_FISHER.counterexamples[0].case()
    utility = scenario.skill.utility_loss_along(scenario.series(4))
    assert utility.tolist() == [0, 0, 0, 0, Fraction(1, 2)]  # x = (1 - cosh 2t) / 2, utility loss x^2 / 2
    curve = scenario.series(4)
    assert curve.tolist() == [[0, 0], [0, 1], [-1, 0], [0, Fraction(2, 3)], [Fraction(-1, 3), 0]]


def test_a_skill_that_turns_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = parts(monkeypatch, section5_prose)
    loss = quadratic_loss(rational([0, -1]), rational([[0, 2], [2, 0]]))
    mean = polynomial(rational([[1, 0]]), rational([[[0, 0], [0, 1]]]))
    slack = CONSTANT_FISHER.check(Scenario(GaussianSkill(mean, Fraction(1)), loss))
    assert (slack.part, slack.value, slack.holds) == ("constant Fisher matrix", -1.0, False)
    assert found["onset coefficient"].value == -0.75  # (beta - kappa)^2 = 1 in place of beta^2 = 4
    assert found["curvature of the path"].value == 0
    assert found["quartic onset"].value == 0


def test_a_leak_is_noticed() -> None:
    loss = quadratic_loss(rational([1, -1]), rational([[0, 2], [2, 0]]))
    slack = CONSTANT_FISHER.check(Scenario(GaussianSkill(polynomial(rational([[1, 0]])), Fraction(1)), loss))
    assert (slack.part, slack.value) == ("quartic onset", -1.0)


def test_only_bending_across_the_gradient_is_bending() -> None:
    printed = CONSTANT_FISHER.printed
    assert printed is not None
    assert CONSTANT_FISHER.accepted is not None
    radial = CONSTANT_FISHER.accepted(np.random.default_rng(0))
    assert np.any(radial.series(2)[2] != 0)
    assert printed(radial).value == 0
    oblique = quadratic_loss(rational([0, -1]), rational([[0, 3], [3, 4]]))  # H g = (-3, -4)
    scenario = Scenario(GaussianSkill(polynomial(rational([[1, 0]])), Fraction(1)), oblique)
    assert printed(scenario).value == pytest.approx(-0.6)  # second coefficient (-3, -4) / 2


def test_the_builder_s_loss_does_not_leak() -> None:
    scenario = CONSTANT_FISHER.build(np.random.default_rng(0), 4, 2, 8.0, 4.0)
    fisher_matrix = scenario.skill.fisher(scenario.loss.origin)
    assert all(x == 0 for x in fisher_matrix @ scenario.gradient)
    assert scenario.skill.precision == 4
    assert scenario.rank == 2


# --- 5.3


def plane_projection(every_step: bool) -> section5_prose._Projection:
    return replace(STATIC_PROJECTION.counterexamples[0].case(), every_step=every_step)


def test_the_projected_paths_have_their_closed_forms() -> None:
    stays, returns = plane_projection(True), plane_projection(False)
    assert section5_prose._bending(stays) == pytest.approx(0.0, abs=1e-12)
    assert section5_prose._bending(returns) == pytest.approx(1.0, rel=1e-8)  # x = (1 - cosh 2t) / 2
    np.testing.assert_allclose(returns.acceleration, [-2.0, 0.0], atol=1e-15)
    np.testing.assert_allclose(stays.acceleration, [0.0, 0.0], atol=1e-15)
    for case in (stays, returns):
        np.testing.assert_allclose(case.velocity, [0.0, 1.0], atol=1e-15)


def test_the_acceleration_is_the_field_s_own() -> None:
    for every_step in (0, 1):
        case = STATIC_PROJECTION.build(np.random.default_rng(5), 3, 2, 3, 2.0, every_step)
        v = case.field(np.zeros(3))
        np.testing.assert_allclose(v, case.velocity, atol=1e-14)
        step = 1e-5
        difference = (case.field(step * v) - case.field(-step * v)) / (2 * step)
        np.testing.assert_allclose(case.acceleration, difference, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(case.scenario.projector @ v, 0, atol=1e-14)


def test_a_projection_that_is_not_applied_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def unprojected(self: section5_prose._Projection, displacement: np.ndarray) -> np.ndarray:
        return -self.scenario.loss.jacobian(displacement)[0]

    found = parts(monkeypatch, section5_prose)
    monkeypatch.setattr(section5_prose._Projection, "field", unprojected)
    slack = STATIC_PROJECTION.check(plane_projection(True))
    assert not slack.holds
    assert found["bending"].value == pytest.approx(-1.0)  # 4 against 0, in units of |H v|^2
    x, y = (1 - math.cosh(0.4 / math.sqrt(8))) / 2, math.sinh(0.4 / math.sqrt(8)) / 2
    assert found["displacement"].value == pytest.approx(x / math.hypot(x, y), rel=1e-9)


def test_a_wrong_acceleration_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(section5_prose._Projection, "acceleration", property(lambda self: np.array([-4.0, 0.0])))
    assert STATIC_PROJECTION.check(plane_projection(False)).value == pytest.approx(-3.0)  # 4 against 16
    assert STATIC_PROJECTION.check(plane_projection(True)).value == pytest.approx(-4.0)  # 0 against 16


def test_the_printed_rate_is_met_only_without_the_projection() -> None:
    printed = STATIC_PROJECTION.printed
    assert printed is not None
    assert printed(plane_projection(True)).value == pytest.approx(-0.5)
    assert printed(plane_projection(False)).value == pytest.approx(0.5)


def test_scaled_maps_scale_every_coefficient() -> None:
    loss = Coefficients(np.random.default_rng(0)).loss(2)
    scaled = loss.scaled(3.0)
    assert isinstance(scaled, PolynomialMap)
    point = np.array([0.3, -0.2])
    np.testing.assert_allclose(scaled.value(point), 3 * loss.value(point))
    np.testing.assert_allclose(scaled.hessian(point), 3 * loss.hessian(point))


def test_gradients_that_are_not_unit_vectors_count_with_their_length() -> None:
    scenario = section5._plane((2.0, 0.01), (1.2, -1.6))
    bound = 2 * 1.44 + 0.01 * 4
    assert DEFINITION_5_1.check(scenario).value == pytest.approx(0.01 * 1.44 / bound, rel=1e-9)
    assert FIRST_ORDER.printed is not None
    weak = section5._FirstOrder(section5._plane((2.0, 2e-7), (0.0, 2.0), 2), 2.0)
    assert FIRST_ORDER.printed(weak).value == pytest.approx(-0.9)  # 8e-7 against 8e-6


def test_random_cases_have_every_rank() -> None:
    cases = [DEFINITION_5_1.build(np.random.default_rng(seed), 3, 2, 3, 1.0, 1.0) for seed in range(20)]
    assert {case.rank for case in cases} == {1, 2, 3}
    projections = [STATIC_PROJECTION.build(np.random.default_rng(seed), 3, 2, 3, 1.0, 1) for seed in range(20)]
    assert {case.scenario.rank for case in projections} == {1, 2}
