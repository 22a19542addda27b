from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands_of_sim import Refusal, error_line, result, run
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from sim import problems
from sim.experiments import quartic
from sim.problems import Dials
from sim.quartic import CASES, main
from tests.in_process import run_module

FIELDS = ("exponent", "coefficient", "predicted_coefficient", "paper_coefficient", "crossover", "predicted_crossover")


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The default run, by the command itself."""
    out = tmp_path_factory.mktemp("quartic") / "run"
    done = run_module("sim.quartic", "--plot", "--json", "--out", out)
    assert (done.code, done.err) == (0, "")
    found = json.loads(done.out)
    assert found == json.loads((out / "quartic.json").read_text())
    assert json.loads((out / "manifest.json").read_text())["status"] == "complete"
    assert (out / "quartic.png").read_bytes().startswith(b"\x89PNG")
    assert set(found["cases"]) == set(CASES)
    return found["cases"]


@pytest.mark.parametrize("name", ["coupled", "curved", "softmax", "mlp", "transformer"])
def test_without_a_leak_the_onset_is_quartic_with_the_predicted_coefficient(cases: dict[str, Any], name: str) -> None:
    case = cases[name]
    assert case["exponent"] == pytest.approx(4, abs=0.02)
    assert case["coefficient"] == pytest.approx(case["predicted_coefficient"], rel=1e-4)
    assert case["leak"] == 0
    assert case["crossover"] is None
    assert case["predicted_crossover"] is None


def test_the_dialled_cases_have_the_coefficients_of_their_dials(cases: dict[str, Any]) -> None:
    assert cases["coupled"]["predicted_coefficient"] == pytest.approx(9 / 8, rel=1e-12)
    assert cases["coupled"]["paper_coefficient"] == pytest.approx(9 / 8, rel=1e-12)
    # gamma_star = |gamma - sqrt(lambda) beta| = |3 - 2 * 4|
    assert cases["curved"]["predicted_coefficient"] == pytest.approx(25 / 8, rel=1e-12)
    assert cases["curved"]["paper_coefficient"] == pytest.approx(9 / 8, rel=1e-12)


def test_on_the_circle_nothing_happens_where_the_paper_predicts_a_loss(cases: dict[str, Any]) -> None:
    case = cases["circle"]
    assert case["end"]["t"] == 1.0
    assert max(case["curve"]["utility_loss"]) < 1e-24
    assert case["paper_coefficient"] == pytest.approx(0.5, rel=1e-12)  # lambda / 8
    assert case["predicted_coefficient"] == 0
    assert case["exponent"] is None
    assert case["crossover"] is None


@pytest.mark.parametrize(("name", "leak"), [("leaky", 2e-4), ("tail", 1e-7**0.5 / 2)])
def test_a_leak_is_quadratic_before_the_crossover_and_quartic_after_it(
    cases: dict[str, Any], name: str, leak: float
) -> None:
    case = cases[name]
    assert case["leak"] == pytest.approx(leak, rel=1e-6)
    assert case["predicted_crossover"] == pytest.approx(2 * leak / 3, rel=1e-4)
    assert case["crossover"] == pytest.approx(case["predicted_crossover"], rel=5e-3)
    slope = np.array(case["curve"]["slope"])
    t = np.array(case["curve"]["t"])
    assert slope[1] == pytest.approx(2, abs=0.1)
    middle = np.argmin(np.abs(np.log(t / np.sqrt(case["window"][0] * case["window"][1]))))
    assert slope[middle] == pytest.approx(4, abs=0.03)
    assert case["coefficient"] == pytest.approx(case["predicted_coefficient"], rel=1e-3)


def test_the_two_sided_law_holds_at_every_time(cases: dict[str, Any]) -> None:
    touched = 0
    for name, case in cases.items():
        if name == "circle":
            continue
        curve = case["curve"]
        loss, lower, upper = (np.array(curve[key], dtype=float) for key in ("utility_loss", "lower", "upper"))
        room = 1e-14 * np.sqrt(loss) + 1e-9 * loss  # rounding of the parameters, of the log-probabilities, of M3
        assert (lower <= loss + room).all(), name
        assert (loss <= upper + room).all(), name
        touched += int(np.sum(lower > 0.9 * loss))
    assert touched > 100  # the bounds are not idle


def test_every_case_has_the_fields_that_are_promised(cases: dict[str, Any]) -> None:
    for case in cases.values():
        assert set(FIELDS) <= set(case)
        for key in FIELDS:
            assert case[key] is None or isinstance(case[key], float)


@settings(max_examples=6, deadline=None, phases=[Phase.generate])  # shrinking would take minutes
@given(st.floats(-1, 2), st.floats(-0.5, 1), st.floats(0.5, 6), st.integers(3, 20), st.integers(0, 1000))
def test_the_law_holds_over_the_dials(
    log_sharpness: float, log_coupling: float, curvature: float, dimension: int, seed: int
) -> None:
    dials = Dials(10**log_sharpness, 0.0, 10**log_coupling, curvature, 0.0, dimension)
    expected = abs(dials.coupling - dials.sharpness**0.5 * curvature)
    if expected < 0.05 * (dials.coupling + dials.sharpness**0.5 * curvature):
        return  # nearly cancelled: the quartic window is out of reach
    found = quartic.measure(problems.dialled(dials, seed, ""), 1.0)
    assert found["onset_coefficient"] == pytest.approx(expected, rel=1e-9)
    assert found["coefficient"] == pytest.approx(expected**2 / 8, rel=5e-3)
    assert found["exponent"] == pytest.approx(4, abs=0.02)


def test_the_range_that_an_error_names_is_valid(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for case, option in (("leaky", "--overlap"), ("tail", "--tail")):
        line = error_line(monkeypatch, capsys, main, tmp_path / "no", "--cases", case, option, "0.9")
        below = float(line.split("below about ")[1].split(" ")[0])
        found = result(monkeypatch, capsys, main, tmp_path / case, "--cases", case, option, str(0.9 * below))
        assert found["cases"][case]["exponent"] == pytest.approx(4, abs=0.1)


@pytest.mark.parametrize(("coupling", "curvature"), [(0.0, 0.0), (3.0, 1.5)])
def test_without_an_onset_coefficient_nothing_is_quartic(coupling: float, curvature: float) -> None:
    """``gamma = sqrt(lambda) beta`` cancels exactly; what is left is of the order t^6 or more, or nothing."""
    found = quartic.measure(problems.dialled(Dials(coupling=coupling, curvature=curvature), 0, ""), 1.0)
    assert found["onset_coefficient"] == 0
    assert found["exponent"] is None
    assert found["coefficient"] < 1e-5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--sharpness", "-1"], "--sharpness (lambda) must be positive, got -1.0"),
        (["--coupling", "-2"], "--coupling must be at least 0, got -2.0"),
        (["--tail", "5"], "--tail must be below --sharpness, 4.0, got 5.0"),
        (["--dimension", "2"], "--dimension must be at least 3, got 2"),
        (["--cases", "coupled,square"], "--cases takes names out of coupled"),
        (["--horizon", "0"], "--horizon must lie in 0.001..1000, got 0.0"),
        (["--cases", "circle", "--sharpness", "-1"], "--sharpness (lambda) must be positive"),
        (["--cases", "softmax", "--dimension", "1"], "--dimension must be at least 3, got 1"),
        (["--cases", "coupled", "--horizon", "1e-6"], "--horizon must lie in 0.001..1000"),
        (["--seed", "-1"], "--seed must lie in 0.."),
        (["--cases", "leaky", "--overlap", "0.5"], "--overlap must be below about 0.0002"),
        (["--cases", "curved", "--curvature", "nan"], "--curvature must be a finite number"),
    ],
)
def test_wrong_input_is_one_line(refusal: Refusal, arguments: list[str], words: str) -> None:
    assert words in refusal(main, *arguments)


def test_a_run_is_read_again_and_others_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    first = result(monkeypatch, capsys, main, out, "--cases", "coupled,circle")
    monkeypatch.setattr(quartic, "measure", None)  # nothing is computed again
    assert result(monkeypatch, capsys, main, out, "--cases", "coupled,circle") == first
    assert run(monkeypatch, main, "--cases", "coupled,circle", "--out", str(out)) == 0
    shown = capsys.readouterr().out
    assert "coupled" in shown
    assert "gamma_star^2/8" in shown
    assert run(monkeypatch, main, "--cases", "coupled", "--out", str(out)) == 2
    assert "holds another run" in capsys.readouterr().err
