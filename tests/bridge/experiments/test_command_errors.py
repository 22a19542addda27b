"""What the command says, and leaves behind, when it cannot do what it was asked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bridge.experiments.estimate_aic import run as aic_run
from tests.bridge.support.tiny_models import save_model, tiny_gpt2_model
from tests.bridge.support.tiny_runs import command, make_workplace, options, save_chat_model, write_rows

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workplace(tmp_path_factory.mktemp("errors"), "gpt2")


@pytest.fixture
def fails(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command with more options; returns the one line of its error."""

    def run(*more: str, begun: bool = False) -> str:
        out = tmp_path / "run"
        capsys.readouterr()
        arguments = options(place, "--out", str(out), *more)
        assert command(monkeypatch, *arguments) == 2
        found = capsys.readouterr()
        [line] = found.err.splitlines()
        assert line.startswith("error: ")
        assert found.out == ""
        assert out.exists() == begun  # refused before anything was written, unless only the computation could tell
        return line

    return run


# ---- options


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--rank", "7"), "--rank: expected at most 6, the number of samples"),
        (("--rank", "13", "--draws", "2"), "--rank: expected at most 12"),
        (("--rank", "0"), "--rank: expected a whole number from 1, got 0"),
        (("--rank", "3", "--energy", "0.9"), "--energy: expected one of --rank and --energy, got both"),
        (("--energy", "1.5"), "--energy: expected a share of the trace in (0, 1], got 1.5"),
        (("--energy", "nan"), "--energy: expected a share of the trace in (0, 1], got nan"),
        (("--fisher", "empirical", "--draws", "2"), "--draws: expected 1 with --fisher empirical"),
        (("--num-skill", "0"), "--num-skill: expected a whole number from 1, got 0"),
        (("--num-finetune", "-3"), "--num-finetune: expected a whole number from 1, got -3"),
        (("--batch-size", "0"), "--batch-size: expected"),
        (("--max-length", "1"), "--max-length: expected a whole number from 2, got 1"),
        (("--learning-rate", "0"), "--learning-rate: expected"),
        (("--learning-rate", "nan"), "--learning-rate: expected"),
        (("--learning-rate", "1e300"), "--learning-rate: expected"),
        (("--steps", "9" * 400), "--steps: expected"),
        (("--memory", "-1"), "--memory: expected"),
        (("--bootstrap", "-1"), "--bootstrap: expected"),
        (("--seed", "-1"), "--seed: expected"),
        (("--dtype", "int8"), "float32"),
        (("--device", "tpu"), "unknown device 'tpu': expected cpu, cuda"),
        (("--modules", "no_such"), "--modules: no linear module of the model matches 'no_such'; names look like"),
        (("--modules", "("), "--modules: expected a regular expression, got '(' ("),
        (("--modules", "lm_head"), "--modules: lm_head shares its weight with transformer.wte"),
        (("--num-skill", "9"), "--skill: skill has 8 usable rows, but 9 were asked for"),
        (("--num-finetune", "8"), "--finetune: finetune has 7 usable rows, but 8 were asked for"),
        (("--max-new-tokens", "60"), "since the model has 64 positions and the longest prompt"),
        (("--skill", "refusal"), "unknown data set 'refusal': did you mean refusals or refusals-heldout?"),
        (("--finetune", "missing.jsonl"), "data file missing.jsonl does not exist"),
    ],
)  # fmt: skip
def test_options_that_no_run_can_have(fails: Any, more: tuple[str, ...], says: str) -> None:
    assert says in fails(*more)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_where_there_is_none(fails: Any) -> None:
    assert "--device cuda: PyTorch" in fails("--device", "cuda")


def test_an_unknown_option_is_one_line(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for more in (("--bogus",), ("--rank", "many"), ("--fisher", "true"), ("extra",)):
        assert command(monkeypatch, *options(place, *more)) == 2
        assert capsys.readouterr().err.startswith("error: ")


# ---- models


@pytest.mark.parametrize(("name", "near"), [("smollm2-153m", "smollm2-135m"), ("qwen3-1.7", "qwen3-1.7b")])
def test_an_unknown_model_with_the_nearest_names(fails: Any, name: str, near: str) -> None:
    line = fails("--model", name)
    assert f"unknown model {name!r}" in line
    assert near in line


def test_a_model_without_a_chat_template(fails: Any, tmp_path: Path) -> None:
    save_model(tiny_gpt2_model(), tmp_path / "mute")
    assert "has no chat template: use an instruct model" in fails("--model", str(tmp_path / "mute"))


@pytest.mark.parametrize("fisher", ["sampled", "empirical"])
def test_weights_that_are_not_numbers(fails: Any, tmp_path: Path, fisher: str) -> None:
    def spoil(model: Any) -> None:
        model.transformer.h[1].mlp.c_fc.weight[0, 0] = float("nan")

    save_chat_model(tmp_path / "broken", "gpt2", spoil)
    line = fails("--model", str(tmp_path / "broken"), "--fisher", fisher, begun=True)
    assert ("expected finite logits" if fisher == "sampled" else "expected a finite fine-tuning loss") in line
    assert "look for broken weights" in line
    assert sorted(p.name for p in (tmp_path / "run").iterdir() if p.name != ".partial") in (
        ["manifest.json", "settings.toml"], ["manifest.json", "samples.jsonl", "settings.toml"],
    )  # fmt: skip


def test_rows_longer_than_the_models_positions(fails: Any, tmp_path: Path) -> None:
    """Learned positions end: an index error deep in the model otherwise."""
    rows = tmp_path / "long.jsonl"
    write_rows(rows, [("a" * 20, "b" * 80)] * 6)
    for option in ("--finetune", "--skill"):
        line = fails(option, str(rows), "--max-length", "100", "--fisher", "empirical")
        assert "--max-length: expected at most 64, the positions that the model has" in line
        assert "of 100 tokens" in line


# ---- rows


GOOD = b'{"prompt": "a", "completion": "b"}\n'


@pytest.mark.parametrize(
    ("content", "line", "says"),
    [
        (GOOD + b'{"prompt": "a", "completion"\n', 2, "is not valid JSON"),
        (GOOD + b"\n" + b'{"prompt": "a"}\n', 3, '"completion" is missing'),
        (b'{"prompt": "", "completion": "b"}\n', 1, '"prompt" is empty'),
        (b'{"prompt": "a", "completion": " "}\n', 1, '"completion" is empty'),
        (b'{"text": "a"}\n', 1, 'expected "messages", or "prompt" and "completion"'),
        (b'{"prompt": "\xff", "completion": "b"}\n', 1, "is not UTF-8 text"),
        (b'{"prompt": "' + b"a" * 70 + b'", "completion": "b"}\n', 1, "no response token is left"),
    ],
)
@pytest.mark.parametrize("option", ["--skill", "--finetune"])
def test_bad_rows_name_file_and_line(
    fails: Any, tmp_path: Path, option: str, content: bytes, line: int, says: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content + GOOD * 8)
    count = content.count(b"{") + 8
    shown = fails(option, str(path), f"--num-{option[2:]}", str(count), "--rank", "1")
    assert f"{path}, line {line}" in shown
    assert says in shown


def test_bad_rows_are_left_out_when_asked(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"{\n" + GOOD * 6 + b'{"prompt": "' + b"a" * 70 + b'", "completion": "b"}\n')
    arguments = options(place, "--skill", str(path), "--out", str(tmp_path / "run"), "--skip-bad-rows")
    assert command(monkeypatch, *arguments) == 0
    left_out = [row for row in capsys.readouterr().err.splitlines() if row.startswith("left out: ")]
    assert f"left out: {path}, line 1: is not valid JSON" in left_out[0]


# ---- folders


def test_the_folder_of_another_run(
    place: Path, fails: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "taken"
    assert command(monkeypatch, *options(place, "--out", str(out))) == 0
    capsys.readouterr()
    before = {p: p.read_bytes() for p in out.iterdir()}
    assert "(seed: 0 there, 1 now" in fails("--out", str(out), "--seed", "1")
    rows = place / "skill.jsonl"
    text = rows.read_text()
    rows.write_text(text.replace("how", "who"))
    line = fails("--out", str(out))
    rows.write_text(text)
    assert "skill_sha256: " in line  # the same file name, with another content
    assert {p: p.read_bytes() for p in out.iterdir()} == before


def test_a_folder_of_something_else(fails: Any, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("x")
    assert "which holds thesis.tex and no manifest.json" in fails("--out", str(tmp_path / "home"))
    assert "expected a folder, got the file" in fails("--out", str(tmp_path / "home" / "thesis.tex"))
    assert [p.name for p in (tmp_path / "home").iterdir()] == ["thesis.tex"]


def test_a_complete_run_whose_result_is_gone(
    place: Path, fails: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "emptied"
    assert command(monkeypatch, *options(place, "--out", str(out))) == 0
    capsys.readouterr()
    (out / "aic.json").unlink()
    assert "delete the folder and run again" in fails("--out", str(out))


# ---- memory, interrupts, bugs

OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8589934592 bytes."),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    MemoryError("Unable to allocate 7.28 TiB for an array with shape (1000000, 1000000)"),
]


def raising(error: BaseException) -> Any:
    def stage(*_: Any, **__: Any) -> Any:
        raise error

    return stage


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: str(error)[:20])
@pytest.mark.parametrize("stage", ["measure_update", "measure_output_space"])
def test_out_of_memory_says_what_to_lower(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    stage: str, error: BaseException,
) -> None:  # fmt: skip
    arguments = options(place, "--out", str(tmp_path / "run"))
    with monkeypatch.context() as patch:
        patch.setattr(aic_run, stage, raising(error))
        assert command(patch, *arguments) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == "error: out of memory: lower --batch-size first, then --memory or --max-length"
    assert not (tmp_path / "run" / ".lock").exists()
    assert not (tmp_path / "run" / "aic.json").exists()
    assert command(monkeypatch, *arguments) == 0  # the same command goes on


def test_other_errors_keep_their_traceback(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aic_run, "_measure", raising(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        command(monkeypatch, *options(place, "--out", str(tmp_path / "run")))


def test_an_interrupt_says_how_to_go_on(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(aic_run, "measure_scores", raising(KeyboardInterrupt()))
        assert command(patch, *options(place, "--out", str(tmp_path / "run"))) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "stopped; the same command goes on from here"
    assert (tmp_path / "run" / ".partial" / "velocity.safetensors").exists()


# ---- the command as it is typed


def typed(*arguments: str, flags: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, *flags, "-m", "bridge.estimate_aic", *arguments]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"COLUMNS": "120"})


def imported(importtime: str) -> set[str]:
    return {row.rsplit("|", 1)[1].strip().split(".")[0] for row in importtime.splitlines() if row.count("|") == 2}


def test_help_imports_nothing_heavy() -> None:
    done = typed("--help", flags=("-X", "importtime"))
    assert done.returncode == 0
    for option in ("--model", "--fisher", "--rank", "--energy", "--skip-bad-rows", "--out"):
        assert option in done.stdout
    names = imported(done.stderr)
    assert {"typer", "bridge"} <= names
    assert not names & {"torch", "transformers", "matplotlib", "scipy", "datasets"}


def test_wrong_options_are_told_before_torch_is_imported() -> None:
    for arguments in (("--rank", "0"), ("--model", "no-such-model")):
        done = typed(*arguments, flags=("-X", "importtime"))
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].startswith("error: ")
        assert not imported(done.stderr) & {"torch", "transformers"}


def test_nothing_is_said_beside_the_error_at_the_end_of_the_process(place: Path, tmp_path: Path) -> None:
    done = typed(*options(place, "--out", str(tmp_path / "run"), "--num-finetune", "8"))  # the model has been loaded
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith("error: --finetune")
