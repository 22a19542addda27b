"""`python -m bridge.table1`: no row mixes numbers of different contents, and what no run can use is found at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bridge.suites.stages import Stages
from bridge.suites.table1 import run as table1_run
from tests.bridge.support.tiny_tables import make_table_workplace, table_text
from tests.in_process import run_module


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_table_workplace(tmp_path_factory.mktemp("table"))


def table(patch: pytest.MonkeyPatch, settings: Path, out: Path) -> int:
    return run_module("bridge.table1", "--settings", str(settings), "--out", str(out)).code


def write(place: Path, name: str, edit: Callable[[str], str] = str, second: str = "second.jsonl") -> Path:
    path = place / name
    path.write_text(edit(table_text(place, second).replace('["lora", "full"]', '["lora"]')))
    return path


def rows(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((out / "table1.json").read_text())["rows"]
    return found


@pytest.fixture(scope="module")
def half(place: Path) -> tuple[Path, Path]:
    """Settings and folder of a table whose second set is not there yet."""
    settings = write(place, "half.toml")
    with pytest.MonkeyPatch.context() as patch:
        assert table(patch, settings, place / "half") == 1
    assert [row["status"] for row in rows(place / "half")] == ["done", "failed"]
    return settings, place / "half"


@contextmanager
def changed(path: Path, content: bytes) -> Iterator[None]:
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)


def shorter(path: Path) -> bytes:
    return b"".join(path.read_bytes().splitlines(keepends=True)[:-1])


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("prompts.jsonl", "harmfulness, prompts_sha256: "),
        ("sums.jsonl", "utility, data_sha256: "),
        ("skill.jsonl", "overlap, skill_sha256: "),
        ("finetune.jsonl", "finetune, data_sha256: "),
        ("model/model.safetensors", "harmfulness, base_sha256: "),
    ],
)
def test_rows_of_other_contents_are_refused(
    place: Path, half: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    file: str, says: str,
) -> None:  # fmt: skip
    settings, out = half
    kept = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != "manifest.json"}
    weights = file.endswith(".safetensors")
    other = (place / file).read_bytes()[:-4] + bytes(4) if weights else shorter(place / file)
    with changed(place / file, other):
        assert table(monkeypatch, settings, out) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert f"{out} holds numbers made from other contents" in line
    assert says in line
    assert kept == {path: path.read_bytes() for path in kept}


def test_the_same_contents_go_on(
    place: Path, half: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, out = half
    (place / "second.jsonl").write_bytes((place / "skill.jsonl").read_bytes())
    assert table(monkeypatch, settings, out) == 0
    capsys.readouterr()
    with changed(place / "prompts.jsonl", shorter(place / "prompts.jsonl")):  # a complete table is refused as well
        assert table(monkeypatch, settings, out) == 2
    assert "other contents" in capsys.readouterr().err
    assert table(monkeypatch, settings, out) == 0
    assert "complete already" in capsys.readouterr().err


def test_contents_that_change_on_the_way_fail_the_row(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = table1_run.finetune
    prompts = place / "prompts.jsonl"

    def changing(*given: Any) -> Any:
        found = original(*given)
        prompts.write_bytes(shorter(prompts))
        return found

    monkeypatch.setattr(table1_run, "finetune", changing)
    with changed(prompts, prompts.read_bytes()):
        settings = write(place, "one.toml", lambda text: text.split("[[sets]]")[0] + "[[sets]]" + last_set(text))
        assert table(monkeypatch, settings, tmp_path / "out") == 1
    [row] = rows(tmp_path / "out")
    assert row["status"] == "failed"
    assert "changed while the table was filled (harmfulness, prompts_sha256: " in row["failures"]["contents"]
    assert not list((tmp_path / "out" / "rows").glob("*/row.json"))


def last_set(text: str) -> str:
    return text.split("[[sets]]")[2].replace("second.jsonl", "finetune.jsonl")


# ------------------------------------------------------------------------------------------------ found at once


def replaced(old: str, new: str) -> Callable[[str], str]:
    def edit(text: str) -> str:
        assert text.count(old) == 1
        return text.replace(old, new)

    return edit


USELESS = [
    ('judge = "refusal"', 'judge = "refusal"\npreset = "greedy"', "[harmfulness] --preset: expected one of"),
    (
        'prompts = "{place}/prompts.jsonl"',
        'prompts = "advbensh"',
        "[harmfulness] --prompts: unknown data set 'advbensh'",
    ),
    ('data = "{place}/sums.jsonl"', 'data = "gsm8"', "[utility] --data: unknown data set 'gsm8'"),
    ('skill = "{place}/skill.jsonl"', 'skill = "refusal"', "[overlap] --skill: unknown data set 'refusal'"),
    ("[overlap]\n", '[overlap]\nrefusals = "refusal"\n', "[overlap] --refusals: unknown data set 'refusal'"),
    ("num = 4", "num = -4", "[utility] --num: expected a whole number from 0, got -4"),
    ("seed = 1", "seed = -1", "seed: expected a whole number from 0, got -1"),
    ("rank = 2", "rank = 9", "[overlap] --rank: expected at most 4"),
    ("rows = 4", "rows = -4", "[finetune] --rows: expected a whole number from 0, got -4"),
    ("rows = 3", "epochs = 0.0", "sets, entry 2: --epochs"),
    ("max_steps = 2", 'preset = "greedy"', "[finetune] --preset: expected one of"),
    ("max_steps = 2", 'mix = "gsm8"\nshare = 0.5', "[finetune] --mix: unknown data set 'gsm8'"),
]


@pytest.mark.parametrize(("old", "new", "says"), USELESS)
def test_options_that_no_run_can_have_are_found_first(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    old: str, new: str, says: str,
) -> None:  # fmt: skip
    settings = write(place, "useless.toml", replaced(old.format(place=place), new))
    assert table(monkeypatch, settings, tmp_path / "out") == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"error: --settings {settings}: ")
    assert says in line
    assert not (tmp_path / "out").exists()


def test_a_set_that_every_model_is_measured_on_must_be_there(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = write(place, "nowhere.toml", replaced("sums.jsonl", "nowhere.jsonl"))
    assert table(monkeypatch, settings, tmp_path / "out") == 2
    assert "error: [utility] --data: data file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_measures_that_are_refused_before_stop_the_rows(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    original = Stages.step

    def step(stages: Stages, name: str, action: Any) -> Any:
        asked.append(name)
        return original(stages, name, action)

    monkeypatch.setattr(Stages, "step", step)
    settings = write(place, "many.toml", replaced("num = 4", "num = 400"), "skill.jsonl")
    assert table(monkeypatch, settings, tmp_path / "out") == 1
    assert asked == ["harmfulness", "utility"]
    for row in rows(tmp_path / "out"):
        assert row["status"] == "failed"
        assert list(row["failures"]) == ["utility before"]
        assert "--num" in row["failures"]["utility before"]
        assert "refusals" in row["before"]
