from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands_of_sim import Refusal, error_line, result, run
from hypothesis import given, settings
from hypothesis import strategies as st

from commands.progress import Progress
from figures import defenses as picture
from sim import problems
from sim.defenses import main, tables
from sim.experiments import defenses
from sim.experiments.defenses import Options

OPTIONS = Options(12, None, 4.0, 1.0, 60, 1.0, (1, 2, 5, 7, 60), (0.0, 10.0, 1000.0), 0)


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    torch.set_num_threads(1)
    return defenses.compute(OPTIONS, Progress(quiet=True))


def losses(problem: dict[str, Any], defence: str) -> tuple[np.ndarray, np.ndarray]:
    curve = problem["defenses"][defence]["curve"]
    return np.array(curve["t"]), np.array(curve["utility_loss"])


def test_tracking_keeps_the_policy_where_the_rank_is_constant(found: dict[str, Any]) -> None:
    softmax, circle = found["problems"]["softmax"], found["problems"]["circle"]
    assert softmax["constant_rank"]
    assert losses(softmax, "tracked")[1].max() < 1e-20
    assert losses(circle, "tracked")[1].max() < 1e-20
    assert losses(softmax, "none")[1][-1] > 1e-4
    tracked, none = (softmax["defenses"][name]["end"]["fine_tuning_loss"] for name in ("tracked", "none"))
    assert none < tracked < 0.9 * none  # it learns nearly as much


def test_every_onset_has_its_predicted_coefficient(found: dict[str, Any]) -> None:
    checked = 0
    for problem in found["problems"].values():
        for name, one in problem["defenses"].items():
            assert one["leak"] == 0, name
            if one["predicted_coefficient"] > 0:
                assert one["coefficient"] == pytest.approx(one["predicted_coefficient"], rel=2e-4), name
                checked += 1
            else:
                assert one["coefficient"] is None
                assert one["largest_utility_loss"] < 1e-20
    assert checked == 5 + 1 + 6  # all but tracked on softmax, only static on the circle, all where the rank varies


def test_a_static_projection_harms_on_the_circle(found: dict[str, Any]) -> None:
    circle = found["problems"]["circle"]
    assert losses(circle, "none")[1].max() < 1e-24
    t, harmed = losses(circle, "static")
    # y + y^3/3 = t by Cardano, in its stable form; loss lambda (sqrt(1 + y^2) - 1)^2 / 2
    y = 2 * np.sinh(np.arcsinh(1.5 * t) / 3)
    assert y + y**3 / 3 == pytest.approx(t, rel=1e-12)
    assert harmed == pytest.approx(4 / 2 * (y**2 / (np.sqrt(1 + y**2) + 1)) ** 2, rel=1e-7)
    assert circle["defenses"]["static"]["predicted_coefficient"] == pytest.approx(4 / 8, rel=1e-12)


def test_tracking_fails_where_the_rank_varies(found: dict[str, Any]) -> None:
    varying = found["problems"]["varying rank"]
    assert varying["refresh_law"] is None
    t, loss = losses(varying, "tracked")
    assert loss == pytest.approx(t**4 / 8, rel=1e-9)  # kappa = 1, the path is y = t
    assert varying["defenses"]["tracked"]["end"]["fine_tuning_loss"] == pytest.approx(-1, rel=1e-12)
    # y' = 1 / (1 + mu y^2): y + mu y^3 / 3 = t
    t, loss = losses(varying, "trust region 10")
    y = (8 * loss) ** 0.25
    assert y + 10 * y**3 / 3 == pytest.approx(t, rel=1e-9)


def test_a_trust_region_of_strength_0_is_no_defence_and_a_strong_one_nears_tracking(found: dict[str, Any]) -> None:
    softmax = found["problems"]["softmax"]
    assert losses(softmax, "trust region 0")[1] == pytest.approx(losses(softmax, "none")[1], rel=1e-6)
    ends = [losses(softmax, name)[1][-1] for name in ("none", "trust region 10", "trust region 1000")]
    assert ends[0] > 5 * ends[1] > 500 * ends[2]
    strong, tracked = (softmax["defenses"][n]["end"]["fine_tuning_loss"] for n in ("trust region 1000", "tracked"))
    assert strong == pytest.approx(tracked, rel=1e-2)


def test_the_refresh_law(found: dict[str, Any]) -> None:
    for name in ("softmax", "circle"):
        for law in found["problems"][name]["refresh_law"]:
            assert law["measured"] == pytest.approx(law["predicted"], rel=2e-2)
            if 60 % law["refresh"] == 0:
                assert law["factor"] == pytest.approx((law["refresh"] / 60) ** 2, rel=1e-12)
    by_refresh = {law["refresh"]: law for law in found["problems"]["circle"]["refresh_law"]}
    assert by_refresh[7]["factor"] == pytest.approx(((8 * 49 + 16) / 3600) ** 2, rel=1e-12)  # 8 intervals and a rest
    assert by_refresh[60]["predicted"] == pytest.approx(4 * defenses.REFRESH_TIME**4 / 8, rel=1e-9)  # lambda t^4 / 8


def test_descent_without_a_refresh_is_static_descent(found: dict[str, Any]) -> None:
    softmax = found["problems"]["softmax"]
    last = softmax["tracked_descent"][-1]
    assert last["refresh"] == 60
    static = softmax["defenses"]["static"]["end"]
    assert last["end"]["t"] == pytest.approx(1)
    assert last["end"]["utility_loss"] == pytest.approx(static["utility_loss"], rel=0.1)  # in 60 steps
    ends = [one["end"]["utility_loss"] for one in softmax["tracked_descent"]]
    assert ends == sorted(ends)


@settings(max_examples=5)
@given(st.integers(6, 20), st.integers(0, 1000), st.integers(2, 30), st.integers(1, 30))
def test_the_refresh_law_on_random_softmax_problems(dimension: int, seed: int, steps: int, every: int) -> None:
    problem, constant = defenses.cases(Options(dimension, None, 1.0, 1.0, steps, 1.0, (1,), (1.0,), seed))["softmax"]
    assert constant
    law = defenses.refresh_law(problem, steps, every)
    assert law["measured"] == pytest.approx(law["predicted"], rel=5e-2)


def test_a_projector_of_lower_rank_is_measured_as_it_is() -> None:
    torch.set_num_threads(1)
    options = Options(12, 2, 4.0, 1.0, 10, 1.0, (1,), (), 0)
    problem, constant = defenses.cases(options)["softmax"]
    assert not constant
    one = defenses.measure(problem, constant, options)
    assert one["refresh_law"] is None
    tracked = one["defenses"]["tracked"]
    assert tracked["predicted_coefficient"] > 0
    assert tracked["coefficient"] == pytest.approx(tracked["predicted_coefficient"], rel=1e-3)


def test_a_path_that_diverges_names_the_horizon(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def burst(*_: object) -> problems.Problem:
        skill = problems.radius_skill(1.0)
        return problems.Problem(skill, lambda theta: -(theta[0] ** 3) / 3, 1, "x' = x^2, infinite at t = 1")

    monkeypatch.setattr(defenses.problems, "circle", burst)
    few = ("--steps", "2", "--refresh", "1", "--strengths", "10", "--json")
    words = error_line(monkeypatch, capsys, main, tmp_path / "run", "--horizon", "2", *few)
    assert words.startswith("error: --horizon must be below 1 for circle")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dimension", "5"], "--dimension must lie in 6..200, got 5"),
        (["--rank", "0"], "--rank must lie in 1..4"),
        (["--rank", "13"], "--rank must lie in 1..4"),
        (["--sharpness", "-1"], "--sharpness must be positive and at most 1e+06, got -1.0"),
        (["--curvature", "nan"], "--curvature must be positive"),
        (["--horizon", "0"], "--horizon must be positive"),
        (["--horizon", "0.001"], "--horizon must be at least 0.01"),
        (["--horizon", "1", "--strengths", "1e6"], "--horizon must be another for softmax: no polynomial"),
        (["--steps", "0"], "--steps must lie in 1..10000, got 0"),
        (["--refresh", "1,101"], "--refresh takes whole numbers from 1 to --steps, comma-separated, got '101'"),
        (["--refresh", "1,x"], "--refresh takes whole numbers from 1 to --steps, comma-separated, got 'x'"),
        (["--refresh", "1.5"], "got '1.5'"),
        (["--strengths", "-1"], "--strengths takes numbers from 0 to 1e+06, comma-separated, got '-1'"),
        (["--strengths", "inf"], "got 'inf'"),
        (["--seed", "-1"], "--seed must lie in 0.."),
    ],
)
def test_wrong_input_is_one_line(refusal: Refusal, arguments: list[str], words: str) -> None:
    assert words in refusal(main, "--json", *arguments)


def test_the_command_writes_result_picture_and_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    few = (
        "--steps",
        "10",
        "--refresh",
        "1,2,2",
        "--strengths",
        "10",
        "--horizon",
        "0.5",
        "--out",
        str(tmp_path / "run"),
    )
    assert run(monkeypatch, main, *few, "--plot") == 0
    shown = capsys.readouterr().out
    assert "descent, R = 2" in shown
    assert "refreshed every R of K steps" in shown
    assert (tmp_path / "run" / "defenses.png").read_bytes().startswith(b"\x89PNG")
    again = result(monkeypatch, capsys, main, tmp_path / "run", *few)
    assert again["schema_version"] == 1
    assert [law["refresh"] for law in again["problems"]["circle"]["refresh_law"]] == [1, 2]


def test_the_picture_and_the_tables_need_no_refresh_law(found: dict[str, Any]) -> None:
    only = {"schema_version": 1, "problems": {"varying rank": found["problems"]["varying rank"]}}
    assert picture.draw(only).startswith(b"\x89PNG")
    assert len(tables(only)) == 1
