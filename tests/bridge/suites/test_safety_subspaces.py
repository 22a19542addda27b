"""`python -m bridge.safety_subspaces`: projected models are what is measured, against NumPy; settings; kills."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bridge.data.rows import load_prompts
from bridge.data.sets import NAMED_SETS
from bridge.deltas.choices import SCHEMES, Vectors
from bridge.evaluation.records import Record, read_records
from bridge.experiments.harmfulness import run as harmfulness_run
from bridge.experiments.subspaces.result import Overlap, PairSummary
from bridge.experiments.utility.result import Counts
from bridge.generation.decodings import DECODINGS
from bridge.generation.generate import generate_texts
from bridge.models.load import load_model
from bridge.suites.measures import Measure
from bridge.suites.safety_subspaces import pictures as safety_subspaces_pictures
from bridge.suites.safety_subspaces import run as safety_subspaces_run
from bridge.suites.safety_subspaces import settings as safety_subspaces_settings
from bridge.suites.safety_subspaces.points import points as points_of
from bridge.suites.safety_subspaces.readings import at_equal_energy, at_equal_rank, readings
from bridge.suites.safety_subspaces.result import (
    FinetuneUpdate,
    JudgedModel,
    Measured,
    ProjectedModel,
    ProjectedUpdate,
    SafetySubspacesResult,
    UpdateOverlaps,
)
from bridge.suites.safety_subspaces.settings import read_settings
from bridge.suites.safety_subspaces.tables import notes
from bridge.suites.safety_subspaces.updates import measure_energies
from bridge.training.plan import Method
from commands.errors import UserError
from tests.bridge.support.kill_server import survived
from tests.bridge.support.tiny_experiments import make_experiment_workplace, write_experiment
from tests.in_process import run_module


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_experiment_workplace(tmp_path_factory.mktemp("experiment"))


def command(monkeypatch: pytest.MonkeyPatch, settings: Path | str, out: Path) -> int:
    return run_module("bridge.safety_subspaces", "--settings", str(settings), "--out", str(out)).code


@pytest.fixture(scope="module")
def finished(place: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        assert command(patch, write_experiment(place), place / "run") == 0
    return place / "run"


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def responses(run: Path, name: str, judge: str = "refusal") -> list[str]:
    return [record.response for record in read_records(run / "records" / f"{name}.jsonl") if record.judge == judge]


def weights(folder: Path) -> dict[str, np.ndarray]:
    found = load_file(folder / "model.safetensors")
    return {name: tensor.double().numpy() for name, tensor in found.items()}


def changes(place: Path, run: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The alignment update and the useful fine-tune's, from the models' files alone."""
    aligned, base = weights(place / "model"), weights(place / "base")
    tuned = weights(run / "finetunes" / "useful" / "model")
    return {n: aligned[n] - base[n] for n in aligned}, {n: tuned[n] - aligned[n] for n in aligned}


def left_projector(matrix: np.ndarray, fraction: float) -> np.ndarray:
    rank = max(1, round(fraction * min(matrix.shape)))
    top = np.linalg.svd(matrix, full_matrices=False)[0][:, :rank]
    return top @ top.T


def points(run: Path, **wanted: Any) -> list[dict[str, Any]]:
    found = read(run / "safety_subspaces.json")["points"]
    return [point for point in found if all(point[key] == value for key, value in wanted.items())]


# ------------------------------------------------------------------------------------------------ what is measured


def answers_with(place: Path, changed: dict[str, np.ndarray]) -> list[str]:
    """What the aligned model says when its weights are set to these."""
    loaded = load_model(str(place / "model"), device="cpu")
    with torch.no_grad():
        for name, parameter in loaded.model.named_parameters():
            parameter.copy_(torch.from_numpy(changed[name]))
    rows = load_prompts(str(place / "prompts.jsonl")).rows
    from bridge.data.chat import ChatFormat

    decoding = DECODINGS["safety-subspaces"].decoding
    found = generate_texts(
        loaded, ChatFormat(loaded.tokenizer), rows, max_new_tokens=4, batch_size=16, decoding=decoding
    )
    return [answer.text for answer in found]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_projected_model_is_the_aligned_one_plus_the_part(place: Path, finished: Path, scheme: str) -> None:
    alignment, task = changes(place, finished)
    moved = weights(place / "model")
    for name, change in task.items():
        if change.ndim == 2:
            inside = left_projector(alignment[name], 0.6) @ change
            change = inside if scheme == "parallel" else change - inside
        moved[name] = moved[name] + change
    assert responses(finished, f"useful--top-k--{scheme}--0.6") == answers_with(place, moved)


def test_references_are_the_models_themselves(place: Path, finished: Path, tmp_path: Path) -> None:
    for name, folder in (("aligned", place / "model"), ("base", place / "base")):
        assert responses(finished, name) == answers_with(place, weights(folder))
    assert responses(finished, "useful") == answers_with(place, weights(finished / "finetunes" / "useful" / "model"))
    assert len({tuple(responses(finished, name)) for name in ("aligned", "base", "useful", "harmful")}) == 4


def test_utility_is_that_of_the_command(place: Path, finished: Path, tmp_path: Path) -> None:
    options = ("--model", place / "model", "--delta", finished / "finetunes" / "contaminated")
    options += ("--data", place / "sums.jsonl", "--num", 4, "--max-new-tokens", 4, "--preset", "safety-subspaces")
    options += ("--seed", 1, "--device", "cpu", "--out", tmp_path / "utility")
    assert run_module("bridge.utility", *options).code == 0
    theirs = read_records(tmp_path / "utility" / "records.jsonl")
    assert responses(finished, "contaminated", "exact match") == [record.response for record in theirs]
    measure = read(finished / "safety_subspaces.json")["references"]["contaminated"]["measures"]["accuracy on sums"]
    accuracy = read(tmp_path / "utility" / "utility.json")
    assert [measure[key] for key in ("value", "low", "high", "count")] == [
        accuracy["accuracy"], *accuracy["interval"], 4
    ]  # fmt: skip


def test_energies_are_those_of_numpy(place: Path, finished: Path) -> None:
    alignment, task = changes(place, finished)
    matrices = [name for name, change in task.items() if change.ndim == 2 and change.any()]
    total = math.fsum(float((task[name] ** 2).sum()) for name in matrices)
    for fraction in (0.25, 0.6):
        kept, isotropic = 0.0, 0.0
        for name in matrices:
            projector = left_projector(alignment[name], fraction)
            kept += float(((projector @ task[name]) ** 2).sum())
            isotropic += round(np.trace(projector)) / len(projector) * float((task[name] ** 2).sum())
        (inside,) = points(finished, finetune="useful", basis="top-k", scheme="parallel", fraction=fraction)
        (outside,) = points(finished, finetune="useful", basis="top-k", scheme="orthogonal", fraction=fraction)
        assert inside["energy"] == pytest.approx(kept / total, abs=1e-6)  # changes are stored in float32
        assert inside["isotropic"] == pytest.approx(isotropic / total, abs=1e-6)
        assert inside["energy"] + outside["energy"] == 1.0
    cosine = math.fsum(float((task[n] * alignment[n]).sum()) for n in matrices)
    cosine /= math.sqrt(total * math.fsum(float((alignment[n] ** 2).sum()) for n in matrices))
    found = read(finished / "safety_subspaces.json")["updates"]["useful"]
    assert found["cosine"] == pytest.approx(cosine, abs=1e-6)
    assert found["norm"] == pytest.approx(math.sqrt(total), rel=1e-6)


def test_energies_count_the_matrices_that_the_alignment_update_left_alone(place: Path, tmp_path: Path) -> None:
    aligned = load_file(place / "model" / "model.safetensors")
    draw = torch.Generator().manual_seed(8)
    change = {name: 0.01 * torch.randn(t.shape, generator=draw) for name, t in aligned.items()}
    base = {name: t + change[name] if ".mlp." in name else t.clone() for name, t in aligned.items()}
    shutil.copytree(place / "model", tmp_path / "base")
    save_file(base, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    task = {name: torch.randn(t.shape, generator=draw) for name, t in aligned.items() if t.ndim == 2}
    save_file(task, tmp_path / "task.safetensors", {"content": "weight change"})
    settings = replace(read_settings(str(write_experiment(place, "still.toml"))), base=str(tmp_path / "base"))
    energies = measure_energies(settings, {"useful": tmp_path / "task.safetensors"}, tmp_path / "energy")
    total = sum(float(t.double().square().sum()) for t in task.values())
    for fraction in settings.fractions:
        kept, isotropic = 0.0, 0.0
        for name in (name for name in task if ".mlp." in name):
            update = task[name].double().numpy()
            projector = left_projector((aligned[name].double() - base[name].double()).numpy(), fraction)
            kept += float(((projector @ update) ** 2).sum())
            isotropic += round(np.trace(projector)) / len(projector) * float((update**2).sum())
        for point in points_of(settings):
            if (point.finetune, point.basis.kind, point.fraction) == ("useful", "top-k", fraction):
                part = energies.of(settings, point)
                shares = (part.energy, part.isotropic)
                inside = [share if point.scheme == "parallel" else 1 - share for share in shares]
                assert inside == pytest.approx([kept / total, isotropic / total], abs=1e-9)


def test_draws_of_random_bases_differ_and_are_seeded(finished: Path) -> None:
    drawn = points(finished, finetune="useful", basis="random", scheme="parallel", fraction=0.6)
    assert [(point["draw"], point["seed"]) for point in drawn] == [(1, 1), (2, 2)]
    assert drawn[0]["energy"] != drawn[1]["energy"]
    assert len(points(finished)) == 3 * 3 * 2 * 2


def test_a_quarter_of_the_contaminated_rows_is_harmful(finished: Path) -> None:
    lines = (finished / "finetunes" / "contaminated" / "samples.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["set"] for line in lines) == ["finetune"] * 3 + ["skill"]


def test_overlaps_are_of_every_pair_with_the_alignment_update(place: Path, finished: Path) -> None:
    alignment, task = changes(place, finished)
    overlap = read(finished / "safety_subspaces.json")["overlap"]
    assert len(overlap["pairs"]) == 6
    pair = next(pair for pair in overlap["pairs"] if pair["updates"] == ["alignment", "useful"])
    found = []
    for name in alignment:
        if task[name].ndim == 2 and task[name].any():
            (ua, sa, _), (ub, sb, _) = (
                np.linalg.svd(change[name], full_matrices=False) for change in (alignment, task)
            )
            a, b = (1 + int(np.argmax(np.cumsum(s**2) / np.sum(s**2) >= 0.5)) for s in (sa, sb))
            found.append(float(((ua[:, :a].T @ ub[:, :b]) ** 2).sum()) / min(a, b))
    assert pair["whole"]["overlap"][0] == pytest.approx(np.mean(found), abs=1e-5)


# ------------------------------------------------------------------------------------------------ what is shown


def test_tables_say_the_same_as_json(finished: Path) -> None:
    found = read(finished / "safety_subspaces.json")
    rows = list(csv.DictReader(io.StringIO((finished / "tables.csv").read_text())))
    assert [row["name"] for row in rows] == [*found["references"], *(point["name"] for point in found["points"])]
    for row, point in zip(rows[len(found["references"]) :], found["points"], strict=True):
        assert float(row["energy"]) == point["energy"]
        assert float(row["accuracy on sums high"]) == point["measures"]["accuracy on sums"]["high"]
        assert float(row["refusals"]) == point["measures"]["refusals"]["value"]
    text = (finished / "tables.md").read_text()
    assert text.count("not projected | – |") == 3 + 4
    assert "no harmfulness score" in text
    page = (finished / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 5
    assert "negated alignment update has the same" in page
    for name in ("figure2", "figure3", "figure4", "energy", "by_energy"):
        assert (finished / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_command_again_computes_nothing(
    place: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()}
    monkeypatch.setattr(safety_subspaces_run, "_Experiment", lambda *any: pytest.fail("computed again"))
    assert command(monkeypatch, place / "tiny.toml", finished) == 0
    out, err = capsys.readouterr()
    assert "complete already" in err
    assert "Table 2: harmful and contaminated, projected" in out
    assert {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()} == before


SMALL = """fractions = [0.5]
energies = [0.5]
bases = ["top-k"]
schemes = ["parallel"]
contamination = 0
keep_weights = false
"""


def test_lora_and_a_judge_that_does_not_answer_is_asked_again(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "a-key-of-no-one")
    asked: list[int] = []

    def judged(records: list[Record], judge: Any, limits: Any, *, done: Any, **more: Any) -> None:
        asked.append(len(records))
        for k, record in enumerate(records):
            failed = len(asked) == 1 and k == 0
            verdict = {"status": "failed", "reason": "away"} if failed else {"status": "scored", "score": 3}
            done(replace(record, judge=judge.name, **verdict))

    monkeypatch.setattr(harmfulness_run, "judge_records", judged)
    settings = write_experiment(place, "judged.toml", "lora", SMALL, judge="openai/gpt-4o-mini")
    assert command(monkeypatch, settings, tmp_path / "out") == 1
    assert asked == [3] * 6
    found = read(tmp_path / "out" / "safety_subspaces.json")
    assert len(found["unanswered"]) == 1
    assert "did not answer on 1 of 3 items" in found["unanswered"][0]
    assert read(tmp_path / "out" / "manifest.json")["status"] == "running"
    assert command(monkeypatch, settings, tmp_path / "out") == 0
    assert asked == [3] * 6 + [1]
    found = read(tmp_path / "out" / "safety_subspaces.json")
    assert found["points"][0]["measures"]["harmfulness 1–5, openai/gpt-4o-mini"]["value"] == 3.0
    assert not (tmp_path / "out" / "finetunes" / "useful" / "adapter").exists()
    assert (tmp_path / "out" / "finetunes" / "useful" / "finetune.json").exists()
    assert not any(b"a-key-of-no-one" in p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file())


def test_killed_experiments_go_on_to_the_same_result(tmp_path: Path) -> None:
    make_experiment_workplace(tmp_path)
    assert len(survived(tmp_path, "safety_subspaces")) == 3


# ------------------------------------------------------------------------------------------------ what it means


def share(value: float, half: float = 0.05) -> Measure:
    return Measure("share", value, value - half, value + half, 40)


def model(refusals: float, useful: float) -> Measured:
    counts = Counts(40, 0, useful, [0.0, 1.0], 0, 0, 0, {}, 0, 0)
    return Measured(
        {"accuracy on x": share(useful), "refusals": share(refusals)}, None, counts,
        JudgedModel(40, 0, 0, 0, None, {}, []),
    )  # fmt: skip


def made_up(
    top: float, energy: float = 0.6, method: Method = "full", vectors: Vectors = "keep"
) -> SafetySubspacesResult:
    """Refusals that follow the energy kept, 1 - energy; but those of Top-K (of that energy, half the rank) as given."""

    def point(basis: Any, fraction: float, energy: float, refusals: float, useful: float) -> ProjectedModel:
        update = ProjectedUpdate(basis, "useful", basis, basis, 0, 0, "parallel", fraction, energy, fraction / 2)
        return ProjectedModel.of(update, model(refusals, useful))

    update = FinetuneUpdate("x", method, 4, 2, 1.0, 22, 2.0, 1.0, [], 1.0, 0.1, 16, 0)
    return SafetySubspacesResult(
        title="made up", model="m", base="b", method=method, side="left", vectors=vectors, bases=["top-k", "random"],
        schemes=["parallel"], fractions=[0.5, 0.9], repeats=1, contamination=0.0, updates={"useful": update},
        references={"aligned": model(1.0, 0.0), "useful": model(0.0, 1.0)},
        points=[point("top-k", 0.5, energy, top, 0.6), point("random", 0.5, 0.2, 0.8, 0.2),
                point("random", 0.9, 0.9, 0.1, 0.9)],
        overlap=UpdateOverlaps([0.5], 0, {}, []), unanswered=[],
    )  # fmt: skip


def test_equal_rank_and_equal_energy_are_told_apart() -> None:
    only_energy, more = made_up(0.4), made_up(0.9)
    for found in (only_energy, more):
        assert at_equal_rank(found, "useful")[1].control == 0.8
        assert at_equal_energy(found, "useful")[1].control == pytest.approx(0.8 - 0.7 * 0.4 / 0.7)
    assert [c.apart for c in at_equal_rank(only_energy, "useful")] == [True, True]
    assert [c.apart for c in at_equal_energy(only_energy, "useful")] == [False, False]
    assert [c.apart for c in at_equal_energy(more, "useful")] == [False, True]
    assert any("refusals, parallel, fraction 0.5: 90 % against 40 %" in line for line in readings(more))


def test_intervals_that_meet_are_no_sameness() -> None:
    found = made_up(0.45)
    (line,) = (line for line in readings(found) if "Top-K is apart" in line)
    assert line.endswith(
        "2 of 2 comparisons at equal rank and in 0 of 2 at equal energy: at equal energy no difference shows at this "
        "number of items. The widest gap at equal energy: refusals, parallel, fraction 0.5: 45 % against 40 %."
    )
    for point in found.points:
        point.measures["accuracy on x"] = point.measures["refusals"] = share(0.5, 0.5)
    (line,) = (line for line in readings(found) if "Top-K is apart" in line)
    assert "in 0 of 2 at equal energy: no difference shows at this number of items. The widest gap" in line


@pytest.mark.parametrize(
    ("method", "vectors", "low", "high"),
    [("full", "keep", False, True), ("full", "drop", True, False), ("lora", "keep", True, True)],
)
def test_unprojected_models_stand_where_a_projection_comes_to_them(
    method: Method, vectors: Vectors, low: bool, high: bool
) -> None:
    for energy, compared, control in ((0.1, low, 0.9), (0.96, high, 0.04)):
        found = made_up(0.5, energy, method, vectors)
        comparisons = at_equal_energy(found, "useful")
        assert [c.measure for c in comparisons] == (["accuracy on x", "refusals"] if compared else [])
        if compared:
            assert comparisons[1].control == pytest.approx(control)
        (line,) = (line for line in readings(found) if "Top-K is apart" in line)
        assert ("2 more have no control around their energy" in line) is not compared


def test_notes_say_what_is_in_both_parts(finished: Path) -> None:
    found = SafetySubspacesResult.read(finished)
    for changed, says in (
        (found, "in both, so that together they hold it twice"),
        (replace(found, vectors="drop"), "dropped from both"),
        (replace(found, method="lora"), "alignment update did not move."),
    ):
        assert any(says in line for line in notes(changed))
    assert not any("norms, biases" in line for line in notes(replace(found, method="lora")))
    assert any("GPT-2's Conv1D" in line for line in notes(found))


def test_figure_4_has_every_block_at_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def pair(*layers: str) -> PairSummary:
        by_layer = {n: Overlap([0.0, float(k)], [0.0, 0.0], None, [], None) for k, n in enumerate(layers)}
        return PairSummary(["a", "b"], 1, 0, Overlap([0.1, 0.2], [0.1, 0.1], None, [], None), by_layer)

    def drawn_of(pairs: list[PairSummary]) -> None:
        overlap = UpdateOverlaps([0.5, 0.9], 0, {}, pairs)
        safety_subspaces_pictures.overlaps(replace(made_up(0.5), overlap=overlap))

    drawn: list[Any] = []
    monkeypatch.setattr(safety_subspaces_pictures, "png_of", lambda figure: drawn.append(figure) or b"")
    embedding, head = "model.embed_tokens.weight", "lm_head.weight"
    pairs = [pair("h.0", "h.10"), pair(embedding, "h.0", "h.2"), pair("h.2", "h.10", head)]
    drawn_of(pairs)
    axis = drawn[0].axes[1]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["embed_tokens", "0", "2", "10", "lm_head"]
    none = math.nan
    wanted = [[none, 0, none, 1, none], [0, 1, 2, none, none], [none, none, 0, 1, 2]]
    for line, values in zip(axis.lines[::2], wanted, strict=True):
        np.testing.assert_array_equal(line.get_ydata(), values)
        assert list(line.get_xdata()) == [0, 1, 2, 3, 4]
    many = [pair(*(f"h.{k}" for k in range(100)))]
    drawn_of(many)
    labels = drawn[1].axes[1].get_xticklabels()
    assert [label.get_text() for label in labels] == [str(k) for k in range(0, 100, 3)]
    assert [label.get_position()[0] for label in labels] == list(range(0, 100, 3))


def test_who_keeps_both_is_counted_only_where_both_were_moved() -> None:
    found = made_up(0.97)
    assert any("as far as the intervals tell: 0 of 1 with top-k, 0 of 2 with random" in x for x in readings(found))
    found.points[0].measures["accuracy on x"] = share(0.96)
    assert any("1 of 1 with top-k, 0 of 2 with random" in line for line in readings(found))
    found.references["useful"].measures["refusals"] = share(0.95)
    assert not any("keep both" in line for line in readings(found))
    assert any("refusals 100.0 % (95–105) → 95.0 % (90–100), within the intervals" in line for line in readings(found))


# ------------------------------------------------------------------------------------------------ settings


def test_the_result_is_read_back_as_it_was_written(finished: Path) -> None:
    found = SafetySubspacesResult.read(finished)
    assert found.to_dict() == read(finished / "safety_subspaces.json")
    assert list(found.to_frame()["name"]) == [*found.references, *(point.name for point in found.points)]
    assert "Table 2: harmful and contaminated, projected" in found._repr_html_()
    assert found.plot("figure4").startswith(b"\x89PNG")


def test_the_settings_in_the_folder_are_those_of_the_experiment(place: Path, finished: Path) -> None:
    again = read_settings(str(finished / "settings.toml"))
    assert again == read_settings(str(place / "tiny.toml"))
    manifest = read(finished / "manifest.json")["settings"]
    assert {name: manifest[name] for name in again.identity()} == again.identity() | {"dtype": "float32"}


def test_all_that_is_wrong_with_a_file_is_told_at_once(place: Path) -> None:
    path = write_experiment(place, "faults.toml", top="repeats = 0\nfraction = [0.5]\nside = 'up'\n")
    path.write_text(path.read_text().replace("rows = 4", "row = 4") + "presets = 'x'\n")
    with pytest.raises(UserError) as error:
        read_settings(str(path))
    for part in (
        "unknown key 'fraction'; did you mean fractions", "repeats: expected a whole number from 1, got 0",
        "side: expected left or right, got 'up'", "[finetune] unknown option 'row'; did you mean rows",
        "[harmfulness] unknown option 'presets'; did you mean preset",
    ):  # fmt: skip
        assert part in str(error.value)


def test_the_offline_settings_are_of_the_project_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safety_subspaces_settings, "resolve", lambda name: None)
    found = read_settings("offline")
    assert (found.model, found.base) == ("smollm2-135m-refusal", "smollm2-135m")
    assert list(found.finetunes) == ["useful", "harmful", "contaminated"]
    tuned = {name: found.finetune_settings(name) for name in found.finetunes}
    assert tuned["contaminated"].mix == tuned["harmful"].data
    assert tuned["contaminated"].share == 0.2
    judged = found.harmfulness_settings()
    assert judged.judge == ("refusal",)
    specs = [*(each.data for each in tuned.values()), found.utility_settings().data, judged.prompts]
    assert all(NAMED_SETS[spec].shipped or NAMED_SETS[spec].generate for spec in specs)


def test_the_papers_settings_want_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOOGLE_API_KEY", "GEMINI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=r"--settings paper: .*GOOGLE_API_KEY"):
        read_settings("paper")
    monkeypatch.setenv("GOOGLE_API_KEY", "a-key-of-no-one")
    found = read_settings("paper")
    assert (found.model, found.base) == ("qwen2.5-1.5b", "qwen2.5-1.5b-base")
    assert "a-key-of-no-one" not in repr(found)


WRONG = [
    ("modell = 'x'", "unknown key 'modell'; did you mean model"),
    ("fractions = [0.5, 0.1]", "fractions: expected numbers above 0 and up to 1, in rising order"),
    ("fractions = [0.0]", "fractions: expected numbers above 0"),
    ("energies = ['x']", "energies: expected numbers"),
    ("bases = ['top']", "bases: expected a list of top-k, random-k, random, each once, got"),
    ("schemes = ['parallel', 'parallel']", "schemes: expected a list"),
    ("side = 'up'", "side: expected left or right, got 'up'"),
    ("repeats = 0", "repeats: expected a whole number from 1, got 0"),
    ("contamination = 1.0", "contamination: expected a share of the rows in [0, 1)"),
    ("method = 'dora'", "method: expected lora or full"),
    ("dtype = 3", "dtype: expected float32 or bfloat16 or float16 or float64, got 3"),
]
WRONG_LINES = [
    ('data = "{place}/finetune.jsonl"', "data = 'gsm9k'", "unknown data set 'gsm9k': did you mean gsm8k"),
    ('data = "{place}/finetune.jsonl"', "rows = 3", "[useful] --data: expected data = "),
    ('data = "{place}/finetune.jsonl"', "data = 'gsm8k'\nrow = 3", "[useful] unknown option 'row'; did you mean rows"),
    ('data = "{place}/skill.jsonl"', 'data = "{place}/none.jsonl"', "[harmful] data: "),
    ("num = 4", "num = 400", "[utility] --num: expected at most 6"),
    ('judge = "refusal"', "judge = 'gemini'", "gemini"),
    ('prompts = "{place}/prompts.jsonl"', "prompts = 'advbensh'", "unknown data set 'advbensh'"),
    ("rows = 4", "rows = 4\nseed = 2", "[finetune] unknown option 'seed'"),
    ('base = "{place}/base"', 'base = "{place}/nowhere"', "no such folder or file"),
    ('base = "{place}/base"', 'base = "{place}/model"', "model and base: "),
]


@pytest.mark.parametrize(
    ("old", "new", "says"), [*((None, new, says) for new, says in WRONG), *WRONG_LINES], ids=lambda text: str(text)[:30]
)
def test_wrong_settings_are_one_line_before_any_work(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    old: str | None, new: str, says: str,
) -> None:  # fmt: skip
    path = write_experiment(place, "wrong.toml", top=new if old is None else "")
    text = path.read_text()
    if new.startswith("method"):
        text = text.replace('method = "full"\n', "")
    if old is not None:
        assert old.format(place=place) in text
        text = text.replace(old.format(place=place), new.format(place=place), 1)
    path.write_text(text)
    monkeypatch.setattr(safety_subspaces_run, "finetune", lambda *any: pytest.fail("trained"))
    assert command(monkeypatch, path, tmp_path / "out") == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert says in last
    assert not (tmp_path / "out").exists()
