"""Facts 1-4, Theorem Q and the crossover: oracles for the numbers that the checks compare, and negative controls."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from scipy.special import rel_entr

from theory import onset
from theory.ledger import onset_law
from theory.ledger.coupling import Coupled, build_coupled, rare_response, with_spectrum
from theory.ledger.facts import (
    Contact,
    Move,
    TimedCurve,
    build_timed,
    divergence,
    largest_third_derivative,
    rare_change,
)
from theory.ledger.maps import polynomial
from theory.ledger.onset_law import CLAIMS, Leaky
from theory.ledger.paths import curve, flattened
from theory.ledger.scenarios import Coefficients, Scenario, tight_family
from theory.ledger.skills import SoftmaxSkill, fisher_at_base, fisher_derivative, second_derivatives, statistics
from theory.series import rational

CLAIM = {claim.key: claim for claim in CLAIMS}
F = Fraction


def coin(base: float | Fraction, linear, quadratic=None, cubic=None) -> SoftmaxSkill:
    """One prompt, two responses, the first with the probability ``base`` and a polynomial logit."""
    exact = isinstance(base, Fraction)
    parts = [None if x is None else np.array([x, np.multiply(x, 0)], dtype=object) for x in (linear, quadratic, cubic)]
    logits = polynomial(*(x if x is None else rational(x) if exact else x.astype(float) for x in parts))
    table = np.array([[base, 1 - base]], dtype=object if exact else float)
    return SoftmaxSkill(rational([1]) if exact else np.ones(1), table, logits)


def bent_coin(push: int, bend: int, leak: int = 0) -> Scenario:
    """A fair coin with logit ``y + bend x^2/2`` and loss ``-x - push x y - leak y``: l'' = (push + bend)(+-1/2)."""
    loss = polynomial(rational([[-1, -leak]]), rational([[[0, -push], [-push, 0]]]))
    return Scenario(coin(F(1, 2), [0, 1], [[bend, 0], [0, 0]]), loss)


class Straight(SoftmaxSkill):
    """A skill that denies its second derivatives."""

    def log_hessians(self) -> np.ndarray:
        return super().log_hessians() * 0


class TwiceBent(SoftmaxSkill):
    def log_hessians(self) -> np.ndarray:
        return super().log_hessians() * 2


def disguised(scenario: Scenario, kind: type[SoftmaxSkill]) -> Scenario:
    skill = scenario.skill
    return replace(scenario, skill=kind(skill.prompts, skill.base, skill.logits))


# F1


def test_f1_divergence_is_scipys_relative_entropy():
    case = CLAIM["F1"].case({"prompts": 3, "outcomes": 4, "dimension": 3, "size": 0.7, "seed": 1})
    moved = case.skill.base * np.exp(case.skill.logits.value(case.displacement).reshape(3, 4))
    moved /= moved.sum(axis=1, keepdims=True)
    expected = case.skill.prompts @ rel_entr(case.skill.base, moved).sum(axis=1)
    assert divergence(case) == pytest.approx(expected, rel=1e-12)
    assert expected > 0.01


def test_f1_a_fair_coin():
    move = Move(coin(0.5, [1.0]), np.array([2.0]))
    assert divergence(move) == pytest.approx(math.log(math.cosh(1.0)), rel=1e-15)
    assert CLAIM["F1"].check(move).value == pytest.approx(0, abs=1e-15)


def test_f1_the_direct_sum_has_no_correct_digit_where_the_stable_one_has_twelve():
    """Leak-free displacements of size t: -d is of order t^2 and its mean of order t^4."""
    skill = coin(0.3, [0.0], [[1.0]])
    move = Move(skill, np.array([1e-5]))
    d = skill.log_ratios(move.displacement)
    log_before, log_after = np.log(skill.base[0]), np.log(skill.base[0] * np.exp(d))
    exact = divergence(move)
    assert exact == pytest.approx(0.3 * 0.7 * (1e-10 / 2) ** 2 / 2, rel=1e-9)
    assert skill.utility_loss(move.displacement) == pytest.approx(exact, rel=1e-12)
    assert not 0.5 < skill.base[0] @ (log_before - log_after) / exact < 2


def test_f1_rejects_another_loss():
    class Larger(SoftmaxSkill):
        def utility_loss(self, displacement: np.ndarray) -> float:
            return 1.5 * super().utility_loss(displacement)

    case = CLAIM["F1"].case({"prompts": 2, "outcomes": 3, "dimension": 2, "size": 1e-6, "seed": 0})
    wrong = Move(Larger(case.skill.prompts, case.skill.base, case.skill.logits), case.displacement)
    slack = CLAIM["F1"].check(wrong)
    assert slack.value == pytest.approx(-1 / 3)
    assert not slack.holds
    assert CLAIM["F1"].check(case).tolerance == 1e-13
    assert np.abs(case.displacement).max() < 1e-5


# F2 and F3


def unfair_coin(order: int, power: int = 4) -> Contact:
    """``Delta u = t^2/9 + t^3/81 - t^4/324``, from the cumulants of one toss."""
    return Contact(coin(F(1, 3), [1]), curve([rational([1])], power), order)


def test_f2_unfair_coin():
    case = unfair_coin(2)
    assert case.skill.utility_loss_along(case.curve).tolist() == [0, 0, F(1, 9), F(1, 81), F(-1, 324)]
    assert CLAIM["F2"].check(case).holds
    wrong = CLAIM["F2"].check(unfair_coin(3))
    assert wrong.value == pytest.approx(-1 / 9)  # the prediction has no t^3: 1/81 over 1/9
    assert not wrong.holds


def test_f2_rejects_a_skill_without_its_hessian():
    point = {"prompts": 2, "outcomes": 3, "dimension": 3, "kernel": 1, "seed": 4}
    case = CLAIM["F2"].case(point)
    assert case.order == 4
    assert (
        CLAIM["F2"].check(case)
        == CLAIM["F2"].check(replace(case, order=3))
        != CLAIM["F2"].check(replace(case, skill=Straight(case.skill.prompts, case.skill.base, case.skill.logits)))
    )
    assert CLAIM["F2"].case(point | {"kernel": 0}).order == 2


def test_f2_the_orders_are_sharp_and_the_bound_uniform():
    """The remainder over ``|D| (|F^(1/2) D| + |D|^2)^2`` is bounded, and not small, over nine decades of angles."""
    rng = np.random.default_rng(3)
    skill = Coefficients(rng).softmax(3, 2, 3, kernel=1)
    scores, hessians, fisher = skill.scores(), skill.log_hessians(), fisher_at_base(skill)
    ratios = []
    for size in (1e-1, 1e-2, 1e-3):
        for tilt in (0, size**2, size, math.sqrt(size), 1):
            d = size * np.array([tilt, -tilt, 1.0])
            q = scores @ d + d @ (hessians @ d).T / 2
            rest = skill.utility_loss(d) - skill.weights @ q**2 / 2
            length = np.linalg.norm(d)
            ratios.append(abs(rest) / (length * (math.sqrt(d @ fisher @ d) + length**2) ** 2))
    assert max(ratios) < 10
    assert max(ratios[-5:]) > 1e-2


def test_f3_pins_a_coin_at_each_order():
    for first, expected in ((1, F(1, 9)), (2, F(1, 9)), (3, F(1, 9))):
        path = curve([rational([0])] * (first - 1) + [rational([math.factorial(first)])], 2 * first)
        case = Contact(coin(F(1, 3), [1]), path, first)
        loss = case.skill.utility_loss_along(path)
        assert loss.tolist() == [0] * 2 * first + [expected]
        assert CLAIM["F3"].check(case).holds
    wrong = CLAIM["F3"].check(unfair_coin(2))
    assert wrong.value == -1
    assert not wrong.holds


@pytest.mark.parametrize("first", [1, 2, 3])
def test_f3_cases_have_the_order_they_claim(first):
    case = CLAIM["F3"].case({"prompts": 2, "outcomes": 3, "dimension": 3, "first": first, "seed": 2})
    assert case.order == first
    v, a = case.curve[1], 2 * case.curve[2]
    rates = (
        [case.skill.scores() @ v, second_derivatives(case.skill, v, a), 6 * case.skill.log_ratios_along(case.curve)[3]]
        if first > 1
        else [case.skill.scores() @ v]
    )
    assert [bool(np.any(rate != 0)) for rate in rates][:first] == [False] * (first - 1) + [True]
    leading = case.skill.weights @ rates[first - 1] ** 2 / (2 * math.factorial(first) ** 2)
    assert case.skill.utility_loss_along(case.curve)[2 * first] == leading > 0


def test_flattened_skills_differ_only_along_the_path():
    rng = np.random.default_rng(0)
    make = Coefficients(rng, exact=True)
    skill = make.softmax(3, 2, 3, kernel=1)
    v, a = rational([0, 0, 2]), make.tensor(3)
    flat = flattened(skill, v, a)
    assert not np.any(second_derivatives(flat, v, a) != 0)
    assert np.any(second_derivatives(skill, v, a) != 0)
    change = flat.logits.quadratic - skill.logits.quadratic
    assert not np.any(change[:, :2] != 0)
    assert not np.any(flat.logits.linear != skill.logits.linear)
    from theory.ledger.maps import Radius

    with pytest.raises(ValueError, match="polynomial"):
        flattened(replace(skill, logits=Radius()), v, a)


def test_curves_have_the_derivatives_asked_for():
    path = curve([np.array([2.0]), np.array([6.0]), np.array([12.0])], 4)
    np.testing.assert_array_equal(path[:, 0], [0, 2, 3, 2, 0])
    np.testing.assert_array_equal(curve([np.array([2.0]), np.array([6.0])], 1)[:, 0], [0, 2])


# F4


def test_f4_third_derivatives_against_finite_differences():
    case = build_timed(np.random.default_rng(5), 2, 3, 3, 0.3, 0.4)
    h = 1e-3

    def change(t: float) -> np.ndarray:
        return case.skill.log_ratios(t * case.velocity + t * t * case.acceleration / 2)

    sizes = []
    for t in np.linspace(0, 0.4, 41):
        third = (change(t + 2 * h) - 2 * change(t + h) + 2 * change(t - h) - change(t - 2 * h)) / (2 * h**3)
        sizes.append(math.sqrt(case.skill.weights @ third**2))
    assert largest_third_derivative(case) == pytest.approx(max(sizes), rel=1e-3)


def test_f4_third_derivative_of_a_coin():
    """``l''' = -pi (1 - pi)(1 - 2 pi)`` with ``pi = sigmoid(t + logit p)``; it is largest at one end or inside."""
    for p, time in ((0.45, 2.0), (0.05, 0.5)):
        case = TimedCurve(coin(p, [1.0]), np.ones(1), np.zeros(1), time)
        pi = 1 / (1 + (1 - p) / p * np.exp(-np.linspace(0, time, 100001)))
        assert largest_third_derivative(case) == pytest.approx(np.abs(pi * (1 - pi) * (1 - 2 * pi)).max(), rel=1e-3)
    from theory.ledger.maps import Radius

    with pytest.raises(ValueError, match="polynomial"):
        largest_third_derivative(replace(case, skill=replace(case.skill, logits=Radius())))


@pytest.mark.parametrize(("factor", "part"), [(2.0, "lower bound"), (0.5, "upper bound")])
def test_f4_rejects_another_onset_coefficient(factor, part):
    class Doctored(TimedCurve):
        @property
        def onset(self) -> tuple[float, float]:
            leak, onset_coefficient = super().onset
            return leak, factor * onset_coefficient

    case = CLAIM["F4"].boundary[0].case()
    assert case.onset[0] == 0
    slack = CLAIM["F4"].check(Doctored(case.skill, case.velocity, case.acceleration, case.time))
    assert slack.value == pytest.approx(-0.5, rel=1e-4)
    assert (slack.part, slack.holds) == (part, False)


def test_f4_both_bounds_are_reached():
    for example, sides in zip(CLAIM["F4"].boundary, ((True, True), (False, True), (True, False)), strict=True):
        case = example.case()
        drop, rise = max(-case.log_ratios.min(), 0), max(case.log_ratios.max(), 0)
        bounds = onset.finite_time_bounds(case.time, *case.onset, largest_third_derivative(case), drop, rise)
        measured = math.sqrt(2 * onset.utility_loss(case.log_ratios, case.skill.weights))
        close = [bool(abs(measured / max(bound, 1e-300) - 1) < 2e-5) for bound in bounds]
        assert tuple(close) == sides


@pytest.mark.parametrize(("change", "part"), [(-0.01, "lower bound"), (-1.0, "lower bound"), (30.0, "upper bound")])
def test_f4_rejects_other_outer_factors(monkeypatch, change, part):
    """``1 - D/4`` and ``e^(2 D2/3)`` in the place of ``1 - D/3`` and ``e^D2``."""
    case, true = rare_change(change, 1e-3), onset.finite_time_bounds

    def sabotaged(*args: float) -> onset.Bounds:
        bounds, (drop, rise) = true(*args), args[-2:]
        weaker = math.sqrt((1 - drop / 4) / (1 - drop / 3))
        return onset.Bounds(bounds.lower * weaker, bounds.upper * math.exp(rise / 3 - rise / 2))

    assert CLAIM["F4"].check(case).holds
    assert case.log_ratios[0] == pytest.approx(change)
    assert case.time * largest_third_derivative(case) < 1e-4 * case.onset[1]
    monkeypatch.setattr(onset, "finite_time_bounds", sabotaged)
    slack = CLAIM["F4"].check(case)
    assert (slack.part, slack.holds) == (part, False)
    assert slack.value < -1e-4


def test_f4_cases_move_along_a_parabola_that_starts_near_the_kernel():
    case = build_timed(np.random.default_rng(0), 2, 3, 3, 1e-4, 0.5)
    np.testing.assert_allclose(case.log_ratios, case.skill.log_ratios(0.5 * case.velocity + case.acceleration / 8))
    assert np.abs(case.velocity[:-1]).max() < 1e-3 < abs(case.velocity[-1])
    stats = statistics(case.skill, case.velocity, case.acceleration)
    assert case.onset == (onset.leak(stats), onset.onset_coefficient(stats))


# Q1, Q2, Q5, Q6


def test_q1_bent_coin():
    case = bent_coin(3, 2)
    assert case.skill.utility_loss_along(case.series(5)).tolist() == [0, 0, 0, 0, F(25, 32), 0]
    assert CLAIM["Q1"].check(case).value == 0
    wrong = CLAIM["Q1"].check(disguised(case, Straight))
    assert wrong.value == pytest.approx(-16 / 25)  # (3 + 2)^2 against 3^2
    assert not wrong.holds
    assert wrong.tolerance == 0


def test_q1_the_fifth_coefficient_counts():
    """With a cubic logit ``y + x^3/6`` and ``push = 3``: l'' = 3 (+-1/2), l''' = 1 (+-1/2)."""
    cubic = np.zeros((2, 2, 2), dtype=int)
    cubic[0, 0, 0] = 1
    scenario = replace(bent_coin(3, 0), skill=coin(F(1, 2), [0, 1], np.zeros((2, 2), dtype=int), cubic))
    assert scenario.skill.utility_loss_along(scenario.series(5))[4:].tolist() == [F(9, 32), F(3, 48)]
    assert CLAIM["Q1"].check(scenario).holds


def test_q1_agrees_with_the_integrated_flow():
    """In float64, with SciPy's integrator: Richardson's limit of the loss over t^4."""
    case = Coefficients(np.random.default_rng(8)).scenario(4, 2, 3, kernel=1)
    gamma = onset.onset_coefficient(case.statistics)
    at = np.array([1e-3, 2e-3])
    half, whole = case.utility_losses(at) / at**4
    assert 2 * half - whole == pytest.approx(gamma**2 / 8, rel=1e-3)


@pytest.mark.parametrize(
    ("scenario", "order"), [(bent_coin(3, 2), 4), (bent_coin(3, -3), 6), (bent_coin(3, -3, leak=1), 2)]
)
def test_q2_orders(scenario, order):
    loss = scenario.skill.utility_loss_along(scenario.series(5))
    assert [k for k in range(6) if loss[k] != 0][:1] == ([order] if order < 6 else [])
    assert CLAIM["Q2"].check(scenario).value == 0


def test_q2_rejects_a_skill_that_denies_its_hessian():
    slack = CLAIM["Q2"].check(disguised(bent_coin(3, -3), Straight))
    assert slack.value == pytest.approx(-1 / 3)  # 6 measured, 4 predicted
    assert not slack.holds


def test_q2_cases_are_of_their_kinds():
    for kind, order in ((0, 2), (1, 4), (2, 6)):
        for seed in range(3):
            case = CLAIM["Q2"].case({"prompts": 2, "outcomes": 3, "dimension": 2, "kind": kind, "seed": seed})
            loss = case.skill.utility_loss_along(case.series(6))
            assert next(k for k in range(7) if loss[k] != 0) == order


def test_q5_is_2e_where_the_law_is_exact():
    case = replace(build_timed(np.random.default_rng(2), 2, 3, 3, 0.0, 1.0), time=1e-6)
    assert CLAIM["Q5"].check(case).value == pytest.approx(2 * math.e - 1, rel=1e-4)


def test_q5_fails_outside_its_window():
    case = CLAIM["Q5"].boundary[0].case()
    assert case.onset == pytest.approx((0.5e-4, 4e-4), rel=1e-6)
    assert largest_third_derivative(case) == pytest.approx(3e-4, rel=1e-6)
    assert -case.log_ratios.min() == pytest.approx(1, rel=1e-6)
    early = CLAIM["Q5"].check(replace(case, time=0.5))
    drop = -0.25 + 0.5 - 0.0625
    assert early.value == pytest.approx(16 * math.e * (math.exp(-drop) - 1 + drop) - 1, rel=1e-6)
    assert early.value < -0.2
    assert not early.holds


def test_q5_cases_are_in_their_windows():
    positions = []
    for seed in range(40):
        point = {"prompts": 1 + seed % 3, "outcomes": 2 + seed % 3, "dimension": 2 + seed % 3, "position": seed / 39}
        case = CLAIM["Q5"].case(point | {"seed": seed})
        leak, gamma = case.onset
        assert leak > 0
        assert -case.log_ratios.min() <= 1
        low, high = 8 * leak / gamma, 0.75 * gamma / largest_third_derivative(case)
        assert low * (1 - 1e-9) <= case.time <= high
        positions.append(case.time / high)
    assert min(positions) < 0.1
    assert max(positions) > 0.5


def test_q6_linear_coin():
    case = replace(bent_coin(3, 0), rank=1)
    assert case.skill.utility_loss_along(case.series(4))[4] == F(9, 32)
    assert case.estimate.coupling == pytest.approx(1.5)
    assert CLAIM["Q6"].check(case).holds
    bent = CLAIM["Q6"].check(replace(bent_coin(3, 2), rank=1))
    assert (bent.value, bent.part, bent.holds) == (-1, "curvature of a log-linear skill", False)
    assert CLAIM["Q6"].check(bent_coin(3, 0, leak=2)).holds


def test_q6_needs_the_whole_of_the_fisher_matrix():
    case = CLAIM["Q6"].case({"prompts": 2, "outcomes": 3, "dimension": 3, "kernel": 1, "seed": 1})
    assert case.rank == 6
    short = CLAIM["Q6"].check(replace(case, rank=1))
    whole, part = case.estimate.coupling**2, replace(case, rank=1).estimate.coupling ** 2
    missing = (whole - part) / (1 + whole)
    assert missing > 0.01
    assert short.value == pytest.approx(-missing)
    assert (short.part, short.holds) == ("coupling", False)
    leaky = CLAIM["Q6"].case({"prompts": 2, "outcomes": 3, "dimension": 3, "kernel": 0, "seed": 1})
    assert np.any(leaky.skill.scores() @ leaky.velocity != 0)


# Q3 and Q4

KINDS = {"prompts": 2, "rank": 2, "gap": 0.2, "sharpness": 3.0, "scale": 0.7}


def test_q3_tight_family_numbers():
    c = Coupled(tight_family(3.0, 4.0), True).chain
    assert (c.onset, c.coupling, c.projected, c.spanned) == pytest.approx((4, 6, 4, 4))
    assert (c.sharpness, c.rotation, c.lipschitz) == pytest.approx((4, 4, 4))
    assert (c.residual, c.leak) == pytest.approx((0, 0), abs=1e-12)
    np.testing.assert_allclose(c.mixed, [-8, 0], atol=1e-12)  # -lambda (beta - 1) e_x
    np.testing.assert_allclose(c.product, [-8, 0], atol=1e-12)
    assert c.scale == pytest.approx(4 + 6 + 2)


def test_q3_z_is_the_rate_of_the_fisher_matrix_times_the_velocity():
    scenario = build_coupled(np.random.default_rng(1), 0, **KINDS).scenario
    c = Coupled(scenario).chain
    h = 1e-5

    def momentum(t: float) -> np.ndarray:
        d = t * scenario.velocity + t * t * scenario.acceleration / 2
        return scenario.skill.fisher(d) @ (scenario.velocity + t * scenario.acceleration)

    rate = (momentum(h) - momentum(-h)) / (2 * h)
    np.testing.assert_allclose(c.mixed, rate, atol=1e-6 * np.abs(rate).max())
    turn = (scenario.skill.fisher(h * scenario.velocity) - scenario.skill.fisher(-h * scenario.velocity)) / (2 * h)
    np.testing.assert_allclose(turn, fisher_derivative(scenario.skill, scenario.velocity), atol=1e-6)
    assert c.rotation == pytest.approx(np.linalg.norm(turn @ scenario.velocity), rel=1e-6)
    assert c.lipschitz == pytest.approx(np.linalg.norm(turn, 2) * np.linalg.norm(scenario.velocity), rel=1e-6)
    values, vectors = np.linalg.eigh(fisher_at_base(scenario.skill))
    parts = (vectors.T @ rate)[2:] / np.sqrt(values[2:])  # two of five eigenvalues are 0
    assert c.spanned == pytest.approx(np.linalg.norm(parts), rel=1e-5)
    assert c.projected == pytest.approx(np.linalg.norm(parts[-2:]), rel=1e-5)
    assert c.residual > 0.01


def test_q4_leak_rate_by_search():
    case = build_coupled(np.random.default_rng(2), 0, **KINDS, leak=0.5)
    scenario, c = case.scenario, case.chain
    bent = scenario.skill.log_hessians() @ scenario.velocity
    speeds = scenario.skill.scores() @ scenario.velocity
    bent = bent + scenario.skill.scores() * speeds[:, None]  # Hess(pi) v / pi
    values, vectors = np.linalg.eigh(fisher_at_base(scenario.skill))
    whitened = bent @ (vectors / np.sqrt(np.maximum(values, 1e-300)))[:, -2:]
    angles = np.linspace(0, np.pi, 20001)
    sizes = scenario.skill.weights @ (whitened @ np.stack([np.cos(angles), np.sin(angles)])) ** 2
    assert c.leak_rate == pytest.approx(math.sqrt(sizes.max()), rel=1e-7)
    curvature = scenario.skill.log_hessians() @ scenario.velocity
    k2 = np.linalg.norm(np.sqrt(scenario.skill.weights)[:, None] * curvature, 2)
    assert c.leak_rate < np.abs(speeds).max() + k2 / math.sqrt(c.sharpness)
    assert c.leak == pytest.approx(onset.leak(scenario.statistics), rel=1e-12)
    assert c.leak > 0.1


def test_coupled_cases_have_the_spectrum_asked_for():
    for rank, expected in ((1, [3.0, 2.4, 0.6]), (2, [3.0, 2.4]), (3, [3.0])):
        for kind in (0, 1):
            case = build_coupled(np.random.default_rng(3), kind, **KINDS | {"rank": rank})
            values = np.linalg.eigvalsh(fisher_at_base(case.scenario.skill))[::-1]
            np.testing.assert_allclose(values[rank - 1 : 3], expected, rtol=1e-9)
            assert np.all(values[:rank] <= 6)
            np.testing.assert_allclose(values[3:], 0, atol=1e-12)
            assert case.constant_rank == (kind == 1)
            assert case.scenario.rank == rank
            assert Coupled(case.scenario).chain.leak == 0
            second = build_coupled(np.random.default_rng(3), kind, **KINDS | {"rank": rank, "scale": 1.4}).scenario
            np.testing.assert_allclose(second.velocity, 2 * case.scenario.velocity)
            np.testing.assert_allclose(second.acceleration, 4 * case.scenario.acceleration)
    skill = build_coupled(np.random.default_rng(3), 0, **KINDS).scenario.skill
    np.testing.assert_allclose(
        fisher_at_base(with_spectrum(skill, np.array([5.0, 1, 2])))[:3, :3], np.diag([5, 1, 2.0]), atol=1e-14
    )
    tight = build_coupled(np.random.default_rng(3), 2, **KINDS)
    beta = 4 * np.random.default_rng(3).random()
    assert tight.constant_rank
    assert tight.chain.onset == pytest.approx(math.sqrt(3) * abs(beta - 1) * 0.7**2)


def doctored(case: Coupled, **changes: object) -> Coupled:
    class Doctored(Coupled):
        @property
        def chain(self):
            return replace(super().chain, **changes)

    return Doctored(case.scenario, case.constant_rank)


@pytest.mark.parametrize(
    ("changes", "value", "part"),
    [
        ({"mixed": np.array([-9.0, 0.0])}, -1 / 24, "identity for z"),
        ({"projected": 4.5}, -0.5 / 12, "projection"),
        ({"coupling": 7.2}, -1.2 / 13.2, "rotation"),
        ({"projected": 3.0}, -1 / 12, "rotation"),
        ({"lipschitz": 2.0, "rotation": 8.0}, -1 / 11, "Lipschitz"),
        ({"residual": 3.0}, -1 / 12, "Pythagoras"),
        ({"spanned": 0.0, "residual": 4.0}, -4 / 12, "constant rank"),
    ],
)
def test_q3_rejects(changes, value, part):
    case = Coupled(tight_family(3.0, 4.0), True)
    slack = CLAIM["Q3"].check(doctored(case, **changes))
    assert slack.part == part
    assert slack.value == pytest.approx(value)
    assert not slack.holds
    if part == "constant rank":
        assert CLAIM["Q3"].check(replace(doctored(case, **changes), constant_rank=False)).holds


def test_q4_rejects():
    case = Coupled(tight_family(3.0, 4.0), True)
    assert CLAIM["Q4"].check(case).value == pytest.approx(0, abs=1e-12)
    wrong = CLAIM["Q4"].check(doctored(case, coupling=7.2))
    assert wrong.value == pytest.approx(-1.2 / 13.2)
    assert not wrong.holds
    excused = CLAIM["Q4"].check(doctored(case, coupling=7.2, leak=0.5, leak_rate=3.0))
    assert excused.value == pytest.approx(0.3 / 13.2)


@pytest.mark.parametrize("rare", [0.1, 1e-4])
def test_q4_needs_the_leak_term(rare):
    """Closed forms of the two responses with DF = 0; without the leak term, or with less of it, the bound fails."""
    case = rare_response(rare, 1.0, rare * (1 - rare), 1.0)
    c, v = case.chain, math.sqrt(rare * (1 - rare))
    assert (c.coupling, c.leak, c.sharpness) == pytest.approx((v, v, v * v))
    assert (c.onset, c.leak_rate) == pytest.approx((v * math.sqrt(0.25 + 2 * rare), 0.5 - rare))
    assert c.lipschitz == pytest.approx(0, abs=1e-15)
    assert CLAIM["Q4"].check(case).value == pytest.approx((math.sqrt(0.25 + 2 * rare) - 0.5 - rare) * v / c.scale)
    without = CLAIM["Q4"].check(doctored(case, leak=0.0))
    assert without.value == pytest.approx((math.sqrt(0.25 + 2 * rare) - 1) * v / c.scale)
    assert not without.holds
    point = {"prompts": 1, "rank": 2, "gap": 0.1, "sharpness": 1e3, "scale": 1e-3, "leak": 1.0, "kind": 3}
    drawn = [CLAIM["Q4"].case(point | {"seed": seed}) for seed in range(20)]
    assert sum(not CLAIM["Q4"].check(doctored(case, leak=0.0)).holds for case in drawn) > 10
    assert drawn[0].chain.sharpness == pytest.approx(1e3)
    half = CLAIM["Q4"].boundary[-1].case()
    assert not CLAIM["Q4"].check(doctored(half, leak=half.chain.leak * (1 - 1e-6))).holds


# E9


def test_e9_unfair_coin():
    skill = coin(F(1, 3), [1])
    case = Scenario(skill, polynomial(rational([[-1]])))
    assert skill.utility_loss_along(case.series(4)).tolist() == [0, 0, F(1, 9), F(1, 81), F(-1, 324)]
    assert CLAIM["E9"].check(Leaky(case, 0.01)).holds
    wrong = CLAIM["E9"].check(Leaky(disguised(case, TwiceBent), 0.01))
    assert wrong.value == pytest.approx(-1 / 18)
    assert (wrong.part, wrong.holds) == ("coefficients", False)


def test_e9_bounds_the_curve_of_the_flow():
    case = CLAIM["E9"].case({"prompts": 2, "outcomes": 3, "dimension": 3, "leak": 0.1, "time": 0.01, "seed": 3})
    curve_of = case.parabola
    flow = case.scenario.skill.log_ratios_along(case.scenario.series(2)).astype(float)
    np.testing.assert_allclose(curve_of.log_ratios, 0.01 * flow[1] + 1e-4 * flow[2], rtol=0.1)
    assert curve_of.time == 0.01
    assert curve_of.onset[0] == pytest.approx(onset.leak(case.scenario.statistics))
    from theory.ledger.maps import Radius

    with pytest.raises(ValueError, match="polynomial"):
        replace(curve_of.skill, logits=Radius()).in_floats()


def test_e9_cases_leak_as_asked():
    point = {"prompts": 2, "outcomes": 3, "dimension": 3, "leak": 1.0, "time": 0.01, "seed": 3}
    whole, small = (CLAIM["E9"].case(point | {"leak": leak}).scenario for leak in (1.0, 1e-3))
    assert (whole.velocity[:-1] == 1000 * small.velocity[:-1]).all()
    assert whole.velocity[-1] == small.velocity[-1]
    assert onset.leak(whole.statistics) > 0.1


def test_e9_rejects_a_wrong_leak(monkeypatch):
    """The slope is 3 at the crossover only."""
    case = CLAIM["E9"].case({"prompts": 2, "outcomes": 3, "dimension": 3, "leak": 1e-2, "time": 0.01, "seed": 3})
    stats = case.scenario.statistics
    true = onset.crossover(onset.leak(stats), onset.onset_coefficient(stats))
    monkeypatch.setattr("theory.ledger.onset_law.onset.crossover", lambda leak, gamma: 2 * leak / gamma / 2)
    slack = CLAIM["E9"].check(case)
    assert (slack.part, slack.holds) == ("slope", False)
    half = onset.predicted_loss(stats, np.array([true / 2]))
    expected = (half.leak_part - half.quartic_part)[0] / half.leak_part[0]
    assert slack.value == pytest.approx(-expected)
    assert expected == pytest.approx(3 / 4)


@pytest.mark.parametrize("index", [0, 1])
def test_e9_each_part_of_the_uniform_bound_is_needed(monkeypatch, index):
    """A rare response reaches each part: less of the change, or of the third derivative, and the bound fails."""
    case = CLAIM["E9"].boundary[index].case()
    slack = onset_law._check_uniform(case.parabola)
    assert slack.holds
    assert abs(slack.value) < 1e-5
    true, few = onset_law.largest_third_derivative, 1 - 1e-3
    if index:
        monkeypatch.setattr(onset_law, "largest_third_derivative", lambda curve: few * true(curve))
    else:
        predicted = onset.predicted_loss(case.scenario.statistics, np.array([case.time])).utility_loss[0]
        error = onset.utility_loss(case.parabola.log_ratios, case.parabola.skill.weights) - predicted
        assert error == pytest.approx(1e-16 * 1e-15 / 6, rel=1e-4)  # p d^3/6 with d = 1e-5
        monkeypatch.setattr(onset, "utility_loss", lambda d, w: predicted + (2 - few) * error)
    wrong = CLAIM["E9"].check(case)
    assert (wrong.part, wrong.holds) == ("uniform bound", False)
    assert wrong.value == pytest.approx(-1e-3, rel=0.2)  # the second part is not quite linear


@pytest.mark.parametrize("correlation", [-0.9, -0.3, 0.0, 0.5, 1.0])
def test_e9_local_slope_of_the_second_order_loss(correlation):
    angle = math.acos(correlation)
    first, second = np.array([3.0, 0.0]), 5 * np.array([math.cos(angle), math.sin(angle)])
    times = 6 / 5 * np.exp(np.linspace(-1e-4, 1e-4, 3))
    loss = [np.linalg.norm(t * first + t * t / 2 * second) ** 2 / 2 for t in times]
    assert onset.local_slope(times, np.array(loss))[1] == pytest.approx(3, abs=1e-6)


def test_e9_joint_limit_and_uniform_bound():
    """Flows with the leak ``nu t`` at time t: the loss over t^4 tends to ``E[(nu l'/v + l''/2)^2]/2``."""
    make = Coefficients(np.random.default_rng(6))
    base = make.scenario(3, 2, 3, degree=3, kernel=1)
    push = np.array([0.7, -0.4, 0.0])
    second = second_derivatives(base.skill, base.velocity, base.acceleration)
    for nu in (0.3, 2.0):
        ratios, errors = [], []
        for t in (4e-3, 2e-3, 1e-3):
            linear = base.loss.linear + nu * t * push
            flow = Scenario(base.skill, replace(base.loss, linear=linear))
            loss = flow.utility_losses(np.array([t]))[0]
            leak = onset.leak(flow.statistics)
            predicted = onset.predicted_loss(flow.statistics, np.array([t])).utility_loss[0]
            ratios.append(loss / t**4)
            errors.append((loss - predicted) / (t * (t * leak + t * t) ** 2))
        change = -nu * base.skill.scores() @ push + second / 2
        assert 2 * ratios[2] - ratios[1] == pytest.approx(base.skill.weights @ change**2 / 2, rel=1e-3)
        assert max(errors, key=abs) == pytest.approx(min(errors, key=abs), rel=0.1)  # it converges: O(t) relative
