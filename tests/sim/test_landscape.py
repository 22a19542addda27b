from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands_of_sim import Refusal, run
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from commands.progress import Progress
from sim.experiments import landscape
from sim.experiments.landscape import Options
from sim.landscape import main
from tests.in_process import run_module

PATHS = ("gradient flow", "straight line", "static projection", "tracked projection")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The default run, by the command itself."""
    out = tmp_path_factory.mktemp("landscape") / "run"
    done = run_module("sim.landscape", "--plot", "--json", "--out", out)
    assert (done.code, done.err) == (0, "")
    result = json.loads(done.out)
    assert result == json.loads((out / "landscape.json").read_text())
    assert result["schema_version"] == 1
    assert tuple(result["paths"]) == PATHS
    assert (out / "landscape.png").read_bytes().startswith(b"\x89PNG")
    return result


def curve(found: dict[str, Any], path: str, name: str) -> np.ndarray:
    return np.array(found["paths"][path]["curve"][name])


def test_all_paths_start_along_the_valley(found: dict[str, Any]) -> None:
    for path in PATHS:
        t, x, y = (curve(found, path, name)[0] for name in ("t", "x", "y"))
        assert abs(x) < 2 * t**2
        assert y == pytest.approx(t, rel=1e-3)
        assert found["paths"][path]["leak"] == 0


def test_the_onset_of_every_path_is_the_predicted_one(found: dict[str, Any]) -> None:
    expected = {"gradient flow": 25 / 8, "straight line": 0.5, "static projection": 0.5}
    for path, coefficient in expected.items():
        one = found["paths"][path]
        assert one["predicted_coefficient"] == pytest.approx(coefficient, rel=1e-12)
        assert one["coefficient"] == pytest.approx(coefficient, rel=1e-4)
    assert found["paths"]["gradient flow"]["paper_coefficient"] == pytest.approx(9 / 8, rel=1e-12)


def test_the_tracked_path_stays_on_the_valley_floor(found: dict[str, Any]) -> None:
    tracked = found["paths"]["tracked projection"]
    assert tracked["largest_utility_loss"] < 1e-24
    assert tracked["coefficient"] is None
    x, y = curve(found, "tracked projection", "x"), curve(found, "tracked projection", "y")
    np.testing.assert_allclose(x, y**2 / 2, atol=1e-13)
    assert y[-1] > 0.3
    assert tracked["end"]["fine_tuning_loss"] < -0.3


def test_the_straight_and_the_static_path_have_their_closed_forms(found: dict[str, Any]) -> None:
    t = curve(found, "straight line", "t")
    np.testing.assert_allclose(curve(found, "straight line", "y"), t, rtol=1e-12)
    np.testing.assert_allclose(curve(found, "straight line", "utility_loss"), t**4 / 2, rtol=1e-9)
    y = curve(found, "static projection", "y")
    np.testing.assert_allclose(y, (1 - np.exp(-t / 2)) * 2, rtol=1e-11)  # y' = 1 - y/2
    assert np.abs(curve(found, "static projection", "x")).max() < 1e-14
    np.testing.assert_allclose(curve(found, "static projection", "utility_loss"), y**4 / 2, rtol=1e-9)


def test_gradient_flow_obeys_its_equation(found: dict[str, Any]) -> None:
    """Linear in (x, y): theta(t) from the exponential of the augmented matrix."""
    from scipy.linalg import expm

    matrix = np.array([[0.0, -1.5, 0.0], [-1.5, -landscape.SLOWING, 1.0], [0.0, 0.0, 0.0]])
    for i in (0, 60, -1):
        x, y, _ = expm(matrix * curve(found, "gradient flow", "t")[i])[:, 2]
        assert curve(found, "gradient flow", "x")[i] == pytest.approx(x, rel=1e-9)
        assert curve(found, "gradient flow", "y")[i] == pytest.approx(y, rel=1e-11)


def test_the_grid_holds_all_paths_and_its_values_are_those_of_the_formulas(found: dict[str, Any]) -> None:
    grid = found["grid"]
    y, x = np.meshgrid(grid["y"], grid["x"], indexing="ij")
    np.testing.assert_allclose(grid["utility_loss"], 2 * (x - y**2 / 2) ** 2, atol=1e-13)
    np.testing.assert_allclose(grid["fine_tuning_loss"], -y + 1.5 * x * y + y**2 / 4, atol=1e-13)
    for path in PATHS:
        for name in ("x", "y"):
            assert grid[name][0] < curve(found, path, name).min()
            assert curve(found, path, name).max() < grid[name][-1]
    valley = np.array(found["valley"]["x"]), np.array(found["valley"]["y"])
    np.testing.assert_allclose(valley[0], valley[1] ** 2 / 2, rtol=1e-13)


@settings(max_examples=6, deadline=None, phases=[Phase.generate])
@given(st.floats(-1, 1), st.floats(0, 3), st.floats(-3, 3))
def test_the_coefficients_hold_over_the_dials(log_sharpness: float, bend: float, curvature: float) -> None:
    sharpness = 10**log_sharpness
    if min(abs(bend - curvature), abs(curvature)) < 0.1:
        return  # nearly cancelled: higher orders set in at once
    options = Options(sharpness, bend * sharpness**0.5, curvature, 0.3, 3)
    paths = landscape.compute(options, Progress(quiet=True))["paths"]
    expected = {"gradient flow": bend - curvature, "straight line": curvature, "static projection": curvature}
    for path, rate in expected.items():
        assert paths[path]["predicted_coefficient"] == pytest.approx(sharpness * rate**2 / 8, rel=1e-9)
        assert paths[path]["coefficient"] == pytest.approx(sharpness * rate**2 / 8, rel=1e-3)
    assert paths["tracked projection"]["largest_utility_loss"] < 1e-22


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--sharpness", "-1"], "--sharpness (lambda) must be positive, got -1.0"),
        (["--coupling", "-2"], "--coupling must be at least 0, got -2.0"),
        (["--curvature", "nan"], "--curvature must be a finite number"),
        (["--resolution", "1"], "--resolution must lie in 2..1000, got 1"),
        (["--horizon", "-1"], "--horizon must lie in 0.001..1000, got -1.0"),
        (["--horizon", "500"], "--horizon must be below"),
        (
            ["--coupling", "0", "--horizon", "1000"],
            "--horizon must be below 1000 for the gradient flow: its quartic onset",
        ),
        (["--seed", "-1"], "--seed must lie in 0.."),
    ],
)
def test_wrong_input_is_one_line(refusal: Refusal, arguments: list[str], words: str) -> None:
    assert words in refusal(main, *arguments)


def test_a_flat_landscape_is_drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ("--coupling", "0", "--curvature", "0", "--resolution", "5", "--plot", "--out", str(out))
    assert run(monkeypatch, main, *arguments) == 0
    result = json.loads((out / "landscape.json").read_text())
    assert {path["coefficient"] for path in result["paths"].values()} == {None}
    assert result["grid"]["x"][0] < 0 < result["grid"]["x"][-1]
    assert (out / "landscape.png").stat().st_size > 10_000


def test_the_table_shows_every_path(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(monkeypatch, main, "--resolution", "5", "--out", str(tmp_path / "run")) == 0
    shown = capsys.readouterr().out
    for path in PATHS:
        assert path in shown
