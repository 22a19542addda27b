"""`python -m bridge.table1`: its settings, its rows, what fails, and what goes on."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from bridge.data.sets import NAMED_SETS
from bridge.models import built as built_models
from bridge.suites.measures import Measure, shown
from bridge.suites.stages import Stages
from bridge.suites.table1 import run as table1_run
from bridge.suites.table1 import settings as table1_settings
from bridge.suites.table1.report import markdown
from bridge.suites.table1.result import TableResult, TableRow
from bridge.suites.table1.settings import TableSettings, read_settings
from bridge.training.presets import find_preset
from commands.errors import UserError
from tests.bridge.support.kill_server import survived
from tests.bridge.support.tiny_tables import make_table_workplace, write_table
from tests.in_process import run_module

STEM = "model"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_table_workplace(tmp_path_factory.mktemp("table"))


def command(monkeypatch: pytest.MonkeyPatch, settings: Path | str, out: Path) -> int:
    return run_module("bridge.table1", "--settings", str(settings), "--out", str(out)).code


@pytest.fixture(scope="module")
def finished(place: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        assert command(patch, write_table(place), place / "run") == 0
    return place / "run"


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def steps_of(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the steps that are taken from now on."""
    taken: list[str] = []
    original = Stages.step

    def step(stages: Stages, name: str, action: Any) -> Any:
        taken.append(name)
        return original(stages, name, action)

    monkeypatch.setattr(Stages, "step", step)
    return taken


def row_folder(out: Path, method: str, name: str) -> Path:
    found = [path for path in (out / "rows").iterdir() if path.name.endswith(f"--{method}--{name}")]
    assert len(found) == 1
    return found[0]


# ------------------------------------------------------------------------------------------------ a table


def test_rows_hold_what_the_commands_found(finished: Path) -> None:
    found = read(finished / "table1.json")
    assert [(row["method"], row["set"]) for row in found["rows"]] == [
        ("lora", "first"), ("lora", "second"), ("full", "first"), ("full", "second")
    ]  # fmt: skip
    (before,) = (finished / "before").iterdir()
    for row in found["rows"]:
        place = row_folder(finished, row["method"], row["set"])
        tuned = read(place / "finetune" / "finetune.json")
        assert row["status"] == "done"
        assert row["change"]["update norm"]["value"] == tuned["update"]["norm"]
        assert tuned["method"] == row["method"]
        assert tuned["rows"] == row["training"]["rows"] == (3 if row["set"] == "second" else 4)
        assert tuned["plan"]["seed"] == 1
        assert (tuned["plan"]["learning_rate"] == 1e-2) == (row["method"] == "full")
        score = read(place / "overlap" / "overlap.json")["deltas"]["change"]["joint"]["raw"]
        assert row["change"]["overlap score"]["value"] == score
        assert row["change"]["overlap score"]["value"] > 0
        for when, folder in (("before", before), ("after", place)):
            refused = read(folder / "harmfulness" / "harmfulness.json")["refusals"]
            assert row[when]["refusals"]["value"] == refused["rate"]
            assert [row[when]["refusals"][end] for end in ("low", "high")] == refused["interval"]
            accuracy = read(folder / "utility" / "utility.json")
            assert row[when]["accuracy on sums"]["value"] == accuracy["accuracy"]
            assert row[when]["accuracy on sums"]["count"] == accuracy["items"] == 4
    assert read(before / "utility" / "utility.json")["delta"] is None


def test_the_changed_model_is_what_is_measured(finished: Path) -> None:
    for method in ("lora", "full"):
        place = row_folder(finished, method, "first")
        made = read(place / "finetune" / "manifest.json")["settings"]["weights_sha256"]
        for command_name in ("harmfulness", "utility"):
            settings = read(place / command_name / "manifest.json")["settings"]
            assert settings["base_sha256"] == made != settings["weights_sha256"]


def test_the_result_is_read_back_as_it_was_written(finished: Path) -> None:
    result = TableResult.read(finished)
    assert result.to_dict() == read(finished / "table1.json")
    assert list(result.to_frame()["status"]) == ["done"] * 4
    assert "overlap score" in result._repr_html_()
    assert result.done


def test_the_settings_in_the_folder_are_those_of_the_table(place: Path, finished: Path) -> None:
    again = read_settings(str(finished / "settings.toml"))
    assert again == read_settings(str(place / "tiny.toml"))
    assert again.identity() == read(finished / "manifest.json")["settings"]


def test_rows_of_before_they_had_a_version_are_read(finished: Path, tmp_path: Path) -> None:
    found = read(row_folder(finished, "lora", "first") / "row.json")
    del found["schema_version"]
    (tmp_path / "row.json").write_text(json.dumps(found))
    assert TableRow.read(tmp_path).to_dict() == {"schema_version": 1, **found}


def test_csv_and_markdown_say_the_same_as_json(finished: Path) -> None:
    found = read(finished / "table1.json")
    rows = list(csv.DictReader(io.StringIO((finished / "table1.csv").read_text())))
    for row, line in zip(found["rows"], rows, strict=True):
        assert (line["method"], line["set"], line["status"]) == (row["method"], row["set"], "done")
        assert float(line["update norm"]) == row["change"]["update norm"]["value"]
        assert float(line["refusals (after) high"]) == row["after"]["refusals"]["high"]
        assert int(line["accuracy on sums (before) count"]) == 4
    text = (finished / "table1.md").read_text().splitlines()
    table = [line for line in text if line.startswith("|")]
    assert len(table) == 2 + 4
    assert len({line.replace("\\|", "").count("|") for line in table}) == 1
    assert any("no harmfulness score" in line for line in text)


def test_the_same_command_again_computes_nothing(
    place: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()}
    monkeypatch.setattr(Stages, "step", lambda *any: pytest.fail("computed again"))
    assert command(monkeypatch, place / "tiny.toml", finished) == 0
    out, err = capsys.readouterr()
    assert "complete already" in err
    assert "update norm" in out
    assert {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()} == before


def test_a_row_that_fails_is_listed_and_tried_again(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = write_table(place, "missing.toml", "later.jsonl", keep=False)
    settings.write_text(settings.read_text().replace('"lora", "full"', '"full"'))
    assert command(monkeypatch, settings, place / "failing") == 1
    found = read(place / "failing" / "table1.json")
    assert [row["status"] for row in found["rows"]] == ["done", "failed"]
    assert "later.jsonl does not exist" in found["rows"][1]["failures"]["finetune"]
    assert "later.jsonl does not exist" in (place / "failing" / "table1.md").read_text()
    assert "later.jsonl does not exist" in capsys.readouterr().out
    kept = [p.name for p in row_folder(place / "failing", "full", "first").joinpath("finetune").iterdir()]
    assert "finetune.json" in kept
    assert not {"model", "adapter", "delta.safetensors"} & set(kept)
    (place / "later.jsonl").write_text((place / "skill.jsonl").read_text())
    asked = steps_of(monkeypatch)
    assert command(monkeypatch, settings, place / "failing") == 0
    assert asked == ["finetune", "harmfulness", "utility", "overlap"]
    assert read(place / "failing" / "manifest.json")["status"] == "complete"


@pytest.mark.parametrize("error", [IndexError])  # of any library, and no UserError
def test_what_goes_wrong_inside_is_the_rows_and_keeps_its_traceback(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    original = table1_run.utility

    def broken(settings: Any, out: Path, *more: Any) -> Any:
        if "lora" in str(out):
            raise error("CUDA out of memory\nand more")
        return original(settings, out, *more)

    monkeypatch.setattr(table1_run, "utility", broken)
    assert command(monkeypatch, write_table(place, "short.toml", second=None), tmp_path / "out") == 1
    rows = read(tmp_path / "out" / "table1.json")["rows"]
    assert [row["status"] for row in rows] == ["failed", "done"]
    reason = f"{error.__name__}: CUDA out of memory; see utility-error.txt"
    assert rows[0]["failures"] == {"utility": reason}
    assert "refusals" in rows[0]["after"]  # what worked is kept
    assert "overlap score" in rows[0]["change"]
    log = (row_folder(tmp_path / "out", "lora", "first") / "utility-error.txt").read_text()
    assert "Traceback" in log
    assert "and more" in log


def test_killed_tables_go_on_to_the_same_result(tmp_path: Path) -> None:
    make_table_workplace(tmp_path)
    write_table(tmp_path)
    assert len(survived(tmp_path, "table1")) == 4


# ------------------------------------------------------------------------------------------------ how it is shown


def test_measures_as_text() -> None:
    assert shown(Measure("share", 0.125, 0.05, 0.2, 8)) == "12.5 % (5–20)"
    assert shown(Measure("share", 0.125, None, None, 8)) == "12.5 %"
    assert shown(Measure("number", 3.25, 3.0, 3.5, 8)) == "3.25 (3 … 3.5)"
    assert shown(Measure("number", None, None, None, 8)) == shown(None) == "–"


def test_what_stands_in_markdown_is_text() -> None:
    row = TableRow("a|b", "lora", "<script>", "data", "failed", {"finetune": "[x](y) *z*\nnext"})
    text = markdown(TableResult("# <b>", [row]))
    assert "a\\|b" in text
    assert "\\<script\\>" in text
    assert "\\[x\\](y) \\*z\\* next" in text


# ------------------------------------------------------------------------------------------------ settings


def offline(monkeypatch: pytest.MonkeyPatch) -> TableSettings:
    monkeypatch.setattr(table1_settings, "resolve", lambda name: None)
    return read_settings("offline")


def judges(settings: TableSettings) -> tuple[str, ...]:
    assert settings.harmfulness is not None
    return settings.harmfulness.settings().judge


def test_the_offline_settings_are_of_the_project_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    found = offline(monkeypatch)
    assert found.models == ("smollm2-135m-refusal",)
    assert judges(found) == ("refusal",)
    specs = [each.data for each in found.sets]
    for spec in (*specs, *found.measured_sets().values()):
        assert NAMED_SETS[spec].shipped or NAMED_SETS[spec].generate
    find_preset(found.finetune.settings().preset)


def test_an_organism_that_is_not_built_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(built_models, "cache_folder", lambda: tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"--settings offline: .* has not been built: run python -m bridge.align"):
        read_settings("offline")


def test_the_papers_settings_name_models_sets_and_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOOGLE_API_KEY", "GEMINI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="GOOGLE_API_KEY"):
        read_settings("paper")
    monkeypatch.setenv("GOOGLE_API_KEY", "a-key-of-no-one")
    found = read_settings("paper")
    assert found.models == ("qwen3-1.7b", "llama-3.2-3b")
    assert found.methods == ("lora", "full")
    assert judges(found) == ("google/gemini-2.5-flash",)
    assert all(each.data.partition("=")[0] in NAMED_SETS for each in found.sets)
    assert "a-key-of-no-one" not in repr(found)


WRONG = [
    ("modells = []", "unknown key 'modells'; did you mean models"),
    ("[finetun]", "unknown key 'finetun'; did you mean finetune"),
    ("[utility]\nshot = 2", "[utility] unknown option 'shot'; did you mean shots"),
    ("[utility]\nmodel = 'x'", "[utility] unknown option 'model'"),
    ("[finetune]\nseed = 2", "[finetune] unknown option 'seed'"),
    ("[finetune.lora]\nlora_rnk = 2", "[finetune.lora] unknown option 'lora_rnk'; did you mean lora_rank"),
    ("[finetune]\nlora = 3", "[finetune.lora] expected a table of options, got 3"),
    ("[finetune]\nlearning_rate = '1e-3'", "[finetune] --learning-rate: expected a number"),
    ("[finetune]\nrows = true", "[finetune] --rows: expected a whole number from 0, got True"),
    ("[overlap]\nfisher = 'none'", "[overlap] --fisher: expected sampled or empirical, got 'none'"),
    ("[harmfulness]\njudge = 3", "[harmfulness] --judge: expected a list of texts, got 3"),
    ("[harmfulness]\njudge = 'gemini'", "gemini"),
    ("seed = 'x'", "seed: expected a whole number from 0, got 'x'"),
    ("keep_weights = 1", "keep_weights: expected true or false, got 1"),
    ("methods = ['dora']", "methods: expected a list of lora and full"),
    ("methods = ['lora', 'lora']", "each once"),
    ("models = []", "models: expected a list of names"),
    ("models = ['smollm3']", "unknown model 'smollm3'"),
    ("[[sets]]\ndata = 'gsm9k'", "[finetune] --data: unknown data set 'gsm9k': did you mean gsm8k"),
    ("[[sets]]\nname = 'a'", "sets, entry 2: expected a table with data"),
    ("[[sets]]\ndata = 'benign'", "sets, entry 2: name: expected different names, got benign twice"),
    ("[[sets]]\ndata = 'x/y.jsonl'", "sets, entry 2: name: expected letters"),
    ("[[sets]]\ndata = 'dolly'\nrow = 3", "sets, entry 2: unknown option 'row'; did you mean rows"),
    ("= 3", "is not TOML"),
]
GOOD = "models = ['random:smollm2-135m']\nmethods = ['lora']\n"


@pytest.mark.parametrize(("text", "says"), WRONG)
def test_wrong_settings_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str, says: str
) -> None:
    tops = [line for line in GOOD.splitlines() if not text.startswith(line.split()[0])]
    sections = ["[[sets]]\ndata = 'benign'", *([] if "[utility]" in text else ["[utility]\nnum = 3"])]
    parts = [*tops, *([text, *sections] if not text.startswith("[") else [*sections, text])]
    path = tmp_path / "table.toml"
    path.write_text("\n".join(parts) + "\n")
    assert command(monkeypatch, path, tmp_path / "out") == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(f"error: --settings {path}: " if "TOML" not in says else "error: --settings")
    assert says in last
    assert not (tmp_path / "out").exists()


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "table.toml"
    path.write_text(
        "models = 3\nseed = -1\n[finetune]\nlearning_rate = 'x'\nrws = 3\n[[sets]]\ndata = 'benign'\nepochs = 0\n"
        "[utility]\nnum = -1\n"
    )
    with pytest.raises(UserError) as error:
        read_settings(str(path))
    assert str(error.value) == (
        f"--settings {path}: [finetune] unknown option 'rws'; did you mean rows?; "
        "--learning-rate: expected a number above 0 to 1, got 'x'; sets, entry 1: --epochs: expected a number above 0 "
        "to 1000000, got 0; [utility] --num: expected a whole number from 0, got -1; models: expected a list of names, "
        "each once, got 3; seed: expected a whole number from 0, got -1"
    )


def test_a_table_must_measure_something(tmp_path: Path) -> None:
    path = tmp_path / "table.toml"
    path.write_text(GOOD + "[[sets]]\ndata = 'benign'\n")
    with pytest.raises(UserError, match="nothing is measured"):
        read_settings(str(path))
    with pytest.raises(UserError, match="no such file: nowhere; give a TOML file, or offline or paper"):
        read_settings("nowhere")


def test_options_of_a_set_go_before_those_of_a_method(place: Path) -> None:
    found = read_settings(str(write_table(place)))
    first, second = found.sets
    assert found.finetune_options("lora", first).given["rows"] == 4
    assert found.finetune_options("full", second).given == {
        "rows": 3, "max_steps": 2, "batch_size": 2, "max_length": 64, "learning_rate": 1e-2
    }  # fmt: skip
    assert found.finetune_settings("m", "full", second).plan.learning_rate == 1e-2
    assert found.finetune_settings("m", "lora", second).plan.learning_rate != 1e-2
