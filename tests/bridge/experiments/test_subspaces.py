"""`python -m bridge.subspaces` on tiny models: its numbers against naive ones, its errors, and runs that are killed."""

from __future__ import annotations

import json
import math
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bridge.deltas.open import open_delta
from bridge.experiments.session import Lent
from bridge.experiments.subspaces import energy as subspaces_energy
from bridge.experiments.subspaces import mso as subspaces_mso
from bridge.experiments.subspaces import report as subspaces_report
from bridge.experiments.subspaces.energy import run
from bridge.experiments.subspaces.mso import Assembly, Plan, matrix_overlaps
from bridge.experiments.subspaces.result import (
    AlignmentUpdate,
    EnergyResult,
    KeptBy,
    KeptEnergy,
    MsoResult,
    Overlap,
    PairOverlap,
    ProjectResult,
    TaskEnergy,
)
from bridge.experiments.subspaces.settings import ENERGIES, FRACTIONS, EnergySettings, MsoSettings, numbers
from bridge.models.load import load_model
from commands.cli import INTERRUPTED
from commands.errors import UserError
from tests.bridge.deltas.test_bases import BETWEEN, MATRICES, gaussian
from tests.bridge.support.kill_server import survived
from tests.bridge.support.tiny_runs import save_chat_model
from tests.bridge.support.tiny_subspaces import (
    ENERGY,
    MSO,
    PROJECT,
    MemoryDelta,
    energy_options,
    make_updates,
    mso_options,
    project_options,
)
from tests.in_process import run_module
from tests.oracles import subspaces as oracle

UP = "model.layers.0.mlp.up_proj.weight"
Q = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_updates(tmp_path_factory.mktemp("subspaces"))


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    return run_module("bridge.subspaces", *arguments).code


def error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of an error."""
    code = command(monkeypatch, *arguments)
    out, err = capsys.readouterr()
    last = err.strip().splitlines()[-1]
    assert code == 2
    assert last.startswith("error: ")
    assert "Traceback" not in err + out
    return last


@pytest.fixture(scope="module")
def energy(place: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        assert command(patch, *energy_options(place, place / "energy")) == 0
    return place / "energy"


@pytest.fixture(scope="module")
def mso(place: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        assert command(patch, *mso_options(place, place / "mso")) == 0
    return place / "mso"


def read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def dense(place: Path) -> dict[str, dict[str, np.ndarray]]:
    """All updates as float64 matrices, from the weights themselves."""
    aligned, base = (load_file(place / name / "model.safetensors") for name in ("aligned", "base"))
    found = {"alignment": {name: (aligned[name].double() - base[name].double()).numpy() for name in aligned}}
    for label, file in {"full": "full.safetensors", "other": "other.safetensors"}.items():
        found[label] = {name: tensor.double().numpy() for name, tensor in load_file(place / file).items()}
    lora = open_delta(place / "adapter", load_model(str(place / "aligned"), device="cpu"))
    found["adapter"] = {name: lora.dense(name, torch.float64).numpy() for name in lora.names}
    return found


# ------------------------------------------------------------------------------------------------ energy


def test_the_folders_hold_what_they_should(energy: Path, mso: Path) -> None:
    assert {path.name for path in energy.iterdir()} == {"manifest.json", "settings.toml", *ENERGY}
    assert {path.name for path in mso.iterdir()} == {"manifest.json", "settings.toml", *MSO}
    for folder in (energy, mso):
        assert read(folder / "manifest.json")["status"] == "complete"
        assert (folder / "report.html").read_text().count("data:image/png;base64,") == 2


def test_energies_equal_naive_ones(place: Path, energy: Path) -> None:
    found, updates = read(energy / "energy.json"), dense(place)
    for label, task in found["tasks"].items():
        kept, total = np.zeros(4), 0.0
        for name, entry in task["tensors"].items():
            alignment, update = updates["alignment"][name], updates[label][name]
            for f, fraction in enumerate(found["fractions"]):
                rank = max(1, round(fraction * min(update.shape)))
                naive = oracle.energy_kept(update, oracle.singular_basis(alignment, rank, "left"), "left")
                top = entry["bases"]["top-k"]
                assert top["kept"][f] == pytest.approx(naive, abs=1e-10)
                assert top["isotropic"][f] == pytest.approx(rank / update.shape[0], abs=1e-14)
                assert top["directions"][f] == rank
                kept[f] += naive * np.sum(update**2)
            total += np.sum(update**2)
            assert entry["cosine"] == pytest.approx(oracle.cosine(update, alignment), abs=1e-10)
        assert np.allclose(task["whole"]["bases"]["top-k"]["kept"], kept / total, atol=1e-10, rtol=0)


def test_cosines_of_whole_updates_are_real_and_signed(place: Path, energy: Path) -> None:
    found, updates = read(energy / "energy.json"), dense(place)
    for label, task in found["tasks"].items():
        for key, dimensions in (("cosine", (2,)), ("cosine_all_parameters", (1, 2))):
            names = [name for name, update in updates["alignment"].items() if update.ndim in dimensions]
            pairs = [(updates[label].get(name, 0 * updates["alignment"][name]), name) for name in names]
            flat = np.concatenate([update.ravel() for update, _ in pairs])
            other = np.concatenate([updates["alignment"][name].ravel() for _, name in pairs])
            assert task[key] == pytest.approx(oracle.cosine(flat, other), abs=1e-10)


def test_what_did_not_move_is_skipped_and_counted(energy: Path) -> None:
    tasks = read(energy / "energy.json")["tasks"]
    assert {label: task["zero"] for label, task in tasks.items()} == {"full": 0, "adapter": 12, "other": 1}
    assert UP not in tasks["other"]["tensors"]
    assert tasks["full"]["matrices"] == 16
    assert "skipped, never scored: 1 matrix that" in (energy / "report.html").read_text()


def test_random_bases_are_repeated_with_their_spread(energy: Path) -> None:
    found, arrays = read(energy / "energy.json"), np.load(energy / "energy.npz")
    for kind in ("random-k", "random"):
        draws = arrays[f"{Q}/shares/{kind}"]
        assert draws.shape == (3, 3, 4)  # tasks, repeats, fractions
        assert len(np.unique(draws[0, :, 1])) == 3
        assert (np.diff(draws[0], axis=1) >= 0).all()  # nested
        entry = found["tasks"]["full"]["tensors"][Q]["bases"][kind]
        assert entry["kept"] == pytest.approx(draws[0].mean(0))
        assert entry["sd"] == pytest.approx(draws[0].std(0, ddof=1))
    whole = found["tasks"]["full"]["tensors"][Q]["bases"]["random-k"]
    assert whole["kept"][-1] == pytest.approx(found["tasks"]["full"]["tensors"][Q]["bases"]["top-k"]["kept"][-1])


def test_energy_of_the_alignment_update_itself_and_of_its_negative(
    place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tensors = load_file(place / "alignment.safetensors")
    task = {name: -2 * tensor for name, tensor in tensors.items()}
    save_file(task, tmp_path / "back.safetensors", {"content": "weight change"})
    options = ["energy", "--alignment", str(place / "alignment.safetensors"), "--device", "cpu", "--modules", "blocks"]
    options += ["--task", f"back={tmp_path / 'back.safetensors'}", "--fractions", "0.5,1", "--bases", "top-k"]
    for side in ("left", "right"):
        assert command(monkeypatch, *options, "--side", side, "--out", str(tmp_path / side)) == 0
        found = read(tmp_path / side / "energy.json")["tasks"]["back"]
        assert found["cosine"] == pytest.approx(-1, abs=1e-12)
        assert found["matrices"] == 14  # embeddings left out
        for name, entry in found["tensors"].items():
            values = np.linalg.svd(tensors[name].double().numpy(), compute_uv=False) ** 2
            half = values[: round(len(values) / 2)].sum() / values.sum()
            assert entry["bases"]["top-k"]["kept"] == pytest.approx([half, 1.0], abs=1e-10)


def test_a_low_rank_alignment_update_runs_out_of_directions(
    place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options = ["energy", "--alignment", str(place / "adapter"), "--task", f"full={place / 'full.safetensors'}"]
    options += ["--fractions", "0.1,0.9", "--device", "cpu", "--repeats", "1", "--out", str(tmp_path / "run")]
    assert command(monkeypatch, *options) == 0
    found = read(tmp_path / "run" / "energy.json")
    assert set(found["alignment"]["ranks"].values()) == {2}
    assert len(found["alignment"]["zero"]) == 12
    task = found["tasks"]["full"]
    assert task["without_directions"] == 12
    bases = task["whole"]["bases"]
    assert {kind: bases[kind]["short"] for kind in bases} == {"top-k": [0, 4], "random-k": [0, 4], "random": [0, 0]}
    assert bases["top-k"]["isotropic"][1] < bases["random"]["isotropic"][1]
    assert bases["random"]["interval"] == [None, None]
    assert "fewer directions" in (tmp_path / "run" / "report.html").read_text()


# --------------------------------------------------------------------------------------------------- mso


def overlap_pairs() -> list[Any]:
    kinds = [kind for kind in MATRICES if kind not in ("row", "column")]
    return [pytest.param(a, side, id=f"{a}-{side}") for a in kinds for side in ("left", "right")]


@pytest.mark.parametrize(("kind", "side"), overlap_pairs())
def test_overlaps_equal_naive_ones(kind: str, side: str) -> None:
    a = MATRICES[kind]
    b = gaussian(*a.shape, seed=31)
    energies = (0.05, 0.3, 0.6, 0.9, 0.99, 1.0)
    deltas = {"a": MemoryDelta({"m": a}), "b": MemoryDelta({"m": b}), "minus": MemoryDelta({"m": -2 * a})}
    found = matrix_overlaps(deltas, Plan(side, energies, 3, 0, torch.float64), "m")
    for f, energy in enumerate(energies):
        ranks = [oracle.rank_by_energy(x.numpy(), energy) for x in (a, b)]
        assert found["ranks"][:, f].tolist() == [ranks[0], ranks[1], ranks[0]]
        if kind in BETWEEN and ranks[0] not in BETWEEN[kind]:
            continue  # inside a cluster of equal singular values the subspace is ambiguous
        assert found["overlap/0"][f] == pytest.approx(oracle.mso(a.numpy(), b.numpy(), *ranks, side), abs=1e-10)
        assert found["overlap/1"][f] == pytest.approx(1, abs=1e-10)  # the sign changes no subspace
    cosine = oracle.cosine(a.numpy(), b.numpy())
    assert found["cosines"] == pytest.approx([cosine, -1, -cosine], abs=1e-10)


def test_an_update_that_is_zero_has_no_overlap() -> None:
    zero = MemoryDelta({"m": torch.zeros(5, 5)})
    deltas = {"a": MemoryDelta({"m": gaussian(5, 5)}), "zero": zero, "again": zero, "none": MemoryDelta({})}
    found = matrix_overlaps(deltas, Plan("left", (0.5,), 2, 0, torch.float64), "m")
    assert not any(key.startswith("overlap") for key in found)
    assert found["cosines"].tolist() == [0.0] * 6
    assert found["ranks"][1:].tolist() == [[0]] * 3


def test_permuted_coordinates_overlap_by_chance() -> None:
    a = gaussian(40, 6)
    deltas = {"a": MemoryDelta({"m": a}), "b": MemoryDelta({"m": a})}
    found = matrix_overlaps(deltas, Plan("left", (0.5, 1.0), 200, 0, torch.float64), "m")
    assert found["overlap/0"] == pytest.approx([1, 1])
    draws = found["permuted/0"]
    assert draws.shape == (200, 2)
    chance = found["ranks"][0] / 40
    assert (np.abs(draws.mean(0) - chance) < 5 * draws.std(0) / math.sqrt(200)).all()
    assert (draws.max(0) < 0.9).all()


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_the_whole_space_overlaps_by_one_whatever_is_permuted(dtype: torch.dtype, rounding: float) -> None:
    """At energy fraction 1 a wide matrix has all left directions: no difference is left for a test to find."""
    deltas = {name: MemoryDelta({"m": gaussian(12, 40, seed=k)}) for k, name in enumerate(("a", "b"))}
    plan = Plan("left", (0.5, 1.0), 20, 0, dtype)
    arrays = matrix_overlaps(deltas, plan, "m")
    assert arrays["overlap/0"][1] == 1
    assert (arrays["permuted/0"][:, 1] == 1).all()
    arrays["overlap/0"] = arrays["overlap/0"] * (1 - rounding)
    permuted = Assembly(deltas, plan, {"m": arrays}).pairs()["a × b"].whole.permuted
    assert permuted is not None
    assert permuted.p_value[1] == 1
    assert permuted.interval[1] == [1, 1]


def test_the_result_holds_means_over_matrices(mso: Path) -> None:
    found, arrays = read(mso / "mso.json"), np.load(mso / "mso.npz")
    assert set(found["pairs"]) == {"alignment × full", "alignment × other", "full × other"}
    for p, pair in enumerate(found["pairs"].values()):
        names = [key.removesuffix(f"/overlap/{p}") for key in arrays if key.endswith(f"/overlap/{p}")]
        assert len(names) == pair["matrices"] == 16 - pair["skipped"]
        assert pair["whole"]["overlap"] == pytest.approx(np.mean([arrays[f"{n}/overlap/{p}"] for n in names], axis=0))
        draws = np.mean([arrays[f"{n}/permuted/{p}"] for n in names], axis=0)
        assert pair["whole"]["permuted"]["mean"] == pytest.approx(draws.mean(0))
        for layer in pair["layers"].values():
            assert 0 < min(layer["chance"]) <= max(layer["overlap"] + layer["chance"]) <= 1
    assert [found["pairs"][name]["skipped"] for name in found["pairs"]] == [0, 1, 1]
    entry = found["pairs"]["alignment × full"]["tensors"][Q]
    ranks = arrays[f"{Q}/ranks"]
    assert entry["chance"] == pytest.approx(np.maximum(ranks[0], ranks[1]) / 16)


# ----------------------------------------------------------------------------------------------- project


@pytest.mark.parametrize("task", ["full.safetensors", "adapter"])
def test_a_projected_run_is_a_change_that_other_commands_take(
    place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, task: str
) -> None:
    from tests.bridge.support.tiny_runs import SKILL_ROWS, write_rows

    runs = {}
    for scheme in ("parallel", "orthogonal"):
        more = ["--scheme", scheme, *(["--save-model"] if task != "adapter" else [])]
        assert command(monkeypatch, *project_options(place, task, tmp_path / scheme, *more)) == 0
        runs[scheme] = tmp_path / scheme
    if task != "adapter":
        names = {str(p.relative_to(runs["parallel"])) for p in runs["parallel"].rglob("*") if p.is_file()}
        assert names == {"manifest.json", "settings.toml", *PROJECT}
    loaded = load_model(str(place / "aligned"), device="cpu")
    whole = open_delta(place / task, loaded)
    parts = {scheme: open_delta(run, loaded) for scheme, run in runs.items()}
    matrices = [name for name in whole.names if len(whole.shape(name)) == 2]
    for name in matrices:
        total = sum(part.dense(name, torch.float64) for part in parts.values())
        assert torch.allclose(total, whole.dense(name, torch.float64), atol=1e-7)  # type: ignore[arg-type]
        energies = sum(part.squared_norm(name) for part in parts.values())
        assert energies == pytest.approx(whole.squared_norm(name), rel=1e-5)
    for name in set(whole.names) - set(matrices):  # norms, kept whole in both
        assert sum(part.squared_norm(name) for part in parts.values()) == 2 * whole.squared_norm(name)
    assert "hold it twice" in (runs["parallel"] / "report.html").read_text()
    skill = write_rows(tmp_path / "skill.jsonl", SKILL_ROWS)
    options = ["--model", str(place / "aligned"), "--skill", skill, "--num-skill", "4", "--max-new-tokens", "4"]
    options += ["--max-length", "64", "--rank", "2", "--bootstrap", "0", "--device", "cpu"]
    options += [text for scheme, run in runs.items() for text in ("--delta", f"{scheme}={run}")]
    assert run_module("bridge.overlap", *options, "--out", tmp_path / "overlap").code == 0
    assert set(read(tmp_path / "overlap" / "overlap.json")["deltas"]) == {"parallel", "orthogonal"}


def test_a_saved_model_is_the_aligned_model_moved(place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    options = project_options(place, "full.safetensors", tmp_path / "run", "--save-model", "--basis", "random")
    assert command(monkeypatch, *options, "--vectors", "drop", "--side", "right") == 0
    delta = open_delta(tmp_path / "run")
    moved, start = (load_file(p / "model.safetensors") for p in (tmp_path / "run" / "model", place / "aligned"))
    for name in start:
        change = delta.dense(name, torch.float64) if delta.moves(name) else 0
        assert torch.equal(moved[name], (start[name].double() + change).float())
    assert read(tmp_path / "run" / "project.json")["counts"]["dropped"] == 5


# ----------------------------------------------------------------------------------------------- resumed


def test_the_same_command_again_computes_nothing(
    place: Path, energy: Path, mso: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module, options in ((subspaces_energy, energy_options), (subspaces_mso, mso_options)):
        out = energy if module is subspaces_energy else mso
        before = {p: p.read_bytes() for p in out.iterdir()}
        monkeypatch.setattr(module, "_measure", lambda *_: pytest.fail("computed again"))
        assert command(monkeypatch, *options(place, out)) == 0
        assert "complete already" in capsys.readouterr().err
        assert {p: p.read_bytes() for p in out.iterdir()} == before
        assert "holds another run" in error(monkeypatch, capsys, *options(place, out, "--seed", "5"))


def test_an_interrupted_run_goes_on(
    place: Path, energy: Path, drawn: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:  # fmt: skip
    calls, real = [], subspaces_energy.tensor_energies

    def counted(*arguments: Any) -> Any:
        calls.append(arguments[1])
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(subspaces_energy, "tensor_energies", counted)
    assert command(monkeypatch, *energy_options(place, tmp_path / "run")) == INTERRUPTED
    assert command(monkeypatch, *energy_options(place, tmp_path / "run")) == 0
    assert len(calls) == 21 + 1
    assert "4 of 21 resumed" in capsys.readouterr().err
    for name in ENERGY:
        assert (tmp_path / "run" / name).read_bytes() == (energy / name).read_bytes()


@pytest.mark.parametrize("part", ["energy", "mso", "project"])
def test_killed_runs_go_on_to_the_same_result(place: Path, tmp_path: Path, part: str) -> None:
    assert len(survived(place, part, tmp_path)) > 6


# ------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--fractions", "0.5,0.1"], "--fractions: expected increasing numbers"),
        (["--fractions", "0.5,1.1"], "--fractions: expected increasing numbers"),
        (["--fractions", "a"], "--fractions: expected numbers"),
        (["--bases", "top-k,best"], "--bases takes names"),
        (["--repeats", "0"], "--repeats"),
        (["--alignment", "nowhere"], "either --aligned and --base, or --alignment"),
        (["--side", "top"], "side"),
        (["--task", "nowhere"], "--task: no such change of weights: nowhere"),
        (["--base", "nowhere/at/all"], "unknown model"),
        (["--device", "tpu"], "unknown device"),
    ],
)
def test_options_that_cannot_be(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, more: list[str],
    message: str,
) -> None:  # fmt: skip
    assert message in error(monkeypatch, capsys, *energy_options(place, tmp_path / "run", *more))
    assert not (tmp_path / "run").exists()


def test_commands_without_updates(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full, alignment = str(place / "full.safetensors"), str(place / "alignment.safetensors")
    for options, message in (
        (["energy", "--task", full], "--alignment: expected the alignment update"),
        (["energy", "--alignment", alignment], "--task: expected a task update"),
        (["energy", "--base", str(place / "base"), "--task", full], "--base: expected --aligned beside it"),
        (["mso", "--update", full], "--update: expected two updates or more"),
        (["mso", "--alignment", alignment, "--update", f"alignment={full}"], "--update: expected another label"),
        (["mso", "--update", full, "--update", f"b={full}", "--permutations", "-1"], "--permutations"),
        (["project", "--alignment", alignment, "--task", full, "--fraction", "0"], "--fraction"),
        (["project", "--alignment", alignment, "--task", full, "--save-model"], "--save-model: expected --aligned"),
        (["project", "--alignment", "nowhere", "--task", full], "--alignment: no such change"),
        (["project", "--alignment", alignment, "--task", str(place / "adapter")], "give --aligned MODEL"),
    ):
        assert message in error(monkeypatch, capsys, *options)
    assert numbers("energies", "0.1, 1") == (0.1, 1.0)
    with pytest.raises(UserError, match="--energies"):
        MsoSettings.read({"energies": "nan"})


def changed_model(source: Path, target: Path, change: Any) -> Path:
    shutil.copytree(source, target)
    tensors = load_file(target / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return target


def spoil(tensors: dict[str, torch.Tensor]) -> None:
    tensors[Q][0, 0] = math.nan


def halve(tensors: dict[str, torch.Tensor]) -> None:
    tensors[Q] = tensors[Q].half()


def drop(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[Q]


def cut(tensors: dict[str, torch.Tensor]) -> None:
    tensors[Q] = tensors[Q][:8].clone()


def redraw(tensors: dict[str, torch.Tensor]) -> None:
    for k, name in enumerate(tensors):
        tensors[name] = torch.randn(tensors[name].shape, generator=torch.Generator().manual_seed(k))
    tensors[Q] *= 0.05


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (spoil, f"NaN or infinity in {Q}"),
        (halve, f"got {Q} in torch.float32 and torch.float16"),
        (drop, f"parameter {Q}, got none"),
        (cut, f"expected {Q} of shape [16, 16], got [8, 16]"),
        (redraw, f"most in {Q}"),
    ],
)
def test_bases_that_are_none(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, change: Any,
    message: str,
) -> None:  # fmt: skip
    base = changed_model(place / "base", tmp_path / "base", change)
    options = energy_options(place, tmp_path / "run", "--base", str(base))
    assert message in error(monkeypatch, capsys, *options)
    assert not (tmp_path / "run").exists()


def test_a_fine_tuned_model_stored_in_another_dtype(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    task = changed_model(place / "aligned", tmp_path / "task", halve)
    options = energy_options(place, tmp_path / "run", "--task", str(task))
    assert f"got {Q} in torch.float16 and torch.float32" in error(monkeypatch, capsys, *options)
    assert not (tmp_path / "run").exists()


def test_a_base_of_another_architecture(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    save_chat_model(tmp_path / "gpt2", "gpt2")
    message = error(monkeypatch, capsys, *energy_options(place, tmp_path / "run", "--base", str(tmp_path / "gpt2")))
    assert "model.embed_tokens.weight of shape [300, 16], got nothing" in message
    assert not (tmp_path / "run").exists()


def test_the_run_that_aligned_a_model_says_from_which_base(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shutil.copytree(place / "aligned", tmp_path / "run" / "model")
    record = {"schema_version": 1, "kind": "full", "file": "delta.safetensors", "base": {"name": "one"}}
    record["base"]["weights_sha256"] = "0" * 64  # type: ignore[index]
    (tmp_path / "run" / "delta.json").write_text(json.dumps(record))
    options = energy_options(place, tmp_path / "out", "--aligned", str(tmp_path / "run" / "model"))
    assert "was aligned from one with sha256 000000000000" in error(monkeypatch, capsys, *options)
    shutil.copytree(place / "aligned", tmp_path / "built")
    (tmp_path / "built" / "built.json").write_text(json.dumps({"folder": str(tmp_path / "run")}))
    options = energy_options(place, tmp_path / "out", "--aligned", str(tmp_path / "built"))
    assert "was aligned from one" in error(monkeypatch, capsys, *options)
    (tmp_path / "built" / "built.json").write_text(json.dumps({"folder": str(tmp_path / "gone")}))
    assert command(monkeypatch, *options) == 0


def test_updates_of_other_models(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    alignment, full = place / "alignment.safetensors", place / "full.safetensors"
    tensors = load_file(full)
    about = {"content": "weight change"}
    save_file(tensors, tmp_path / "elsewhere.safetensors", about | {"base_sha256": "1" * 64})
    save_file({Q: tensors[Q][:8].clone()}, tmp_path / "cut.safetensors", about)
    save_file({"x": tensors[Q].clone()}, tmp_path / "x.safetensors", about)
    start = ["energy", "--alignment", str(alignment), "--task", str(full), "--out", str(tmp_path / "run")]
    for more, message in (
        (["--task", str(alignment)], "starts from the model before the alignment update"),
        (["--task", str(tmp_path / "elsewhere.safetensors")], "a change of another model than full.safetensors"),
        (["--task", str(tmp_path / "cut.safetensors")], f"{Q} is [8, 16] in one and [16, 16]"),
        (["--task", str(tmp_path / "x.safetensors")], "it moves x and the like"),
        (["--task", str(tmp_path / "x.safetensors"), "--aligned", str(place / "aligned")], "it moves x, which"),
        (["--aligned", str(place / "base")], "is a change of another model than"),
    ):
        assert message in error(monkeypatch, capsys, *start, *more)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("option", ["energy", "project"])
def test_a_task_labelled_as_the_alignment_update_is_compared_with_it(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, option: str
) -> None:
    cut = {Q: load_file(place / "full.safetensors")[Q][:8].clone()}
    save_file(cut, tmp_path / "cut.safetensors", {"content": "weight change", "base_sha256": "1" * 64})
    options = [option, "--alignment", str(place / "alignment.safetensors"), "--device", "cpu"]
    options += ["--task", f"alignment={tmp_path / 'cut.safetensors'}", "--out", str(tmp_path / "run")]
    message = error(monkeypatch, capsys, *options)
    source = place / "alignment.safetensors"
    assert f"alignment and the alignment update ({source}) are changes of different models: {Q} is [8, 16]" in message
    assert not (tmp_path / "run").exists()


def test_updates_that_share_no_matrix(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    tensors = load_file(place / "full.safetensors")
    norm = "model.norm.weight"
    for k, name in enumerate((Q, UP)):
        save_file(
            {name: tensors[name], norm: tensors[norm]}, tmp_path / f"{k}.safetensors", {"content": "weight change"}
        )
    options = ["--device", "cpu", "--out", str(tmp_path / "run")]
    first, second = str(tmp_path / "0.safetensors"), str(tmp_path / "1.safetensors")
    for given in (["energy", "--alignment", first, "--task", second], ["mso", "--update", first, "--update", second]):
        assert "expected an update of matrices that" in error(monkeypatch, capsys, *given, *options)
    assert not (tmp_path / "run").exists()


def kept(share: float) -> KeptEnergy:
    return KeptEnergy(1.0, None, {"random": KeptBy([share], [None], [None], [0.5], [1], [0])})


def test_blocks_stand_at_their_own_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(subspaces_report, "png_of", lambda figure: drawn.append(figure) or b"")
    blocks = {"model.embed_tokens.weight": 0.9, "model.layers.5": 0.3, "model.layers.9": 0.4, "lm_head.weight": 0.8}
    for names, places, across in (
        (list(blocks), [5, 9], "numbered block"),
        (["model.embed_tokens.weight", "lm_head.weight"], [0, 1], "matrix, in the model's order"),
    ):
        overlaps = {name: Overlap([blocks[name]], [0.1], None, [[1.0], [1.0]], None) for name in names}
        pair = PairOverlap(["a", "b"], 1, 0, overlaps[names[0]], overlaps, {})
        subspaces_report.mso_layers(MsoResult("all", "left", [0.9], 0, 0, "float64", {}, {"a × b": pair}))
        layers = {name: kept(blocks[name]) for name in names}
        task = TaskEnergy("a", "full", None, 1.0, 1, 0, 0, 0.0, None, None, kept(0.5), layers, {})
        alignment = AlignmentUpdate("b", "full", None, 1, [], 1.0, {})
        subspaces_report.energy_layers(
            EnergyResult("left", [0.5], ["random"], 1, 0, "float64", "all", alignment, {"a": task})
        )
        for figure, whole in ((drawn[-2], 1.0), (drawn[-1], 0.5)):
            line = figure.axes[0].lines[0]
            assert list(line.get_xdata()) == places
            chosen = [blocks[name] for name in names if across != "numbered block" or "layers" in name]
            assert list(line.get_ydata()) == [value / whole for value in chosen]
            assert figure.axes[0].get_xlabel() == across


def test_the_picture_of_blocks_says_which_basis_it_shows(
    place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options = ["energy", "--alignment", str(place / "adapter"), "--task", f"full={place / 'full.safetensors'}"]
    options += ["--fractions", "0.5", "--repeats", "1", "--bases", "random", "--device", "cpu"]
    assert command(monkeypatch, *options, "--out", str(tmp_path)) == 0
    assert "Energy kept by random over the isotropic expectation" in (tmp_path / "report.html").read_text()


def test_what_left_means_is_said(
    energy: Path, mso: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers.pytorch_utils import Conv1D

    from bridge.deltas.bases import update_of

    layer = Conv1D(6, 4)  # four inputs, six outputs
    update = update_of(MemoryDelta({"m": layer.weight.detach()}), "m", "left")
    assert update is not None
    assert update.shape[0] == 4  # the input side
    for name in ("energy", "project", "mso"):
        assert command(monkeypatch, name, "--help") == 0
        assert "Conv1D" in capsys.readouterr().out
    for folder in (energy, mso):
        assert "the input of GPT-2&#39;s Conv1D" in (folder / "report.html").read_text()


def test_fractions_grow() -> None:
    for values in (FRACTIONS, ENERGIES):
        assert all(a < b for a, b in pairwise(values))


# ------------------------------------------------------------------------------- results and settings, read back


def test_results_are_read_back_as_they_were_written(place: Path, energy: Path, mso: Path, tmp_path: Path) -> None:
    found = EnergyResult.read(energy)
    assert found.to_dict() == read(energy / "energy.json")
    assert len(found.to_frame()) == 3 * 3 * 4
    assert "isotropic (top-k)" in found._repr_html_()
    overlaps = MsoResult.read(mso)
    assert overlaps.to_dict() == read(mso / "mso.json")
    assert list(overlaps.to_frame()["energy"][:3]) == [0.2, 0.5, 0.9]
    assert "permuted" in overlaps._repr_html_()
    for result in (found, overlaps):
        assert result.plot("layers").startswith(b"\x89PNG")
    assert run_module("bridge.subspaces", *project_options(place, "adapter", tmp_path / "run")).code == 0
    projection = ProjectResult.read(tmp_path / "run")
    assert projection.to_dict() == read(tmp_path / "run" / "project.json")
    assert projection.counts.projected == 4
    assert list(projection.to_frame()["energy_kept"]) == [projection.energy_kept]
    assert "matrices projected" in projection._repr_html_()
    with pytest.raises(UserError, match="no picture"):
        projection.plot()


@pytest.mark.parametrize("part", ["energy", "mso", "project"])
def test_the_settings_in_a_folder_replay_the_run(
    place: Path, energy: Path, mso: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, part: str
) -> None:
    folder = {"energy": energy, "mso": mso, "project": tmp_path / "project"}[part]
    if part == "project":
        more = ("--basis", "random-k", "--vectors", "drop")
        assert run_module("bridge.subspaces", *project_options(place, "full.safetensors", folder, *more)).code == 0
    file = shutil.copy(folder / "settings.toml", tmp_path / "settings.toml")
    assert run_module("bridge.subspaces", part, "--settings", file, "--out", folder).code == 0
    assert "complete already" in capsys.readouterr().err


def test_options_of_a_file_that_cannot_be_are_told_at_once(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('fractions = [0.5, 1.5]\nrepeats = 0\nbases = ["top-k", "best"]\nsides = "left"\n')
    message = error(monkeypatch, capsys, "energy", "--settings", str(file))
    for part in (
        "unknown option 'sides'; did you mean side", "--bases takes names out of top-k, random-k, random, got 'best'",
        "--fractions: expected increasing numbers above 0, at most 1", "--repeats: expected a whole number from 1",
    ):  # fmt: skip
        assert part in message
    file.write_text(f'alignment = "{place}/alignment.safetensors"\nfractions = [0.5, 0.1]\n[task]\na = "{place}/no"\n')
    assert "--fractions: expected increasing" in error(monkeypatch, capsys, "energy", "--settings", str(file))
    options = ("energy", "--settings", str(file), "--fractions", "0.5")
    assert "--task: no such change of weights" in error(monkeypatch, capsys, *options)


def test_a_run_in_memory_gives_the_same_and_leaves_nothing(
    place: Path, energy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = EnergySettings(
        aligned=str(place / "aligned"), base=str(place / "base"), fractions=(0.1, 0.3, 0.7, 1.0), repeats=3,
        task={"full": str(place / "full.safetensors"), "adapter": str(place / "adapter"),
              "other": str(place / "other.safetensors")},
    )  # fmt: skip
    assert run(settings, quiet=True, lent=Lent(in_memory=True)).to_dict() == read(energy / "energy.json")
    assert not any(tmp_path.iterdir())
