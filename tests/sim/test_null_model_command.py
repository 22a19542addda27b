from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands_of_sim import Refusal, result, run

from sim.experiments import null_model
from sim.null_model import main
from tests.in_process import run_module


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The default run, by the command itself, with fewer directions."""
    out = tmp_path_factory.mktemp("null_model") / "run"
    done = run_module("sim.null_model", "--plot", "--json", "--draws", "4000", "--out", out)
    assert (done.code, done.err) == (0, "")
    result = json.loads(done.out)
    assert result == json.loads((out / "null_model.json").read_text())
    assert result["schema_version"] == 1
    assert (out / "null_model.png").read_bytes().startswith(b"\x89PNG")
    return result


def test_the_energies_follow_the_exact_law(found: dict[str, Any]) -> None:
    assert [(f["dimension"], f["rank"]) for f in found["overlap"]] == [(20, 2), (200, 10), (1000, 50), (5000, 100)]
    for one in found["overlap"]:
        error = one["predicted_standard_deviation"] / one["draws"] ** 0.5
        assert one["mean"] == pytest.approx(one["predicted_mean"], abs=5 * error)
        assert one["standard_deviation"] == pytest.approx(one["predicted_standard_deviation"], rel=0.1)
        assert one["ks_p_value"] > 1e-3
        assert 0 < one["ks_distance"] < 2 / one["draws"] ** 0.5
        quantiles = one["quantiles"]
        np.testing.assert_allclose(quantiles["measured"][1:-1], quantiles["predicted"][1:-1], rtol=0.15)


def test_another_law_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    monkeypatch.setattr(
        null_model, "random_energies", lambda n, d, draws, rng: rng.beta(d / 2 + 0.5, (n - d) / 2, draws)
    )
    assert null_model.measure_overlap(200, 10, 4000, rng)["ks_p_value"] < 1e-6


def test_the_tails_are_exact_and_below_the_bound(found: dict[str, Any]) -> None:
    informative = 0
    for one in found["overlap"]:
        tails = {key: np.array(values) for key, values in one["deviations"].items()}
        assert (tails["exact"] <= tails["chernoff"]).all()
        error = np.sqrt(tails["exact"] * (1 - tails["exact"]) / one["draws"])
        assert (np.abs(tails["measured"] - tails["exact"]) <= 5 * error + 2 / one["draws"]).all()
        informative += int(np.sum(tails["chernoff"] < 1))
    assert informative > 20


def test_the_largest_distance_of_the_two_distributions_is_scipys() -> None:
    from scipy.stats import beta, kstest

    energies = null_model.random_energies(30, 4, 500, np.random.default_rng(5))
    one = null_model.measure_overlap(30, 4, 500, np.random.default_rng(5))
    expected = kstest(energies, beta(2, 13).cdf, method="exact")
    assert one["ks_distance"] == pytest.approx(expected.statistic, rel=1e-12)
    assert one["ks_p_value"] == pytest.approx(expected.pvalue, rel=1e-9)


def test_energies_are_shares_of_the_norm_and_do_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = null_model.random_energies(7, 7, 20, np.random.default_rng(1))
    np.testing.assert_allclose(whole, 1, rtol=1e-12)
    once = null_model.random_energies(50, 3, 101, np.random.default_rng(2))
    monkeypatch.setattr(null_model, "_CHUNK", 500)
    np.testing.assert_allclose(null_model.random_energies(50, 3, 101, np.random.default_rng(2)), once, rtol=1e-12)


def test_with_an_isotropic_fisher_every_direction_refutes_the_claim(found: dict[str, Any]) -> None:
    rows = [one for one in found["utility_loss"] if one["tail"] == 1.0]
    for one in rows:
        assert one["least"] == pytest.approx(0.1**2 / 2, rel=1e-12)
        assert one["largest"] == pytest.approx(0.1**2 / 2, rel=1e-12)
        assert one["mean"] / one["claim"] == pytest.approx(one["dimension"] / (2 * 100 * 1.5), rel=1e-12)
        assert one["above_claim"] == (1.0 if one["dimension"] > 300 else 0.0)
    assert rows[-1]["mean"] / rows[-1]["claim"] > 300


def test_without_a_tail_the_claim_holds_and_equation_9_always(found: dict[str, Any]) -> None:
    for one in found["utility_loss"]:
        assert one["mean"] == pytest.approx(one["predicted_mean"], abs=5 * one["standard_error"] + 1e-15)
        assert one["above_corrected"] <= one["allowed"] + 5 * (one["allowed"] / one["draws"]) ** 0.5
        if one["tail"] == 0:
            assert one["above_claim"] <= one["allowed"]
            assert one["claim"] == pytest.approx(2 * one["corrected"], rel=1e-12)


def test_the_utility_loss_is_that_of_the_gaussian_policy() -> None:
    import torch

    from sim.skills import GaussianSkill

    n, d, tail = 3, 1, 0.25
    g = np.random.default_rng(3).standard_normal(n)
    g /= np.linalg.norm(g)
    root = torch.tensor([1.0, tail**0.5, tail**0.5], dtype=torch.float64)
    skill = GaussianSkill(lambda theta: root * theta, 1.0, torch.zeros(n, dtype=torch.float64))
    truth = skill.utility_losses(torch.from_numpy(-null_model.STEP * g)[None])[0]
    one = null_model.measure_cost(np.array([g[0] ** 2]), n, d, tail, 0.5)
    assert one["mean"] == pytest.approx(truth, rel=1e-12)
    assert one["predicted_mean"] == pytest.approx(null_model.STEP**2 / 2 * 1.5 / 3, rel=1e-12)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--pairs", "20"], "--pairs takes n:d, as 1000:50, got '20'"),
        (["--pairs", "20:30"], "--pairs takes whole numbers in 1..19, got '30'"),
        (["--pairs", "x:3"], "--pairs takes whole numbers in 1..1000000, got 'x'"),
        (["--draws", "1"], "--draws must lie in 2..1000000, got 1"),
        (["--draws", "1000000"], "--draws must be at most 160771 in these dimensions"),
        (["--rank", "300"], "--rank must lie in 1..200, the smallest of --dimensions, got 300"),
        (["--dimensions", "100,-5"], "--dimensions takes whole numbers in 1..1000000, got '-5'"),
        (["--eps", "1"], "--eps must lie between 0 and 1, got 1.0"),
        (["--pairs", "100000:50000", "--draws", "10"], "--pairs asks for a basis"),
        (["--seed", "-3"], "--seed must lie in 0.."),
    ],
)
def test_wrong_input_is_one_line(refusal: Refusal, arguments: list[str], words: str) -> None:
    assert words in refusal(main, *arguments)


def test_the_seed_decides_the_numbers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    small = ("--pairs", "20:2", "--draws", "50", "--dimensions", "30", "--rank", "3", "--loss-draws", "5")
    first = result(monkeypatch, capsys, main, tmp_path / "a", *small)
    assert result(monkeypatch, capsys, main, tmp_path / "b", *small) == first
    assert result(monkeypatch, capsys, main, tmp_path / "c", *small, "--seed", "1") != first
    assert run(monkeypatch, main, *small, "--plot", "--out", str(tmp_path / "a")) == 0
    assert "F = I, every loss is eta^2/2" in capsys.readouterr().out
