"""Section 6 and Lemma A.6: the numbers behind their claims, from closed forms and naive policies."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from doctored import divergence, doctored, fisher

from theory.ledger import corollary63, drift, section6
from theory.ledger.corollary63 import QUARTIC_SCALING, sharper_reading
from theory.ledger.drift import DRIFT_LEMMA, DRIFT_THEOREM
from theory.ledger.maps import NegativeAngle, PolynomialMap, Radius, SmoothMap, polynomial
from theory.ledger.scenarios import Coefficients, Scenario, circle, limit_at_zero, quadratic_loss, tight_family
from theory.ledger.section6 import CONSEQUENCE, LOWER_BOUND
from theory.ledger.skills import GaussianSkill, SoftmaxSkill


def flat_ray(direction: tuple[float, float]) -> section6._Ray:
    skill = GaussianSkill(polynomial(np.diag([2.0, 1.0])), 1.0, outputs=2)
    return section6._Ray(skill, np.array(direction), np.diag([1.0, 0.0]))


def assert_derivatives(function: SmoothMap, point: np.ndarray) -> None:
    step = 1e-5
    ahead, behind = zip(*((point + e, point - e) for e in step * np.eye(len(point))), strict=True)
    slopes = [(function.value(a) - function.value(b)) / (2 * step) for a, b in zip(ahead, behind, strict=True)]
    bends = [(function.jacobian(a) - function.jacobian(b)) / (2 * step) for a, b in zip(ahead, behind, strict=True)]
    np.testing.assert_allclose(function.jacobian(point), np.stack(slopes, axis=-1), rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(function.hessian(point), np.stack(bends, axis=-1), rtol=1e-7, atol=1e-8)
    np.testing.assert_array_equal(function.value(function.origin), 0.0)
    assert function.origin.shape == point.shape


# --- 6.1


def test_the_second_order_loss_is_that_of_the_policy() -> None:
    ray = LOWER_BOUND.build(np.random.default_rng(2), 3, 2, 3, 0.5)
    u = ray.direction.astype(float)
    assert isinstance(ray.skill, SoftmaxSkill)
    matrix = fisher(ray.skill, np.zeros(3))
    assert ray.second_order() == pytest.approx(u @ matrix @ u, rel=1e-7)
    assert ray.energy(u) == pytest.approx(u @ matrix @ u, rel=1e-7)
    halves = [2 * divergence(ray.skill, t * u) / t**2 for t in (1e-4, -1e-4)]
    assert sum(halves) / 2 == pytest.approx(ray.second_order(), rel=1e-5)
    values, vectors = np.linalg.eigh(matrix)
    rank = round(np.trace(ray.projector))
    top = vectors[:, np.argsort(values)[::-1][:rank]]
    np.testing.assert_allclose(ray.sensitive_part(), top @ top.T @ u, atol=1e-6)


def test_the_bound_and_the_split_have_their_closed_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    monkeypatch.setattr(section6, "worst", lambda *slacks: found.update({s.part: s for s in slacks}) or slacks[0])
    LOWER_BOUND.check(flat_ray((1.0, 2.0)))
    assert found["lower bound"].value == pytest.approx(0.2)  # 8 against 4, in units of 4 * 5
    assert found["P commutes with F"].value == pytest.approx(0.0, abs=1e-15)


def test_a_projector_that_is_not_spectral_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(section6._Ray, "sensitive_part", lambda self: np.array([0.5, 0.5]))
    slack = LOWER_BOUND.check(section6._flat_ray((0.0, 1.0), (1.0, 0.0)))
    assert (slack.holds, slack.value) == (False, -0.5)  # 0 against 1 + 1, in units of 4


def test_the_reason_as_printed_takes_any_projector() -> None:
    printed = LOWER_BOUND.printed
    assert printed is not None
    assert printed(section6._flat_ray((1.0, 0.0), (1.0, 1.0))).value == pytest.approx(0.75)  # 4 against 1
    assert printed(section6._flat_ray((0.0, 1.0), (1.0, 1.0))).value == pytest.approx(-0.25)
    assert LOWER_BOUND.accepted is not None
    ray = LOWER_BOUND.accepted(np.random.default_rng(0))
    matrix = fisher(ray.skill, np.zeros(3))
    np.testing.assert_allclose(ray.projector @ matrix, matrix @ ray.projector, atol=1e-6)
    assert np.trace(ray.projector) == pytest.approx(2)


# --- 6.1, consequence


def test_the_constant_holds_everywhere() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        case = CONSEQUENCE.build(rng, 3, 2, 0.5, 2.0, 1.5)
        for d in rng.standard_normal((20, 3)) * 10 ** rng.uniform(-2, 1, (20, 1)):
            far = replace(case, displacement=d)
            lower = far.sharpness * far.delta**2 / 2 - far.constant * far.distance**3
            assert case.skill.utility_loss(d) >= lower - 1e-12 * abs(lower)


def test_the_displacement_is_a_share_of_the_largest_one() -> None:
    for share in (0.01, 1.0):
        case = CONSEQUENCE.build(np.random.default_rng(4), 3, 2, share, 2.0, 0.5)
        largest = np.cbrt(case.sharpness * case.delta**2 / (4 * case.constant))
        assert (case.distance / largest) ** 3 == pytest.approx(share)
        mean = case.skill.mean.jacobian(np.zeros(3))
        assert case.sharpness == pytest.approx(2.0 * np.linalg.svd(mean)[1][case.rank - 1] ** 2)


def test_the_ring_has_its_closed_forms() -> None:
    antipode, near = (example.case() for example in CONSEQUENCE.counterexamples)
    assert (antipode.delta, antipode.distance, antipode.sharpness, antipode.constant) == (4.0, 4.0, 1.0, 0.25)
    assert antipode.skill.utility_loss(antipode.displacement) == 0.0
    assert CONSEQUENCE.check(antipode).value == 0.5  # 0 against 8 - 16, in units of 16
    assert near.delta == pytest.approx(1 - math.cos(0.1))
    assert near.distance == pytest.approx(2 * math.sin(0.05))
    assert near.constant == 0.5
    beyond = section6._ring(1.0, (0.6, 0.0))  # delta > lambda / (4 C)
    assert CONSEQUENCE.check(beyond).part == "bound"
    assert CONSEQUENCE.check(beyond).value == pytest.approx((0.78**2 / 2 - 0.18 + 0.108) / 0.36)


def test_both_parts_are_checked_within_the_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    monkeypatch.setattr(section6, "worst", lambda *slacks: found.update({s.part: s for s in slacks}) or slacks[0])
    CONSEQUENCE.check(section6._ring(1.0, (0.1, 0.0)))
    assert found["bound"].value == pytest.approx((0.105**2 / 2 - 0.005 + 0.0005) / 0.01)
    assert found["consequence"].value == pytest.approx((0.105**2 / 2 - 0.0025) / 0.01)


def test_the_consequence_says_nothing_beyond_its_threshold() -> None:
    printed = CONSEQUENCE.printed
    assert printed is not None
    antipode, near = (example.case() for example in CONSEQUENCE.counterexamples)
    assert printed(near).value == -1.0
    assert printed(replace(near, neighbourhood=0.0)).value == 0.0
    assert printed(replace(antipode, constant=1.01)).value == 0.0  # 4 > 16 / 4.04
    assert printed(replace(antipode, constant=1.0)).value == -1.0


def test_a_constant_that_is_too_small_is_noticed() -> None:
    case = CONSEQUENCE.boundary[0].case()
    slack = CONSEQUENCE.check(replace(case, constant=0.25))
    assert (slack.part, slack.holds) == ("bound", False)
    assert slack.value == pytest.approx(-0.125)  # 1/16 against 1/8 - 1/32, in units of 1/4
    assert CONSEQUENCE.check(replace(case, displacement=np.array([0.500001]))).part == "bound"


def test_the_steepest_mean_has_its_derivatives() -> None:
    assert_derivatives(section6._Steepest(), np.array([0.3]))
    assert section6._Steepest().value(np.array([0.5])) ** 2 == pytest.approx(0.125)


# --- 6.2 and A.6


def test_the_hyperbolic_flow_is_the_gradient_flow() -> None:
    case = drift._Hyperbolic(0.2, 1.5, 3.0, 0.8)
    np.testing.assert_allclose(case.displacement, case.scenario.flow(np.array([0.8]))[0], rtol=1e-11)
    found = case.scenario.estimate
    assert found.overlap == pytest.approx(0.2)
    assert found.coupling == pytest.approx(math.sqrt(3.0) * 1.5)
    assert found.eigenvalues[0] == pytest.approx(3.0)
    built = DRIFT_THEOREM.build(np.random.default_rng(0), 0.1, 2.0, 5.0, 4.0)
    assert built == drift._Hyperbolic(0.1, 2.0, 5.0, 0.2)


def test_the_drift_bound_has_its_closed_form() -> None:
    e, h, sharpness, t = 0.2, 1.5, 3.0, 0.8
    p = (math.cosh(h * t) - 1 - e * math.sinh(h * t)) / h
    speed = max(math.hypot(e, 1), math.hypot(e - h * ((math.sinh(h * t) - e * (math.cosh(h * t) - 1)) / h), 1 + h * p))
    main, rest = h * t**2 / 2, h**2 * speed * t**3 / 6
    case, root = drift._Hyperbolic(e, h, sharpness, t), math.sqrt(sharpness)
    assert DRIFT_THEOREM.check(case).value == pytest.approx((abs(p) - main + e * t + rest) / (main + e * t), rel=1e-9)
    assert DRIFT_THEOREM.printed is not None
    expected = (root * abs(p) - root * main + e * t + root * rest) / (root * main + e * t)
    assert DRIFT_THEOREM.printed(case).value == pytest.approx(expected, rel=1e-9)


def test_the_path_is_back_when_the_counterexample_looks() -> None:
    for example, sharpness in zip(DRIFT_THEOREM.counterexamples, (4.0, 1.21), strict=True):
        case = example.case()
        assert case.displacement[0] == pytest.approx(0.0, abs=1e-18)
        assert case.sharpness == sharpness
        assert DRIFT_THEOREM.printed is not None
        root = math.sqrt(sharpness)
        assert DRIFT_THEOREM.printed(case).value == pytest.approx(-(root - 1) / (root + 1), abs=1e-3)


def test_a_coupling_that_is_too_large_is_noticed() -> None:
    case = DRIFT_THEOREM.boundary[0].case()
    vars(case)["scenario"] = doctored(case.scenario, coupling=2.2)  # it is 2: 8e-14 (2.2 - 1) against 8e-14
    slack = DRIFT_THEOREM.check(case)
    assert not slack.holds
    assert slack.value == pytest.approx((2 - 2.2) / 2 * 16 / (2.2 * 8 + 8), rel=1e-4)
    lemma = DRIFT_LEMMA.boundary[0].case()
    slack = DRIFT_LEMMA.check(replace(lemma, scenario=doctored(lemma.scenario, coupling=2.2)))
    assert slack.value == pytest.approx((2 - 2.2) / 2 * 16 / (2.2 * 8 + 8), rel=1e-2)


def test_the_lemma_agrees_with_the_theorem_on_the_hyperbolic_flow() -> None:
    case = drift._Hyperbolic(0.02, 1.5, 3.0, 0.8)
    whole = DRIFT_LEMMA.check(drift._Drift(case.scenario, 0.8))
    assert whole.value == pytest.approx(DRIFT_THEOREM.check(case).value, rel=1e-9)


def test_the_builder_sets_overlap_and_time() -> None:
    cases = [DRIFT_LEMMA.build(np.random.default_rng(1), 3, 2, 3, overlap, 0.1, 1.0) for overlap in (1.0, 1e-3)]
    full, small = (case.scenario.estimate.overlap for case in cases)
    assert small == pytest.approx(1e-3 * full, rel=1e-6)
    outside = [c.scenario.gradient - c.scenario.projector @ c.scenario.gradient for c in cases]
    np.testing.assert_allclose(*outside, atol=1e-14)
    fast = DRIFT_LEMMA.build(np.random.default_rng(1), 3, 2, 3, 1.0, 0.2, 4.0)
    assert fast.time == pytest.approx(cases[0].time / 2)
    loss = cases[0].scenario.loss
    assert isinstance(loss, PolynomialMap)
    c, q, g = (np.linalg.norm(x) for x in (loss.cubic, loss.quadratic, loss.linear))
    assert cases[0].time == pytest.approx(0.1 / (q + math.sqrt(c * g)))


# --- 6.3


def without_coupling() -> Scenario:
    """``H g = 0``, and a skill whose own curvature alone makes the utility loss quartic."""
    return Scenario(GaussianSkill(Radius(), 1.0), polynomial(np.array([[0.0, -1.0]])))


def test_the_language_model_has_its_closed_forms() -> None:
    scenario = corollary63.two_prompts(3.0)
    np.testing.assert_allclose(scenario.gradient, [0.0, -0.5], atol=1e-15)
    np.testing.assert_allclose(scenario.acceleration, [-0.25, -0.125], atol=1e-15)
    sharpness = 9 / (4 * math.cosh(1.5) ** 2)
    np.testing.assert_allclose(scenario.fisher, np.diag([sharpness, 0.0]), atol=1e-15)
    assert scenario.estimate.coupling == pytest.approx(math.sqrt(sharpness) / 4)
    assert scenario.estimate.onset_coefficient == pytest.approx(0.0, abs=1e-15)
    assert scenario.utility_losses(np.array([0.5, 1.0])) == pytest.approx([0.0, 0.0], abs=1e-20)
    path = scenario.flow(np.array([1.0]))[0] + [1.0, 0.0]
    assert math.hypot(*path) == pytest.approx(1.0, rel=1e-12)
    assert math.atan2(path[1], path[0]) > 0.3


def test_the_language_model_s_maps_have_their_derivatives() -> None:
    point = np.array([0.2, 0.3])
    assert_derivatives(corollary63.WithReference(Radius(factor=2.0)), point)
    assert_derivatives(corollary63.CrossEntropy(NegativeAngle()), point)
    angle = math.atan2(0.3, 1.2)
    loss = corollary63.CrossEntropy(NegativeAngle()).value(point)
    assert loss == pytest.approx([math.log(1 + math.exp(-angle)) - math.log(2)])
    assert corollary63.WithReference(Radius(factor=2.0)).value(point) == pytest.approx(
        [2 * (math.hypot(1.2, 0.3) - 1), 0.0]
    )


def test_the_first_integral_moves_at_the_sixth_order_only() -> None:
    for seed in range(5):
        coefficients = Coefficients(np.random.default_rng(seed), exact=True)
        loss, direction = coefficients.loss(3), coefficients.tensor(3)
        if not any(loss.linear[0]):
            continue
        scenario = corollary63.first_integral(loss, direction, 4)
        utility = scenario.skill.utility_loss_along(scenario.series(6))
        assert all(x == 0 for x in utility[:6])
        assert utility[6] > 0
        p = scenario.skill.scores()[2] / scenario.skill.scores()[2][0]
        g, bent = scenario.gradient.astype(float), scenario.acceleration.astype(float)
        assert p.astype(float) @ g == pytest.approx(0.0, abs=1e-12)
        mean = scenario.skill.mean.jacobian(scenario.loss.origin)[0].astype(float)
        assert scenario.estimate.coupling == pytest.approx(2 * abs(mean @ bent))


def test_the_quartic_coefficient_is_that_of_the_divergence() -> None:
    scenario = QUARTIC_SCALING.build(np.random.default_rng(8), 2, 1, 2, 3, 2.0)
    coefficient = float(scenario.quartic_coefficient)
    curve = scenario.series(8).astype(float)
    times = 0.01 / np.linalg.norm(scenario.gradient.astype(float)) * 2.0 ** np.arange(-2, 3)
    losses = [divergence(scenario.skill, np.polynomial.polynomial.polyval(t, curve)) for t in times]
    assert limit_at_zero(times, np.array(losses) / times**4) == pytest.approx(coefficient, rel=1e-3)
    assert coefficient > 0
    assert isinstance(scenario.quartic_coefficient, Fraction)


def test_extrapolation_is_exact_for_polynomials() -> None:
    times = np.array([0.1, 0.2, 0.35, 0.5])
    assert limit_at_zero(times, 3 - 2 * times + times**2 - 5 * times**3) == pytest.approx(3.0, rel=1e-13)
    assert limit_at_zero(times, times**4) == pytest.approx(-np.prod(times))


@pytest.mark.parametrize("sharpness", [1.0, 25.0])
def test_the_paths_without_a_series_have_their_closed_forms(sharpness: float) -> None:
    assert circle(sharpness).quartic_coefficient == pytest.approx(0.0, abs=1e-20)
    for beta in (0.3, 2.5):
        expected = sharpness * (beta - 1) ** 2 / 8
        assert tight_family(beta, sharpness).quartic_coefficient == pytest.approx(expected, rel=1e-9)


def test_a_coupling_of_zero_does_not_protect() -> None:
    converse = without_coupling()
    assert converse.estimate.coupling == 0.0
    assert converse.estimate.onset_coefficient == pytest.approx(1.0, rel=1e-12)
    assert converse.quartic_coefficient == pytest.approx(1 / 8, rel=1e-9)
    assert converse.utility_losses(np.array([0.5])) == pytest.approx([(math.sqrt(1.25) - 1) ** 2 / 2])
    assert converse.utility_losses(np.array([0.5])) == pytest.approx([0.00697], abs=5e-6)
    assert QUARTIC_SCALING.check(converse).holds


def test_a_wrong_onset_coefficient_is_noticed() -> None:
    flat = Scenario(
        GaussianSkill(polynomial(np.array([[1.0, 0.0]])), 1.0),
        quadratic_loss(np.array([0.0, -1.0]), np.array([[0.0, 2.0], [2.0, 0.0]])),
    )
    assert QUARTIC_SCALING.check(flat).value == pytest.approx(0.0, abs=1e-15)
    slack = QUARTIC_SCALING.check(doctored(flat, onset_coefficient=4.0))
    assert (slack.value, slack.holds) == (pytest.approx(-0.75), False)  # 4 against 16
    slack = QUARTIC_SCALING.check(doctored(flat, onset_coefficient=1.0))
    assert slack.value == pytest.approx(-0.75)  # 4 against 1, in units of gamma^2 = 4


def test_the_printed_statement_asks_for_a_positive_rate_only() -> None:
    printed = QUARTIC_SCALING.printed
    assert printed is not None
    assert len(QUARTIC_SCALING.counterexamples) == 3
    for example in QUARTIC_SCALING.counterexamples:
        case = example.case()
        assert case.estimate.coupling > 0.1
        assert printed(case).value == pytest.approx(-1.0)
    assert printed(without_coupling()).holds  # it claims nothing where gamma = 0
    between = tight_family(3.0)  # gamma = 3, gamma_* = 2
    assert printed(between).value == pytest.approx(1 - 1e-6 * 9 / 4)


def test_the_sharper_reading_fails_from_both_sides() -> None:
    cases = [*(example.case() for example in QUARTIC_SCALING.counterexamples), without_coupling()]
    assert len(cases) == 4
    for case in cases:
        slack = sharper_reading(case)
        assert (slack.holds, slack.value) == (False, pytest.approx(-1.0))
    assert sharper_reading(tight_family(3.0)).value == pytest.approx(-5 / 9)


def test_log_linear_skills_follow_the_sharper_reading_with_nothing_to_spare() -> None:
    assert QUARTIC_SCALING.accepted is not None
    scenario = QUARTIC_SCALING.accepted(np.random.default_rng(3))
    assert float(8 * scenario.quartic_coefficient) == pytest.approx(scenario.estimate.coupling**2, rel=1e-12)
    assert not sharper_reading(doctored(scenario, coupling=1.01 * scenario.estimate.coupling)).holds
    for seed in range(20):
        assert sharper_reading(QUARTIC_SCALING.accepted(np.random.default_rng(seed))).holds


def test_the_constant_is_that_of_the_mean() -> None:
    case = CONSEQUENCE.build(np.random.default_rng(9), 3, 2, 0.5, 2.0, 1.5)
    jacobian, bends = case.skill.mean.jacobian(np.zeros(3)), case.skill.mean.hessian(np.zeros(3))
    bend = math.sqrt(sum(np.abs(np.linalg.eigvalsh(q)).max() ** 2 for q in bends))
    assert case.constant == pytest.approx(2.0 * np.linalg.svd(jacobian)[1][0] * bend / 2)
    assert case.skill.precision == 2.0


def test_the_flat_ray_is_the_one_described() -> None:
    ray = LOWER_BOUND.boundary[0].case()
    assert (ray.second_order(), ray.energy(np.array([1.0, 1.0])), ray.largest_energy()) == pytest.approx((4, 4, 4))
