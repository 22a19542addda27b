"""`python -m bridge.onset` on tiny models: what stands in the run folder, and that it is right."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bridge.data.samples import Sample
from bridge.estimators import taps
from bridge.experiments.onset.readings import readings
from bridge.experiments.onset.result import OnsetResult
from bridge.experiments.onset.run import run
from bridge.experiments.onset.settings import REALISTIC, Settings, parse_runs, parse_times
from bridge.experiments.session import Lent
from bridge.models.load import load_model
from commands.errors import UserError
from commands.settings import read_file
from commands.store import read_arrays
from tests.bridge.support.tiny_onsets import onset_options
from tests.bridge.support.tiny_runs import SCRIPT, make_workplace, write_rows
from tests.in_process import run_module
from tests.oracles.brute_force import BruteForce

FILES = {"manifest.json", "settings.toml", "onset.json", "onset.png", "report.html", "samples.jsonl", "statistics.npz"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workplace(tmp_path_factory.mktemp("onset"), "llama")


def onset(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run the command in this process as `python -m bridge.onset` does: exit code, output, errors."""
    done = run_module("bridge.onset", *arguments)
    return done.code, done.out, done.err


def read(folder: Path) -> dict[str, Any]:
    def refuse(word: str) -> float:
        raise AssertionError(f"{word} is not JSON")

    return json.loads((folder / "onset.json").read_text(), parse_constant=refuse)


def samples(folder: Path, name: str) -> list[Sample]:
    found = [Sample.from_json(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    return [s for s in found if s.set == name]


def oracle(place: Path) -> BruteForce:
    model = load_model(str(place / "model"), dtype="float64", device="cpu").model
    model.set_attn_implementation("eager")
    return BruteForce(model, list(taps.select_modules(model)))


def test_the_steps_and_their_losses_equal_brute_force(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Gradient descent and KL sample by sample, from nothing but the model's folder and samples.jsonl."""
    code, printed, told = onset(capsys, *onset_options(place, tmp_path / "run", "--learning-rate", "0.01"))
    assert code == 0, told
    assert {p.name for p in (tmp_path / "run").iterdir()} == FILES
    found, arrays = read(tmp_path / "run"), read_arrays(tmp_path / "run" / "statistics.npz")
    main_set, dense = found["sets"]["skill"], oracle(place)
    skill, rows = samples(tmp_path / "run", "skill"), samples(tmp_path / "run", "finetune")
    assert (len(skill), len(rows), main_set["num_samples"]) == (4, 5, 4)
    gradient = dense.gradient(rows)
    assert main_set["round_trip"] == 0
    for k, point in enumerate(main_set["points"]):
        rates = arrays["rates"][: point["steps"]].tolist()
        assert max(rates) <= 0.01 * (1 + 1e-8)
        assert sum(rates) == pytest.approx(point["t"], rel=1e-12)
        assert point["crossovers"] == pytest.approx([0.03, 0.1, 0.3][k], rel=1e-12)
        theta = dense.theta
        for rate in rates:
            theta = theta - rate * torch.func.grad(dense.loss)(theta, rows)
        assert point["utility_loss"] == pytest.approx(dense.utility_loss(theta, skill), rel=2e-4)
        assert point["finetuning_loss"] == pytest.approx(float(dense.loss(theta, rows)), rel=1e-5)
        assert point["distance"] == pytest.approx(float((theta - dense.theta).norm()), rel=1e-4)
        assert point["leak_part"] == pytest.approx(point["t"] ** 2 / 2 * main_set["leak"] ** 2, rel=1e-9)
        parts = [point[f"{name}_part"] for name in ("leak", "cross", "quartic", "higher")]
        assert sum(parts) == pytest.approx(point["predicted"], rel=1e-9)
        assert abs(point["ratio"] - 1) < 0.1
    scores = dense.scores(skill)
    assert arrays["skill/base/first"] == pytest.approx((scores @ -gradient).numpy(), rel=1e-4, abs=1e-4)
    assert main_set["crossover"] == pytest.approx(2 * main_set["leak"] / main_set["quartic"])
    assert found["curvature"]["along_start"] == pytest.approx(_curvature(dense, rows, gradient), rel=1e-3)
    assert found["curvature"]["value"] >= found["curvature"]["along_start"]
    along = -found["curvature"]["along_start"] * float(gradient @ gradient)  # a = H g = -H v
    assert found["acceleration_along_velocity"] == pytest.approx(along, rel=1e-3)
    assert [run["steps"] for run in found["realistic"]] == [steps for _, steps in parse_runs(REALISTIC["sgd"])]
    page = (tmp_path / "run" / "report.html").read_text()
    assert SCRIPT not in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    for line in found["readings"]:
        assert line.split(".")[0][:40] in " ".join(printed.split())
    result = OnsetResult.read(tmp_path / "run")
    assert result.to_dict() == found
    assert found["readings"] == readings(result)
    assert list(result.to_frame()["t"]) == [point["t"] for point in main_set["points"]]
    assert "fine-tuning loss" in result._repr_html_()
    assert result.plot().startswith(b"\x89PNG")
    before = {p: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    code, again, told = onset(capsys, *onset_options(place, tmp_path / "run", "--learning-rate", "0.01"))
    assert (code, again) == (0, printed)
    assert "complete already" in told
    assert before == {p: p.read_bytes() for p in (tmp_path / "run").iterdir()}


def _curvature(dense: BruteForce, rows: list[Sample], g: torch.Tensor) -> float:
    def slope(theta: torch.Tensor) -> torch.Tensor:
        return torch.func.grad(dense.loss)(theta, rows) @ g

    return float(torch.func.grad(slope)(dense.theta) @ g / (g @ g))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_overlap_is_removed_on_other_samples_and_its_rest_is_told(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], optimizer: str
) -> None:
    options = ("--remove-overlap", "--optimizer", optimizer, "--curvature-iterations", "1")
    code, printed, told = onset(capsys, *onset_options(place, tmp_path / "run", *options))
    assert code == 0, told
    found = read(tmp_path / "run")
    skill, probe = (samples(tmp_path / "run", name) for name in ("skill", "probe"))
    assert (len(skill), len(probe)) == (4, 3)
    assert not {s.id for s in skill} & {s.id for s in probe}
    dense = oracle(place)
    rows = samples(tmp_path / "run", "finetune")
    g, scores = dense.gradient(rows), dense.scores(probe)
    update = -(dense.adam_diagonal(rows, 2) * g) if optimizer == "adamw" else -g
    inside = scores.T @ torch.linalg.solve(scores @ scores.T, scores @ update)
    removed = found["removed"]
    assert removed["rank"] == 3
    assert removed["leak_before"] == pytest.approx(float((scores @ update).square().mean().sqrt()), rel=1e-4)
    assert removed["leak_after"] < 1e-3 * removed["leak_before"]
    assert removed["share"] == pytest.approx(float(inside @ inside / (update @ update)), rel=1e-3)
    held_out = dense.scores(skill) @ (update - inside)
    assert read_arrays(tmp_path / "run" / "statistics.npz")["skill/base/first"] == pytest.approx(
        held_out.numpy(), rel=1e-3, abs=1e-3 * float(held_out.abs().max())
    )
    assert (found["curvature"] is None) == (optimizer == "adamw")
    for part in found["sets"].values():
        assert all(abs(p["ratio"] - 1) < 0.25 for p in part["points"][:2])
    assert "overlap removed" in printed
    assert removed["left"]["skill"]["share"] == pytest.approx(
        found["sets"]["skill"]["leak"] / removed["motion_before"]["skill"], rel=1e-9
    )
    overstated = any("orthogonality in the sample overstates" in line for line in found["readings"])
    assert overstated == (removed["difference"][0] > 0)
    slow = any("opposes its velocity" in line for line in found["readings"])
    assert slow == (found["acceleration_along_velocity"] < 0)


def test_lora_with_a_pilot_and_the_full_run(
    place: Path, tmp_path: Path, drawn: None, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--method", "lora", "--lora-rank", "2", "--pilot-steps", "3", "--full", "--pilot-batch-size", "2")
    code, printed, told = onset(capsys, *onset_options(place, tmp_path / "run", *options, "--pilot-epochs", "2"))
    assert code == 0, told
    assert {p.name for p in (tmp_path / "run").iterdir()} == FILES | {"pilot.png"}
    found = read(tmp_path / "run")
    pilot = found["pilot"]
    assert [p["step"] for p in pilot["points"] if p["pilot"]] == [1, 2, 3]
    assert pilot["points"][-1]["step"] == pilot["steps"] == 6
    assert pilot["happened"] == pilot["points"][-1]["utility_loss"] > 0
    assert pilot["accumulated"] == pytest.approx(pilot["points"][-1]["accumulated"], rel=1e-12)
    ratio = pilot["accumulated"] / pilot["points"][2]["accumulated"]
    expected = pilot["points"][2]["utility_loss"] * ratio**2
    assert pilot["forecasts"]["quadratic"]["value"] == pytest.approx(expected, rel=1e-12)
    assert pilot["forecasts"]["quadratic"]["ratio"] == pytest.approx(expected / pilot["happened"], rel=1e-12)
    assert "The full run did" in printed
    assert abs(found["sets"]["skill"]["points"][0]["ratio"] - 1) < 0.05


def test_a_pilot_alone_knows_the_schedule_of_the_full_run() -> None:
    from bridge.training.pilot import accumulated_rate
    from bridge.training.plan import Plan, TrainingLog

    nothing = TrainingLog((), (), (), (), (), (), 0.0, True)
    plan = Plan("full", 1e-2, scheduler="linear", warmup=0.0)
    assert accumulated_rate(nothing, plan, 4) == pytest.approx(1e-2 * (1 + 3 / 4 + 2 / 4 + 1 / 4))
    warm = Plan("full", 1e-2, scheduler="constant_with_warmup", warmup=0.5)
    assert accumulated_rate(nothing, warm, 4) == pytest.approx(1e-2 * (0 + 1 / 2 + 1 + 1))


# ---- what is refused


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--at", "0.3,0.1"), "--at: expected increasing positive fractions"),
        (("--at", "0.3"), "--at: expected two fractions"),
        (("--at", "a,b"), "--at: expected numbers, got 'a'"),
        (("--realistic", "1e-5"), "--realistic: expected RATExSTEPS"),
        (("--rank", "2"), "--rank: expected --remove-overlap with it"),
        (("--remove-overlap", "--rank", "9"), "--rank: expected 1 to 3"),
        (("--method", "lora", "--optimizer", "adamw"), "--method: expected full with --optimizer adamw"),
        (("--method", "lora", "--remove-overlap"), "--method: expected full with --remove-overlap"),
        (("--full",), "--full: expected --pilot-steps with it"),
        (("--learning-rate", "0"), "--learning-rate: expected 1e-30 to 1e6"),
        (("--dtype", "bfloat16"), "'--dtype': Value error, 'bfloat16' is not one of 'float32', 'float64'"),
        (("--num-skill", "40"), "--skill: "),
        (("--pilot-steps", "5"), "--pilot-steps: expected fewer than 5"),
        (("--learning-rate", "1e-9"), "--max-steps: expected at least"),
        (("--model", "no-such-model"), "no-such-model"),
    ],
)
def test_wrong_input_is_one_line(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], words: str
) -> None:
    code, _, told = onset(capsys, *onset_options(place, tmp_path / "run", *options))
    line = told.splitlines()[-1]
    assert code == 2
    assert line.startswith("error: ")
    assert words in line
    assert not (tmp_path / "run" / "onset.json").exists()


def test_an_update_that_moves_nothing_has_no_onset(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.bridge.support.tiny_runs import save_chat_model

    def silence(model: Any) -> None:
        model.lm_head.weight.zero_()  # uniform whatever the weights below are

    folder = tmp_path / "silent"
    folder.mkdir()
    save_chat_model(folder / "model", "llama", silence)
    for name in ("skill", "finetune"):
        write_rows(folder / f"{name}.jsonl", [(f"how {k}?", "no" * (k + 1)) for k in range(6)])
    code, _, told = onset(capsys, *onset_options(folder, tmp_path / "run"))
    assert code == 2
    assert "no crossover to measure in" in told.splitlines()[-1]


def test_times_and_runs_are_read() -> None:
    assert parse_times("0.1, 1,2e0") == (0.1, 1.0, 2.0)
    assert parse_runs("1e-4x10,2x3") == ((1e-4, 10), (2.0, 3))
    for text in ("0,1", "1,1", "1,inf", "1,nan"):
        with pytest.raises(UserError, match="--at"):
            Settings.read({"at": text}).check()
    for text in ("0x1", "1x0", "1x1.5", "x5", "nanx1"):
        with pytest.raises(UserError, match="--realistic"):
            Settings.read({"realistic": text}).check()
    assert np.isfinite([rate for rate, _ in parse_runs(REALISTIC["adamw"])]).all()
    listed = Settings.read({"at": [0.1, 1], "realistic": [[1e-4, 10], [2, 3]]})
    assert (listed.at, listed.realistic) == ((0.1, 1.0), ((1e-4, 10), (2.0, 3)))
    with pytest.raises(UserError, match="--at: expected numbers"):
        Settings.read({"at": []})


def test_a_run_in_memory_is_the_same_and_leaves_the_lent_model_as_it_was(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--pilot-steps", "2", "--pilot-batch-size", "2", "--at", "0.1,0.3", "--curvature-iterations", "0")
    code, _, told = onset(capsys, *onset_options(place, tmp_path / "run", *options))
    assert code == 0, told
    settings = Settings.read(read_file(tmp_path / "run" / "settings.toml", "bridge.onset"))
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())["settings"]
    assert settings.identity() == {name: manifest[name] for name in settings.identity()}
    loaded = load_model(str(place / "model"), dtype="float64", device="cpu")
    before = {name: weight.clone() for name, weight in loaded.model.state_dict().items()}
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    result = run(settings, quiet=True, lent=Lent(loaded=loaded, in_memory=True))
    assert result.to_dict() == read(tmp_path / "run")
    assert not list((tmp_path / "empty").iterdir())
    assert all(torch.equal(weight, before[name]) for name, weight in loaded.model.state_dict().items())
