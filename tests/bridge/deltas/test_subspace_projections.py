"""Projected changes of weights: against naive projections, their algebra, and as changes that the package takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bridge.deltas.bases import rank_of, write_singular_vectors
from bridge.deltas.choices import BASES, SCHEMES, SIDES, Basis, BasisChoice, ProjectionCounts, Scheme, Side
from bridge.deltas.lora import LoraDelta
from bridge.deltas.open import open_delta
from bridge.deltas.parameters import parameter_files, set_weights
from bridge.deltas.projections import ProjectedDelta, write_projected
from bridge.deltas.weight_delta import WeightDelta
from bridge.models.load import load_model
from commands.errors import UserError
from tests.bridge.support.tiny_deltas import adapted, save_adapter
from tests.bridge.support.tiny_models import tiny_gpt2_model
from tests.bridge.support.tiny_subspaces import MemoryDelta, make_updates
from tests.oracles import subspaces as oracle

DOUBLE = torch.float64


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def low_rank(rows: int, columns: int, rank: int, seed: int) -> Tensor:
    return gaussian(rows, rank, seed=seed) @ gaussian(rank, columns, seed=seed + 1)


ALIGNMENT = {
    "tall": gaussian(17, 6, seed=1),
    "wide": gaussian(6, 17, seed=2),
    "low": low_rank(9, 9, 3, 3),
    "tiny": gaussian(8, 7, seed=4) * 1e-30,
    "huge": gaussian(7, 8, seed=5) * 1e30,
    "still": torch.zeros(5, 5, dtype=DOUBLE),
    "norm": gaussian(7, seed=6),
}
TASK = {name: gaussian(*tensor.shape, seed=20 + k) for k, (name, tensor) in enumerate(ALIGNMENT.items())}
TASK["tiny"] *= 1e30
TASK["huge"] *= 1e-30
PROJECTED = ("tall", "wide", "low", "tiny", "huge")


def projected(
    folder: Path,
    choice: BasisChoice,
    scheme: Scheme,
    fraction: float = 0.5,
    task: WeightDelta | None = None,
    **more: str,
) -> ProjectedDelta:
    vectors = write_singular_vectors(MemoryDelta(ALIGNMENT), folder / f"{choice.side}.safetensors", side=choice.side)
    return ProjectedDelta(task or MemoryDelta(TASK), vectors, choice, fraction, scheme, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("fraction", [0.01, 0.4, 1.0])
def test_top_k_equals_the_naive_projection(tmp_path: Path, side: Side, fraction: float) -> None:
    parts = {scheme: projected(tmp_path, BasisChoice("top-k", side), scheme, fraction) for scheme in SCHEMES}
    for name in PROJECTED:
        task = TASK[name].numpy()
        rank = rank_of(fraction, *task.shape)
        rank = min(rank, 3) if name == "low" else rank
        naive = oracle.parallel(task, oracle.singular_basis(ALIGNMENT[name].numpy(), rank, side), side)
        size = np.abs(task).max()
        assert np.allclose(parts["parallel"].dense(name, DOUBLE).numpy() / size, naive / size, atol=1e-10)
        assert np.allclose(parts["orthogonal"].dense(name, DOUBLE).numpy() / size, (task - naive) / size, atol=1e-10)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("kind", BASES)
def test_the_two_parts_make_the_whole_and_projecting_twice_changes_nothing(
    tmp_path: Path, kind: Basis, side: Side
) -> None:
    choice = BasisChoice(kind, side, seed=3)
    parts = {scheme: projected(tmp_path, choice, scheme) for scheme in SCHEMES}
    for name in PROJECTED:
        task = TASK[name]
        inside, outside = (parts[scheme].dense(name, DOUBLE) for scheme in SCHEMES)
        scale = float(task.norm())
        energies = float((inside / scale).square().sum() + (outside / scale).square().sum())
        assert energies == pytest.approx(1, abs=1e-12)
        assert torch.allclose((inside + outside) / scale, task / scale, atol=1e-14)
        assert abs(float(((inside / scale) * (outside / scale)).sum())) < 1e-13
        assert float(inside.norm()) > 0.05 * scale
        assert float(outside.norm()) > 0.05 * scale
    for scheme in SCHEMES:
        again = projected(tmp_path, choice, scheme, task=parts[scheme])
        crossed = projected(
            tmp_path, choice, scheme, task=parts["parallel" if scheme == "orthogonal" else "orthogonal"]
        )
        for name in PROJECTED:
            scale = float(TASK[name].norm())
            once = parts[scheme].dense(name, DOUBLE)
            assert torch.allclose(again.dense(name, DOUBLE) / scale, once / scale, atol=1e-13)
            assert float(crossed.dense(name, DOUBLE).norm()) < 1e-13 * scale


def test_what_is_no_matrix_is_kept_or_dropped_and_counted(tmp_path: Path) -> None:
    choice = BasisChoice("top-k")
    kept = projected(tmp_path, choice, "parallel")
    assert torch.equal(kept.dense("norm", DOUBLE), TASK["norm"])
    assert "still" not in kept.names  # no direction: nothing is parallel
    assert kept.counts == ProjectionCounts(projected=5, short=1, without_directions=1, kept=1, dropped=0)
    rest = projected(tmp_path, choice, "orthogonal", vectors="drop")
    assert torch.equal(rest.dense("still", DOUBLE), TASK["still"])
    assert not rest.moves("norm")
    assert rest.counts == ProjectionCounts(projected=5, short=1, without_directions=1, kept=0, dropped=1)
    some = ProjectedDelta(MemoryDelta(TASK), kept.alignment, choice, 0.5, "parallel", names={"tall"})
    assert torch.equal(some.dense("wide", DOUBLE), TASK["wide"])
    assert some.counts.kept == len(TASK) - 1
    drawn = projected(tmp_path, BasisChoice("random"), "parallel")
    assert drawn.counts.short == 0  # random directions never run out
    assert "still" not in drawn.names


def test_updates_that_do_not_fit(tmp_path: Path) -> None:
    right = BasisChoice("top-k", "right")
    vectors = projected(tmp_path, right, "parallel").alignment
    with pytest.raises(ValueError, match="left singular vectors"):
        ProjectedDelta(MemoryDelta(TASK), vectors, BasisChoice("top-k"), 0.5, "parallel")
    with pytest.raises(ValueError, match="fraction"):
        ProjectedDelta(MemoryDelta(TASK), vectors, right, 0.0, "parallel")
    turned = MemoryDelta({"tall": TASK["tall"].T})
    with pytest.raises(UserError, match="tall is \\(6, 17\\) in one and \\(17, 6\\)"):
        ProjectedDelta(turned, vectors, right, 0.5, "parallel")


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_lora_stays_lora_and_equals_its_dense_projection(
    tmp_path: Path, place: Path, architecture: str, side: Side
) -> None:
    if architecture == "llama":
        model = load_model(str(place / "aligned"), device="cpu").model
        task = LoraDelta(place / "adapter", model)
    else:
        model = tiny_gpt2_model()
        adapter = adapted(model, ["c_fc", "c_proj"], r=3, lora_alpha=5, fan_in_fan_out=True)
        task = LoraDelta(save_adapter(adapter, tmp_path / "adapter"), model)
    alignment = MemoryDelta({name: gaussian(*task.shape(name), seed=k) for k, name in enumerate(task.names[1:])})
    vectors = write_singular_vectors(alignment, tmp_path / "v.safetensors", side=side)
    for kind in BASES:
        for scheme in SCHEMES:
            choice = BasisChoice(kind, side, 1)
            found = ProjectedDelta(task, vectors, choice, 0.3, scheme)
            dense = ProjectedDelta(MemoryDelta(dict(_exact(task))), vectors, choice, 0.3, scheme)
            folder = tmp_path / f"{kind}-{scheme}"
            written = write_projected(folder, found, "0" * 64, {})
            back = LoraDelta(folder / "adapter", model)
            assert isinstance(written, LoraDelta)
            assert found.kind == "lora"
            assert found.names == dense.names
            for name in task.names:
                if name in found.names:
                    expected = dense.dense(name, DOUBLE)
                    factors = found.factors(name)
                    assert factors is not None
                    assert torch.allclose(factors.dense(), expected, atol=1e-12)
                    assert torch.allclose(back.dense(name, DOUBLE), expected, atol=1e-6)
                else:
                    assert float(back.dense(name, DOUBLE).norm()) == 0


def _exact(delta: WeightDelta) -> list[tuple[str, Tensor]]:
    return [(name, delta.dense(name, DOUBLE)) for name in delta.names]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_updates(tmp_path_factory.mktemp("projections"))


def test_a_projected_change_moves_a_model_as_any_other(place: Path, tmp_path: Path) -> None:
    loaded = load_model(str(place / "aligned"), device="cpu", dtype="float64")
    task = open_delta(place / "full.safetensors", loaded)
    vectors = write_singular_vectors(open_delta(place / "alignment.safetensors"), tmp_path / "v.safetensors")
    found = ProjectedDelta(task, vectors, BasisChoice("random-k", seed=2), 0.4, "orthogonal")
    files = parameter_files(place / "aligned", loaded.model)
    set_weights(loaded.model, files, found)
    for name, parameter in loaded.model.named_parameters():
        assert torch.equal(parameter, files.read(name).double() + found.dense(name, DOUBLE))
    write_projected(tmp_path, found, str(task.base_sha256), {"scheme": "orthogonal"})
    back = open_delta(tmp_path / "delta.safetensors")
    assert back.names == found.names
    for name in found.names:
        assert torch.equal(back.dense(name), found.dense(name))
    assert found.base_sha256 == back.base_sha256 == task.base_sha256
    found.check_layout(loaded.model)
