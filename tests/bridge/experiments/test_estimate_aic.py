"""The whole command on tiny models: what stands in the run folder, and that it is right."""

from __future__ import annotations

import base64
import json
import math
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.func import jacrev

from bridge.data.samples import Sample
from bridge.estimators import taps
from bridge.experiments.estimate_aic import run as aic_run
from bridge.experiments.estimate_aic.result import AicResult
from bridge.experiments.estimate_aic.settings import Settings
from bridge.generation import sampling
from bridge.models.load import load_model
from commands.store import read_arrays
from tests.bridge.support.tiny_runs import SCRIPT, command, make_workplace, options, tiny_settings, write_rows
from tests.oracles.brute_force import BruteForce
from theory import aic, onset
from theory.resampling import bootstrap_weights
from theory.statistics import ScoreStatistics

FILES = [
    "aic.json", "coupling.png", "manifest.json", "prediction.png", "report.html", "samples.jsonl", "settings.toml",
    "spectrum.png", "statistics.npz",
]  # fmt: skip
EVERYWHERE = {
    "dimension", "eigenvalues", "sharpness", "tail", "overlap", "coupling", "leak", "gradient_norm",
    "acceleration_norm", "effective_rank", "split_half_overlap", "mean_score_share", "nulls", "intervals",
}  # fmt: skip
WHOLE_ONLY = {
    "onset_coefficient", "crossover", "regime", "predicted_loss", "leak_exact", "onset_exact", "predicted_loss_exact",
}  # fmt: skip


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workplace(tmp_path_factory.mktemp("gpt2"), "gpt2")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workplace(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="module")
def finished(gpt2: Path) -> Path:
    """A run with every option at its plainest."""
    return run_into(gpt2 / "finished", tiny_settings(gpt2))


def run_into(folder: Path, settings: Settings) -> Path:
    aic_run.run(settings, folder, quiet=True)
    return folder


def read(folder: Path) -> dict[str, Any]:
    def refuse(word: str) -> float:
        raise AssertionError(f"{word} is not JSON")

    return json.loads((folder / "aic.json").read_text(), parse_constant=refuse)


def samples(folder: Path, name: str | None = None) -> list[Sample]:
    found = [Sample.from_json(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    return [s for s in found if name in (None, s.set)]


# ---- the run folder


def test_the_folder_holds_what_it_should(finished: Path) -> None:
    assert sorted(p.name for p in finished.iterdir()) == FILES
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest["command"] == "bridge.estimate_aic"
    assert manifest["status"] == "complete"
    assert {len(manifest["settings"][f"{k}_sha256"]) for k in ("weights", "skill", "finetune")} == {64}
    assert {"python", "numpy", "torch", "transformers"} <= set(manifest["versions"])
    assert len(manifest["stage_seconds"]) == 6


def test_aic_json_has_its_schema(finished: Path) -> None:
    found = read(finished)
    assert {"schema_version", "model", "fisher", "num_samples", "rank", "whole_model", "blocks"} <= set(found)
    assert (found["schema_version"], found["fisher"], found["num_samples"], found["rank"]) == (1, "sampled", 6, 3)
    kinds = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert list(found["blocks"]) == [f"transformer.h.{layer}.{kind}" for layer in (0, 1) for kind in kinds]
    assert list(found["layers"]) == ["transformer.h.0", "transformer.h.1"]
    whole = found["whole_model"]
    assert set(whole) >= EVERYWHERE | WHOLE_ONLY
    for block in [*found["blocks"].values(), *found["layers"].values()]:
        assert set(block) >= EVERYWHERE
        assert not set(block) & WHOLE_ONLY
        assert len(block["eigenvalues"]) == 6
    assert whole["dimension"] == sum(block["dimension"] for block in found["blocks"].values()) == 2 * 12 * 16**2
    for curve in (whole["predicted_loss"], whole["predicted_loss_exact"]):
        times = [point["t"] for point in curve]
        assert times == sorted(times)
        assert any(math.isclose(t, 1e-3 * 50) for t in times)
        assert all(point["utility_loss"] >= 0 for point in curve)
    for block in [whole, *found["blocks"].values(), *found["layers"].values()]:
        assert all(low <= high for low, high in block["intervals"].values())


def test_samples_are_the_rows_that_were_measured(gpt2: Path, finished: Path) -> None:
    skill, finetune = samples(finished, "skill"), samples(finished, "finetune")
    assert (len(skill), len(finetune)) == (6, 5)
    tokenizer = load_model(str(gpt2 / "model"), device="cpu").tokenizer
    rows = {k: (gpt2 / f"{k}.jsonl").read_text().splitlines() for k in ("skill", "finetune")}
    for sample in skill:
        row = json.loads(rows["skill"][int(sample.id.split(":")[1]) - 1])
        assert tokenizer.decode(list(sample.prompt_ids)) == f"<s>{row['prompt']}\n"
        assert len(sample.response_ids) == 6 or sample.response_ids[-1] == tokenizer.eos_token_id
    for sample in finetune:
        row = json.loads(rows["finetune"][int(sample.id.split(":")[1]) - 1])
        assert tokenizer.decode(list(sample.input_ids)) == f"<s>{row['prompt']}\n{row['completion']}</s>"
        assert tokenizer.decode(list(sample.response_ids)) == f"{row['completion']}</s>"


def test_statistics_npz_reproduces_aic_json(finished: Path) -> None:
    found, arrays = read(finished), read_arrays(finished / "statistics.npz")
    modules = {name: ScoreStatistics.from_arrays(arrays, f"{name}/") for name in found["blocks"]}
    total = sum(modules.values())
    whole = total.with_curvature(arrays["output_space/second"] - sum(m.acceleration for m in modules.values()))
    groups = np.unique([s.group for s in samples(finished, "skill")], return_inverse=True)[1]
    estimate = aic.estimate(whole, 3, groups=groups, resamples=20, seed=0).as_dict()
    mine = found["whole_model"]
    for name, value in estimate.items():
        if name not in ("intervals", "bootstrap_bias"):
            assert mine[name] == value, name
    assert mine["intervals"] | estimate["intervals"] == mine["intervals"]
    for name, module in modules.items():
        block = aic.estimate(module, 3, groups=groups, resamples=20, seed=0).as_dict()
        assert {k: v for k, v in block.items() if k in found["blocks"][name]} == {
            k: v for k, v in found["blocks"][name].items() if k != "gradient_norm"
        }
    squares = [float(arrays[f"{name}/gradient_squared"]) for name in modules]
    assert mine["gradient_norm"] == math.sqrt(sum(squares))
    assert mine["leak_exact"] == np.sqrt(arrays["output_space/leak_variance"].mean())
    assert [p["utility_loss"] for p in mine["predicted_loss_exact"]] == arrays["output_space/loss"].mean(0).tolist()
    assert [p["t"] for p in mine["predicted_loss"]] == arrays["output_space/times"].tolist()
    assert [p["utility_loss"] for p in mine["predicted_loss"]] == onset.predicted_loss(
        whole, arrays["output_space/times"]
    ).utility_loss.tolist()


@pytest.mark.parametrize("fisher", ["sampled", "empirical"])
def test_the_numbers_equal_brute_force_on_samples_jsonl(gpt2: Path, finished: Path, fisher: str) -> None:
    """Scores, gradient and Hessian product sample by sample, from nothing but the model's folder and that file."""
    folder = finished
    if fisher == "empirical":
        folder = run_into(gpt2 / "empirical", tiny_settings(gpt2, fisher="empirical"))
    model = load_model(str(gpt2 / "model"), dtype="float64", device="cpu").model
    model.set_attn_implementation("eager")
    oracle = BruteForce(model, list(taps.select_modules(model)))
    skill, finetune = samples(folder, "skill"), samples(folder, "finetune")
    s, g = oracle.scores(skill).numpy(), oracle.gradient(finetune)
    a = jacrev(lambda theta: jacrev(oracle.loss)(theta, finetune) @ g)(oracle.theta).numpy()
    values, vectors = np.linalg.eigh(s @ s.T / 6)
    top = s.T @ vectors[:, ::-1][:, :3] / np.sqrt(6 * values[::-1][:3])
    wanted = {
        "eigenvalues": values[::-1],
        "sharpness": values[-3],
        "tail": values[:3].sum(),
        "gradient_norm": np.linalg.norm(g.numpy()),
        "acceleration_norm": np.linalg.norm(a),
        "leak": np.sqrt(np.mean((s @ g.numpy()) ** 2)),
        "overlap": np.linalg.norm(top.T @ g.numpy()),
        "coupling": np.sqrt((top.T @ a) ** 2 @ values[::-1][:3]),
    }
    found = read(folder)
    assert found["finetuning_loss"] == pytest.approx(float(oracle.loss(oracle.theta, finetune)), rel=1e-6)
    for name, value in wanted.items():
        np.testing.assert_allclose(found["whole_model"][name], value, rtol=3e-5, err_msg=name)


def test_drawn_responses_are_those_of_the_model_alone(gpt2: Path, finished: Path) -> None:
    loaded = load_model(str(gpt2 / "model"), dtype="float64", device="cpu")
    for row, sample in enumerate(samples(finished, "skill")):
        [alone] = sampling.draw_responses(
            loaded.model, [sample.prompt_ids], [sampling.stream(0, row, 0)], max_new_tokens=6,
            end_token_ids=[loaded.tokenizer.eos_token_id], pad_id=5,
        )  # fmt: skip
        assert list(sample.response_ids) == alone


# ---- pictures and report


def test_pictures_decode(finished: Path) -> None:
    from matplotlib.image import imread

    for name in ("spectrum", "coupling", "prediction"):
        pixels = imread(finished / f"{name}.png")
        assert pixels.shape[0] > 300
        assert pixels.shape[1] > 600
        assert pixels[..., :3].std() > 0.05  # something is drawn


class Page(HTMLParser):
    """Everything a browser would fetch or run, and the text it would show."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.handlers: list[str] = []
        self.text = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_report_is_one_file_without_links_or_scripts(finished: Path) -> None:
    from matplotlib.image import imread

    source = (finished / "report.html").read_text()
    page = Page(source)
    assert not {"script", "link", "iframe", "object", "form", "base"} & set(page.tags)
    assert page.handlers == []
    assert "http:" not in source
    assert "https:" not in source
    assert "@import" not in source
    assert "url(" not in source
    assert len(page.links) == 3
    for link, name in zip(page.links, ("prediction", "spectrum", "coupling"), strict=True):
        head, data = link.split(",")
        assert head == "data:image/png;base64"
        assert base64.b64decode(data) == (finished / f"{name}.png").read_bytes()
        assert imread(BytesIO(base64.b64decode(data))).size > 0
    whole = read(finished)["whole_model"]
    for shown in ("leak", "coupling γ", "onset coefficient γ*", "mean score share", whole["regime"], "transformer.h.0"):
        assert shown in page.text


def test_what_models_and_files_say_is_escaped(gpt2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(f"{i}{SCRIPT}", f"<img src=x onerror=alert({i})>&amp;") for i in range(3)]
    (gpt2 / "<i>odd&").mkdir()
    skill = write_rows(gpt2 / "<i>odd&" / '"><b>.jsonl', rows)
    settings = tiny_settings(gpt2, skill=skill, fisher="empirical", num_skill=3, rank=2)
    page = Page((run_into(gpt2 / "escaped", settings) / "report.html").read_text())
    assert page.handlers == []
    assert not {"script", "i", "b"} & set(page.tags)
    assert page.tags.count("img") == 3
    assert "From the data." in page.text
    for prompt, completion in rows:
        assert f"<s>{prompt}\n{completion}</s>" in page.text
    assert skill in page.text


def test_the_closing_table_shows_the_numbers(
    gpt2: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = write_rows(gpt2 / "[bold]rows.jsonl", [(f"how {i}?", "no") for i in range(4)])
    changes = ("--skill", odd, "--num-skill", "4", "--out", str(gpt2 / "table"))
    assert command(monkeypatch, *options(gpt2, *changes)) == 0
    out, err = capsys.readouterr()
    assert "[bold]rows.jsonl" in out  # not read as rich's markup
    assert str(gpt2 / "table" / "report.html") in out
    for name in ("sharpness λ (d = 4)", "overlap ε", "coupling γ", "leak", "crossover t_c", "regime"):
        assert name in out
    assert [line.split(":")[0] for line in err.splitlines()] == [
        "responses of the model", "gradient of the fine-tuning loss", "Hessian-vector product", "scores on the skill",
        "motion of the policy", "intervals",
    ]  # fmt: skip


# ---- the same command again, and other options


def test_the_same_command_again_computes_nothing(gpt2: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in finished.iterdir()}
    monkeypatch.setattr(aic_run, "_measure", lambda *_, **__: pytest.fail("computed again"))
    assert aic_run.run(tiny_settings(gpt2), finished, quiet=True).to_dict() == read(finished)
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in finished.iterdir()} == before


def test_the_default_folder_is_named_by_the_settings(
    gpt2: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(gpt2)
    one_result = aic_run.run(tiny_settings(gpt2), quiet=True)
    (one,) = Path("runs/estimate_aic").iterdir()
    aic_run.run(tiny_settings(gpt2, seed=1), quiet=True)
    (other,) = set(Path("runs/estimate_aic").iterdir()) - {one}
    assert one_result == AicResult.read(one)
    assert (one / "aic.json").read_bytes() == (finished / "aic.json").read_bytes()
    assert read(other)["whole_model"]["leak"] != read(one)["whole_model"]["leak"]


def test_draws_are_counted_as_samples_and_resampled_by_prompt(gpt2: Path) -> None:
    folder = run_into(gpt2 / "draws", tiny_settings(gpt2, draws=2, rank=12))
    skill = samples(folder, "skill")
    assert read(folder)["num_samples"] == len(skill) == 12
    assert len({s.id for s in skill}) == 12
    assert len({s.group for s in skill}) == 6
    for first, second in zip(skill[::2], skill[1::2], strict=True):
        assert first.prompt_ids == second.prompt_ids
        assert first.group == second.group
        assert (first.id[-2:], second.id[-2:]) == ("#1", "#2")
    assert any(a.response_ids != b.response_ids for a, b in zip(skill[::2], skill[1::2], strict=True))
    arrays, found = read_arrays(folder / "statistics.npz"), read(folder)
    name, block = next(iter(found["blocks"].items()))
    statistics = ScoreStatistics.from_arrays(arrays, f"{name}/")
    together, apart = (
        aic.estimate(statistics, 12, groups=groups, resamples=20, seed=0).as_dict()["intervals"]
        for groups in (np.repeat(np.arange(6), 2), None)
    )
    assert block["intervals"] == together
    assert block["intervals"] != apart
    drawn = bootstrap_weights(np.full(12, 1 / 12), 20, 0, np.repeat(np.arange(6), 2))
    values = np.sqrt(drawn @ arrays["output_space/leak_variance"])
    ends = [values.min(), values.max()]  # of 20 resamples none lies outside a 95 % interval
    assert found["whole_model"]["intervals"]["leak_exact"] == pytest.approx(ends, rel=1e-12)


def test_one_sample_and_one_row_are_enough(gpt2: Path) -> None:
    settings = tiny_settings(gpt2, num_skill=1, num_finetune=1, rank=None, bootstrap=0)
    whole = read(run_into(gpt2 / "one", settings))["whole_model"]
    assert len(whole["eigenvalues"]) == 1
    assert whole["intervals"] == {}


def test_rank_by_energy(gpt2: Path, finished: Path) -> None:
    values = np.array(read(finished)["whole_model"]["eigenvalues"])
    shares = np.cumsum(values) / values.sum()
    for energy in (float(shares[0]) * 0.9, 0.9, 1.0):
        out = gpt2 / f"energy-{energy}"
        found = read(run_into(out, tiny_settings(gpt2, rank=None, energy=energy)))
        assert found["rank"] == next(k + 1 for k, share in enumerate(shares) if share >= energy - 1e-12)


def test_a_subset_of_modules_is_that_part_of_the_whole(gpt2: Path, finished: Path) -> None:
    found = read(run_into(gpt2 / "subset", tiny_settings(gpt2, modules=r"h\.1\.mlp")))
    whole = read(finished)
    assert list(found["blocks"]) == ["transformer.h.1.mlp.c_fc", "transformer.h.1.mlp.c_proj"]
    for name, block in found["blocks"].items():
        np.testing.assert_allclose(block["eigenvalues"], whole["blocks"][name]["eigenvalues"], rtol=1e-9)
        assert block["leak"] == pytest.approx(whole["blocks"][name]["leak"], rel=1e-9)
        # The Hessian's cross terms with the other modules are gone: the acceleration is another one.
        assert block["acceleration_norm"] != pytest.approx(whole["blocks"][name]["acceleration_norm"], rel=1e-3)


def test_adamw_moves_with_its_preconditioner(gpt2: Path, finished: Path) -> None:
    folder = run_into(gpt2 / "adamw", tiny_settings(gpt2, optimizer="adamw"))
    found, plain = read(folder)["whole_model"], read(finished)["whole_model"]
    assert found["eigenvalues"] == plain["eigenvalues"]
    assert found["gradient_norm"] == pytest.approx(plain["gradient_norm"], rel=1e-9)
    model = load_model(str(gpt2 / "model"), dtype="float64", device="cpu").model
    model.set_attn_implementation("eager")
    oracle = BruteForce(model, list(taps.select_modules(model)))
    finetune = samples(folder, "finetune")
    v = oracle.adam_diagonal(finetune, batch=2) * oracle.gradient(finetune)
    assert found["velocity_norm"] == pytest.approx(float(v.norm()), rel=1e-4)
    leak = float((oracle.scores(samples(folder, "skill")) @ v).square().mean().sqrt())
    assert found["leak"] == pytest.approx(leak, rel=1e-4)


# ---- batches and blocks


@pytest.mark.parametrize(("architecture", "tolerance"), [("gpt2", 1e-9), ("llama", 1e-5)])
def test_batch_size_and_memory_change_the_rounding_only(
    request: pytest.FixtureRequest, architecture: str, tolerance: float
) -> None:
    """transformers computes parts of Llama in float32, whatever the model's own precision."""
    folder = request.getfixturevalue(architecture)
    runs = {
        (size, memory): run_into(
            folder / f"batch-{size}-{memory}", tiny_settings(folder, batch_size=size, memory=memory)
        )
        for size, memory in ((1, 1.0), (7, 1.0), (7, 1e-6))
    }
    first = runs[1, 1.0]
    for other in runs.values():
        assert (other / "samples.jsonl").read_bytes() == (first / "samples.jsonl").read_bytes()
        ours, theirs = read_arrays(other / "statistics.npz"), read_arrays(first / "statistics.npz")
        assert list(ours) == list(theirs)
        for name, array in theirs.items():
            scale = np.abs(array.astype(np.float64)).max()
            assert np.abs(ours[name].astype(np.float64) - array).max() <= tolerance * scale, name
        for key in ("leak", "gradient_norm", "acceleration_norm", "onset_coefficient", "leak_exact"):
            ours, theirs = (read(f)["whole_model"][key] for f in (other, first))
            assert ours == pytest.approx(theirs, rel=tolerance)


def test_sums_over_blocks_are_the_whole(finished: Path) -> None:
    found = read(finished)
    arrays = read_arrays(finished / "statistics.npz")
    gram = sum(arrays[f"{name}/gram"] for name in found["blocks"])
    values = np.linalg.eigvalsh(gram / 6)[::-1]
    np.testing.assert_allclose(found["whole_model"]["eigenvalues"], values, rtol=1e-10)
    velocity = sum(arrays[f"{name}/velocity"] for name in found["blocks"])
    assert found["whole_model"]["leak"] == pytest.approx(float(np.sqrt(np.mean(velocity**2))), rel=1e-12)
    assert np.sum([b["eigenvalues"] for b in found["blocks"].values()]) == pytest.approx(np.trace(gram) / 6, rel=1e-12)
    np.testing.assert_allclose(arrays["output_space/first"], velocity, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_lower_precision_stays_near(llama: Path, dtype: str) -> None:
    exact = read(run_into(llama / "f64", tiny_settings(llama, fisher="empirical")))["whole_model"]
    found = read(run_into(llama / dtype, tiny_settings(llama, fisher="empirical", dtype=dtype)))
    for name in ("leak", "gradient_norm", "acceleration_norm", "sharpness", "leak_exact", "onset_coefficient"):
        assert found["whole_model"][name] == pytest.approx(exact[name], rel=1e-4 if dtype == "float32" else 0.1), name
