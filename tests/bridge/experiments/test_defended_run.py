"""`python -m bridge.finetune --defend` on tiny models: what each defence does, writes and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bridge.data.samples import Sample
from bridge.deltas.open import open_delta
from bridge.deltas.parameters import save_snapshot, set_weights
from bridge.deltas.tensor_files import TensorFiles
from bridge.estimators.probe import Probe
from bridge.estimators.taps import select_modules
from bridge.estimators.theta import Subject
from bridge.experiments.finetune.defence_report import defence_lines
from bridge.experiments.finetune.result import FinetuneResult
from bridge.models.load import LoadedModel, load_model
from bridge.training.defences.plan import DefenceOptions
from commands.errors import UserError
from tests.bridge.experiments.test_finetune import finetune
from tests.bridge.support.tiny_finetunes import COMPARED, DEFENDED, RESULTS, defence_options, finetune_options
from tests.bridge.support.tiny_runs import make_workplace


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workplace(tmp_path_factory.mktemp("llama"), "llama")


def defended(
    place: Path, method: str, kind: str, out: Path, capsys: pytest.CaptureFixture[str], *more: str
) -> tuple[dict[str, Any], str, str]:
    code, printed, told = finetune(
        capsys, *finetune_options(place, method, out, *defence_options(place, kind, *more), "--lora-dropout", "0")
    )
    assert code == 0, told
    return json.loads((out / "finetune.json").read_text()), printed, told


def move(loaded: LoadedModel, run: Path) -> None:
    """Apply the change in a run's folder to its base."""
    snapshot = run.with_suffix(".base")
    save_snapshot(snapshot, loaded.model)
    set_weights(loaded.model, TensorFiles([snapshot]), open_delta(run, loaded))


OPTIONS = {"none": (), "static": (), "tracked": (), "budget": ("--max-utility-loss", "0.01", "--refresh", "2")}


@pytest.mark.parametrize(("method", "kinds"), [("full", ("none", "static", "budget")), ("lora", ("tracked", "budget"))])
def test_each_defence(
    llama: Path, method: str, kinds: tuple[str, ...], tmp_path: Path, drawn: None, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {kind: defended(llama, method, kind, tmp_path / kind, capsys, *OPTIONS[kind]) for kind in kinds}
    for kind, (record, printed, told) in found.items():
        files = {str(p.relative_to(tmp_path / kind)) for p in (tmp_path / kind).rglob("*") if p.is_file()}
        assert files == {*COMPARED, *RESULTS[method], *DEFENDED, "manifest.json", "settings.toml"}
        seen = record["defence"]
        assert (seen["kind"], len(seen["steps"]), record["steps"]) == (kind, 6, 6)
        assert seen["utility_loss"]["probe"]["responses"] == 4
        assert seen["utility_loss"]["held_out"]["responses"] == 3
        assert record["update"]["shares"]["block linear modules"] == pytest.approx(1)
        assert 0 < seen["loss_reached"] < record["first_loss"]
        assert seen["extra_seconds"] > 0
        measured = [step["utility_loss"] is not None for step in seen["steps"]]
        assert measured == ([True] * 6 if kind == "budget" else [False, True] * 3)
        assert seen["steps"][-1]["utility_loss"] == pytest.approx(seen["utility_loss"]["probe"]["mean"], rel=1e-6)
        assert "utility loss, held out" in printed
        assert ("all else is frozen" in told) == (method == "full")
        page = (tmp_path / kind / "report.html").read_text()
        assert "<h2>Defence</h2>" in page
        assert page.count("data:image/png;base64,") == 2
    for kind in {"static", "tracked"} & set(kinds):
        for step in found[kind][0]["defence"]["steps"]:
            assert step["rank"] == 4
            assert step["leak_left"] < 1e-6 * step["leak"]
            assert 0 < step["inside"] < 1
            assert (step["leak_applied"] is not None) == (step["step"] % 2 == 0)
        summary = found[kind][0]["defence"]["summary"]
        assert summary["measured"]["steps"] == 3
        assert 0 < summary["measured"]["leak_applied"] < 1e-2 * summary["measured"]["leak"]
        meanings = {name: meaning for name, _, meaning in defence_lines(FinetuneResult.read(tmp_path / kind).defence)}
        assert meanings["leak of an update"].endswith("by the gram, after projection, over the 6 projected steps")
        assert meanings["leak as applied"].startswith("measured with rounding at 3 of these steps")
    budget = found["budget"][0]["defence"]
    assert all(step["utility_loss"] <= 0.01 for step in budget["steps"])
    assert budget["summary"]["steps_projected"] > 0
    if "none" in kinds:
        assert found["none"][0]["defence"]["summary"]["inside"] is None
        assert found["none"][0]["defence"]["utility_loss"]["probe"]["mean"] > 0.01


@pytest.mark.parametrize("method", ["lora", "full"])
def test_what_is_written_is_what_was_measured(
    llama: Path, method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The utility loss again, from the files alone: the base, the change of the weights, and skill.jsonl."""
    record, _, _ = defended(llama, method, "tracked", tmp_path / "run", capsys)
    loaded = load_model(str(llama / "model"), device="cpu")
    samples = [Sample.from_json(line) for line in (tmp_path / "run" / "skill.jsonl").read_text().splitlines()]
    assert len(samples) == 7
    probe = Probe(Subject(loaded.model, select_modules(loaded.model), 1, 2, 2**30), samples)
    move(loaded, tmp_path / "run")
    losses = probe.utility_loss()
    with probe.at(probe.base):
        before = probe.log_likelihood()
    half = ((probe.log_likelihood() - before)[4:] ** 2).mean() / 2
    assert half == pytest.approx(record["defence"]["quadratic_loss"]["held_out"]["mean"], rel=1e-3)
    assert losses[:4].mean() == pytest.approx(record["defence"]["utility_loss"]["probe"]["mean"], rel=1e-3)
    assert losses[4:].mean() == pytest.approx(record["defence"]["utility_loss"]["held_out"]["mean"], rel=1e-3)
    error = float(losses[4:].std(ddof=1)) / 3**0.5
    assert record["defence"]["utility_loss"]["held_out"]["standard_error"] == pytest.approx(error, rel=1e-2)


def test_small_steps_are_defended(llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With AdamW's steps small, tracking every step leaves the probe's own responses almost untouched."""
    likelihood = {}
    for kind in ("none", "tracked"):
        out = tmp_path / kind
        defended(llama, "full", kind, out, capsys, "--learning-rate", "1e-4", "--set", "lr_scheduler_type=constant")
        loaded = load_model(str(llama / "model"), device="cpu")
        samples = [Sample.from_json(line) for line in (out / "skill.jsonl").read_text().splitlines()][:4]
        probe = Probe(Subject(loaded.model, select_modules(loaded.model), 1, 2, 2**30), samples)
        before = probe.log_likelihood()
        move(loaded, out)
        likelihood[kind] = abs(probe.log_likelihood() - before).max()
    assert likelihood["tracked"] < likelihood["none"] / 20


def test_nothing_held_out_and_a_rank(llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ("--held-out", "0", "--rank", "2", "--max-steps", "1")
    record, printed, _ = defended(llama, "lora", "static", tmp_path / "run", capsys, *more)
    assert record["defence"]["utility_loss"]["held_out"] is None
    assert record["defence"]["steps"][0]["rank"] == 2
    assert "held out" not in printed


def test_without_a_defence_nothing_is_added(llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, printed, _ = finetune(capsys, *finetune_options(llama, "full", tmp_path / "run", "--max-steps", "1"))
    found = json.loads((tmp_path / "run" / "finetune.json").read_text())
    assert (code, found["defence"]) == (0, None)
    assert found["update"]["shares"]["embeddings"] > 0
    assert "utility loss" not in printed


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--refresh", "2"), "--refresh: expected --defend, or --skill to measure only, with it, got 2"),
        (("--probe-memory", "1"), "--probe-memory: expected --defend"),
        (("--defend", "budget"), "--max-utility-loss: expected the budget in nats a response with --defend budget"),
        (("--defend", "budget", "--max-utility-loss", "0"), "--max-utility-loss: expected a positive number of nats"),
        (("--defend", "tracked", "--max-utility-loss", "1"), "--max-utility-loss: expected --defend budget with it"),
        (("--defend", "static", "--refresh", "2"), "--refresh: expected --defend tracked or budget with it"),
        (("--defend", "none", "--skill", "refusals", "--rank", "3"), "--rank: expected --defend static, tracked or"),
        (("--defend", "budget", "--max-utility-loss", "1", "--measure-every", "2"), "--measure-every: expected none"),
        (("--defend", "tracked", "--refresh", "0"), "--refresh: expected a whole number from 1, got 0"),
        (("--defend", "tracked", "--rank", "49"), "--rank: expected 1 to 48, the number of responses of the probe"),
        (("--defend", "tracked", "--num-skill", "0"), "--num-skill: expected a whole number from 1, got 0"),
        (("--defend", "most"), "--defend"),
        (("--defend", "static", "--skill", "{place}/skill.jsonl"), "--skill: skill has 8 usable rows, but 96 were"),
        (("--defend", "static", "--skill", "nowhere.jsonl"), "--skill: data file nowhere.jsonl does not exist"),
    ],
)
def test_bad_input_is_one_line(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], message: str
) -> None:
    more = tuple(word.format(place=llama) for word in more)
    code, _, told = finetune(capsys, *finetune_options(llama, "lora", tmp_path / "run", *more))
    assert code == 2
    line = told.splitlines()[-1]
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "run" / "finetune.json").exists()


def test_the_plan_of_the_options() -> None:
    assert DefenceOptions().defence is None
    watching = DefenceOptions(skill="mine.jsonl", num_skill=3).defence
    assert watching is not None
    assert (watching.kind, watching.skill, watching.num_skill, watching.refresh) == ("none", "mine.jsonl", 3, 1)
    budget = DefenceOptions(defend="budget", max_utility_loss=1.0)
    budget.check()
    assert budget.defence is not None
    assert budget.defence.measure_every == 1
    tracked = DefenceOptions(defend="tracked").defence
    assert tracked is not None
    assert tracked.skill == "refusals"
    with pytest.raises(UserError, match="held-out"):
        DefenceOptions(defend="tracked", held_out=-1).check()


def test_the_training_rows_do_not_depend_on_the_defence(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first loss and the rows are those of a plain run: the probe draws no random number of the training's."""
    plain = finetune(capsys, *finetune_options(llama, "lora", tmp_path / "plain"))[0]
    watched = finetune(capsys, *finetune_options(llama, "lora", tmp_path / "none", *defence_options(llama, "none")))[0]
    assert (plain, watched) == (0, 0)
    both = [json.loads((tmp_path / name / "finetune.json").read_text()) for name in ("plain", "none")]
    assert both[0]["losses"] == both[1]["losses"]
    files = [tmp_path / name / "adapter" / "adapter_model.safetensors" for name in ("plain", "none")]
    assert files[0].read_bytes() == files[1].read_bytes()
