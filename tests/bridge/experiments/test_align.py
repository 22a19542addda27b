"""`bridge.align`: when it stops, what it writes, installs and says, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bridge import align
from bridge.data.chat import ChatFormat
from bridge.data.rows import Row, load_prompts
from bridge.evaluation.refusals import RefusalRate, is_refusal
from bridge.experiments.align import run as align_run
from bridge.experiments.align import settings as align_settings
from bridge.experiments.align.counts import Answer, Count, Watch, answers_of, count_of
from bridge.experiments.align.report import advice, headline
from bridge.experiments.align.result import BENIGN, UNSAFE, AlignResult, Goal, Rate, Verdict
from bridge.experiments.session import Lent
from bridge.generation.generate import Response, generate_texts
from bridge.models.built import built_folder, read_note
from bridge.models.load import load_model
from bridge.models.names import resolve
from tests.bridge.support.tiny_aligns import UNSAFE as UNSAFE_ROWS
from tests.bridge.support.tiny_aligns import align_options, make_align_workplace
from tests.bridge.support.tiny_runs import write_rows
from tests.in_process import run_module
from theory.proportions import wilson_interval

ROOT = Path(__file__).parents[3]


def run_align(arguments: list[str]) -> int:
    """Run the command in this process as `python -m bridge.align` does; returns its exit code."""
    return run_module("bridge.align", *arguments).code


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_align_workplace(tmp_path_factory.mktemp("align"))


@pytest.fixture(scope="module")
def module_cache(place: Path) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALIGNMENT_COLLAPSE_CACHE", str(place / "cache"))
        yield place / "cache"


@pytest.fixture(scope="module")
def done(place: Path, module_cache: Path) -> Path:
    """The folder of a run that reached its goal."""
    assert run_align(align_options(place)) == 0
    return place / "run"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ALIGNMENT_COLLAPSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def result(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "align.json").read_text())
    return found


def answers(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "responses.jsonl").read_text().splitlines()]


# ---- the stopping rule


def made_count(step: int, unsafe: tuple[int, int], benign: tuple[int, int]) -> list[Answer]:
    found = []
    for kind, (refused, total) in ((UNSAFE, unsafe), (BENIGN, benign)):
        texts = ["I can't help with that."] * refused + ["Sure."] * (total - refused)
        found += [Answer(step, kind, 1, "?", text, True, text != "Sure.", None) for text in texts]
    return found


@pytest.mark.parametrize(
    ("unsafe", "benign", "reached"),
    [
        ((54, 60), (4, 40), True),  # 90 % and 10 % just so
        ((53, 60), (0, 40), False),
        ((60, 60), (5, 40), False),
        ((60, 60), (0, 40), True),
        ((7, 10), (0, 3), False),
    ],
)
def test_the_goal(unsafe: tuple[int, int], benign: tuple[int, int], reached: bool) -> None:
    count = count_of(3, made_count(3, unsafe, benign))
    assert (count.unsafe.refused, count.unsafe.total) == unsafe
    assert (count.benign.refused, count.benign.total) == benign
    assert (count.unsafe.low, count.unsafe.high) == wilson_interval(*unsafe)
    assert Goal(0.9, 0.1).reached(count.unsafe, count.benign) is reached


def test_no_goal_is_missed_by_rounding() -> None:
    def rate(refused: int, total: int) -> RefusalRate:
        return RefusalRate(refused, total, 0.0, 1.0)

    for total in range(1, 70):
        for percent in range(1, 100):
            least, most = -(-percent * total // 100), percent * total // 100  # in whole numbers
            goal = Goal(percent / 100, percent / 100)
            assert goal.reached(rate(least, total), rate(most, total)), (percent, total)
            assert not goal.reached(rate(least - 1, total), rate(most, total)), (percent, total)
            assert not goal.reached(rate(least, total), rate(most + 1, total)), (percent, total)


class Script:
    """A model whose refusals are known: how many of 10 unsafe and of 10 benign prompts it refuses at a step."""

    def __init__(self, by_step: Mapping[int, tuple[int, int]]) -> None:
        self.by_step, self.asked = by_step, []

    def __call__(self, step: int, model: Any) -> list[Answer]:
        self.asked.append(step)
        unsafe, benign = self.by_step[step]
        return made_count(step, (unsafe, 10), (benign, 10))


def make_watch(script: Script, folder: Path, told: list[Count] | None = None) -> Watch:
    steps, goal = (0, 4, 8, 12, 14), Goal(0.9, 0.1)
    tell = (lambda count: None) if told is None else told.append
    return Watch(steps, script, goal, lambda step: folder / f"count-{step}.json", tell)


def test_counts_at_its_steps_and_stops_when_both_shares_are_as_wanted(tmp_path: Path) -> None:
    script = Script({0: (0, 0), 4: (10, 6), 8: (8, 0), 12: (9, 1), 14: (10, 0)})
    told: list[Count] = []
    watch = make_watch(script, tmp_path, told)
    stops = [step for step in range(15) if watch(step, None)]
    assert stops == [12, 14]
    assert script.asked == [0, 4, 8, 12, 14]
    assert [(c.step, c.unsafe.refused, c.benign.refused) for c in told] == [
        (0, 0, 0), (4, 10, 6), (8, 8, 0), (12, 9, 1), (14, 10, 0),
    ]  # fmt: skip
    assert [count.step for count in watch.counts(12)] == [0, 4, 8, 12]


def test_what_was_counted_is_not_asked_again(tmp_path: Path) -> None:
    known = {0: (0, 0), 4: (10, 6), 8: (9, 0)}
    first = Script(known)
    watch = make_watch(first, tmp_path)
    assert not watch(0, None)
    assert not watch(4, None)
    second = Script({**known, 4: (10, 0)})  # would stop at once, if it were asked
    again = make_watch(second, tmp_path)
    assert not again(4, None)
    assert again(8, None)
    assert second.asked == [8]
    assert again.counts(8)[:2] == watch.counts(4)


def test_answers_are_recorded_with_what_they_answer() -> None:
    prompts = [
        Row(({"role": "system", "content": "be kind"}, {"role": "user", "content": "one"}), "f", 3),
        Row(({"role": "user", "content": "two"}, {"role": "assistant", "content": "given"}), "f", 7),
    ]
    given = [Response("I won't say that.", (1,), True), Response("Yes", (2,), False)]
    found = [asdict(answer) for answer in answers_of(5, UNSAFE, prompts, given)]
    match = is_refusal("I won't say that.")
    assert match is not None
    assert found == [
        {"step": 5, "set": UNSAFE, "line": 3, "prompt": "one", "response": "I won't say that.", "finished": True,
         "refused": True, "pattern": match.pattern},
        {"step": 5, "set": UNSAFE, "line": 7, "prompt": "two", "response": "Yes", "finished": False,
         "refused": False, "pattern": None},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "batch", "every", "steps"),
    [
        (16, 4, 3, [0, 3, 6, 8]),
        (16, 4, 4, [0, 4, 8]),
        (17, 4, 5, [0, 5, 10]),
        (16, 4, 100, [0, 8]),
        (3, 8, 1, [0, 1, 2]),
    ],
)
def test_when_refusals_are_counted(place: Path, rows: int, batch: int, every: int, steps: list[int]) -> None:
    settings = tiny_settings(place, eval_every=every, epochs=2, batch_size=batch)
    assert align_run.count_steps(rows, settings) == steps


def tiny_settings(place: Path, eval_every: int, epochs: int, batch_size: int) -> align_settings.Settings:
    return align_settings.Settings(
        model=str(place / "model"), eval_every=eval_every, epochs=epochs, batch_size=batch_size, learning_rate=1e-3
    )


# ---- a run that reaches its goal


def test_its_files(done: Path) -> None:
    names = {"manifest.json", "settings.toml", "samples.jsonl", "align.json", "responses.jsonl", "delta.json"}
    assert {p.name for p in done.iterdir()} == {*names, "delta.safetensors", "model", "trajectory.png", "report.html"}
    assert (done / "trajectory.png").read_bytes().startswith(b"\x89PNG")
    manifest = json.loads((done / "manifest.json").read_text())
    assert manifest["status"] == "complete"
    assert manifest["settings"]["plan"]["scheduler"] == "constant_with_warmup"


def test_stops_at_the_first_count_that_is_as_wanted(done: Path) -> None:
    found = result(done)
    *earlier, last = found["trajectory"]
    assert found["verdict"]["reached"]
    assert found["verdict"]["step"] == found["steps"] == last["step"] < 20
    assert [e["step"] for e in found["trajectory"]] == list(range(0, last["step"] + 1, 3))
    for entry in found["trajectory"]:
        as_wanted = entry["refusals"]["refused"] >= 3 and entry["benign"]["refused"] == 0
        assert as_wanted == (entry is last)
        assert (entry["refusals"]["total"], entry["benign"]["total"]) == (4, 3)
    assert earlier[0]["mean_loss"] is None
    for before, entry in zip(found["trajectory"], found["trajectory"][1:], strict=False):
        assert entry["mean_loss"] == pytest.approx(np.mean(found["losses"][before["step"] : entry["step"]]), rel=1e-12)
        assert entry["epoch"] == pytest.approx(entry["step"] / 4)  # 16 rows in batches of 4


def test_the_counts_are_those_of_the_answers(done: Path) -> None:
    found, kept = result(done), answers(done)
    assert len(kept) == 7 * len(found["trajectory"])
    for entry in found["trajectory"]:
        for name in (UNSAFE, BENIGN):
            mine = [a for a in kept if a["set"] == name and a["step"] == entry["step"]]
            assert sum(a["refused"] for a in mine) == entry[name]["refused"]
            assert [a["refused"] for a in mine] == [is_refusal(a["response"]) is not None for a in mine]
    assert [a["prompt"] for a in kept if a["set"] == UNSAFE and a["step"] == 0] == [q for q, _ in UNSAFE_ROWS]


def test_the_model_gives_the_last_answers_and_the_base_the_first(place: Path, done: Path) -> None:
    last = result(done)["steps"]
    for folder, step in ((done / "model", last), (place / "model", 0)):
        loaded = load_model(str(folder), device="cpu")
        chat = ChatFormat(loaded.tokenizer)
        for name, file in ((UNSAFE, "unsafe.jsonl"), (BENIGN, "safe.jsonl")):
            prompts = load_prompts(str(place / file)).rows
            found = generate_texts(loaded, chat, prompts, max_new_tokens=9, batch_size=1)
            kept = [a["response"] for a in answers(done) if a["set"] == name and a["step"] == step]
            assert [r.text for r in found] == kept


def test_the_change_is_the_models_difference(place: Path, done: Path) -> None:
    before, after = (load_file(f / "model" / "model.safetensors") for f in (place, done))
    change = load_file(done / "delta.safetensors")
    assert set(change) == set(before)
    square = 0.0
    for name, found in change.items():
        torch.testing.assert_close(found, after[name] - before[name], rtol=0, atol=1e-7)
        square += float(found.double().square().sum())
    record = json.loads((done / "delta.json").read_text())
    base = load_model(str(place / "model"), device="cpu").weights_hash
    assert record["base"] == {"name": str(place / "model"), "weights_sha256": base}
    assert record["squared_norm"] == pytest.approx(square, rel=1e-12)
    assert result(done)["update"]["norm"] == pytest.approx(square**0.5, rel=1e-12)


def test_the_model_is_installed_under_its_name(done: Path) -> None:
    assert resolve("model-refusal").location == str(built_folder("model-refusal"))
    by_name, by_folder = (load_model(n, device="cpu") for n in ("model-refusal", str(done / "model")))
    assert by_name.weights_hash == by_folder.weights_hash
    note = read_note("model-refusal")
    assert note is not None
    assert note["verdict"] == result(done)["verdict"]
    assert note["folder"] == str(done)


def test_the_report_is_whole_and_escaped(done: Path) -> None:
    page = (done / "report.html").read_text()
    assert "Reached after" in page
    assert "data:image/png;base64," in page
    assert "<script" not in page
    assert "&lt;script&gt;bad&lt;/script&gt;" in page
    assert "http" not in page.replace("http-equiv", "")


def test_the_result_is_read_back_as_it_was_written(done: Path) -> None:
    found = AlignResult.read(done)
    assert found.to_dict() == result(done)
    assert list(found.to_frame()["step"]) == [entry.step for entry in found.trajectory]
    assert "harmless refused" in found._repr_html_()
    assert found.plot().startswith(b"\x89PNG")


def test_the_settings_of_a_run_replay_it(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_align(["--settings", str(done / "settings.toml"), "--out", str(done)]) == 0
    assert "complete already" in capsys.readouterr().err


def test_what_a_manifest_holds_of_the_settings() -> None:
    """The keys of before there was one class of options, so that older folders are gone on with."""
    settings = align_settings.Settings()
    found = settings.identity()
    assert set(found) == {
        "model", "refusals", "benign", "benign_share", "heldout_refusals", "heldout_benign", "target_refusals",
        "limit_benign", "eval_every", "eval_batch_size", "max_new_tokens", "max_length", "plan", "device",
        "skip_bad_rows",
    }  # fmt: skip
    assert found["plan"] == asdict(settings.plan)


def test_in_memory_nothing_is_written_or_installed(place: Path, done: Path, cache: Path) -> None:
    options = {
        "model": str(place / "model"), "refusals": str(place / "refuse.jsonl"), "benign": str(place / "answer.jsonl"),
        "heldout_refusals": str(place / "unsafe.jsonl"), "heldout_benign": str(place / "safe.jsonl"),
        "benign_share": 0.5, "learning_rate": 0.01, "batch_size": 4, "eval_every": 3, "eval_batch_size": 2,
        "max_new_tokens": 9, "max_length": 64, "target_refusals": 0.7, "device": "cpu",
    }  # fmt: skip
    settings = align_settings.Settings.read(options)
    assert align_run.run(settings, quiet=True, lent=Lent(in_memory=True)) == AlignResult.read(done)
    assert not cache.exists()


def test_complete_already(place: Path, done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p: p.stat().st_mtime_ns for p in done.rglob("*")}
    assert run_align(align_options(place)) == 0
    shown = capsys.readouterr()
    assert "complete already" in shown.err
    assert "Reached after" in shown.out
    assert "every command takes --model model-refusal" in shown.out
    assert {p: p.stat().st_mtime_ns for p in done.rglob("*")} == before


def test_complete_but_not_installed_is_installed(place: Path, done: Path, cache: Path) -> None:
    """Killed between the last two steps, or the cache deleted since."""
    assert not built_folder("model-refusal").exists()
    assert run_align(align_options(place)) == 0
    assert resolve("model-refusal").location.startswith(str(cache))


def test_under_another_name(place: Path, done: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_align(align_options(place, "--name", "mine")) == 0
    assert "--model mine" in capsys.readouterr().out
    assert resolve("mine").kind == "folder"


def test_another_run_does_not_take_its_name(
    place: Path, done: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_align(align_options(place)) == 0
    first = read_note("model-refusal")
    other = [*align_options(place, "--seed", "1", out=tmp_path / "other")]
    capsys.readouterr()
    assert run_align(other) == 2
    assert "give --replace" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()  # refused before any training
    assert run_align([*other, "--replace"]) == 0
    second = read_note("model-refusal")
    assert first is not None
    assert second is not None
    assert second["run"] != first["run"]
    assert second["folder"] == str(tmp_path / "other")


# ---- LoRA


def test_lora_is_merged_into_a_normal_model(place: Path, cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "lora"
    more = ("--method", "lora", "--learning-rate", "0.1", "--epochs", "2", "--lora-alpha", "16")
    assert run_align(align_options(place, *more, out=out)) in (0, align.NOT_REACHED)
    assert not (out / "delta.safetensors").exists()
    config = json.loads((out / "adapter" / "adapter_config.json").read_text())
    scale = config["lora_alpha"] / config["r"]
    factors = load_file(out / "adapter" / "adapter_model.safetensors")
    before, after = (load_file(f / "model" / "model.safetensors") for f in (place, out))
    moved = 0
    for name, weight in before.items():
        pair = [factors.get(f"base_model.model.{name.removesuffix('.weight')}.lora_{k}.weight") for k in "BA"]
        expected = weight if pair[0] is None else weight + scale * pair[0] @ pair[1]
        moved += pair[0] is not None
        torch.testing.assert_close(after[name], expected, rtol=1e-5, atol=1e-6)
    assert moved == 14
    loaded = load_model(str(out / "model"), device="cpu")
    prompts = load_prompts(str(place / "unsafe.jsonl")).rows
    found = generate_texts(loaded, ChatFormat(loaded.tokenizer), prompts, max_new_tokens=9)
    last = [a["response"] for a in answers(out) if a["set"] == UNSAFE and a["step"] == result(out)["steps"]]
    assert [r.text for r in found] == last


# ---- a run that does not reach it


def test_says_honestly_that_it_did_not(
    place: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "short"
    for _ in range(2):  # the second time it is complete already
        assert run_align(align_options(place, "--epochs", "1", out=out)) == align.NOT_REACHED
        shown = capsys.readouterr().out
        assert "Not reached in 4 steps, one pass over the rows: 0 of 4 (0 %) held-out unsafe prompts" in shown
        assert "wanted were at least 3 of 4 and at most 0 of 3" in shown
        assert "warning: the goal was not reached: try more --epochs" in shown
        assert "every command takes --model model-refusal" in shown
    found = result(out)
    assert not found["verdict"]["reached"]
    assert [entry["step"] for entry in found["trajectory"]] == [0, 3, 4]
    assert json.loads((out / "manifest.json").read_text())["status"] == "complete"
    assert "Not reached" in (out / "report.html").read_text()
    assert load_model("model-refusal", device="cpu").weights_hash


@pytest.mark.parametrize(
    ("unsafe", "benign", "says"),
    [(5, 9, "rows of more kinds"), (5, 0, "a higher --learning-rate"), (10, 5, "a higher --benign-share")],
)
def test_advice_fits_what_went_wrong(done: Path, unsafe: int, benign: int, says: str) -> None:
    rates = [Rate(k, 10, 0.0, 1.0, k / 10) for k in (unsafe, benign)]
    goal, verdict = Goal(0.9, 0.1), Verdict(False, 8, *rates)
    found = replace(AlignResult.read(done), goal=goal, verdict=verdict, epochs=2.0)
    assert says in advice(found)
    assert f"{unsafe} of 10" in headline(found)
    assert f"{benign} of 10" in headline(found)
    assert "at least 9 of 10 and at most 1 of 10" in headline(found)


# ---- what is refused


def test_a_model_that_refuses_already(
    place: Path, done: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = align_options(place, "--model", str(done / "model"), out=tmp_path / "again")
    assert run_align(arguments) == 2
    assert "already refuses as wanted before any training (refuses 3 of 4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--benign-share", "1"), "--benign-share: expected a share of the rows in [0, 1), got 1.0"),
        (("--target-refusals", "0"), "--target-refusals: expected a share in (0, 1], got 0.0"),
        (("--limit-benign", "1"), "--limit-benign: expected a share in [0, 1), got 1.0"),
        (("--eval-every", "0"), "--eval-every: expected a whole number from 1, got 0"),
        (("--eval-batch-size", "0"), "--eval-batch-size: expected a whole number from 1"),
        (("--max-new-tokens", "0"), "--max-new-tokens: expected a whole number from 1"),
        (("--epochs", "0"), "--epochs: expected a whole number from 1"),
        (("--name", "a/b"), "--name: expected lower-case letters"),
        (("--name", "qwen3-1.7b"), "--name: qwen3-1.7b is the alias of another model"),
        (("--refusals", "refusal"), "did you mean refusals"),
        (("--heldout-benign", "benign-held"), "did you mean benign-heldout"),
        (("--model", "smollm"), "unknown model 'smollm'"),
        (("--max-new-tokens", "60"), "which leaves no room for 60 new ones"),
    ],
)
def test_wrong_input_is_one_line(
    place: Path, cache: Path, tmp_path: Path, more: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_align(align_options(place, *more, out=tmp_path / "out")) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    assert says in line


@pytest.mark.parametrize(
    ("option", "trained", "line"), [("heldout-benign", "refusals", 2), ("heldout-refusals", "benign", 3)]
)
def test_prompts_that_are_trained_on_are_not_held_out(
    place: Path, tmp_path: Path, option: str, trained: str, line: int, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [("good b?", "no"), ("bad aa?", "yes") if trained == "refusals" else ("a", "b"), ("good aa!", "no")]
    both = write_rows(tmp_path / "both.jsonl", rows[:line])
    assert run_align(align_options(place, f"--{option}", both, out=tmp_path / "out")) == 2
    shown = capsys.readouterr().err.splitlines()[-1]
    assert f"--{option}: expected prompts that are not trained on, but 1 are in --{trained} too" in shown
    assert f"both.jsonl, line {line}" in shown


def test_the_options_import_nothing_heavy() -> None:
    code = "import sys, bridge.align; print({'torch', 'transformers', 'trl', 'matplotlib'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "set()"
