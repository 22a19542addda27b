"""`python -m bridge.fisher_overlap`: its numbers against explicit scores, its folder, its sentences, its errors."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridge.estimators import scores as measure
from bridge.estimators import theta as estimators_theta
from bridge.estimators.taps import select_modules
from bridge.experiments.fisher_overlap import run as fisher_overlap_run
from bridge.experiments.fisher_overlap.report import energy_rows, rank_rows, readings, rows
from bridge.experiments.fisher_overlap.result import Question, Scores, assemble, jobs, not_excluded, verdict
from commands.progress import Progress
from commands.store import RunFolder
from tests.bridge.conftest import random_samples
from tests.bridge.support.kill_server import survived
from tests.bridge.support.tiny_fisher_overlaps import COMPARED, options
from tests.bridge.support.tiny_runs import SCRIPT, make_workplace
from tests.in_process import run_module
from tests.oracles import cross_fisher
from tests.oracles.brute_force import BruteForce
from tests.oracles.cross_fisher import DenseSet
from tests.oracles.tiny_transformer import TinyTransformer

ROOT = Path(__file__).parents[3]
COUNTS = (8, 9, 7)
QUESTION = Question(
    rank=2, most=2, energies=(0.5, 0.9), splits=3, jackknife=5, permutations=7, simulations=4, seed=1
)  # fmt: skip
EACH = [1, 2, 0.5, 0.9]


# ------------------------------------------------------------------------------- against explicit scores


@pytest.fixture(scope="module")
def explicit(tiny: TinyTransformer) -> dict[str, np.ndarray]:
    """Scores of three skills on the exact model by automatic differentiation, by module, one sample a row."""
    oracle = BruteForce(tiny, list(select_modules(tiny)))
    found = oracle.scores(_samples()).numpy()
    return {name: found[:, part] for name, part in oracle.slices().items()}


def _samples() -> list[Any]:
    skills = [random_samples(f"skill-{k}", count, 13, seed=k) for k, count in enumerate(COUNTS)]
    return [replace(s, group=100 * k + s.group) for k, part in enumerate(skills) for s in part]


@pytest.fixture(scope="module")
def measured(tiny: TinyTransformer, tmp_path_factory: pytest.TempPathFactory) -> Scores:
    subject = estimators_theta.Subject(tiny, select_modules(tiny), pad_id=0, batch_size=4, memory_bytes=10**6)
    folder = RunFolder(tmp_path_factory.mktemp("exact") / "run", "test", {})
    products = measure.measure_products(subject, _samples(), {}, folder, Progress(quiet=True))
    folder.close()
    return Scores(
        grams={name: arrays["gram"] for name, arrays in products.items()},
        dimensions={name: subject.weights[name].numel() for name in products},
        skills=np.repeat(np.arange(3), COUNTS),
        groups=np.unique([s.group for s in _samples()], return_inverse=True)[1],
    )


@pytest.fixture(scope="module")
def result(measured: Scores) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, job in jobs(measured, QUESTION).items():
        found[name] = json.loads(json.dumps(job(found), allow_nan=False))
    described = {"model": "tiny", "fisher": "empirical", "skill_names": ["one", "two", "three"]}
    return assemble(described, measured, QUESTION, found, dict.fromkeys(measured.whole.pairs(), 0))


def _parts(scores: np.ndarray) -> list[np.ndarray]:
    return np.split(scores, np.cumsum(COUNTS)[:-1])


def _basis(rows: np.ndarray) -> np.ndarray:
    """The scores in coordinates of their own span: everything that is compared is the same there, and smaller."""
    return rows @ np.linalg.svd(rows, full_matrices=False)[2].T


def test_the_cross_grams_are_those_of_the_scores(measured: Scores, explicit: dict[str, np.ndarray]) -> None:
    assert set(measured.grams) == set(explicit)
    for name, scores in explicit.items():
        expected = scores @ scores.T
        assert np.abs(measured.grams[name] - expected).max() <= 1e-9 * np.abs(expected).max()
        assert measured.dimensions[name] == scores.shape[1]


@pytest.mark.parametrize("centring", ["uncentred", "centred"])
def test_the_overlaps_are_those_of_dense_projectors(
    result: dict[str, Any], explicit: dict[str, np.ndarray], centring: str
) -> None:
    rows_, centred = _basis(np.concatenate(list(explicit.values()), axis=1)), centring == "centred"
    parts = _parts(rows_)
    halves = [cross_fisher.halves(p, QUESTION.splits, QUESTION.seed, k, np.arange(len(p))) for k, p in enumerate(parts)]
    for pair, (a, b) in zip(result["pairs"], [(0, 1), (0, 2), (1, 2)], strict=True):
        entry, dense = pair[centring], (DenseSet(parts[a], centred), DenseSet(parts[b], centred))
        np.testing.assert_allclose(entry["cosines"], cross_fisher.cosines(*dense, QUESTION.rank), atol=1e-8)
        for q, question in enumerate(EACH):
            group, k = ("at_rank", q) if q < QUESTION.most else ("at_energy", q - QUESTION.most)
            found = {name: values[k] for name, values in entry[group].items()}
            expected = cross_fisher.split_means(parts[a], parts[b], halves[a], halves[b], question, centred)
            for name, value in expected.items():
                assert found[name] == pytest.approx(value, abs=1e-9), (name, question)
            assert found["overlap"] == pytest.approx(cross_fisher.overlap(*dense, question), abs=1e-9)
            assert found["b_in_a_all"] == pytest.approx(cross_fisher.energy(dense[1], dense[0], question), abs=1e-9)
            relative = cross_fisher.relative_overlap(expected, found["floor"])
            if relative is None:
                assert found["relative"] is found["relative_low"] is found["relative_high"] is None
            else:
                assert found["relative"] == pytest.approx(relative, abs=1e-8)
            for name in ("cross", "own_a", "ceiling"):
                assert found[f"{name}_low"] <= found[name] <= found[f"{name}_high"]
            assert found["cross_low"] < found["cross"]
            chance = found["random_in_a"]
            energy = (expected["b_in_a"] - chance) / (expected["b_in_b"] - found["random_in_b"])
            if isinstance(question, int):
                assert chance == found["random"] == question / result["num_parameters"]
                assert found["relative_b_in_a"] == pytest.approx(energy, abs=1e-8)


@pytest.mark.parametrize("centring", ["uncentred", "centred"])
def test_blocks_are_measured_on_their_own_parameters(
    result: dict[str, Any], explicit: dict[str, np.ndarray], centring: str
) -> None:
    assert list(result["layers"]) == ["layers.0", "layers.1"]
    for block, layer in result["layers"].items():
        names = [name for name in explicit if name.startswith(f"{block}.")]
        wide = np.concatenate([explicit[name] for name in names], axis=1)
        assert layer["num_parameters"] == wide.shape[1]
        parts = _parts(_basis(wide))
        halves = [cross_fisher.halves(p, 3, 1, k, np.arange(len(p))) for k, p in enumerate(parts)]
        found = layer[centring][2]
        expected = cross_fisher.split_means(parts[1], parts[2], halves[1], halves[2], 2, centring == "centred")
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, abs=1e-9)
        assert found["relative"] == pytest.approx(cross_fisher.relative_overlap(expected, 2 / wide.shape[1]), abs=1e-8)


def test_skills_are_described(result: dict[str, Any], explicit: dict[str, np.ndarray]) -> None:
    wide = np.concatenate(list(explicit.values()), axis=1)
    for skill, part in zip(result["skills"].values(), _parts(wide), strict=True):
        assert skill["num_samples"] == skill["num_prompts"] == len(part)
        trace = np.sum(part**2) / len(part)
        mean = part.mean(axis=0)
        assert skill["root_mean_square_norm"] == pytest.approx(np.sqrt(trace))
        assert skill["mean_score_share"] == pytest.approx(mean @ mean / trace)
        assert skill["uncentred"]["trace"] == pytest.approx(trace)
        assert skill["centred"]["trace"] == pytest.approx(trace - mean @ mean)
        values = np.linalg.eigvalsh(part @ part.T)[::-1]
        np.testing.assert_allclose(skill["uncentred"]["top_share"], np.cumsum(values)[:2] / values.sum())
        shares = np.cumsum(values) / values.sum()
        assert skill["uncentred"]["rank_by_energy"] == [int(np.argmax(shares >= e)) + 1 for e in QUESTION.energies]
    means = [part.mean(axis=0) for part in _parts(wide)]
    cosine = means[0] @ means[2] / np.linalg.norm(means[0]) / np.linalg.norm(means[2])
    assert result["pairs"][1]["uncentred"]["mean_score_cosine"] == pytest.approx(cosine)


def test_p_values_count_the_exchanges(result: dict[str, Any]) -> None:
    for pair in result["pairs"]:
        at = pair["uncentred"]["at_rank"]
        for p, low, mean, high in zip(
            at["p_value"], at["exchanged_low"], at["exchanged"], at["exchanged_high"], strict=True
        ):
            assert 8 * p == pytest.approx(round(8 * p))
            assert low <= mean <= high


# ------------------------------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workplace(tmp_path_factory.mktemp("fisher_overlap"), "gpt2")


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    return run_module("bridge.fisher_overlap", *arguments).code


@pytest.fixture(scope="module")
def finished(place: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        assert command(patch, *options(place, place / "run", "--draws", "2", "--rank", "4")) == 0
    return place / "run"


def read(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "fisher_overlap.json").read_text())
    return found


def test_the_folder_holds_what_it_should(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == {*COMPARED, "manifest.json"}
    page = (finished / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 4
    for line in readings(read(finished)):
        assert line.split(":")[0] in page
    assert SCRIPT not in page


def test_grams_groups_and_samples_belong_together(finished: Path) -> None:
    found, arrays = read(finished), np.load(finished / "statistics.npz")
    samples = [json.loads(line) for line in (finished / "samples.jsonl").read_text().splitlines()]
    assert arrays["skill"].tolist() == [0] * 12 + [1] * 12
    assert [s["set"].rpartition("/")[2] for s in samples] == ["skill.jsonl"] * 12 + ["finetune.jsonl"] * 12
    keys = [(s["set"], s["group"]) for s in samples]
    for i, j in ((0, 1), (0, 2), (0, 12), (22, 23)):
        assert (arrays["group"][i] == arrays["group"][j]) == (keys[i] == keys[j])
    assert all(skill["num_prompts"] == 6 and skill["num_samples"] == 12 for skill in found["skills"].values())
    total = sum(arrays[name] for name in arrays.files if name not in ("skill", "group"))
    norms = np.sqrt(total.diagonal()[:12].mean())
    assert next(iter(found["skills"].values()))["root_mean_square_norm"] == pytest.approx(norms)


def test_skills_draw_their_responses_apart(place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The same prompts under two names: common random numbers would draw the same responses."""
    text = (place / "skill.jsonl").read_text()
    (tmp_path / "other.jsonl").write_text(text)
    more = ("--model", str(place / "model"), "--skill", str(place / "skill.jsonl"))
    given = options(place, tmp_path / "run")
    first = given.index("--num-skill")
    code = command(monkeypatch, *more, "--skill", str(tmp_path / "other.jsonl"), *given[first:])
    assert code == 0
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    prompts, whole = [], []
    for half in (samples[:6], samples[6:]):
        prompts.append([s["input_ids"][: s["response_mask"].index(1)] for s in half])
        whole.append([s["input_ids"] for s in half])
    assert prompts[0] == prompts[1]
    assert whole[0] != whole[1]
    found = read(tmp_path / "run")
    assert found["pairs"][0]["shared_prompts"] == 6
    assert "share 6 prompts, which makes them look alike" in readings(found)[0]


def test_the_datas_responses(place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    none = ("--permutations", "0", "--fisher", "empirical")
    assert command(monkeypatch, *options(place, tmp_path / "run", *none)) == 0
    found = read(tmp_path / "run")
    assert "p_value" not in found["pairs"][0]["uncentred"]["at_rank"]
    assert "exchanged at random the overlap" not in " ".join(readings(found))
    assert {row[9] for row in rows(found)} == {"–"}


def test_the_same_command_again_computes_nothing(
    place: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fisher_overlap_run, "_measure", lambda *_, **__: pytest.fail("computed again"))
    assert command(monkeypatch, *options(place, finished, "--draws", "2", "--rank", "4")) == 0
    assert "complete already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--rank", "3"), "--rank: expected at most 2, the directions that half"),
        (("--num-skill", "3"), "--num-skill: expected a whole number from 4"),
        (("--jackknife", "4"), "--jackknife: expected a whole number from 5"),
        (("--energy", "0"), "--energy: expected a share of the Fisher trace"),
        (("--energy", "0.5", "--energy", "0.5"), "--energy: expected different shares"),
        (("--simulations", "0"), "--simulations: expected a whole number from 1"),
        (("--skill", "benign", "--skill", "benign"), "--skill: expected different sets"),
        (("--fisher", "empirical", "--draws", "2"), "--draws: expected 1 with --fisher empirical"),
        (("--num-skill", "60"), "has 8 usable rows"),
    ],
)
def test_what_cannot_be(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    more: tuple[str, ...], message: str,
) -> None:  # fmt: skip
    assert command(monkeypatch, *options(place, tmp_path / "run", *more)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_one_skill_is_none_to_compare(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(monkeypatch, "--skill", "refusals") == 2
    assert "--skill: expected two sets or more (--skill A --skill B), got refusals" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------- sentences


def entry(relative: float | None, low: float | None, high: float | None, **changes: float) -> dict[str, Any]:
    """A pair's numbers at rank 1 with the relative overlap given."""
    found = {
        "overlap": 0.3, "cross": 0.2, "own_a": 0.5, "own_b": 0.6, "own_a_low": 0.4, "own_b_low": 0.5, "ceiling": 0.55,
        "floor": 1e-5, "floor_high": 2e-5, "relative": relative, "relative_low": low, "relative_high": high,
        "p_value": 0.002, "exchanged": 0.4, **changes,
    }  # fmt: skip
    return {"at_rank": {name: [value] for name, value in found.items()}}


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (entry(0.1, 0.0, 0.2), ["distinct"]),
        (entry(0.12, -0.1, 0.35), ["distinct", "partly shared"]),  # 0 is inside: nothing need be shared
        (entry(0.8, 0.6, 1.05), ["partly shared", "shared"]),  # so is 1
        (entry(0.25, 0.1, 0.4), ["distinct", "partly shared"]),
        (entry(0.5, 0.25, 0.75), ["partly shared"]),
        (entry(0.9, 0.76, 1.1), ["shared"]),
        (entry(0.9, 0.76, 2.0), ["shared"]),
        (entry(0.5, 0.2, 0.8), ["distinct", "partly shared", "shared"]),
        (entry(0.1, 0.0, 0.2, ceiling=0.09), ["distinct", "partly shared", "shared"]),
        (entry(0.1, 0.0, 0.2, own_b_low=1e-5), ["distinct", "partly shared", "shared"]),
        (entry(None, None, None), ["distinct", "partly shared", "shared"]),
    ],
)
def test_verdicts(found: dict[str, Any], expected: list[str]) -> None:
    assert not_excluded(found, 1) == expected
    assert verdict(found, 1) == (expected[0] if len(expected) == 1 else "undetermined")


def sentence(plain: dict[str, Any], centred: dict[str, Any], shared_prompts: int = 0) -> str:
    pair = {"a": "refusals", "b": "maths=x/y.jsonl", "shared_prompts": shared_prompts}
    pair |= {"uncentred": plain | {"verdict": verdict(plain, 1)}, "centred": centred | {"verdict": verdict(centred, 1)}}
    skills = {"refusals": {"num_samples": 9}, "maths=x/y.jsonl": {"num_samples": 12}}
    lines = readings({"rank": 1, "pairs": [pair], "skills": skills, "num_parameters": 1000})
    assert lines[1].startswith("9 samples of a skill show at most 9 of the 1000 directions of θ, and half of them 4")
    return lines[0]


def test_what_is_said() -> None:
    text = sentence(entry(0.1, 0.0, 0.2), entry(0.15, 0.1, 0.2))
    assert text.startswith("refusals – maths: distinct subspaces: their halves share 20.0% of the top 1 directions")
    assert "where two halves of one skill share 50.0% and 60.0% (relative overlap 0.1, 0 … 0.2)" in text
    assert "the same holds without the mean scores (relative overlap 0.15, 0.1 … 0.2)" in text
    assert "would be 0.4 (p = 0.002): the two skills' samples are not exchangeable." in text
    text = sentence(entry(0.9, 0.8, 1.0, p_value=0.4), entry(0.1, 0.0, 0.2, ceiling=0.05))
    assert "one and the same subspace" in text
    assert "Without the mean scores: undetermined at this number of samples, since a skill hardly finds" in text
    assert "(p = 0.4): no difference of the two shows." in text
    text = sentence(entry(0.5, 0.0, 0.9), entry(None, None, None, own_a_low=0.0))
    assert "since the interval allows for distinct, partly shared and shared subspaces: " in text
    assert "(no ceiling above the floor)" in text
    text = sentence(entry(0.12, -0.1, 0.35), entry(0.8, 0.6, 1.05))
    assert "since the interval allows for distinct and partly shared subspaces: " in text
    assert "Without the mean scores: undetermined at this number of samples, since the interval allows for part" in text
    text = sentence(entry(0.12, -0.1, 0.35), entry(0.2, 0.1, 0.3))
    assert "the same holds without the mean scores (relative overlap 0.2, 0.1 … 0.3)" in text
    assert "since no interval could be found" in sentence(entry(0.5, None, None), entry(0.1, 0.0, 0.2))


def test_tables_hold_a_row_for_every_question(finished: Path) -> None:
    found = read(finished)
    assert [len(make(found)) for make in (rows, energy_rows, rank_rows)] == [2, 4, 4]
    at = {name: values[3] for name, values in found["pairs"][0]["uncentred"]["at_rank"].items()}
    assert energy_rows(found)[0][3] == f"{at['b_in_a']:.2%}"
    assert energy_rows(found)[1][4] == f"{at['a_in_a']:.2%}"


# ------------------------------------------------------------------------------------------------ killed


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_killed_anywhere_and_started_again(tmp_path: Path) -> None:
    make_workplace(tmp_path, "gpt2")
    found = survived(tmp_path, "fisher_overlap")
    assert len(found[-1]["ends"]) > 3  # the one that is killed often
    names = {line["moment"] for line in found}
    assert names >= {
        "tick of responses of the model", "tick of scores on the skill", "tick of overlaps", "after overlaps-0.json",
        "after scores-0.npz", "after statistics.npz",
        "before fisher_overlap.json", "after fisher_overlap.json", "after overlap.png", "after report.html",
    }  # fmt: skip
