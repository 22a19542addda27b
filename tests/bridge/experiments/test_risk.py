"""`python -m bridge.risk` on tiny models: its folder, its numbers, cleaned copies, errors, and runs that are killed."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridge.data import cleaned_rows
from bridge.data.rows import load_rows
from bridge.experiments.labels import labelled_candidates
from bridge.experiments.risk import ranking
from bridge.experiments.risk import report as risk_report
from bridge.experiments.risk.result import RiskResult
from bridge.experiments.risk.run import Measurement, run
from bridge.experiments.risk.settings import Settings
from bridge.experiments.session import Lent
from commands.cli import INTERRUPTED
from commands.errors import UserError
from commands.settings import read_file
from tests.bridge.support.kill_cases import CASES
from tests.bridge.support.kill_server import survived
from tests.bridge.support.tiny_risks import COMPARED, make_candidates, risk_options
from tests.bridge.support.tiny_runs import SCRIPT
from tests.in_process import run_module
from theory.risk import RowParts, attribution, motion


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_candidates(tmp_path_factory.mktemp("risk"))


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    return run_module("bridge.risk", *arguments).code


@pytest.fixture(scope="module")
def finished(place: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        assert command(patch, *risk_options(place, place / "run")) == 0
    return place / "run"


@pytest.fixture(scope="module")
def cleaned(place: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        more = ("--clean", "3", "--clean-candidate", "other")
        assert command(patch, *risk_options(place, place / "cleaned", *more)) == 0
    return place / "cleaned"


def read(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "risk.json").read_text())
    return found


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


def parts_of(folder: Path, label: str) -> RowParts:
    with np.load(folder / "statistics.npz") as arrays:
        return RowParts(*(arrays[f"{label}/{name}"] for name in ("skill", "decrease", "norm", "tokens")))


def error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of an error."""
    code = command(monkeypatch, *arguments)
    out, err = capsys.readouterr()
    last = err.strip().splitlines()[-1]
    assert code == 2, err
    assert last.startswith("error: ")
    assert "Traceback" not in err + out
    return last


# ------------------------------------------------------------------------------------------------ a run


def test_the_folder_holds_what_it_should(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == {"manifest.json", *COMPARED}
    assert json.loads((finished / "manifest.json").read_text())["status"] == "complete"


def test_the_numbers_hang_together(finished: Path) -> None:
    found = read(finished)
    assert set(found["ranking"]) == {"a", "other"}
    for label, entry in found["candidates"].items():
        parts = parts_of(finished, label)
        whole = motion(parts, parts.every_row)
        assert entry["leak_squared"] == pytest.approx(np.mean(parts.velocity**2))
        assert entry["squared_norm"] == pytest.approx(float(whole.squared_norm[0]))
        for equal, progress in (("norm", 0.1), ("loss", 0.01)):
            one = entry["predicted"][equal]
            assert one["utility_loss"] == pytest.approx(one["time"] ** 2 / 2 * entry["leak_squared"])
            assert one["utility_loss_exact"] == pytest.approx(one["time"] ** 2 / 2 * entry["leak_squared_exact"])
            assert one["interval"][0] <= one["utility_loss"] <= one["interval"][1]
            speed = np.sqrt(entry["squared_norm"]) if equal == "norm" else entry["decrease"]
            assert one["time"] * speed == pytest.approx(progress)
        assert entry["enrichment"] == pytest.approx(entry["leak_squared"] / entry["null_mean"])
        assert entry["trivial"]["mean_tokens"] == pytest.approx(parts.tokens.mean())
    losses = {label: entry["predicted"]["norm"]["utility_loss"] for label, entry in found["candidates"].items()}
    assert found["ranking"] == sorted(losses, key=lambda label: -losses[label])
    for equal in ("norm", "loss"):
        for key in ("probability_worst", "probability_worst_these_rows"):
            assert sum(entry["predicted"][equal][key] for entry in found["candidates"].values()) == pytest.approx(1)


def test_modules_add_up_to_the_whole(finished: Path) -> None:
    """The null takes the modules' own parts: they are those of the same velocity."""
    with np.load(finished / "statistics.npz") as arrays:
        for label in ("a", "other"):
            names = [name for name in arrays if name.startswith(f"{label}/velocity/")]
            total = sum(arrays[name] for name in names)
            assert total == pytest.approx(parts_of(finished, label).velocity, rel=1e-5)
            assert len(names) == 14


def test_every_row_has_its_share(finished: Path, place: Path) -> None:
    records = rows_of(finished)
    for label, file in (("a", "a.jsonl"), ("other", "b.jsonl")):
        own = [record for record in records if record["candidate"] == label]
        lines = (place / file).read_text().splitlines()
        assert sorted(record["line"] for record in own) == list(range(1, len(lines) + 1))
        assert [record["rank"] for record in own] == list(range(1, len(lines) + 1))
        effects = [record["effect"]["norm"] for record in own]
        assert effects == sorted(effects)
        assert sum(record["share"] for record in own) == pytest.approx(1)
        contributions = attribution(parts_of(finished, label)).contribution
        leak = read(finished)["candidates"][label]["leak_squared"]
        assert sum(record["contribution"] for record in own) == pytest.approx(leak, rel=1e-12)
        for record in own:
            assert record["contribution"] == contributions[record["line"] - 1]
            assert json.loads(lines[record["line"] - 1])["prompt"].startswith(record["prompt"])
        assert sorted(record["rank_contribution"] for record in own) == list(range(1, len(lines) + 1))


def test_the_losses_are_those_of_the_gradient_stage(finished: Path) -> None:
    records = rows_of(finished)
    for label, entry in read(finished)["candidates"].items():
        own = [record for record in records if record["candidate"] == label]
        mean = sum(r["loss"] for r in own) / sum(r["tokens"] for r in own)
        assert entry["trivial"]["mean_loss"] == pytest.approx(mean)
        assert entry["tokens"] == sum(r["tokens"] for r in own)


def test_the_result_is_read_back_as_it_was_written(finished: Path, cleaned: Path) -> None:
    for folder in (finished, cleaned):
        result = RiskResult.read(folder)
        assert result.to_dict() == read(folder)
        assert [asdict(row) for row in result.rows] == rows_of(folder)
        assert list(result.to_frame()["set"]) == result.ranking
        assert "predicted utility loss" in result._repr_html_()
        assert result.plot("rows").startswith(b"\x89PNG")


def test_a_broken_file_of_rows_is_named(finished: Path, tmp_path: Path) -> None:
    shutil.copy(finished / "risk.json", tmp_path)
    with pytest.raises(UserError, match=r"rows.jsonl cannot be read"):
        RiskResult.read(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"candidate": "a"}\n')
    with pytest.raises(UserError, match=r"rows.jsonl is not as this version writes it"):
        RiskResult.read(tmp_path)


def test_in_memory_nothing_is_written(
    place: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings.read(read_file(finished / "settings.toml", "bridge.risk"))
    assert run(settings, quiet=True, lent=Lent(in_memory=True)).to_dict() == read(finished)
    assert not list(tmp_path.iterdir())


def test_its_settings_file_is_the_run_again(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "--settings", str(finished / "settings.toml"), "--out", str(finished)) == 0
    assert "complete already" in capsys.readouterr().err


def test_the_page_shows_text_as_text(place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The skill's file as a candidate holds a script in a prompt and marks in an answer."""
    options = risk_options(place, tmp_path / "run", "--candidates", str(place / "skill.jsonl"))
    assert command(monkeypatch, *options) == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert SCRIPT not in page
    assert "&lt;script&gt;" in page
    assert page.count("data:image/png;base64,") == 2


def test_the_same_command_again_computes_nothing(
    place: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.read_bytes() for p in finished.iterdir()}
    monkeypatch.setattr(Measurement, "result", lambda *_: pytest.fail("computed again"))
    assert command(monkeypatch, *risk_options(place, finished)) == 0
    assert "complete already" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in finished.iterdir()} == before


def test_sets_in_another_order_are_another_run(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Checkpoints number the sets: resumed in another order, each would be given another's numbers."""
    forth = risk_options(place, tmp_path / "run")
    a, b = forth[1], forth[2]
    swap = {a: b, b: a}

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ranking, "assemble", interrupt)
        assert command(patch, *forth) == INTERRUPTED
    assert "order" in error(monkeypatch, capsys, *(swap.get(text, text) for text in forth))


def test_plain_descent_and_other_progress(place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    more = ("--optimizer", "sgd", "--equal", "loss", "--worst-by", "contribution", "--bootstrap", "0")
    assert command(monkeypatch, *risk_options(place, tmp_path / "run", *more)) == 0
    found = read(tmp_path / "run")
    for label, entry in found["candidates"].items():
        parts = parts_of(tmp_path / "run", label)
        assert np.array_equal(parts.decrease, parts.norm)
        assert entry["trivial"]["gradient_norm"] ** 2 == pytest.approx(entry["squared_norm"], rel=1e-4)
        assert entry["predicted"]["norm"]["interval"] is None
        assert entry["predicted"]["norm"]["probability_worst"] is None
        own = [r for r in rows_of(tmp_path / "run") if r["candidate"] == label]
        contributions = [r["contribution"] for r in own]
        assert contributions == sorted(contributions, reverse=True)
    assert found["ranking"] == found["orders"]["equal loss decrease"]


def test_some_rows_stand_for_the_set(place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert command(monkeypatch, *risk_options(place, tmp_path / "run", "--num-rows", "8")) == 0
    found = read(tmp_path / "run")["candidates"]
    assert (found["a"]["num_rows"], found["a"]["set_rows"]) == (7, 7)
    assert (found["other"]["num_rows"], found["other"]["set_rows"]) == (8, 9)
    (line,) = [row for row in risk_report.ranking_table(RiskResult.read(tmp_path / "run")).rows if row[0] == "other"]
    assert line[1] == "8 of 9"


# --------------------------------------------------------------------------------------------- cleaned copies


def test_the_cleaned_copy_keeps_every_other_byte(cleaned: Path, place: Path) -> None:
    worst = [r["line"] for r in rows_of(cleaned) if r["candidate"] == "other" and r["rank"] <= 3]
    found = read(cleaned)["cleaned"]
    assert found["removed"] == worst
    lines = (place / "b.jsonl").read_bytes().splitlines(keepends=True)
    kept = b"".join(line for number, line in enumerate(lines, start=1) if number not in worst)
    assert (cleaned / "cleaned.jsonl").read_bytes() == kept
    assert found["kept_rows"] == len(lines) - 3 == len(load_rows(str(cleaned / "cleaned.jsonl")).rows)


def test_what_cleaning_is_said_to_do(cleaned: Path) -> None:
    found, parts = read(cleaned), parts_of(cleaned, "other")
    weights = parts.every_row
    weights[0, [line - 1 for line in found["cleaned"]["removed"]]] = 0
    for equal, progress in (("norm", 0.1), ("loss", 0.01)):
        one = found["cleaned"]["predicted"][equal]
        after = float(motion(parts, weights).per_progress(equal)[0]) * progress**2 / 2
        assert one["before"] == pytest.approx(found["candidates"]["other"]["predicted"][equal]["utility_loss"])
        assert one["after"] == pytest.approx(after)
        assert one["change"] == pytest.approx(after / one["before"] - 1)
    here = found["cleaned"]["predicted"]["norm"]
    assert here["change"] < here["random_change"]
    assert here["random_interval"][0] <= here["random_change"] <= here["random_interval"][1]


def test_a_cleaned_set_measured_anew_by_plain_descent(
    place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Plain descent has no second moments to hold: the prediction is what a run on the copy measures."""
    more = ("--clean", "3", "--clean-candidate", "other", "--optimizer", "sgd", "--dtype", "float64")
    out = tmp_path / "copy.jsonl"
    assert command(monkeypatch, *risk_options(place, tmp_path / "run", *more, "--clean-out", str(out))) == 0
    options = risk_options(place, tmp_path / "again", "--optimizer", "sgd", "--dtype", "float64")
    options[1] = f"copy={out}"
    assert command(monkeypatch, *options) == 0
    predicted = read(tmp_path / "run")["cleaned"]["predicted"]
    again = read(tmp_path / "again")["candidates"]["copy"]["predicted"]
    for equal in ("norm", "loss"):
        assert again[equal]["utility_loss"] == pytest.approx(predicted[equal]["after"], rel=1e-6)


def test_a_deleted_copy_is_written_again(
    place: Path, cleaned: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    more = ("--clean", "3", "--clean-candidate", "other")
    content = (cleaned / "cleaned.jsonl").read_bytes()
    (cleaned / "cleaned.jsonl").unlink()
    assert command(monkeypatch, *risk_options(place, cleaned, *more)) == 0
    assert (cleaned / "cleaned.jsonl").read_bytes() == content
    elsewhere = tmp_path / "deep" / "copy.jsonl"
    assert command(monkeypatch, *risk_options(place, cleaned, *more, "--clean-out", str(elsewhere))) == 0
    assert elsewhere.read_bytes() == content
    elsewhere.write_text("mine\n")
    message = error(monkeypatch, capsys, *risk_options(place, cleaned, *more, "--clean-out", str(elsewhere)))
    assert "which holds something else" in message
    assert elsewhere.read_text() == "mine\n"


def test_lines_that_are_no_rows_stay(tmp_path: Path) -> None:
    """Blank lines, rows that were skipped, a byte-order mark, line ends of Windows, no end of the last line."""
    file = tmp_path / "rows.jsonl"
    row = b'{"prompt": "p%d",  "completion": "c", "extra": [1]}'
    content = b"\xef\xbb\xbf" + b"\r\n".join([row % 1, b"", b"no row", row % 4, row % 5])
    file.write_bytes(content)
    rows = load_rows(str(file), skip_bad_rows=True)
    assert [r.line for r in rows.rows] == [1, 4, 5]
    assert cleaned_rows.without_lines(str(file), rows, ()) == content
    assert cleaned_rows.without_lines(str(file), rows, (4,)) == content.replace(row % 4 + b"\r\n", b"")
    file.write_bytes(content + b"\n")
    with pytest.raises(UserError, match="has changed since"):
        cleaned_rows.without_lines(str(file), rows, (4,))


def test_a_shipped_set_and_a_file_of_a_known_format_can_be_cleaned(tmp_path: Path) -> None:
    rows = load_rows("benign")
    content = cleaned_rows.without_lines("benign", rows, (rows.rows[0].line,))
    assert content.count(b"\n") == cleaned_rows.source_file("benign").read_bytes().count(b"\n") - 1
    assert cleaned_rows.source_file(f"gsm8k={tmp_path / 'x.jsonl'}") == tmp_path / "x.jsonl"
    for spec in ("gsm8k", "arithmetic"):
        with pytest.raises(UserError, match="give a local copy"):
            cleaned_rows.source_file(spec)
    with pytest.raises(UserError, match="expected JSON Lines"):
        cleaned_rows.source_file("x.json")


# --------------------------------------------------------------------------------------------- bad input


def test_labels() -> None:
    found = labelled_candidates(
        ["benign", "gsm8k=x.jsonl", "mine=gsm8k=y.jsonl", "some/folder/z.jsonl", "w=some/w.jsonl"]
    )
    assert found == {
        "benign": "benign", "gsm8k": "gsm8k=x.jsonl", "mine": "gsm8k=y.jsonl", "z": "some/folder/z.jsonl",
        "w": "some/w.jsonl",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("specs", "message"), [(["a.jsonl", "b/a.jsonl"], "different labels .* a twice"), (["a:b=c"], "a label of letters")]
)
def test_labels_that_cannot_be(specs: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        labelled_candidates(specs)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--num-skill", "0"], "--num-skill: expected a whole number from 1"),
        (["--distance", "0"], "--distance: expected a positive number"),
        (["--loss-decrease", "nan"], "--loss-decrease: expected a positive number"),
        (["--skill", "refusal"], "did you mean refusals"),
        (["--equal", "time"], "equal"),
        (["--candidates", "no-such-set"], "--candidates: unknown data set"),
        (["--candidates", "x=no/such.jsonl"], "does not exist"),
        (["--modules", "nothing_like_it"], "--modules: no linear module"),
        (["--clean", "2"], "--clean-candidate: expected which set to clean: a or other"),
        (["--clean", "2", "--clean-candidate", "c"], "--clean-candidate: expected a or other, got c"),
        (["--clean-candidate", "a"], "--clean N with it"),
        (["--clean-out", "x.jsonl"], "--clean-out: expected --clean N with it"),
        (["--clean", "7", "--clean-candidate", "a"], "--clean: expected fewer than the 7 rows of a"),
        (["--clean", "2", "--clean-candidate", "a", "--num-rows", "3"], "--num-rows: expected 0 or at least the 7"),
        (["--max-length", "3"], "--skill: "),
    ],
)
def test_options_that_cannot_be(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, more: list[str],
    message: str,
) -> None:  # fmt: skip
    assert message in error(monkeypatch, capsys, *risk_options(place, tmp_path / "run", *more))
    assert not (tmp_path / "run").exists()


def test_without_a_candidate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--candidates: expected at least one set" in error(monkeypatch, capsys, "--model", "smollm2-135m")


def test_copies_that_would_replace_something(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    more = ("--clean", "2", "--clean-candidate", "a", "--clean-out")
    own = place / "a.jsonl"
    before = own.read_bytes()
    options = risk_options(place, tmp_path / "run", *more)
    assert "another file than the set's own" in error(monkeypatch, capsys, *options, str(own))
    (tmp_path / "there.jsonl").write_text("mine\n")
    assert "expected a new file" in error(monkeypatch, capsys, *options, str(tmp_path / "there.jsonl"))
    assert "expected a new file" in error(monkeypatch, capsys, *options, str(tmp_path))
    assert own.read_bytes() == before
    assert not (tmp_path / "run").exists()


def test_wrong_input_loads_no_model(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("bridge.experiments.session.load_model", lambda *_, **__: pytest.fail("loaded"))
    shutil.copy(place / "a.jsonl", tmp_path / "broken.jsonl")
    with (tmp_path / "broken.jsonl").open("a") as file:
        file.write("{\n")
    options = risk_options(place, tmp_path / "run", "--candidates", str(tmp_path / "broken.jsonl"))
    assert "broken.jsonl, line 8: is not valid JSON" in error(monkeypatch, capsys, *options)


# ------------------------------------------------------------------------------------------------ readings


def test_what_is_said(finished: Path, cleaned: Path) -> None:
    found = RiskResult.read(finished)
    first = found.ranking[0]
    lines = risk_report.readings(found)
    assert lines[0].startswith(f"{first} is predicted to cost the skill most at the same norm of the update, with")
    turned = dict.fromkeys(("equal loss decrease", "equal norm, exact over tokens"), found.ranking[::-1])
    other = replace(found, orders=found.orders | turned, progress=found.progress | {"loss": 100.0})
    text = " ".join(risk_report.readings(other))
    assert "same decrease of each set's own loss the order is another" in text
    assert "With the vocabulary summed exactly the order is" in text
    assert text.count("so it cannot fall by 100") == 2
    assert "without its worst 3 rows" in " ".join(risk_report.readings(RiskResult.read(cleaned)))


def test_one_set_is_not_ranked(place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    options = ["--candidates", *risk_options(place, tmp_path / "run", "--clean", "1")[2:]]
    assert command(monkeypatch, *options) == 0
    found = read(tmp_path / "run")
    assert found["cleaned"]["candidate"] == "other"  # the only one
    assert found["candidates"]["other"]["predicted"]["norm"]["probability_worst"] == 1
    assert len(risk_report.readings(RiskResult.read(tmp_path / "run"))) == 1


# -------------------------------------------------------------------------------------------------- killed


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_killed_run_goes_on_to_the_same_result(tmp_path: Path) -> None:
    folder = make_candidates(tmp_path)
    found = survived(folder, "risk")
    assert len(found[-1]["ends"]) > 3  # the one that is killed often
    assert {re.sub(r"\d+", "#", line["moment"]) for line in found} == {"often", *CASES["risk"].moments}
