"""`python -m bridge.study`: its settings, its fine-tunes, what fails, what goes on, and what the numbers say."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from bridge.experiments.estimate_aic.result import LossAt
from bridge.suites.stages import Stages
from bridge.suites.study import run as study_run
from bridge.suites.study import settings as study_settings
from bridge.suites.study.predictors import BY_KEY, PREDICTORS, loss_at
from bridge.suites.study.ranking import Ranking, correlations, evaluate
from bridge.suites.study.readings import notes, readings
from bridge.suites.study.report import markdown, tables, write
from bridge.suites.study.result import Outcome, Outcomes, StudyResult, StudyRow
from bridge.suites.study.settings import read_settings
from commands.errors import UserError
from tests.bridge.support.kill_server import survived
from tests.bridge.support.tiny_studies import make_study_workplace, write_study
from tests.in_process import run_module
from tests.sketches import sketch


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study_workplace(tmp_path_factory.mktemp("study"))


def command(monkeypatch: pytest.MonkeyPatch, place: Path, out: Path, *more: str) -> int:
    files = ("--settings", place / "tiny.toml", "--files", place / "files")
    return run_module("bridge.study", *files, "--out", out, *more).code


@pytest.fixture(scope="module")
def finished(place: Path) -> Path:
    """A study in which the two fine-tunes of one set cannot be made: it has 7 rows, and 9 are asked for."""
    write_study(place, rows=9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("matplotlib.figure.Figure.savefig", sketch)  # of six commands: drawing would take half the time
        assert command(patch, place, place / "run") == 1
    return place / "run"


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the model of the settings that come with the package had been built."""
    monkeypatch.setattr(study_settings, "resolve", lambda name: None)


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def done_rows(out: Path) -> list[tuple[dict[str, Any], Path]]:
    rows = [row for row in read(out / "study.json")["rows"] if row["status"] == "done"]
    return [(row, out / "rows" / f"{row['set']}--{row['method']}--{row['seed']}") for row in rows]


# ------------------------------------------------------------------------------------------------ the fine-tunes


def test_rows_hold_what_the_commands_found(finished: Path) -> None:
    found = done_rows(finished)
    assert [(row["set"], row["method"]) for row, _ in found] == [
        (name, method) for name in ("first", "second") for method in ("lora", "full")
    ]
    for row, folder in found:
        tuned, scored = read(folder / "finetune" / "finetune.json"), read(folder / "overlap" / "overlap.json")
        entry, values = scored["deltas"]["change"], row["predictors"]
        assert set(values) == {each.key for each in PREDICTORS}
        assert tuned["plan"]["seed"] == 3
        assert tuned["rows"] == row["training"]["rows"] == (5 if row["set"] == "second" else 6)
        assert values["update_norm"] == tuned["update"]["norm"] == pytest.approx(entry["squared_norm"] ** 0.5)
        assert values["rate_steps"] == pytest.approx(sum(tuned["learning_rates"]), rel=1e-12)
        assert values["score"] == entry["joint"]["raw"]
        assert values["score_modules"] == pytest.approx(sum(b["raw"] for b in entry["blocks"].values()), rel=1e-9)
        signs = entry["rademacher"]["blocks"]
        assert values["score_signs"] == pytest.approx(sum(b["estimate"] for b in signs.values()), rel=1e-12)
        assert row["outcomes"]["utility_loss"]["value"] == entry["utility_loss"]["mean"] > 0
        base = scored["base_refusals"]["rate"]
        assert row["outcomes"]["lost_refusals"]["value"] == base - entry["refusals"]["rate"]


def test_what_is_known_before_is_of_the_very_rows_that_were_trained_on(finished: Path) -> None:
    for row, folder in done_rows(finished):
        trained = [json.loads(line) for line in (folder / "finetune" / "samples.jsonl").read_text().splitlines()]
        matching = [
            path.parent
            for path in (finished / "before").glob("estimate-*/aic.json")
            if read(path)["whole_model"]["leak_exact"] == row["predictors"]["leak"]
        ]
        assert len(matching) == 1  # lora and full on the same rows share it
        (place,) = matching
        known = [json.loads(line) for line in (place / "samples.jsonl").read_text().splitlines()]
        known = [sample for sample in known if sample["set"] == "finetune"]
        tokens = sorted((s["input_ids"], s["response_mask"]) for s in known)
        assert tokens == sorted((s["input_ids"], s["response_mask"]) for s in trained)
        assert row["predictors"]["tokens"] == sum(sum(s["response_mask"]) for s in trained)
        settings = read(place / "manifest.json")["settings"]
        assert (settings["optimizer"], settings["adam_batch_size"]) == ("adamw", 2)
        (risk,) = [
            read(path)["candidates"]["rows"]
            for path in (finished / "before").glob("risk-*/risk.json")
            if read(path)["candidates"]["rows"]["trivial"]["mean_loss"]
            == pytest.approx(row["predictors"]["mean_loss"], rel=1e-5)
        ]
        assert row["predictors"]["gradient_norm"] == pytest.approx(risk["trivial"]["gradient_norm"], rel=1e-5)
        wanted = risk["leak_squared_exact"] ** 0.5 / risk["decrease"]
        assert row["predictors"]["leak_per_decrease"] == pytest.approx(wanted)


def test_the_prediction_is_read_from_the_curve_at_the_own_horizon() -> None:
    curve = [LossAt(t, loss) for t, loss in ((1.0, 3.0), (10.0, 300.0), (40.0, 9e9), (100.0, None))]
    for t, loss in ((1.0, 3.0), (2.0, 12.0), (5.0, 75.0), (0.9, None), (11.0, None), (0.0, None)):
        assert loss_at(curve, 40.0, t) == (loss and pytest.approx(loss, rel=1e-12))


def test_the_pilot_is_the_beginning_of_the_fine_tune_on_the_same_skill(finished: Path) -> None:
    for row, folder in done_rows(finished):
        pilot, tuned = read(folder / "pilot" / "pilot.json"), read(folder / "finetune" / "finetune.json")
        assert [point["finetuning_loss"] for point in pilot["points"]] == tuned["losses"][:3]
        assert (pilot["steps"], pilot["pilot_steps"]) == (4, 3)
        assert pilot["accumulated"] == pytest.approx(row["predictors"]["rate_steps"], rel=1e-12)
        assert row["predictors"]["pilot_loss"] == pilot["points"][-1]["utility_loss"]
        norm, loss = row["predictors"]["update_norm"], row["outcomes"]["utility_loss"]["value"]
        if row["method"] == "full":  # one step of four is missing, and it is the smallest
            assert 0.5 * norm < row["predictors"]["pilot_norm"] < 1.2 * norm
        assert row["predictors"]["pilot_loss"] == pytest.approx(loss, rel=0.8)


def test_a_fine_tune_that_fails_is_listed_and_the_weights_of_the_others_are_gone(
    finished: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = read(finished / "study.json")
    failed = [row for row in found["rows"] if row["status"] == "failed"]
    assert [(row["set"], row["method"]) for row in failed] == [("gsm8k", "lora"), ("gsm8k", "full")]
    assert all("7" in row["failures"]["finetune"] for row in failed)
    assert not any(row["outcomes"] or row["predictors"] for row in failed)
    for _, folder in done_rows(finished):
        assert not {"model", "adapter", "delta.safetensors"} & {p.name for p in (folder / "finetune").iterdir()}
    assert read(finished / "manifest.json")["status"] == "running"
    before = {p: p.read_bytes() for p in finished.rglob("*") if p.is_file() and p.name != "manifest.json"}
    tried: list[str] = []
    original = Stages.step

    def noted(stages: Stages, name: str, action: Any) -> Any:
        tried.append(name)
        return original(stages, name, action)

    monkeypatch.setattr(Stages, "step", noted)
    assert command(monkeypatch, place, finished) == 1
    assert tried == ["finetune", "finetune"]
    assert {p: p.read_bytes() for p in finished.rglob("*") if p.is_file() and p.name != "manifest.json"} == before
    assert "gsm8k, lora, seed 3: finetune failed" in capsys.readouterr().out


def test_other_contents_are_refused(finished: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = place / "second.jsonl"
    content = path.read_text()
    path.write_text(content.replace("ok", "no", 1))
    try:
        with pytest.raises(UserError, match=r"holds another run.*set second"):
            study_run.run(read_settings(str(place / "tiny.toml"), place / "files"), "tiny", finished, quiet=True)
    finally:
        path.write_text(content)


def test_tables_and_page_say_the_same_as_json(finished: Path) -> None:
    found = read(finished / "study.json")
    lines = list(csv.DictReader(io.StringIO((finished / "study.csv").read_text())))
    for row, line in zip(found["rows"], lines, strict=True):
        assert (line["set"], line["method"], line["seed"]) == (row["set"], row["method"], "3")
        if row["status"] == "done":
            assert float(line["utility_loss"]) == row["outcomes"]["utility_loss"]["value"]
            assert {key: float(line[key]) if line[key] else None for key in row["predictors"]} == row["predictors"]
        else:
            assert "finetune: " in line["failures"]
            assert line["utility_loss"] == line["score"] == ""
    assert (finished / "study.md").read_text() == markdown(StudyResult.read(finished))
    page = (finished / "report.html").read_text()
    assert "A tiny &lt;b&gt;study&lt;/b&gt;" in page
    assert "<b>study" not in page
    for each in PREDICTORS:
        assert each.name in page
    assert (finished / "utility_loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_result_is_read_back_as_it_was_written(finished: Path) -> None:
    result = StudyResult.read(finished)
    assert result.to_dict() == read(finished / "study.json")
    assert list(result.to_frame()["status"]) == ["done"] * 4 + ["failed"] * 2
    assert "learning rate × steps" not in result._repr_html_()  # no correlations
    assert "The fine-tunes" in result._repr_html_()
    assert result.plot("lost_refusals").startswith(b"\x89PNG")


def test_rows_of_before_they_had_a_version_are_read(finished: Path, tmp_path: Path) -> None:
    (_, folder), *_ = done_rows(finished)
    found = read(folder / "row.json")
    del found["schema_version"]
    (tmp_path / "row.json").write_text(json.dumps(found))
    assert StudyRow.read(tmp_path).to_dict() == {"schema_version": 1, **found}


def test_the_settings_in_the_folder_are_those_of_the_study(finished: Path, place: Path) -> None:
    again = read_settings(str(finished / "settings.toml"))
    assert again == read_settings(str(place / "tiny.toml"), place / "files")
    made = read(finished / "manifest.json")["settings"]
    asked = again.identity() | {"dtype": "float32"}  # the model's own
    assert asked == {name: made[name] for name in asked}


def test_two_sets_are_too_few_for_a_correlation(finished: Path) -> None:
    found = StudyResult.read(finished)
    empty: dict[str, object] = {"within_methods": {}, "lora": {}, "full": {}, "pooled": {}}
    assert found.correlations == {"utility_loss": empty, "lost_refusals": empty}
    lines = readings(found)
    assert lines[0] == "4 of 6 fine-tunes are measured (2 failed): what follows is of these alone."
    assert "Too few fine-tunes or sets with their utility loss measured for a rank correlation." in lines


# ------------------------------------------------------------------------------------------------ what is said


def measured(loss: float | None) -> Outcomes:
    """The utility loss alone."""
    return Outcomes(Outcome(loss, None, None, 4))


def made_rows(noise: float, seed: int = 0) -> list[StudyRow]:
    """Fine-tunes on ten sets, whose loss the forecast ranks with some noise and the update's norm not at all."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(10):
        for method in ("lora", "full"):
            loss = float(number + rng.uniform(0, 0.5) + 1)
            values: dict[str, float | None] = {
                "tokens": float(rng.normal()), "update_norm": float(rng.normal()),
                "forecast": loss + noise * float(rng.normal()),
            }  # fmt: skip
            row = StudyRow(f"s{number}", "d", "lora", 0, "done", outcomes=measured(loss), predictors=values)
            rows.append(replace(row, method=method))
    return rows


def made_result(rows: Sequence[StudyRow], resamples: int = 300) -> StudyResult:
    ranks = evaluate(rows, resamples, 0)
    return StudyResult(
        ranks.correlations, ranks.contests, title="T", model="m", skill="refusals", refusals=None,
        methods=["lora", "full"], seeds=[0], sets=[], left_out=["x"], pilot_steps=0, resamples=resamples,
        predictors=[BY_KEY[key] for key in ("tokens", "forecast")], rows=list(rows),
    )  # fmt: skip


def test_a_predictor_that_works_is_said_to() -> None:
    found = made_result(made_rows(0.1))
    lines = readings(found)
    assert lines[0].startswith("20 fine-tunes of m on 10 sets: the utility loss on refusals lies between 1.")
    (best,) = [line for line in lines if line.startswith("After the pilot steps")]
    assert "“forecast from the pilot” ranks the utility loss among fine-tunes by the same method: ρ = +" in best
    assert "(20 of 20 fine-tunes)" in best
    assert "It beats the best trivial one, “response tokens”" in best  # the update's norm is not known by then
    for method in ("LoRA", "full"):
        (line,) = [line for line in lines if line.startswith(f"Utility loss by {method} fine-tuning alone")]
        assert "after the pilot steps: “forecast from the pilot”, ρ = +" in line
        assert "(10 of 10 fine-tunes), and it beats the best trivial one" in line
    assert any("1 of the 1 number that are not trivial is shown" in line for line in lines)
    assert lines[-1].startswith("Pooled over the methods, whose difference then counts as well, |ρ| with the")
    assert any("Left out" in line and "x" in line for line in notes(found))


def test_a_predictor_that_does_not_work_is_not_said_to() -> None:
    rows = made_rows(100.0)
    lines = readings(made_result(rows))
    (best,) = [line for line in lines if line.startswith("After the pilot")]
    assert "“forecast from the pilot” is not shown to rank the utility loss" in best
    assert "beats" not in best
    assert sum("none is shown to rank it, the highest is" in line for line in lines) == 2
    assert any("None of the 1 number" in line for line in lines)
    for row in rows:  # a trivial number that ranks perfectly, read the other way round
        row.predictors["tokens"] = -row.damage("utility_loss")
    (best,) = [line for line in readings(made_result(rows)) if line.startswith("After the pilot")]
    assert "The best trivial one, “response tokens”, read the other way round, beats it" in best


def test_what_only_tells_the_methods_apart_wins_nothing() -> None:
    rows = []
    for row in made_rows(0.1):
        lora = row.method == "lora"
        row.predictors["rate_steps"] = 4.0 if lora else 1.0
        row.predictors["leak"] = row.predictors.pop("forecast")
        rows.append(replace(row, outcomes=measured(row.damage("utility_loss") * (10.0 if lora else 0.1))))
    found = made_result(rows)
    groups = found.correlations["utility_loss"]
    assert list(groups) == ["within_methods", "lora", "full", "pooled"]
    rho = {group: {key: each.spearman for key, each in entries.items()} for group, entries in groups.items()}
    leak, rate = rho["pooled"]["leak"], rho["pooled"]["rate_steps"]
    assert leak is not None
    assert rate is not None
    assert rate > 0.8 > leak
    assert rho["within_methods"]["rate_steps"] is None
    assert (rho["within_methods"]["leak"] or 0.0) > 0.95
    for group in ("within_methods", "lora", "full"):
        rival = groups[group]["leak"].best_trivial
        assert rival is not None
        assert rival.predictor == "tokens"
    assert groups["pooled"]["leak"].best_trivial is None
    lines = readings(found)
    assert any(line.startswith("Before training, “leak” ranks the utility loss") for line in lines)
    assert [k for k, line in enumerate(lines) if "learning rate × steps" in line] == [len(lines) - 1]
    assert "by “learning rate × steps”, which is the same for all fine-tunes by one method" in lines[-1]
    shown = [table.caption for table in tables(found)]
    assert shown[0] == "Utility loss: rank correlations, within methods"
    assert shown[-1].startswith("Utility loss: rank correlations, pooled over the methods")


def test_only_numbers_known_of_the_same_fine_tunes_are_compared() -> None:
    rows = made_rows(0.0)
    for number, row in enumerate(rows):
        loss, leak = row.damage("utility_loss"), row.predictors.pop("forecast") or 0.0
        row.predictors.update({"tokens": 1.0, "leak": leak + (number % 5),
                           "predicted_loss": loss if row.method == "full" else None,
                           "gamma_star": loss if number else None})  # fmt: skip
    found = made_result(rows)
    entry = found.contests["utility_loss"]["within_methods"]["before"]
    assert (entry.count, entry.of, entry.best) == (19, 20, "gamma_star")
    assert (entry.predictors, entry.absent) == (["leak", "gamma_star"], ["predicted_loss"])
    alone = evaluate(rows[1:], 300, 0).correlations["utility_loss"]["within_methods"]["gamma_star"]
    assert (entry.spearman, entry.spearman_interval) == (alone.spearman, alone.spearman_interval)
    (line,) = [line for line in readings(found) if line.startswith("Before training")]
    assert "of 2 numbers “γ*” ranks the utility loss" in line
    assert "(19 of 20 fine-tunes)" in line
    assert "“predicted utility loss” is known of 10 of 20 fine-tunes only and not compared: ρ = +1.00" in line
    full = found.contests["utility_loss"]["full"]["before"]
    assert (full.count, full.predictors) == (10, ["leak", "gamma_star", "predicted_loss"])


def test_few_sets_show_nothing() -> None:
    found = made_result(made_rows(0.0)[:8])  # four sets
    entry = found.correlations["utility_loss"]["within_methods"]["forecast"]
    assert entry.spearman == 1.0
    assert not entry.shown
    assert entry.best_trivial is not None
    assert not entry.best_trivial.better
    assert any("“forecast from the pilot” is not shown to rank" in line for line in readings(found))


def test_the_sizes_of_predicted_losses_are_compared() -> None:
    rows = made_rows(0.1)
    assert not any("redicted over measured" in line for line in notes(made_result(rows, 0)))
    for number, row in enumerate(rows[:5]):
        row.predictors.update({"predicted_loss": row.damage("utility_loss") * (10 + number), "leak": 2.0,
                           "gamma_star": 8.0, "rate_steps": 0.25 * (number + 1)})  # fmt: skip
    (line,) = [line for line in notes(made_result(rows, 0)) if "redicted over measured" in line]
    assert "5 fine-tunes with a predicted utility loss: 3 of 5 end beyond" in line  # the crossover is 0.5
    assert "in the median at 1.5 of it" in line
    assert "Predicted over measured is 12 in the median (10 to 14): only the order" in line
    for row in rows[:5]:
        row.predictors.update({"predicted_loss": row.damage("utility_loss"), "rate_steps": 0.1})
    (line,) = [line for line in notes(made_result(rows, 0)) if "redicted over measured" in line]
    assert line.endswith("is 1 in the median (1 to 1).")


def as_pending(row: StudyRow) -> StudyRow:
    return StudyRow(row.set, row.data, row.method, row.seed)


def test_a_study_shown_half_way(tmp_path: Path, drawn: None, built: None) -> None:
    settings = read_settings("offline")
    rows = made_rows(0.1)
    rows[12:] = [as_pending(row) for row in rows[12:]]
    rows[0] = replace(as_pending(rows[0]), status="failed", failures={"finetune": "no"})
    rows[1] = replace(rows[1], outcomes=measured(None))
    found = made_result(rows)
    share = "10 of 20 fine-tunes are measured (8 still to come, 1 failed, 1 without a value)"
    assert readings(found)[0] == f"{share}: what follows is of these alone."
    assert any("(10 of 20 fine-tunes)" in line for line in readings(found))
    (table,) = [table for table in tables(found) if table.caption == "The fine-tunes"]
    assert [line[3] for line in table.rows] == ["failed"] + ["done"] * 11 + ["pending"] * 8
    assert all(line[4] == "10 of 20" for line in tables(found)[0].rows)
    write(found, settings, tmp_path)
    assert "10 of 20 fine-tunes are measured" in (tmp_path / "report.html").read_text()
    assert (tmp_path / "utility_loss.png").read_bytes().startswith(b"\x89PNG")
    nothing = made_result([as_pending(row) for row in rows])
    assert readings(nothing) == ["No fine-tune has been measured (20 still to come)."]
    write(nothing, settings, tmp_path)
    assert markdown(nothing).count("pending") == 20


def test_correlations_are_those_of_the_rows() -> None:
    rows = made_rows(3.0)
    rows[::2] = [replace(row, outcomes=measured(row.damage("utility_loss") + 4.0)) for row in rows[::2]]
    found = evaluate(rows, 20, 0).correlations["utility_loss"]
    loss = [row.damage("utility_loss") for row in rows]
    values = {key: [row.predictor(key) for row in rows] for key in ("forecast", "tokens")}
    for measure in ("spearman", "kendall"):
        scipy = {"spearman": stats.spearmanr, "kendall": stats.kendalltau}[measure]
        ours = {group: getattr(entries["forecast"], measure) for group, entries in found.items()}
        own = [scipy(values["forecast"][k::2], loss[k::2]).statistic for k in range(2)]
        assert [ours[method] for method in ("lora", "full")] == pytest.approx(own, abs=1e-12)
        assert ours["within_methods"] == pytest.approx(np.mean(own), abs=1e-12)  # no ties
        pooled = scipy(values["forecast"], loss).statistic
        assert ours["pooled"] == pytest.approx(pooled, abs=1e-12)
        assert abs(pooled - np.mean(own)) > 0.01
    entry = found["within_methods"]["forecast"]
    tokens = np.mean([stats.spearmanr(values["tokens"][k::2], loss[k::2]).statistic for k in range(2)])
    assert entry.best_trivial is not None
    assert entry.spearman is not None
    assert (entry.best_trivial.predictor, entry.best_trivial.spearman) == ("tokens", pytest.approx(tokens, abs=1e-12))
    assert entry.best_trivial.difference == pytest.approx(entry.spearman - abs(tokens), abs=1e-12)
    assert (found["pooled"]["forecast"].count, found["pooled"]["forecast"].clusters) == (20, 10)


def rivals(rows: Sequence[StudyRow]) -> dict[str, str | None]:
    """What each predictor is compared with."""
    found = correlations(rows, Ranking("utility_loss", 50, 0))
    return {key: None if each.best_trivial is None else each.best_trivial.predictor for key, each in found.items()}


def test_only_trivial_predictors_known_by_then_are_to_be_beaten() -> None:
    rows = made_rows(0.1)
    for row in rows:
        row.predictors.update({"update_norm": row.damage("utility_loss"), "score": row.predictors["forecast"]})
    found = rivals(rows)
    assert (found["forecast"], found["score"], found["update_norm"]) == ("tokens", "update_norm", None)


def test_missing_numbers_are_left_out_of_the_comparison() -> None:
    rows = made_rows(0.1)
    rows[0].predictors["forecast"] = None
    rows[1] = replace(rows[1], outcomes=Outcomes())
    how = Ranking("utility_loss", 50, 0)
    found = correlations(rows, how)
    assert found["forecast"].best_trivial is not None
    assert found["forecast"].count == found["forecast"].best_trivial.count == 18
    assert found["tokens"].count == 19
    assert correlations(rows[:6], Ranking("utility_loss", 0, 0))["tokens"].spearman_interval is None
    assert correlations(rows[:3], how) == {}


# ------------------------------------------------------------------------------------------------ settings


def test_settings_that_come_with_the_package(built: None) -> None:
    offline = read_settings("offline")
    assert len(offline.sets) == 4
    assert len(offline.left_out) == 5
    assert offline.max_length == 128
    assert len(read_settings("paper").sets) >= 8


def test_local_files_are_found_in_their_folder(place: Path) -> None:
    path = write_study(place, "files.toml")
    assert [each.name for each in read_settings(str(path)).sets] == ["first", "second"]
    assert [each.name for each in read_settings(str(path)).left_out] == ["gsm8k"]
    found = read_settings(str(path), place / "files")
    assert found.sets[-1].data == f"gsm8k={place / 'files' / 'sums.jsonl'}"
    with pytest.raises(UserError, match=r"--files: expected sums\.jsonl in .*model"):
        read_settings(str(path), place / "model")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds = [3]", "seeds = [3, 3]", "seeds: expected whole numbers from 0, each once"),
        ("seeds = [3]", "seeds = [true]", "seeds: expected whole numbers"),
        ('"lora", "full"', '"lora", "qlora"', "methods: expected a list of lora and full"),
        ("pilot_steps = 3", "pilot_steps = 4", "pilot_steps: expected fewer than 4"),
        (
            "pilot_steps = 3",
            "pilot_steps = 2",
            "expected 0 (no pilot) or at least 3 (3 points for the forecast), got 2",
        ),
        (
            "max_steps = 4",
            'max_steps = 9\noverride = ["warmup_steps=2"]',
            "or at least 4 (3 points for the forecast, and",
        ),
        ("pilot_steps = 3", "pilot_stpes = 3", "unknown key 'pilot_stpes'; did you mean pilot_steps"),
        ("max_steps = 4", 'max_steps = 4\noverride = ["optim=adafactor"]', "predicted for AdamW and SGD"),
        ("[finetune.lora]", "[finetune.lora]\nmax_length = 32", "[finetune.lora] unknown option 'max_length'"),
        ("max_steps = 4", 'max_steps = 4\ndefend = "static"', "[finetune] unknown option 'defend'"),
        ("dim = 16", "dim = 0", "--dim: expected a whole number from 1"),
        ("rank = 2", "rank = 5", "--rank: expected at most 4"),
        ('name = "second"', 'name = "FIRST"', "different names"),
        ('model = "', 'modell = "', "unknown key 'modell'"),
        ('data = "gsm8k"', 'data = "gsm9k"', "gsm8k"),
    ],
)
def test_settings_that_no_study_can_have(place: Path, old: str, new: str, message: str) -> None:
    path = write_study(place, "wrong.toml")
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UserError) as error:
        read_settings(str(path), place / "files")
    assert message in str(error.value)


def test_names_of_predictors_differ() -> None:
    assert len(BY_KEY) == len(PREDICTORS) == len({each.name for each in PREDICTORS})


# ------------------------------------------------------------------------------------------------ killed


def test_killed_studies_go_on_to_the_same_result(tmp_path: Path) -> None:
    make_study_workplace(tmp_path)
    write_study(tmp_path)
    assert len(survived(tmp_path, "study")) == 3
