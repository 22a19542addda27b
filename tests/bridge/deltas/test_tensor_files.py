from __future__ import annotations

import json
import weakref
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from bridge.deltas.tensor_files import Entry, TensorFiles, write_tensors
from commands.errors import UserError
from tests.bridge.support.tiny_models import save_model, tiny_llama_model

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)


def entry(name: str, tensor: torch.Tensor) -> Entry:
    return Entry(name, tuple(tensor.shape), tensor.dtype, lambda: tensor)


def some(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) * 3).abs().to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_file_is_byte_for_byte_that_of_safetensors(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {"a": some(dtype, 3, 5), "b.weight": some(dtype, 7), "c/é": some(dtype, 2, 1, 4)}
    save_file(tensors, tmp_path / "theirs", {"format": "pt"})
    write_tensors(tmp_path / "ours", [entry(name, t) for name, t in tensors.items()], {"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


@given(
    shapes=st.lists(st.lists(st.integers(0, 4), max_size=3), max_size=5),
    dtypes=st.lists(st.sampled_from(DTYPES), min_size=5, max_size=5),
    note=st.text(max_size=9),
)
def test_what_is_written_is_what_safetensors_reads(
    shapes: list[list[int]], dtypes: list[torch.dtype], note: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("tensors") / "file.safetensors"
    tensors = {f"t{k}": some(dtypes[k], *shape) for k, shape in enumerate(shapes)}
    write_tensors(path, [entry(name, t) for name, t in tensors.items()], {"note": note})
    assert (int.from_bytes(path.read_bytes()[:8], "little")) % 8 == 0
    found = load_file(path)
    ours = TensorFiles([path])
    assert ours.metadata == {"note": note}
    assert set(found) == set(tensors) == set(ours.names)
    for name, tensor in tensors.items():
        for read in (found[name], ours.read(name)):
            assert read.dtype == tensor.dtype == ours.dtype(name)
            assert tuple(read.shape) == tuple(tensor.shape) == ours.shape(name)
            assert torch.equal(read, tensor)


def test_tensors_lie_in_the_given_order_and_strides_do_not_matter(tmp_path: Path) -> None:
    matrix = some(torch.float32, 3, 5)
    write_tensors(tmp_path / "f", [entry("z", matrix.T), entry("a", matrix[:, 1:3]), entry("m", matrix[:, ::2])])
    files = TensorFiles([tmp_path / "f"])
    assert files.names == ("z", "a", "m")
    assert torch.equal(files.read("z"), matrix.T)
    assert torch.equal(files.read("a"), matrix[:, 1:3])
    assert torch.equal(files.read("m"), matrix[:, ::2])
    assert files.metadata == {}


def test_one_tensor_is_alive_at_a_time(tmp_path: Path) -> None:
    alive, peak = 0, 0

    def make() -> torch.Tensor:
        nonlocal alive, peak
        tensor = torch.zeros(10)
        alive += 1
        peak = max(peak, alive)
        weakref.finalize(tensor, dead)
        return tensor

    def dead() -> None:
        nonlocal alive
        alive -= 1

    write_tensors(tmp_path / "f", [Entry(f"t{k}", (10,), torch.float32, make) for k in range(9)])
    assert (peak, alive) == (1, 0)


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def broken() -> torch.Tensor:
        raise RuntimeError("no more")

    write_tensors(tmp_path / "old", [entry("a", torch.ones(2))])
    before = (tmp_path / "old").read_bytes()
    for name in ("old", "new"):
        with pytest.raises(RuntimeError, match="no more"):
            write_tensors(tmp_path / name, [entry("a", torch.zeros(2)), Entry("b", (2,), torch.float32, broken)])
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old").read_bytes() == before


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([entry("a", torch.ones(2)), entry("a", torch.ones(2))], "a would be written twice"),
        ([entry("__metadata__", torch.ones(2))], "__metadata__ would be written twice"),
        ([entry("a", torch.ones(2, dtype=torch.complex64))], "complex64, which is not written"),
        ([Entry("a", (3,), torch.float32, lambda: torch.ones(2))], r"announced torch.float32 \(3,\), made"),
        ([Entry("a", (2,), torch.float64, lambda: torch.ones(2))], "announced torch.float64"),
    ],
)
def test_what_cannot_be_written_is_refused(entries: list[Entry], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        write_tensors(tmp_path / "f", entries)
    assert not list(tmp_path.iterdir())


def test_a_sharded_folder_reads_as_one(tmp_path: Path) -> None:
    model = tiny_llama_model()
    single = TensorFiles.of_folder(save_model(model, tmp_path / "single"))
    sharded = TensorFiles.of_folder(save_model(model, tmp_path / "sharded", max_shard_size="8KB"))
    assert len(single.paths) == 1 < len(sharded.paths)
    assert sorted(single.names) == sorted(sharded.names) == sorted(name for name, _ in model.named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(sharded.read(name), parameter)
        assert torch.equal(single.read(name), parameter)
        with safe_open(sharded.path(name), framework="pt") as shard:
            assert name in shard.keys()  # noqa: SIM118 - not a dict


def test_a_view_has_new_names_in_a_new_order(tmp_path: Path) -> None:
    write_tensors(tmp_path / "f", [entry("a", torch.ones(2)), entry("b", torch.zeros(3)), entry("c", torch.zeros(1))])
    files = TensorFiles([tmp_path / "f"])
    view = files.renamed({"x": "b", "a": "a"})
    assert view.names == ("x", "a")
    assert "b" not in view
    assert torch.equal(view.read("x"), torch.zeros(3))
    assert files.names == ("a", "b", "c")


def test_a_tensor_that_was_read_can_be_changed_without_the_file(tmp_path: Path) -> None:
    write_tensors(tmp_path / "f", [entry("a", torch.ones(5))])
    files = TensorFiles([tmp_path / "f"])
    files.read("a").mul_(3)
    assert torch.equal(files.read("a"), torch.ones(5))


def test_files_that_cannot_be_read_are_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        TensorFiles([tmp_path / "none"])
    write_tensors(tmp_path / "f", [entry("a", torch.ones(50))])
    (tmp_path / "cut").write_bytes((tmp_path / "f").read_bytes()[:-4])
    with pytest.raises(UserError, match="cut is no whole safetensors file"):
        TensorFiles([tmp_path / "cut"])
    (tmp_path / "text").write_text("no tensors at all")
    with pytest.raises(UserError, match="text is no whole safetensors file"):
        TensorFiles([tmp_path / "text"])
    save_file({"a": torch.ones(2).to(torch.float8_e4m3fn)}, tmp_path / "eight")
    with pytest.raises(UserError, match="a is of dtype F8_E4M3, expected one of F64, F32"):
        TensorFiles([tmp_path / "eight"])
    (tmp_path / "g").write_bytes((tmp_path / "f").read_bytes())
    with pytest.raises(UserError, match="g and f both hold a"):
        TensorFiles([tmp_path / "f", tmp_path / "g"])


def test_a_shard_that_the_index_names_must_be_there(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    with pytest.raises(UserError, match=r"lacks weight files .*model-1\.safetensors"):
        TensorFiles.of_folder(tmp_path)
