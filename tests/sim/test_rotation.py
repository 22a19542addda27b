from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands_of_sim import Refusal, run
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import figures.rotation
from sim import problems
from sim.experiments import rotation
from sim.problems import Dials
from sim.rotation import CASES, main
from tests.in_process import run_module


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The default run, by the command itself."""
    out = tmp_path_factory.mktemp("rotation") / "run"
    done = run_module("sim.rotation", "--plot", "--json", "--out", out)
    assert (done.code, done.err) == (0, "")
    found = json.loads(done.out)
    assert found == json.loads((out / "rotation.json").read_text())
    assert found["schema_version"] == 1
    assert (out / "rotation.png").read_bytes().startswith(b"\x89PNG")
    assert set(found["cases"]) == set(CASES)
    return found["cases"]


def curve(case: dict[str, Any], name: str) -> np.ndarray:
    return np.array(case["curve"][name])


def test_every_bound_holds_at_every_time_and_the_sharp_one_is_the_lowest(cases: dict[str, Any]) -> None:
    for name, case in cases.items():
        turned, room = curve(case, "rotation"), 1e-12
        for bound in ("proposition", "davis_kahan", "sharp"):
            assert (turned <= curve(case, bound) + room).all(), (name, bound)
        assert (curve(case, "sharp") <= curve(case, "davis_kahan") + room).all()
        assert (curve(case, "davis_kahan") <= curve(case, "proposition") + room).all()


def test_on_the_circle_the_subspace_turns_by_the_angle_and_the_sharp_bound_is_attained(cases: dict[str, Any]) -> None:
    case = cases["circle"]
    t, sharp = curve(case, "t"), curve(case, "sharp")
    np.testing.assert_allclose(curve(case, "rotation"), np.sin(t), rtol=1e-9)
    before = 2 * np.sin(t) < 1
    np.testing.assert_allclose(sharp[before], np.sin(np.arcsin(2 * np.sin(t[before])) / 2), rtol=1e-9)
    np.testing.assert_allclose(curve(case, "drift"), 2 * np.cos(t) * (1 - np.cos(t)), rtol=1e-6)
    assert case["first_order_constant"] == pytest.approx(1, abs=1e-6)
    assert case["lipschitz"] == pytest.approx(4, rel=1e-9)
    assert curve(case, "utility_loss").max() < 1e-24


def test_on_the_circle_the_drift_says_nothing_of_the_utility(cases: dict[str, Any]) -> None:
    drift = cases["circle"]["drift"]
    assert drift["rate"] == pytest.approx(1, rel=1e-8)  # sqrt(lambda)/2 = gamma/2
    assert drift["coupling"] == pytest.approx(2, rel=1e-9)
    assert drift["rho"] == pytest.approx(4, rel=1e-9)
    assert drift["onset_coefficient"] == 0


def test_on_the_parabola_theorem_b3_is_attained_with_the_sharp_rho(cases: dict[str, Any]) -> None:
    case = cases["parabola"]
    t, y = curve(case, "t"), np.sinh(1.5 * curve(case, "t")) / 1.5
    assert case["drift"]["rho_sharp"] == pytest.approx(1, rel=1e-9)  # sqrt(lambda) kappa
    assert case["drift"]["sharp_bound"] == pytest.approx(0.5, rel=1e-9)
    assert case["drift"]["rate"] == pytest.approx(0.5, rel=1e-7)
    assert case["drift"]["onset_coefficient"] == pytest.approx(2, rel=1e-9)  # |gamma - sqrt(lambda) kappa|
    # the direction (1, kappa y) turns by atan(kappa y)
    np.testing.assert_allclose(curve(case, "rotation"), np.sin(np.arctan(0.5 * y)), rtol=1e-8)
    assert case["first_order_constant"] == pytest.approx(1, abs=1e-3)
    assert len(t) == len(y)


def test_the_projector_jumps_where_eigenvalues_cross_and_the_bound_says_so(cases: dict[str, Any]) -> None:
    case = cases["crossing"]
    t, turned = curve(case, "t"), curve(case, "rotation")
    assert turned[t < 0.5].max() < 1e-12
    np.testing.assert_allclose(turned[t > 0.5], 1, rtol=1e-12)
    assert case["gap"] == pytest.approx(0.4 * 4, rel=1e-12)
    np.testing.assert_allclose(curve(case, "davis_kahan"), 2 * t, rtol=1e-9)
    assert case["vacuous_from"] == pytest.approx(0.5, abs=0.01)
    assert curve(case, "utility_loss").max() == 0
    values = curve(case, "eigenvalues")
    np.testing.assert_allclose(values[:, 0] - values[:, 1], 1.6 * np.abs(1 - 2 * t), atol=1e-12)


def test_eigenvalues_that_nearly_meet_turn_the_subspace_by_the_sharp_bound(cases: dict[str, Any]) -> None:
    case = cases["avoided"]
    t, half, mixing = curve(case, "t"), 0.2, 0.02
    angle = (np.arctan2(mixing, half * (1 - 2 * t)) - math.atan2(mixing, half)) / 2
    np.testing.assert_allclose(curve(case, "rotation"), np.sin(angle), rtol=1e-8, atol=1e-13)
    assert 0.99 < case["largest_ratio"]["sharp"] <= 1 + 1e-9
    assert case["gap"] == pytest.approx(8 * math.hypot(half, mixing), rel=1e-12)


def test_the_softmax_drift_obeys_the_sharp_bound_of_theorem_b3() -> None:
    for seed in range(4):
        problem = problems.softmax(9, 2, 3, 3, seed, 2)
        found = rotation.measure(problem, 0.3)
        drift, room = found["drift"], 1e-7
        assert found["largest_ratio"]["sharp"] <= 1 + 1e-9
        assert drift["rate"] >= drift["sharp_bound"] - room
        assert drift["sharp_bound"] >= drift["bound"]
        # the extrapolated rate is that of the curve at its first times
        t, seen = curve(found, "t")[0], curve(found, "drift")[0]
        assert seen / t**2 == pytest.approx(drift["rate"], rel=5e-3)


@settings(max_examples=6, deadline=None, phases=[Phase.generate])
@given(st.floats(-1, 2), st.floats(0.1, 2), st.floats(2.5, 6), st.integers(3, 10), st.integers(0, 1000))
def test_the_drift_of_the_parabola_has_its_closed_form(
    log_sharpness: float, curvature: float, factor: float, dimension: int, seed: int
) -> None:
    sharpness = 10**log_sharpness
    coupling = factor * sharpness**0.5 * curvature
    dials = Dials(sharpness, 0.0, coupling, curvature, 0.0, dimension)
    found = rotation.measure(problems.dialled(dials, seed, ""), 0.5 / (factor * curvature))["drift"]
    expected = coupling / 2 - sharpness**0.5 * curvature
    assert found["sharp_bound"] == pytest.approx(expected, rel=1e-7)
    assert found["rate"] == pytest.approx(expected, rel=1e-5)


def test_the_meeting_eigenvalues_are_those_of_their_dials() -> None:
    problem = rotation.meeting(3.0, 0.3, 0.1, 2.0)
    theta = torch.tensor([0.0, 0.0, 0.4], dtype=torch.float64)
    u = 0.15 * (1 - 0.4)
    expected = 3 * np.array([0.85 + math.hypot(u, 0.1), 0.85 - math.hypot(u, 0.1), 0.0])
    np.testing.assert_allclose(np.linalg.eigvalsh(problem.skill.fisher(theta).numpy())[::-1], expected, atol=1e-13)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--cases", "circle,square"], "--cases takes names out of softmax"),
        (["--sharpness", "-1"], "--sharpness (lambda) must be positive, got -1.0"),
        (["--coupling", "-2"], "--coupling must be at least 0, got -2.0"),
        (["--rank", "40"], "--rank must lie in 1..4, the rank of this skill's Fisher matrix, got 40"),
        (["--gap", "1.5"], "--gap must lie between 0 and 1"),
        (["--mixing", "0.7"], "--mixing must lie between 0 and 1 - gap = 0.6, got 0.7"),
        (["--dimension", "2"], "--dimension must be at least 3, got 2"),
        (["--horizon", "0"], "--horizon must lie in 0.01..1000, got 0.0"),
        (["--cases", "parabola", "--horizon", "100"], "--horizon must be below"),
        (["--seed", "-1"], "--seed must lie in 0.."),
    ],
)
def test_wrong_input_is_one_line(refusal: Refusal, arguments: list[str], words: str) -> None:
    assert words in refusal(main, *arguments)


def test_a_flat_model_does_not_turn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run(monkeypatch, main, "--cases", "parabola", "--curvature", "0", "--plot", "--out", str(out)) == 0
    case = json.loads((out / "rotation.json").read_text())["cases"]["parabola"]
    assert case["largest_rotation"] < 1e-12
    assert case["largest_ratio"] == {"proposition": None, "davis_kahan": None, "sharp": None}
    assert case["drift"]["rate"] == pytest.approx(1.5, rel=1e-7)
    assert case["drift"]["sharp_bound"] == pytest.approx(1.5, rel=1e-9)


def test_one_case_is_printed_and_drawn(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(monkeypatch, main, "--cases", "crossing", "--out", str(tmp_path / "run")) == 0
    shown = capsys.readouterr().out
    assert "crossing: eigenvalues meet at t = T/2" in shown
    result = json.loads((tmp_path / "run" / "rotation.json").read_text())
    assert len(figures.rotation.draw(result)) > 10_000
