"""`python -m bridge.overlap` on tiny models: its folder, its numbers, its errors, and runs that are killed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bridge.deltas.open import open_delta
from bridge.experiments.labels import labelled_deltas
from bridge.experiments.overlap import run as overlap_run
from bridge.experiments.overlap.assembly import rank_changes
from bridge.experiments.overlap.report import readings, verdict
from bridge.experiments.overlap.result import ChangeOverlap, Mean, OverlapResult, WholeMotion
from bridge.experiments.overlap.settings import Settings
from bridge.experiments.session import Lent
from bridge.models.load import load_model
from commands.cli import INTERRUPTED
from commands.errors import UserError
from tests.bridge.support.kill_server import survived
from tests.bridge.support.tiny_deltas import adapted, save_adapter
from tests.bridge.support.tiny_overlaps import COMPARED, make_changes, overlap_options
from tests.bridge.support.tiny_runs import SCRIPT, save_chat_model
from tests.in_process import run_module
from theory.overlap_score import OverlapScore


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_changes(tmp_path_factory.mktemp("overlap"))


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    return run_module("bridge.overlap", *arguments).code


@pytest.fixture(scope="module")
def finished(place: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        assert command(patch, *overlap_options(place, place / "run")) == 0
    return place / "run"


def read(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "overlap.json").read_text())
    return found


def error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of an error; nothing is left behind."""
    code = command(monkeypatch, *arguments)
    out, err = capsys.readouterr()
    last = err.strip().splitlines()[-1]
    assert code == 2
    assert last.startswith("error: ")
    assert "Traceback" not in err + out
    return last


# ------------------------------------------------------------------------------------------------ a run


def test_the_folder_holds_what_it_should(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert names == {"manifest.json", "settings.toml", *COMPARED} - {"refusals.jsonl"}
    assert json.loads((finished / "manifest.json").read_text())["status"] == "complete"


def test_the_numbers_hang_together(finished: Path) -> None:
    found = read(finished)
    arrays = np.load(finished / "statistics.npz")
    modules = list(found["deltas"]["full"]["blocks"])
    for label, entry in found["deltas"].items():
        first = sum(arrays[f"{name}/{label}"] for name in modules)
        joint = entry["joint"]
        assert joint["raw"] == pytest.approx(np.mean(first**2), rel=1e-9)
        assert joint["normalised"] == pytest.approx(joint["raw"] / joint["squared_norm"])
        own = [np.mean(arrays[f"{name}/{label}"] ** 2) for name in modules]
        assert entry["sum_of_modules"] == pytest.approx(sum(own), rel=1e-9)
        assert entry["cross_module_share"] == pytest.approx(1 - sum(own) / joint["raw"], rel=1e-6)
        assert entry["utility_loss"]["mean"] == pytest.approx(np.mean(arrays[f"utility_loss/{label}"]))
        assert entry["utility_loss"]["mean"] > 0
    lora = found["deltas"]["adapter"]
    assert lora["kind"] == "lora"
    assert lora["squared_norm_share"] == pytest.approx(1.0)  # q_proj and down_proj are all it moves
    assert lora["all_parameters"]["overlap_score"]["mean"] == pytest.approx(lora["joint"]["raw"], rel=1e-3)
    assert found["deltas"]["full"]["squared_norm_share"] < 1  # embeddings and norms moved too


def test_a_small_change_costs_half_its_exact_score(finished: Path) -> None:
    full = read(finished)["deltas"]["full"]
    half = full["all_parameters"]["overlap_score_exact"]["mean"] / 2
    assert full["utility_loss"]["mean"] == pytest.approx(half, rel=0.15)


def test_the_result_is_read_back_as_it_was_written(finished: Path) -> None:
    result = OverlapResult.read(finished)
    assert result.to_dict() == read(finished)
    assert list(result.to_frame()["change"]) == ["full", "adapter"]
    assert "exact over tokens" in result._repr_html_()
    assert result.plot("damage").startswith(b"\x89PNG")


def test_the_settings_of_a_run_replay_it(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(overlap_run, "_measure", lambda *_, **__: pytest.fail("computed again"))
    assert command(monkeypatch, "--settings", str(finished / "settings.toml"), "--out", str(finished)) == 0
    assert "complete already" in capsys.readouterr().err


def test_a_run_in_memory_gives_the_same_and_leaves_nothing(
    place: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings(
        model=str(place / "model"), skill=str(place / "skill.jsonl"), num_skill=6, max_new_tokens=6, max_length=64,
        delta={"full": str(place / "full.safetensors"), "adapter": str(place / "adapter")}, rank=3, bootstrap=20,
        batch_size=3, device="cpu",
    )  # fmt: skip
    found = overlap_run.run(settings, quiet=True, lent=Lent(in_memory=True))
    assert found.to_dict() == read(finished)
    assert not list(tmp_path.iterdir())


def test_the_page_shows_text_as_text(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert SCRIPT not in page
    assert page.count("data:image/png;base64,") == 3


def test_the_same_command_again_computes_nothing(
    place: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.read_bytes() for p in finished.iterdir()}
    monkeypatch.setattr(overlap_run, "_measure", lambda *_, **__: pytest.fail("computed again"))
    assert command(monkeypatch, *overlap_options(place, finished)) == 0
    assert "complete already" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in finished.iterdir()} == before


def test_another_change_under_the_same_name_is_another_run(
    place: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    other = save_adapter(
        adapted(load_model(str(place / "model"), device="cpu").model, ["q_proj", "down_proj"], seed=9, r=2),
        tmp_path / "adapter",
    )
    options = [*overlap_options(place, tmp_path / "run")]
    options[options.index(str(place / "adapter"))] = str(other)
    assert "holds another run" in error(monkeypatch, capsys, *options)


def test_changes_in_another_order_are_another_run(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Checkpoints number the changes: resumed in another order, each would be given another's numbers."""
    full, adapter = f"full={place / 'full.safetensors'}", str(place / "adapter")
    forth = overlap_options(place, tmp_path / "run")
    swap = {full: adapter, adapter: full}

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(overlap_run, "assemble", interrupt)
        assert command(patch, *forth) == INTERRUPTED
    assert "order" in error(monkeypatch, capsys, *(swap.get(text, text) for text in forth))


def test_other_prompts_are_another_run(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "how?"}\n')
    options = overlap_options(place, tmp_path / "run", "--refusals", str(prompts), "--no-utility-loss")
    assert command(monkeypatch, *options) == 0
    prompts.write_text('{"prompt": "why?"}\n')
    assert "refusals_sha256" in error(monkeypatch, capsys, *options)


def test_refusals_are_counted_before_and_after(place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    options = overlap_options(place, tmp_path / "run", "--refusals", str(place / "prompts.jsonl"), "--no-utility-loss")
    assert command(monkeypatch, *options) == 0
    found = read(tmp_path / "run")
    assert found["base_refusals"]["total"] == 3
    lines = [json.loads(line) for line in (tmp_path / "run" / "refusals.jsonl").read_text().splitlines()]
    assert [line["change"] for line in lines] == ["base"] * 3 + ["full"] * 3 + ["adapter"] * 3
    assert {line["prompt"] for line in lines} == {"how?", "do xx?", "why do that"}
    assert all("utility_loss" not in entry for entry in found["deltas"].values())


def test_the_difference_of_two_folders_is_the_change(
    place: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A moved model's folder in the place of the file of its change gives the same numbers."""
    loaded = load_model(str(place / "model"), device="cpu")
    delta = open_delta(place / "full.safetensors", loaded)
    with torch.no_grad():
        for name, parameter in loaded.model.named_parameters():
            parameter.add_(delta.dense(name))
    shutil.copytree(place / "model", tmp_path / "moved")
    loaded.model.save_pretrained(tmp_path / "moved")
    options = overlap_options(place, tmp_path / "run", "--no-utility-loss")
    options[options.index(f"full={place / 'full.safetensors'}")] = f"full={tmp_path / 'moved'}"
    assert command(monkeypatch, *options) == 0
    first, second = (read(run)["deltas"]["full"] for run in (tmp_path / "run", finished))
    assert first["joint"]["raw"] == pytest.approx(second["joint"]["raw"], rel=1e-3)


def test_derivatives_that_overflow_are_an_error(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(overlap_run, "first_order", lambda *_: {"first": np.zeros(3), "variance": np.full(3, np.inf)})
    message = error(monkeypatch, capsys, *overlap_options(place, tmp_path / "run"))
    assert "finite derivatives of the logits along full" in message


@pytest.mark.parametrize(
    ("half", "measured", "dtype", "words"),
    [
        (1.0, 1.1, "float32", "tells the damage"),
        (3.0, 1.0, "bfloat16", "3 times the damage: the change is too large for it"),
        (0.1, 1.0, "float32", "0.1 times the damage: the change is too large for it"),
        (0.1, 1.0, "bfloat16", "too large for it, or too small for bfloat16, whose rounding is measured too"),
        (0.1, 0.0, "bfloat16", "lost in the rounding of bfloat16"),
    ],
)
def test_what_is_said_of_the_damage(half: float, measured: float, dtype: str, words: str) -> None:
    assert verdict(half, measured, dtype).endswith(words)


def change(size: float, loss: float) -> ChangeOverlap:
    """A change of these numbers, that tells nothing against random ones."""
    joint = OverlapScore("sampled", 6, 10, 1, size, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, None, None, {})
    mean = Mean(-size, None, None)
    motion = WholeMotion(mean, mean, mean)
    lost = Mean(loss, None, None)
    return ChangeOverlap("here", "full", size, 1.0, joint, None, size**2, None, motion, {}, {}, lost, lost)


def test_losses_that_are_all_the_same_rank_nothing() -> None:
    """As of changes that are lost in rounding: a correlation would be NaN, which no JSON holds."""
    same, different = (rank_changes([change(size, size * loss) for size in (1.0, 2.0, 3.0)]) for loss in (0.0, 1.0))
    assert same is not None
    assert different is not None
    assert set(same.with_utility_loss.values()) == {None}
    assert different.with_utility_loss == {
        "norm of the change": 1.0, "score": 1.0, "score exact over tokens": -1.0, "score per squared norm": None,
        "score against random": None, "sum of the modules' scores": 1.0,
    }  # fmt: skip


def test_three_changes_are_ranked_in_words() -> None:
    changes = {f"c{size}": change(size, size) for size in (1.0, 2.0, 3.0)}
    ranking = rank_changes(list(changes.values()))
    result = OverlapResult("m", "refusals", "sampled", "float32", 6, 10, 1, ranking, changes)
    assert "over 3 changes (Spearman): norm of the change 1.00, score 1.00" in readings(result)[-1]


# --------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (["nothing/here"], "no such change of weights: nothing/here"),
        (["a=nothing"], "no such change of weights: nothing"),
        (["a=.", "a=."], "different labels"),
        (["gram=."], "a label of letters"),
        (["base=."], "other than gram and base"),
        (["a:b=."], "a label of letters"),
    ],
)
def test_labels_that_cannot_be(specs: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        labelled_deltas(specs)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--rank", "7"], "--rank: expected at most 6"),
        (["--num-skill", "0"], "--num-skill: expected a whole number from 1"),
        (["--skill", "refusal"], "did you mean refusals"),
        (["--estimator", "guess"], "estimator"),
        (["--draws", "2", "--fisher", "empirical"], "--draws: expected 1"),
        (["--modules", "nothing_like_it"], "--modules: no linear module"),
        (["--refusals", "no-such-set"], "--refusals: unknown data set"),
        (["--refusals", "refusals-heldout"], "lower --max-new-tokens"),
    ],
)
def test_options_that_cannot_be(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, more: list[str],
    message: str,
) -> None:  # fmt: skip
    assert message in error(monkeypatch, capsys, *overlap_options(place, tmp_path / "run", *more))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("label", "message"), [("gram", "a label of letters"), ("a", "no such change of weights")])
def test_changes_in_a_table_are_checked_like_those_of_a_command_line(label: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Settings(delta={label: "nothing/here"}).check()


def test_without_a_change(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--delta: expected a change of weights" in error(monkeypatch, capsys, "--model", "smollm2-135m")


def test_an_adapter_of_another_model_is_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    save_chat_model(tmp_path / "gpt2", "gpt2")
    out = tmp_path / "run"
    message = error(monkeypatch, capsys, *overlap_options(place, out, "--model", str(tmp_path / "gpt2")))
    assert "another model" in message
    assert not out.exists()


def test_a_change_that_is_zero_is_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = overlap_options(place, tmp_path / "run", "--delta", f"same={place / 'model'}")
    assert "did not move" in error(monkeypatch, capsys, *options)


# ---------------------------------------------------------------------------------------------- killed


def test_a_killed_run_goes_on_to_the_same_result(place: Path) -> None:
    assert len(survived(place, "overlap")) > 10


# ---------------------------------------------------------------------------------------- random signs


def test_random_signs_stand_beside_the_exact_scores(
    place: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = {}
    for dim in (64, 4096):
        options = overlap_options(place, tmp_path / str(dim), "--estimator", "rademacher", "--dim", str(dim))
        assert command(monkeypatch, *options, "--no-utility-loss") == 0
        found[dim] = read(tmp_path / str(dim))["deltas"]
    for label, entry in read(finished)["deltas"].items():
        for dim in (64, 4096):
            signs = found[dim][label]["rademacher"]
            assert signs["dim"] == dim
            assert signs["joint"]["exact"] == pytest.approx(entry["joint"]["raw"], rel=1e-9)
            for name in ("joint", "joint_one_projection"):  # five standard deviations of the estimate's own law
                assert abs(signs[name]["estimate"] - signs[name]["mean"]) < 5 * signs[name]["sd"]
            for name, block in signs["blocks"].items():
                assert block["exact"] == pytest.approx(entry["blocks"][name]["raw"], rel=1e-9, abs=1e-300)
        assert found[4096][label]["rademacher"]["joint"]["sd"] < found[64][label]["rademacher"]["joint"]["sd"] / 4
