"""Optimisers, adapters and projections: oracles for the numbers that the checks compare, and negative controls."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import multivariate_normal

from theory import onset
from theory.ledger import optimizers, tracked
from theory.ledger.extensions import CLAIMS
from theory.ledger.lora import Adapter, input_energies
from theory.ledger.maps import polynomial
from theory.ledger.optimizers import Descent, gains
from theory.ledger.paths import steps
from theory.ledger.projections import FixedProjection
from theory.ledger.scenarios import Coefficients, Scenario, circle, integrate
from theory.ledger.sign_step import SignStep, even_subspace, plane_energy, sign_energy
from theory.ledger.skills import SoftmaxSkill, fisher_at_base, second_derivatives
from theory.ledger.tracked import TrackedProjection, rising_rank, tail_only, tracked_limit, tracked_loss
from theory.series import constant, integral_curve, rational
from theory.spectra import projector

CLAIM = {claim.key: claim for claim in CLAIMS}
F = Fraction
SMALL = {"prompts": 2, "outcomes": 3, "dimension": 2, "seed": 1}


def floats(skill: SoftmaxSkill) -> SoftmaxSkill:
    parts = (skill.logits.linear, skill.logits.quadratic, skill.logits.cubic)
    logits = polynomial(*(part.astype(float) for part in parts))
    return SoftmaxSkill(skill.prompts.astype(float), skill.base.astype(float), logits)


def float_loss(scenario: Scenario):
    return polynomial(*(getattr(scenario.loss, name).astype(float) for name in ("linear", "quadratic", "cubic")))


def coin(bend: int = 0) -> SoftmaxSkill:
    """A fair coin with the logit ``y + bend x^2/2``."""
    linear, quadratic = rational([[0, 1], [0, 0]]), rational(np.zeros((2, 2, 2), dtype=int))
    quadratic[0, 0, 0] = F(bend)
    return SoftmaxSkill(rational([1]), rational([[F(1, 2), F(1, 2)]]), polynomial(linear, quadratic))


def pushed(push: int, bend: int) -> Scenario:
    """The coin with the loss ``-x - push x y``: s.Hg = push (+-1/2), g Hess l g = bend (+-1/2)."""
    return Scenario(coin(bend), polynomial(rational([[-1, 0]]), rational([[[0, -push], [-push, 0]]])))


class Straight(SoftmaxSkill):
    """A skill that denies its second derivatives."""

    def log_hessians(self) -> np.ndarray:
        return super().log_hessians() * 0


def straight(skill: SoftmaxSkill) -> SoftmaxSkill:
    return Straight(skill.prompts, skill.base, skill.logits)


# E1 and E2


def test_steps_of_momentum_by_hand():
    """On a line with ``field = 1 - theta``: two steps of weights 1 and 2, mu = 1/2."""
    path = steps(lambda c: constant(rational([1]), len(c) - 1) - c, rational([0]), (1, 2), 2, F(1, 2))
    # u_1 = 1, theta = eta; u_2 = 1/2 + 2 (1 - eta); theta = eta + eta (5/2 - 2 eta)
    assert path[:, 0].tolist() == [0, F(7, 2), -2]
    assert gains((1, 2), F(1, 2)) == [F(3, 2), F(2)]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_e1_coin(count):
    scenario = pushed(3, 2)
    case = Descent(scenario, (1,) * count, F(0), rational(np.zeros((0, 2), dtype=int)))
    path = case.path(4)
    assert path[1:3].tolist() == [[count, 0], [0, F(3 * count * (count - 1), 2)]]
    expected = F(count**4, 32) * (3 * (1 - F(1, count)) + 2) ** 2
    assert scenario.skill.utility_loss_along(path).tolist() == [0, 0, 0, 0, expected]
    assert CLAIM["E1"].check(case).holds


def test_e1_against_descent_in_float64():
    case = CLAIM["E1"].case(SMALL | {"count": 3})
    assert (len(case.weights), set(case.weights), case.momentum) == (3, {1}, 0)
    skill, loss, scenario = floats(case.scenario.skill), float_loss(case.scenario), case.scenario
    ratios = []
    for eta in (2e-4, 1e-4):
        point = np.zeros(3)
        for _ in range(3):
            point = point - eta * loss.jacobian(point)[0]
        ratios.append(skill.utility_loss(point) / (3 * eta) ** 4)
    second = second_derivatives(scenario.skill, scenario.velocity, F(2, 3) * scenario.acceleration)
    assert 2 * ratios[1] - ratios[0] == pytest.approx(float(scenario.skill.weights @ second**2 / 8), rel=1e-3)


def test_e1_rejects_a_flow_and_a_straight_skill():
    case = CLAIM["E1"].case(SMALL | {"count": 3})
    moved = CLAIM["E1"].check(replace(case, momentum=F(1, 10)))
    assert (moved.holds, moved.tolerance) == (False, 0)
    assert moved.value < -0.05
    coins = Descent(replace(pushed(3, 2), skill=straight(coin(2))), (1, 1), F(0), rational(np.zeros((0, 2), dtype=int)))
    slack = CLAIM["E1"].check(coins)
    assert slack.value == pytest.approx((1.5 / 3.5) ** 2 - 1)
    assert (slack.part, slack.holds) == ("utility loss", False)


def test_e1_descent_drifts_off_the_circle():
    flat = circle(4.0)
    for count in (1, 5, 20):
        point = np.zeros(2)
        for _ in range(count):
            point = point - 1e-2 / count * flat.loss.jacobian(point)[0]
        assert flat.skill.utility_loss(point) == pytest.approx(4 * 1e-8 / (8 * count**2), rel=1e-3)


def test_e2_gains_and_the_schedule_formula():
    weights = (F(1, 2), F(2), F(3))
    assert gains(weights, F(0)) == list(weights)
    total = sum(weights)
    assert sum(w * sum(weights[:j]) for j, w in enumerate(weights)) == (total**2 - sum(w**2 for w in weights)) / 2


def test_e2_against_heavy_ball_in_float64():
    case = CLAIM["E2"].case(SMALL | {"count": 4, "heavy": 1})
    assert 0 < case.momentum < 1
    assert len(set(case.weights)) > 1
    loss, path = float_loss(case.scenario), case.path(3).astype(float)
    for eta in (1e-3, 1e-4):
        point, update = np.zeros(3), np.zeros(3)
        for weight in case.weights:
            update = float(case.momentum) * update + float(weight) * loss.jacobian(point)[0]
            point = point - eta * update
        rest = point - eta * path[1] - eta**2 * path[2]
        np.testing.assert_allclose(rest / eta**3, path[3], rtol=0.1, atol=1e3 * eta)
    assert CLAIM["E2"].case(SMALL | {"count": 4, "heavy": 0}).momentum == 0


def test_e2_noise_in_float64():
    """K steps of SGD on a coin with no slope: the loss is ``eta^2 K tr(F Sigma)/2``, F = diag(0, 1/4)."""
    scenario = Scenario(coin(), polynomial(rational([[0, 0]])))
    noise = rational([[0, 2], [1, 2]])
    case = Descent(scenario, (1, 1), F(0), noise)
    assert CLAIM["E2"].check(case).holds
    rng, skill = np.random.default_rng(0), floats(scenario.skill)
    rows = np.array([[0, 2], [1, 2], [0, -2], [-1, -2]])
    ends = 1e-2 * rows[rng.integers(0, 4, (4000, 2))].sum(axis=1)
    losses = [skill.utility_loss(end) for end in ends]
    assert np.mean(losses) == pytest.approx(1e-4 * 2 * (4 / 4) / 2, abs=4 * np.std(losses) / math.sqrt(4000))


def test_e2_rejects(monkeypatch):
    case = CLAIM["E2"].case(SMALL | {"count": 2, "heavy": 1})
    assert CLAIM["E2"].check(case).holds

    class Deaf(Descent):
        def path(self, order, errors=None):
            return super().path(order)

    quiet = CLAIM["E2"].check(Deaf(case.scenario, case.weights, case.momentum, case.noise))
    assert (quiet.value, quiet.part, quiet.holds) == (-1, "noise", False)
    true = gains
    monkeypatch.setattr("theory.ledger.optimizers.gains", lambda w, mu: [2 * a for a in true(w, mu)])
    slack = CLAIM["E2"].check(case)
    assert not slack.holds
    assert slack.value == pytest.approx(1 / 16 - 1)  # the gains enter the loss to the fourth power


# E3


def test_e3_field_of_a_coin():
    """``theta' = -(M + t N) g``, with M g in the kernel while g is not."""
    case = CLAIM["E3"].case(SMALL)
    n = len(case.metric)
    assert not np.any(case.skill.scores() @ case.metric @ case.loss.linear[0] != 0)
    assert np.any(case.skill.scores() @ case.loss.linear[0] != 0)
    parts = [getattr(case.slope, name).astype(float) for name in ("linear", "quadratic", "cubic")]
    slope, loss = polynomial(*parts), float_loss(Scenario(case.skill, case.loss))

    def field(state: np.ndarray) -> np.ndarray:
        point, time = state[:n], state[n]
        matrix = case.metric.astype(float) + slope.value(point).reshape(n, n) + time * case.drift.astype(float)
        return np.append(-matrix @ loss.jacobian(point)[0], 1.0)

    ratios = []
    for t in (4e-4, 2e-4):
        end = integrate(field, np.zeros(n + 1), np.array([t]))[0]
        ratios.append(floats(case.skill).utility_loss(end[:n]) / t**4)
    start, h = np.zeros(n + 1), 1e-6
    speed = field(start)
    a = ((field(h * speed) - field(-h * speed)) / (2 * h))[:n]
    second = case.skill.scores().astype(float) @ a + case.skill.log_hessians().astype(float) @ speed[:n] @ speed[:n]
    expected = case.skill.weights.astype(float) @ second**2 / 8
    assert 2 * ratios[1] - ratios[0] == pytest.approx(expected, rel=1e-3)
    assert CLAIM["E3"].check(case).value == 0


@pytest.mark.parametrize("name", ["drift", "slope", "loss"])
def test_e3_rejects_an_acceleration_without_one_of_its_terms(name):
    case = CLAIM["E3"].case(SMALL)

    class Undrifted(type(case)):
        def field(self, point):
            return case.field(point)

    other = {
        "drift": case.drift * 0,
        "slope": replace(case.slope, linear=case.slope.linear * 0),
        "loss": replace(case.loss, quadratic=case.loss.quadratic * 0),
    }[name]
    fields = {f.name: getattr(case, f.name) for f in dataclasses.fields(case)} | {name: other}
    slack = CLAIM["E3"].check(Undrifted(**fields))
    assert (slack.part, slack.holds) in {("acceleration", False), ("utility loss", False)}
    assert slack.value < -0.01


def test_e3_rejects_a_coupling_that_is_too_large(monkeypatch):
    case = CLAIM["E3"].case(SMALL)
    from theory.ledger import optimizers

    true = optimizers.chain
    monkeypatch.setattr(optimizers, "chain", lambda *args: replace(true(*args), onset=0.0, lipschitz=0.0))
    slack = CLAIM["E3"].check(case)
    assert slack.value == pytest.approx(-1)
    assert (slack.part, slack.holds) == ("coupling", False)


def test_e3_the_bound_is_reached(monkeypatch):
    """A coin on which curvature and acceleration oppose each other: 1/2 = 3/2 - 1."""
    case = CLAIM["E3"].boundary[0].case()
    skill, v, a = case.skill, np.array([1.0, 0.0]), np.array([0.0, -3.0])
    numbers = optimizers.chain(floats(skill), v, a, 1)
    assert (numbers.onset, numbers.coupling) == pytest.approx((0.5, 1.5))
    assert numbers.lipschitz / math.sqrt(numbers.sharpness) == pytest.approx(1)
    path = integral_curve(case.field, case.loss.origin, 4)
    assert path[1:3].tolist() == [[1, 0], [0, F(-3, 2)]]
    assert skill.utility_loss_along(path).tolist() == [0, 0, 0, 0, F(1, 32)]
    true = optimizers.chain
    for changes in ({"onset": 0.5 - 1e-6}, {"lipschitz": numbers.lipschitz - 1e-6}, {"coupling": 1.5 + 1e-6}):
        monkeypatch.setattr(optimizers, "chain", lambda *args, c=changes: replace(true(*args), **c))
        slack = CLAIM["E3"].check(case)
        assert (slack.part, slack.holds) == ("coupling", False)


def test_e3_weight_decay_leaks(monkeypatch):
    case = replace(CLAIM["E3"].boundary[0].case(), base=rational([5, 2]), decay=F(3))
    path = integral_curve(case.decayed, case.loss.origin, 2)
    assert case.skill.utility_loss_along(path).tolist() == [0, 0, F(9 * 4, 8)]  # w^2 y^2 / 4 / 2
    assert CLAIM["E3"].check(case).holds
    assert CLAIM["E3"].check(replace(case, base=rational([5, 0]))).holds  # F theta* = 0: no leak
    other = type(case)

    class Undecayed(other):
        def decayed(self, point):
            return self.field(point)

    fields = {f.name: getattr(case, f.name) for f in dataclasses.fields(case)}
    slack = CLAIM["E3"].check(Undecayed(**fields))
    assert (slack.part, slack.value, slack.holds) == ("weight decay", -1, False)


# E4


def test_e4_the_lower_bound_needs_its_cubic_term(monkeypatch):
    """Equal coordinates: the bound is ``1 - (2/pi)(1 + (pi/2 - 1)/(n - 1)^2)``, reached at n = 2."""
    for n in (2, 3, 10):
        case = even_subspace(n)
        share = sign_energy(np.full((n, n), 1 / n))
        least = 1 - 2 / math.pi * (1 + (math.pi / 2 - 1) / (n - 1) ** 2)
        assert share >= least - 1e-12
        assert CLAIM["E4"].check(case).holds
        with monkeypatch.context() as patch:
            patch.setattr(
                "theory.ledger.sign_step.sign_energy",
                lambda p, n=n, low=least - 1e-6: low if len(p) == n else sign_energy(p),
            )
            slack = CLAIM["E4"].check(case)
        assert slack.value == pytest.approx(-1e-6, rel=1e-6)
        assert (slack.part, slack.holds) == ("lower bound", False)
    assert CLAIM["E4"].boundary[1].case().basis.shape == (2, 1)
    point = {"size": 3, "dimension": 20, "rank": 1, "dominant": 2, "rest": 1e-2}
    short = 0
    for seed in range(20):
        basis = CLAIM["E4"].case(point | {"seed": seed}).basis
        assert np.abs(basis[2:]).max() < 0.5
        diagonal = np.diagonal(basis @ basis.T)
        without = 1 - 2 / math.pi * (1 - diagonal @ diagonal) / (1 - diagonal.max())
        short += sign_energy(basis @ basis.T) < without - 1e-10
    assert short > 5


def test_e4_on_a_line():
    """Off a plane of R^3 the gradient is a multiple of w: ``|P sign(g)|^2 = 3 - |w|_1^2``."""
    w = np.array([2.0, -1.0, 2.0]) / 3
    assert sign_energy(np.eye(3) - np.outer(w, w)) == pytest.approx(3 - 25 / 9, abs=1e-7)
    tilted = np.array([[1.0, 0, 0], [0, 0.6, 0.8]])
    # the first coordinate is free of the others; they have one sign: P = (0, 0.8, -0.6)
    assert plane_energy(tilted) == pytest.approx(0.04)
    assert sign_energy(np.eye(3) - tilted.T @ tilted) == pytest.approx(0.04)


def test_e4_against_scipys_orthant_probabilities():
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((4, 2)))[0]
    inside = basis @ basis.T
    covariance = np.eye(4) - inside
    total = 0.0
    for i in range(4):
        for j in range(4):
            if i == j:
                total += inside[i, i]
                continue
            pair = covariance[np.ix_([i, j], [i, j])]
            quadrant = multivariate_normal([0, 0], pair).cdf([0, 0])
            total += inside[i, j] * (4 * quadrant - 1)
    assert sign_energy(inside) == pytest.approx(total, abs=1e-6)
    free = np.linalg.qr(np.column_stack([basis, np.eye(4)]))[0][:, 2:]
    assert plane_energy(free.T) == pytest.approx(total, abs=1e-6)


def test_e4_monte_carlo_and_the_limit():
    rng = np.random.default_rng(1)
    basis = np.linalg.qr(rng.standard_normal((64, 3)))[0]
    g = rng.standard_normal((20000, 64))
    g -= g @ basis @ basis.T
    energies = ((np.sign(g) @ basis) ** 2).sum(axis=1)
    expected = sign_energy(basis @ basis.T)
    assert energies.mean() == pytest.approx(expected, abs=4 * energies.std() / math.sqrt(20000))
    assert expected / 3 == pytest.approx(1 - 2 / math.pi, abs=0.03)
    for n in (10, 1000):
        exact = 1 - (n - 1) * 2 / math.pi * math.asin(1 / (n - 1))
        assert sign_energy(np.full((n, n), 1 / n)) == pytest.approx(exact, rel=1e-12)


def test_e4_both_bounds_are_close_on_equal_coordinates():
    case = CLAIM["E4"].boundary[0].case()
    assert case.basis.shape == (1000, 1)
    share = sign_energy(case.basis @ case.basis.T)
    chance = 1 - 2 / math.pi
    assert 0 < chance + 2 / math.pi / 1000 - share < 1e-3
    q = 1 / 999
    assert 0 < share - (1 - 2 / math.pi * (1 + (math.pi / 2 - 1) * q * q)) < 1e-6


def test_e4_refuses_an_axis_in_the_subspace():
    with pytest.raises(ValueError, match="axis 1 inside"):
        sign_energy(np.diag([0.0, 1.0, 0.0]))


@pytest.mark.parametrize(
    ("share", "value", "part"),
    [(0.5, 1 - 2 / math.pi + 2 / math.pi / 50 - 0.5, "upper bound"), (0.3, None, "lower bound")],
)
def test_e4_rejects(monkeypatch, share, value, part):
    case = SignStep(np.array([[1.0, 0, 0], [0, 0.6, 0.8]]), np.full((50, 1), 50**-0.5))
    assert CLAIM["E4"].check(case).holds
    true = sign_energy
    monkeypatch.setattr("theory.ledger.sign_step.sign_energy", lambda p: share if len(p) == 50 else true(p))
    slack = CLAIM["E4"].check(case)
    assert (slack.part, slack.holds) == (part, False)
    if value is None:
        value = 0.3 - (1 - 2 / math.pi * (1 + (math.pi / 2 - 1) / 49**2))
    assert slack.value == pytest.approx(value)
    monkeypatch.setattr("theory.ledger.sign_step.sign_energy", lambda p: true(p) + 1e-3 * (len(p) == 3))
    wrong = CLAIM["E4"].check(case)
    assert wrong.part == "arcsine law"
    assert wrong.value == pytest.approx(-1e-3 / 0.041, rel=1e-3)


def test_e4_bounds_leave_no_room_for_other_constants():
    """Coarse subspaces too: the largest diagonal entry above 1/2 makes q = 1."""
    case = SignStep(np.array([[1.0, 0, 0], [0, 0.6, 0.8]]), np.array([[0.8], [0.6]]))
    share = sign_energy(np.array([[0.64, 0.48], [0.48, 0.36]]))
    assert share == pytest.approx((0.8 - 0.6) ** 2, abs=1e-7)
    assert CLAIM["E4"].check(case).holds


# E5


def lora_by_hand(case: Adapter, t: float) -> np.ndarray:
    """W - W0 at a time, in float64, by SciPy's integrator."""
    loss = float_loss(Scenario(coin(), case.loss))
    rows, scale = case.rows.astype(float), float(case.scale)
    shape = (case.outputs, rows.shape[1])
    cut = case.outputs * len(rows)

    def field(state: np.ndarray) -> np.ndarray:
        left, right = state[:cut].reshape(case.outputs, -1), state[cut:].reshape(rows.shape)
        gradient = loss.jacobian((scale * left @ right).ravel())[0].reshape(shape)
        return np.concatenate([(-scale * gradient @ right.T).ravel(), (-scale * left.T @ gradient).ravel()])

    end = integrate(field, np.concatenate([np.zeros(cut), rows.ravel()]), np.array([t]))[0]
    return scale * end[:cut].reshape(case.outputs, -1) @ end[cut:].reshape(rows.shape)


LORA = {"outputs": 2, "inputs": 3, "rank": 2, "count": 3, "subspace": 1, "seed": 3}


def test_e5_against_the_integrated_flow():
    case = CLAIM["E5"].case(LORA)
    g, pi, c = case.gradient.astype(float), case.filter.astype(float), float(case.scale)
    t = 1e-4 / c**2
    plus, minus = lora_by_hand(case, t), lora_by_hand(replace(case, loss=case.loss), t / 2)
    first = (4 * minus - plus) / t
    scale = np.abs(first).max()
    np.testing.assert_allclose(first, -(c**2) * g @ pi, atol=1e-3 * scale)
    second = 2 * (plus - 2 * minus) / (t * t / 2)
    expected = c**4 * case.hessian(case.gradient @ case.filter).astype(float) @ pi
    assert np.abs(second - expected).max() < 0.1 * np.abs(expected).max()


def test_e5_descent_against_float64():
    case = CLAIM["E5"].case(LORA)
    loss = float_loss(Scenario(coin(), case.loss))
    left, right = np.zeros((2, 2)), case.rows.astype(float)
    c, eta = float(case.scale), 1e-6
    for _ in range(3):
        gradient = loss.jacobian((c * left @ right).ravel())[0].reshape(2, 3)
        left, right = left - eta * c * gradient @ right.T, right - eta * c * left.T @ gradient
    change = c * left @ right
    path = case.product(steps(case.field, case.start, (1, 1, 1), 2)).astype(float)
    np.testing.assert_allclose(change, eta * path[1] + eta**2 * path[2], rtol=1e-4, atol=1e-7 * np.abs(change).max())


def test_e5_energies_are_those_of_wishart_matrices():
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    for rank in (1, 2):
        exact = input_energies(rank, axes)
        np.testing.assert_allclose(exact, [rank * (rank + 2), rank, rank], rtol=1e-12)
    rows = rng.standard_normal((40000, 4, 6))
    moved = np.einsum("nri,nrj,i->nj", rows, rows, np.eye(6)[0])
    assert (moved[:, 1:3] ** 2).sum(axis=1).mean() / (moved**2).sum(axis=1).mean() == pytest.approx(2 / 11, rel=0.05)


@pytest.mark.parametrize(
    ("changes", "part"),
    [({"scale": F(9, 2)}, "flow"), ({"count": 4}, "descent"), ({"rows": "half"}, "flow")],
)
def test_e5_rejects_the_wrong_adapter(changes, part):
    case = CLAIM["E5"].case(LORA)
    assert CLAIM["E5"].check(case).value == 0

    class Frozen(Adapter):
        """Moves as the case does, whatever it says of itself."""

        def field(self, point):
            return case.field(point)

        def product(self, point):
            return case.product(point)

        @property
        def start(self):
            return case.start

    fields = {f.name: getattr(case, f.name) for f in dataclasses.fields(case)}
    changes = {"rows": case.rows / 2} if "rows" in changes else changes
    if "count" in changes:
        slack = CLAIM["E5"].check(replace(case, **changes))
        assert slack.holds  # every number of steps is right
        return
    slack = CLAIM["E5"].check(Frozen(**(fields | changes)))
    assert slack.part in {part, "utility loss"}  # the preconditioned flow is another one too
    assert not slack.holds
    assert slack.value < -0.1


def test_e5_the_quartic_term_is_that_of_the_preconditioned_flow():
    case = CLAIM["E5"].case(LORA)
    velocity = -(case.scale**2) * (case.gradient @ case.filter)
    acceleration = case.scale**4 * (case.hessian(case.gradient @ case.filter) @ case.filter)
    assert not np.any(case.skill.scores() @ velocity.ravel() != 0)
    change = case.product(integral_curve(case.field, case.start, 5))
    loss = case.skill.utility_loss_along(change.reshape(len(change), -1))
    second = second_derivatives(case.skill, velocity.ravel(), acceleration.ravel())
    assert loss[4] == case.skill.weights @ second**2 / 8 > 0
    plain = -(case.scale**2) * case.filter
    path = integral_curve(lambda p: (case.loss_gradient(p) @ plain).reshape(len(p), -1), case.loss.origin, 5)
    assert case.skill.utility_loss_along(path)[5] != loss[5]  # only so far
    seen = CLAIM["E5"].check(replace(case, skill=Coefficients(np.random.default_rng(0), True).softmax(6, 1, 3)))
    assert (seen.part, seen.holds) == ("utility loss", False)


@pytest.mark.parametrize("stretch", [2.0, 0.5])
def test_e5_rejects_axes_that_are_not_orthonormal(stretch):
    case = CLAIM["E5"].case(LORA)
    slack = CLAIM["E5"].check(replace(case, axes=case.axes * [1, stretch, 1]))
    assert (slack.part, slack.holds) == ("input side", False)


def test_e5_output_side_orthogonality_survives_and_input_side_does_not():
    case = CLAIM["E5"].case(LORA)
    gradient = case.gradient.copy()
    gradient[1] = gradient[0]
    assert not np.any((np.array([1, -1]) @ gradient @ case.filter) != 0)
    case.loss.linear[0] *= 0
    case.loss.linear[0, 0] += 1  # G = e_1 e_1^T
    assert np.any((case.gradient @ case.filter)[:, 1:] != 0)


# E6, E7, E8


def test_e6_coin():
    """Loss ``-x - push x y - 5 y``: the projected flow is ``x = t``, whatever the push; the loss is bend^2 t^4/32."""
    scenario = pushed(3, 2)
    scenario.loss.linear[0, 1] -= 5
    case = FixedProjection(scenario, rational([[0, 0], [0, 1]]), 0.5, 2.0)
    assert CLAIM["E6"].check(case).holds
    path = np.zeros((5, 2), dtype=object)
    path[1, 0] = F(1)
    assert scenario.skill.utility_loss_along(path + F(0)).tolist() == [0, 0, 0, 0, F(4, 32)]
    wrong = CLAIM["E6"].check(replace(case, scenario=replace(scenario, skill=straight(scenario.skill))))
    assert (wrong.value, wrong.part, wrong.holds) == (-1, "utility loss", False)
    off = CLAIM["E6"].check(replace(case, projector=rational([[0, 0], [0, 2]])))
    assert (off.part, off.holds) == ("displacement", False)


def test_e6_cases_hold_the_range_of_the_fisher_matrix():
    case = CLAIM["E6"].case(SMALL | {"time": 0.5, "sharpness": 2.0})
    p, fisher = case.projector, fisher_at_base(case.scenario.skill)
    assert not np.any(p @ p != p)
    assert not np.any(p @ fisher != fisher)
    assert np.trace(p) == 2
    assert np.any(p[0, 1:] != 0)  # not along the axes
    assert np.any(fisher @ case.scenario.gradient != 0)


@pytest.mark.parametrize("time", [0.03, 1.0, 2.5])
def test_e6_on_the_circle_the_projection_does_harm(time):
    height = brentq(lambda y: y + y**3 / 3 - time, 0, 5, xtol=1e-15)
    assert 2 * math.sinh(math.asinh(1.5 * time) / 3) == pytest.approx(height, rel=1e-12)
    flat = circle(2.0)
    path = integrate(lambda d: -flat.loss.jacobian(d)[0] * [0.0, 1.0], flat.loss.origin, np.array([time]))
    harm = flat.skill.utility_loss(path[0])
    assert harm == pytest.approx((math.sqrt(1 + height**2) - 1) ** 2, rel=1e-10)
    assert flat.utility_losses(np.array([time]))[0] < 1e-25 * harm


def test_e6_rejects_another_circle(monkeypatch):
    case = CLAIM["E6"].case(SMALL | {"time": 0.5, "sharpness": 2.0})
    monkeypatch.setattr("theory.ledger.projections.circle", lambda sharpness: circle(1.25 * sharpness))
    slack = CLAIM["E6"].check(case)
    assert slack.value == pytest.approx(-0.2)
    assert (slack.part, slack.holds) == ("circle", False)


def test_e7_closed_form_and_negative_controls():
    assert tracked_loss(rising_rank(3.0), 0.2) == pytest.approx(9 * 0.2**4 / 8, rel=1e-12)
    scenario = Coefficients(np.random.default_rng(1)).scenario(4, 2, 2, rank=2)
    rising = CLAIM["E7"].case({"prompts": 1, "kernel": 1, "time": 0.01, "bend": 2.0, "seed": 0}).rising
    case = TrackedProjection(scenario, 0.1, 2.0, rising)
    assert CLAIM["E7"].check(case).value > -1e-20
    lagging = TrackedProjection(replace(scenario, rank=1), 0.1, 2.0, rising)  # one direction is left free
    slack = CLAIM["E7"].check(lagging)
    kept = tracked_loss(lagging.scenario, 0.1) / scenario.utility_losses(np.array([0.1]))[0]
    assert slack.value == pytest.approx(-kept)
    assert kept > 1e-3
    assert (slack.part, slack.holds) == ("constant rank", False)


def test_e7_rejects_another_bend(monkeypatch):
    case = CLAIM["E7"].case({"prompts": 1, "kernel": 1, "time": 0.01, "bend": 2.0, "seed": 0})
    monkeypatch.setattr("theory.ledger.tracked.rising_rank", lambda bend: rising_rank(bend / 2))
    slack = CLAIM["E7"].check(case)
    assert slack.value == pytest.approx(-3 / 4)
    assert (slack.part, slack.holds) == ("rising rank", False)


def test_e7_without_constant_rank_only_the_unexplained_curvature_is_left():
    """Three responses: F has rank 2 at the start and more beside it. The loss over t^4 tends to E[h_perp^2]/8."""
    scenario = Coefficients(np.random.default_rng(4)).scenario(4, 1, 4, kernel=0)
    logits = scenario.skill.logits
    logits.linear[:, 2:] *= 0
    scenario = replace(scenario, rank=2)
    fisher = fisher_at_base(scenario.skill)
    v = projector(fisher, 2) @ scenario.gradient - scenario.gradient
    root = np.sqrt(scenario.skill.weights)
    h = scenario.skill.log_hessians() @ v @ v
    scores = root[:, None] * scenario.skill.scores()
    rest = root * h - scores @ np.linalg.lstsq(scores, root * h)[0]
    ratios = [tracked_loss(scenario, t) / t**4 for t in (4e-3, 2e-3)]
    assert 2 * ratios[1] - ratios[0] == pytest.approx(rest @ rest / 8, rel=2e-3)
    assert tracked_limit(scenario, 4) == pytest.approx(rest @ rest / 8, rel=1e-8)
    assert rest @ rest < 0.99 * (scenario.skill.weights @ h**2)


def test_e7_the_tail_leaks():
    case = CLAIM["E7"].case({"prompts": 2, "kernel": 1, "time": 0.01, "bend": 2.0, "seed": 0})
    values, vectors = np.linalg.eigh(case.rising.fisher)
    np.testing.assert_allclose(values, [0, 1, 2], atol=1e-12)
    one = replace(case.rising, rank=1)
    assert tracked_limit(one, 2) == pytest.approx((vectors[:, 1] @ one.gradient) ** 2 / 2, rel=1e-8)
    reached = tail_only(case)
    np.testing.assert_allclose(np.abs(vectors[:, 1] @ reached.rising.gradient), 1)
    assert tracked_limit(replace(reached.rising, rank=1), 2) == pytest.approx(1 / 2, rel=1e-8)
    assert CLAIM["E7"].check(reached).holds


@pytest.mark.parametrize(
    ("factor", "part"),
    [({4: 1 + 1e-6, 2: 1.0}, "unexplained"), ({4: 1.0, 2: 1 - 1e-6}, "tail"), ({4: 1.0, 2: 2.0}, None)],
)
def test_e7_rejects_other_limits(monkeypatch, factor, part):
    case = tail_only(CLAIM["E7"].case({"prompts": 2, "kernel": 1, "time": 0.01, "bend": 2.0, "seed": 0}))
    if part == "unexplained":
        case = CLAIM["E7"].case({"prompts": 2, "kernel": 1, "time": 0.01, "bend": 2.0, "seed": 0})
    true = tracked_limit
    monkeypatch.setattr("theory.ledger.tracked.tracked_limit", lambda s, k: factor[k] * true(s, k))
    slack = CLAIM["E7"].check(case)
    assert not slack.holds
    assert slack.part == part or part is None
    bound = next(s for s in tracked._check_limits(case.rising) if s.part == "tail bound")
    assert bound.holds == (part is not None)


@pytest.mark.parametrize(("count", "interval", "turned"), [(6, 1, 6), (6, 2, 12), (6, 6, 36), (5, 2, 9), (4, 6, 16)])
def test_e8_factors(count, interval, turned):
    case = CLAIM["E8"].case({"prompts": 2, "dimension": 2, "count": count, "interval": interval, "seed": 2})
    assert CLAIM["E8"].check(case).holds
    fixed = replace(case, count=1, interval=1)
    one = case.scenario.skill.utility_loss_along(fixed.path(4))[4]
    assert case.scenario.skill.utility_loss_along(case.path(4))[4] == turned**2 * one > 0


def test_e8_in_float64_with_two_directions():
    """A skill of rank 2, the projector from an eigenvalue decomposition every second step of six."""
    scenario = Coefficients(np.random.default_rng(3)).scenario(4, 2, 2, rank=2)
    skill, loss = scenario.skill, scenario.loss

    def end(eta: float, interval: int) -> float:
        point = np.zeros(4)
        for j in range(6):
            if j % interval == 0:
                inside = projector(skill.fisher(point), 2)
            gradient = loss.jacobian(point)[0]
            point = point - eta * (gradient - inside @ gradient)
        return skill.utility_loss(point)

    for interval in (1, 2, 3):
        ratios = [end(eta, interval) / end(eta, 6) for eta in (2e-4, 1e-4)]
        assert 2 * ratios[1] - ratios[0] == pytest.approx((interval / 6) ** 2, rel=1e-3)


def test_e8_rejects_another_interval():
    case = CLAIM["E8"].case({"prompts": 2, "dimension": 2, "count": 6, "interval": 2, "seed": 2})

    class Lazy(type(case)):
        def path(self, order):
            return replace(case, interval=3).path(order)

    slack = CLAIM["E8"].check(Lazy(case.scenario, case.logit, case.count, case.interval))
    assert slack.value == pytest.approx(4 / 9 - 1)
    assert not slack.holds


def test_e8_skills_share_one_logit():
    case = CLAIM["E8"].case({"prompts": 3, "dimension": 3, "count": 2, "interval": 1, "seed": 0})
    skill = floats(case.scenario.skill)
    point = np.array([0.03, -0.01, 0.02])
    assert np.linalg.matrix_rank(skill.fisher(point), tol=1e-10) == 1
    normal = polynomial(*(getattr(case.logit, k).astype(float) for k in ("linear", "quadratic", "cubic")))
    direction = normal.jacobian(point)[0]
    rest = projector(skill.fisher(point), 1) @ direction - direction
    np.testing.assert_allclose(rest, 0, atol=1e-10 * np.linalg.norm(direction))
    assert len(set(map(tuple, skill.base))) > 1
    assert onset.leak(case.scenario.statistics) > 0
