"""Bases from one decomposition of an update: against naive transcriptions, on adversarial matrices, and their draws."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bridge.deltas.bases import (
    SingularVectors,
    basis,
    numerical_rank,
    rank_of,
    row_energies,
    singular_vectors,
    thin_svd,
    update_of,
    write_singular_vectors,
)
from bridge.deltas.choices import BASES, SIDES, BasisChoice, Side
from bridge.deltas.factors import Factors
from commands.errors import UserError
from tests.bridge.support.tiny_deltas import adapted, save_adapter
from tests.bridge.support.tiny_models import tiny_gpt2_model, tiny_llama_model
from tests.bridge.support.tiny_subspaces import MemoryDelta
from tests.oracles import subspaces as oracle

NAME = "model.layers.0.a.weight"
DOUBLE = torch.float64


def gaussian(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def with_values(values: list[float], rows: int, columns: int, seed: int = 0) -> Tensor:
    left = torch.linalg.qr(gaussian(rows, len(values), seed)).Q
    right = torch.linalg.qr(gaussian(columns, len(values), seed + 1)).Q
    return left * torch.tensor(values, dtype=DOUBLE) @ right.T


MATRICES = {
    "tall": gaussian(23, 5),
    "wide": gaussian(5, 23),
    "square": gaussian(9, 9),
    "rank-deficient": with_values([3.0, 2.0, 1.0], 12, 8),
    "clusters": with_values([4.0, 4.0, 4.0, 1.0, 1.0], 5, 11),
    "graded": with_values([10.0**-k for k in range(8)], 20, 8),
    "tiny": gaussian(7, 6) * 1e-30,
    "huge": gaussian(6, 7) * 1e30,
    "row": gaussian(1, 6),
    "column": gaussian(6, 1),
}
BETWEEN = {"rank-deficient": (1, 2, 3), "clusters": (3, 5)}  # ranks at which the subspace is unambiguous


def numpy(tensor: Tensor) -> np.ndarray:
    found: np.ndarray = tensor.double().numpy()
    return found


def vectors_of(matrix: Tensor, side: Side, dtype: torch.dtype = DOUBLE) -> Tensor:
    update = update_of(MemoryDelta({NAME: matrix}), NAME, side)
    assert update is not None
    vectors, values = thin_svd(update, dtype)
    return vectors[:, : numerical_rank(values, dtype)]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("kind", MATRICES)
def test_energies_at_every_rank_equal_one_svd_each(kind: str, side: Side) -> None:
    matrix = MATRICES[kind]
    task = gaussian(*matrix.shape, seed=5) * matrix.abs().max()
    update = update_of(MemoryDelta({NAME: task}), NAME, side)
    assert update is not None
    vectors = vectors_of(matrix, side)
    kept = np.cumsum(row_energies(vectors, update).numpy()) / update.scaled_square
    ranks = BETWEEN.get(kind, range(1, min(matrix.shape) + 1))
    assert len(kept) == max(ranks)
    for rank in ranks:
        naive = oracle.energy_kept(numpy(task), oracle.singular_basis(numpy(matrix), rank, side), side)
        assert kept[rank - 1] == pytest.approx(naive, abs=1e-10)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("kind", MATRICES)
def test_singular_vectors_and_values_are_the_updates(kind: str, side: Side) -> None:
    matrix = MATRICES[kind]
    update = update_of(MemoryDelta({NAME: matrix}), NAME, side)
    assert update is not None
    vectors, values = thin_svd(update, DOUBLE)
    assert torch.allclose(vectors.T @ vectors, torch.eye(vectors.shape[1], dtype=DOUBLE), atol=1e-13)
    expected = np.linalg.svd(oracle.unit(numpy(matrix)), compute_uv=False)
    scale = math.ldexp(1.0, update.exponent) / float(matrix.abs().max())
    assert np.allclose(values.numpy() * scale, expected, atol=1e-13 * expected[0], rtol=0)
    rows = vectors.T @ (update.part if isinstance(update.part, Tensor) else update.part.dense())
    assert torch.allclose(rows.norm(dim=1), values, atol=float(1e-13 * values[0]), rtol=0)


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1.0, 1e30, 1e150])
def test_norms_and_cosines_at_any_scale(scale: float) -> None:
    a, b = gaussian(6, 4), gaussian(6, 4, 1) - 2 * gaussian(6, 4)  # nearly anti-aligned
    first, second = (update_of(MemoryDelta({NAME: x * scale}), NAME) for x in (a, b))
    assert first is not None
    assert second is not None
    assert first.norm == pytest.approx(float(a.norm()) * scale, rel=1e-12)
    found = first.scaled_inner(second) / math.sqrt(first.scaled_square * second.scaled_square)
    assert found == pytest.approx(oracle.cosine(numpy(a), numpy(b)), abs=1e-12)
    assert found < -0.5


def test_zero_is_no_update() -> None:
    delta = MemoryDelta({NAME: torch.zeros(3, 4)})
    assert update_of(delta, NAME) is None
    assert update_of(delta, "another") is None
    assert numerical_rank(torch.zeros(3), DOUBLE) == 0
    assert numerical_rank(torch.zeros(0), DOUBLE) == 0


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_lora_is_decomposed_through_its_factors(tmp_path: Path, architecture: str, side: Side) -> None:
    from bridge.deltas.lora import LoraDelta

    model = tiny_llama_model() if architecture == "llama" else tiny_gpt2_model()
    targets = ["q_proj", "down_proj"] if architecture == "llama" else ["c_fc"]
    fan = {} if architecture == "llama" else {"fan_in_fan_out": True}
    delta = LoraDelta(save_adapter(adapted(model, targets, r=3, lora_alpha=5, **fan), tmp_path / "adapter"), model)
    for name in delta.names:
        matrix = delta.dense(name, DOUBLE)
        update = update_of(delta, name, side)
        assert update is not None
        assert isinstance(update.part, Factors)
        assert update.norm == pytest.approx(float(matrix.norm()), rel=1e-12)
        vectors, values = thin_svd(update, DOUBLE)
        assert vectors.shape == (matrix.shape[0 if side == "left" else 1], 3)
        naive = oracle.singular_basis(numpy(matrix), 3, side)
        assert np.allclose(numpy(vectors @ vectors.T), naive @ naive.T, atol=1e-10)
        scaled = values * math.ldexp(1.0, update.exponent)
        assert torch.allclose(scaled, torch.linalg.svdvals(matrix)[:3], rtol=1e-10)
        task = gaussian(*matrix.shape)
        for one, two in ((delta, MemoryDelta({name: task})), (MemoryDelta({name: task}), delta)):
            mine, theirs = update_of(one, name, side), update_of(two, name, side)
            assert mine is not None
            assert theirs is not None
            inner = mine.scaled_inner(theirs) * math.ldexp(1.0, mine.exponent + theirs.exponent)
            assert inner == pytest.approx(float((task * matrix).sum()), rel=1e-10)
        kept = float(row_energies(vectors[:, :2], update).sum()) / update.scaled_square
        assert kept == pytest.approx(oracle.energy_kept(numpy(matrix), numpy(vectors[:, :2]), side), abs=1e-10)


# --------------------------------------------------------------------------------------------------- bases


@given(st.sampled_from(BASES), st.sampled_from(SIDES), st.integers(0, 9), st.integers(1, 7))
def test_bases_are_orthonormal_and_nested(kind: str, side: Side, seed: int, rank: int) -> None:
    matrix = MATRICES["square"][:, :7]
    vectors = vectors_of(matrix, side)
    choice = BasisChoice(kind, side, seed)  # type: ignore[arg-type]
    whole = basis(choice, vectors, (9, 7), NAME)
    part = basis(choice, vectors, (9, 7), NAME, rank)
    assert part.shape == (9 if side == "left" else 7, rank)
    assert torch.allclose(part.T @ part, torch.eye(rank, dtype=DOUBLE), atol=1e-13)
    assert torch.allclose(part @ part.T, whole[:, :rank] @ whole[:, :rank].T, atol=1e-13)


def test_random_k_takes_singular_vectors_and_random_takes_none() -> None:
    vectors = vectors_of(MATRICES["tall"], "left")
    drawn = basis(BasisChoice("random-k"), vectors, (23, 5), NAME, 3)
    inner = (vectors.T @ drawn).abs()
    assert torch.allclose(inner.sum(0), torch.ones(3, dtype=DOUBLE))
    assert sorted(inner.argmax(0).tolist()) != [0, 1, 2]
    loose = basis(BasisChoice("random"), vectors, (23, 5), NAME, 3)
    assert float((vectors.T @ loose).square().sum()) < 2.5  # 3 * 5 / 23 on average, 3 if it were inside
    elsewhere = basis(BasisChoice("random"), vectors_of(gaussian(23, 5, 9), "left"), (23, 5), NAME, 3)
    assert torch.equal(loose, elsewhere)


@pytest.mark.parametrize("kind", ["random-k", "random"])
def test_draws_depend_on_seed_and_name_alone(kind: str) -> None:
    vectors = vectors_of(gaussian(40, 30), "left")

    def drawn(seed: int, name: str) -> Tensor:
        torch.manual_seed(hash(name) % 100)  # the global generator has no part in it
        return basis(BasisChoice(kind, seed=seed), vectors, (40, 30), name, 10)  # type: ignore[arg-type]

    first = drawn(0, "a")
    assert torch.equal(first, drawn(0, "a"))
    assert not torch.equal(first, drawn(1, "a"))
    assert not torch.equal(first, drawn(0, "b"))


def test_every_vector_is_drawn_equally_often() -> None:
    vectors = torch.eye(5, dtype=DOUBLE)
    counts = torch.zeros(5)
    for seed in range(1000):
        counts += basis(BasisChoice("random-k", seed=seed), vectors, (5, 5), NAME, 2).sum(1).float()
    assert float((counts - 400).abs().max()) < 4.5 * math.sqrt(1000 * 0.4 * 0.6)


def test_a_basis_has_no_more_columns_than_directions() -> None:
    vectors = vectors_of(MATRICES["rank-deficient"], "left")
    sizes = {kind: basis(BasisChoice(kind), vectors, (12, 8), NAME, 6).shape[1] for kind in BASES}
    assert sizes == {"top-k": 3, "random-k": 3, "random": 6}
    for kind in BASES:
        assert basis(BasisChoice(kind), vectors[:, :0], (12, 8), NAME, 6).shape == (12, 0)


def test_choices_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="dimension 8"):
        basis(BasisChoice("top-k"), torch.eye(9), (8, 9), NAME)
    with pytest.raises(ValueError, match="fraction"):
        rank_of(0.0, 3, 3)


# ------------------------------------------------------------------------------------------------ on disk


@pytest.mark.parametrize("side", SIDES)
def test_singular_vectors_go_to_disk_and_back(tmp_path: Path, side: Side) -> None:
    zero, vector = torch.zeros(4, 3, dtype=DOUBLE), torch.ones(5, dtype=DOUBLE)
    tensors = {"a": MATRICES["tall"], "still": zero, "norm": vector, "b": MATRICES["tiny"], "c": MATRICES["clusters"]}
    delta = MemoryDelta(tensors)
    found = write_singular_vectors(delta, tmp_path / "v.safetensors", side=side)
    assert found.names == ("a", "still", "b", "c")
    assert found.side == side
    assert found.shape("a") == (23, 5)
    assert found.vectors("still").shape == (4 if side == "left" else 3, 0)
    assert found.rank("still") == 0
    for name in ("a", "b", "c"):
        assert torch.equal(found.vectors(name), vectors_of(tensors[name], side))
        expected = np.linalg.svd(numpy(tensors[name]), compute_uv=False)
        assert np.allclose(found.singular_values(name).numpy(), expected, rtol=1e-10, atol=0)
    again = SingularVectors(tmp_path / "v.safetensors")
    assert again.change_sha256 == found.change_sha256
    other = write_singular_vectors(MemoryDelta({"a": -tensors["a"]}), tmp_path / "w.safetensors", side=side)
    assert other.change_sha256 != found.change_sha256
    one = write_singular_vectors(delta, tmp_path / "one.safetensors", side=side, names=["b"])
    assert one.names == ("b",)
    kept = singular_vectors(MemoryDelta({}), tmp_path / "one.safetensors")  # nothing is decomposed: it is there
    assert kept.change_sha256 == one.change_sha256


def test_float32_vectors_are_as_good_as_float32(tmp_path: Path) -> None:
    delta = MemoryDelta({NAME: MATRICES["tall"]})
    found = write_singular_vectors(delta, tmp_path / "v.safetensors", dtype=torch.float32)
    assert found.vectors(NAME).dtype == torch.float32
    exact = vectors_of(MATRICES["tall"], "left")
    mine = found.vectors(NAME).double()
    assert torch.allclose(mine @ mine.T, exact @ exact.T, atol=1e-5)


def test_files_and_updates_without_vectors(tmp_path: Path) -> None:
    from bridge.deltas.tensor_files import Entry, write_tensors

    write_tensors(tmp_path / "x.safetensors", [Entry("a", (1,), DOUBLE, lambda: torch.ones(1, dtype=DOUBLE))])
    with pytest.raises(UserError, match="no singular vectors"):
        SingularVectors(tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="moves none"):
        write_singular_vectors(MemoryDelta({"n": torch.ones(3), NAME: torch.zeros(2, 2)}), tmp_path / "y.safetensors")
    with pytest.raises(UserError, match=NAME):
        write_singular_vectors(MemoryDelta({NAME: torch.full((2, 2), math.nan)}), tmp_path / "y.safetensors")
    assert not (tmp_path / "y.safetensors").exists()
