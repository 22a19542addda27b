"""Snapshots, weights set in place, and merged folders, against the same arithmetic on whole models in float64."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from bridge.deltas.lora import LoraDelta
from bridge.deltas.open import open_delta
from bridge.deltas.parameters import (
    canonical_names,
    parameter_files,
    save_snapshot,
    set_weights,
    skeleton,
    write_full_delta,
    write_moved_model,
)
from bridge.deltas.tensor_files import TensorFiles
from bridge.deltas.weight_delta import WeightDelta
from bridge.models.load import load_model
from commands.errors import UserError
from tests.bridge.support.tiny_deltas import adapted, jolted, save_adapter
from tests.bridge.support.tiny_models import save_model, tiny_gpt2_model, tiny_llama_model

MAKERS = {
    "llama-tied": tiny_llama_model,
    "llama-untied": lambda: tiny_llama_model(tied=False),
    "gpt2": tiny_gpt2_model,
}


def snapshot(model: Any, path: Path) -> TensorFiles:
    save_snapshot(path, model)
    return TensorFiles([path])


def bits(model: Any) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(left[name].view(torch.uint8), right[name].view(torch.uint8)) for name in left
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", MAKERS)
def test_a_snapshot_restores_every_bit(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = MAKERS[kind]().to(dtype)
    with torch.no_grad():
        next(model.parameters())[0, :3] = torch.tensor([-0.0, 1e-7, -1e-7])
    before = bits(model)
    base = snapshot(model, tmp_path / "base")
    assert base.names == tuple(before)
    moved = jolted(model)
    assert not same(bits(moved), before)
    delta = write_full_delta(tmp_path / "delta", moved, base)
    set_weights(moved, base)
    assert same(bits(moved), before)
    set_weights(moved, base, delta)
    set_weights(moved, base, delta, 0.0)
    assert same(bits(moved), before)


@pytest.mark.parametrize("kind", MAKERS)
def test_a_full_change_takes_the_base_to_the_moved_model(kind: str, tmp_path: Path) -> None:
    model = MAKERS[kind]()
    moved = jolted(model)
    base = snapshot(model, tmp_path / "base")
    about = {"base_sha256": "a" * 64, "base_name": "tiny"}
    delta = write_full_delta(tmp_path / "delta", moved, base, about)
    assert delta.names == tuple(bits(model))  # tied parameters once, under the model's name for them
    assert delta.base_sha256 == "a" * 64
    assert delta.metadata == {**about, "format": "pt", "content": "weight change", "unchanged": "0"}
    set_weights(model, base, delta)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, dict(moved.named_parameters())[name], rtol=2e-7, atol=1e-9)
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == (kind != "llama-untied")


def test_parameters_that_did_not_move_are_left_out_and_counted(tmp_path: Path) -> None:
    model = tiny_llama_model()
    base = snapshot(model, tmp_path / "base")
    moved = tiny_llama_model()
    with torch.no_grad():
        moved.model.layers[1].mlp.up_proj.weight[3, 2] += 1
    delta = write_full_delta(tmp_path / "delta", moved, base)
    assert delta.names == ("model.layers.1.mlp.up_proj.weight",)
    assert delta.metadata["unchanged"] == "19"
    assert delta.squared_norm() == pytest.approx(1, rel=1e-6)
    still = write_full_delta(tmp_path / "still", model, base)
    assert (still.names, still.metadata["unchanged"], still.norm()) == ((), "20", 0)
    with pytest.raises(UserError, match="did not move"):
        still.require_nonzero()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scales")
    model = tiny_gpt2_model().double()
    base = snapshot(model, root / "base")
    write_full_delta(root / "full", jolted(model), base)
    save_adapter(adapted(model, ["c_attn", "c_proj"], r=2), root / "lora")
    return root


@settings(max_examples=40, deadline=None)
@given(scale=st.floats(-3, 3), kind=st.sampled_from(["full", "lora"]))
def test_weights_are_linear_in_the_scale(scale: float, kind: str, place: Path) -> None:
    model = tiny_gpt2_model().double()
    base, delta = TensorFiles([place / "base"]), open_delta(place / kind, None)
    set_weights(model, base, delta, scale)
    for name, parameter in model.named_parameters():
        start = base.read(name)
        moved = start + scale * delta.dense(name, torch.float64) if delta.moves(name) else start
        torch.testing.assert_close(parameter, moved, rtol=1e-15, atol=1e-16)


def test_weights_that_do_not_fit_change_nothing(tmp_path: Path) -> None:
    llama, gpt2 = tiny_llama_model(), tiny_gpt2_model()
    before = bits(llama)
    base, foreign = snapshot(llama, tmp_path / "llama"), snapshot(gpt2, tmp_path / "gpt2")
    delta = write_full_delta(tmp_path / "delta", jolted(gpt2), foreign)
    with pytest.raises(UserError, match=r"gpt2: expected the base's weights of model\.embed_tokens\.weight, got none"):
        set_weights(llama, foreign)
    with pytest.raises(UserError, match=r"it moves transformer\.wte\.weight, which the model does not have"):
        set_weights(llama, base, delta)
    narrow = base.renamed({**{n: n for n in base.names}, "model.norm.weight": "model.embed_tokens.weight"})
    with pytest.raises(UserError, match=r"expected model\.norm\.weight of shape \[16\], got \[300, 16\]"):
        set_weights(llama, narrow)
    with pytest.raises(UserError, match=r"expected the base's weights of model\.embed_tokens\.weight"):
        write_full_delta(tmp_path / "other", llama, foreign)
    assert same(bits(llama), before)


def test_a_diverged_model_has_no_change(tmp_path: Path) -> None:
    model = tiny_llama_model()
    base = snapshot(model, tmp_path / "base")
    with torch.no_grad():
        model.model.norm.weight[2] = torch.nan
    with pytest.raises(UserError, match=r"NaN or infinity in model\.norm\.weight: training diverged"):
        write_full_delta(tmp_path / "delta", model, base)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


# ------------------------------------------------------------------------------------------------ folders


@pytest.mark.parametrize("kind", MAKERS)
def test_a_skeleton_has_the_models_parameters_and_ties_but_no_numbers(kind: str, tmp_path: Path) -> None:
    model = MAKERS[kind]()
    bare = skeleton(save_model(model, tmp_path / "model"))
    assert {n: p.shape for n, p in bare.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    assert canonical_names(bare) == canonical_names(model)
    assert all(parameter.is_meta for parameter in bare.parameters())
    names = canonical_names(model)
    assert names.get("lm_head.weight") == ("lm_head.weight" if kind == "llama-untied" else next(iter(names)))


def test_a_folder_without_a_causal_model_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no-such-model"}))
    with pytest.raises(UserError, match="holds no causal language model"):
        skeleton(tmp_path)


def test_files_of_a_bare_trunk_with_buffers_and_a_second_name_are_understood(tmp_path: Path) -> None:
    """As on the hub: GPT-2 without "transformer." and with its masks, and the tied head stored a second time."""
    model = tiny_gpt2_model()
    folder = save_model(model, tmp_path / "model")
    whole = load_file(folder / "model.safetensors")
    bare = {name.removeprefix("transformer."): t for name, t in whole.items()}
    bare |= {"h.0.attn.bias": torch.ones(1, 1, 4, 4), "lm_head.weight": whole["transformer.wte.weight"].clone()}
    save_file(bare, folder / "model.safetensors", {"format": "pt"})
    files = parameter_files(folder, model)
    assert files.names == tuple(bits(model))
    assert all(torch.equal(files.read(name), parameter) for name, parameter in model.named_parameters())
    moved = jolted(model)
    delta = write_full_delta(tmp_path / "delta", moved, files)
    write_moved_model(folder, delta, 1.0, tmp_path / "out")
    out = load_file(tmp_path / "out" / "model.safetensors")
    assert out.keys() == bare.keys()
    assert torch.equal(out["lm_head.weight"], out["wte.weight"])
    assert torch.equal(out["h.0.attn.bias"], bare["h.0.attn.bias"])
    torch.testing.assert_close(out["h.1.mlp.c_fc.weight"], moved.transformer.h[1].mlp.c_fc.weight, rtol=2e-7, atol=1e-9)


SHARDS: dict[str, dict[str, Any]] = {"one file": {}, "shards": {"max_shard_size": "8KB"}}


@pytest.mark.parametrize("options", SHARDS.values(), ids=SHARDS)
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("kind", MAKERS)
def test_a_merged_folder_is_a_model_with_the_moved_weights(
    kind: str, method: str, options: dict[str, Any], tmp_path: Path
) -> None:
    model = MAKERS[kind]()
    folder = save_model(model, tmp_path / "base", **options)
    delta: WeightDelta
    if method == "full":
        delta = write_full_delta(tmp_path / "delta", jolted(model), snapshot(model, tmp_path / "snapshot"))
    else:
        targets = ["c_attn", "c_proj"] if kind == "gpt2" else ["v_proj", "o_proj"]
        delta = LoraDelta(save_adapter(adapted(model, targets, r=2), tmp_path / "adapter"), model)
    write_moved_model(folder, delta, 0.5, tmp_path / "out" / "moved")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["moved"]
    assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in (tmp_path / "out" / "moved").iterdir())
    loaded = load_model(str(tmp_path / "out" / "moved"), device="cpu")
    start = bits(model)
    for name, parameter in loaded.model.named_parameters():
        change = delta.dense(name, torch.float64) if delta.moves(name) else 0
        assert torch.equal(parameter, (start[name].double() + 0.5 * change).float())
    set_weights(model, parameter_files(folder, model), delta, 0.5)
    assert same(bits(model), bits(loaded.model))


def test_a_merged_folder_keeps_the_dtype_of_its_base(tmp_path: Path) -> None:
    model = tiny_llama_model().to(torch.bfloat16)
    folder = save_model(model, tmp_path / "base")
    delta = write_full_delta(tmp_path / "delta", jolted(model), snapshot(model, tmp_path / "snapshot"))
    write_moved_model(folder, delta, 1.0, tmp_path / "out")
    files = TensorFiles.of_folder(tmp_path / "out")
    assert {files.dtype(name) for name in files.names} == {torch.bfloat16}
    assert all(torch.equal(files.read(n), p) for n, p in jolted(model).named_parameters())


def test_a_foreign_index_and_the_note_of_the_bases_origin_are_not_copied(tmp_path: Path) -> None:
    model = tiny_llama_model()
    folder = save_model(model, tmp_path / "base")
    for name in ("source.json", "pytorch_model.bin.index.json", "model.safetensors.index.json"):
        (folder / name).write_text('{"weight_map": {}}')
    (folder / "pytorch_model.bin").write_bytes(b"\0")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    delta = write_full_delta(tmp_path / "delta", jolted(model), snapshot(model, tmp_path / "snapshot"))
    write_moved_model(folder, delta, 1.0, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip


def test_a_merged_folder_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama_model()
    folder = save_model(model, tmp_path / "base", max_shard_size="8KB")
    delta = write_full_delta(tmp_path / "delta", jolted(model), snapshot(model, tmp_path / "snapshot"))
    (tmp_path / ".out.partial").mkdir()  # a killed run's
    (tmp_path / ".out.partial" / "model-00001.safetensors").write_bytes(b"half")
    there = {*tmp_path.iterdir()} - {tmp_path / ".out.partial"}
    last = delta.names[-1]

    def failing(name: str, dtype: torch.dtype) -> Tensor:
        if name == last:
            raise UserError("the disk is full")
        return torch.zeros(delta.shape(name), dtype=dtype)

    with monkeypatch.context() as patched:
        patched.setattr(delta, "dense", failing)
        with pytest.raises(UserError, match="the disk is full"):
            write_moved_model(folder, delta, 1.0, tmp_path / "out")
    assert {*tmp_path.iterdir()} == there
    write_moved_model(folder, delta, 1.0, tmp_path / "out")
    assert {*tmp_path.iterdir()} == {*there, tmp_path / "out"}
    with pytest.raises(UserError, match=r"expected a new folder, got .*out, which exists"):
        write_moved_model(folder, delta, 1.0, tmp_path / "out")


def test_a_change_of_another_model_makes_no_folder(tmp_path: Path) -> None:
    gpt2 = tiny_gpt2_model()
    folder = save_model(tiny_llama_model(), tmp_path / "base")
    delta = write_full_delta(tmp_path / "delta", jolted(gpt2), snapshot(gpt2, tmp_path / "snapshot"))
    with pytest.raises(UserError, match="does not fit the model"):
        write_moved_model(folder, delta, 1.0, tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize("method", ["full", "difference", "lora"])
def test_two_stored_tensors_at_most_are_in_memory(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However large the model: the base's tensor, and the one that the change is being made of."""
    model = tiny_llama_model()
    folder = save_model(model, tmp_path / "base", max_shard_size="8KB")
    save_model(jolted(model), tmp_path / "moved")
    base = snapshot(model, tmp_path / "snapshot")
    delta: WeightDelta
    if method == "full":
        delta = write_full_delta(tmp_path / "delta", jolted(model), base)
    elif method == "difference":
        delta = open_delta(tmp_path / "moved", base_folder=folder)
    else:
        delta = LoraDelta(save_adapter(adapted(model, ["v_proj", "up_proj"], r=2), tmp_path / "adapter"), model)
    alive, peak = 0, 0
    read = TensorFiles.read

    def counting(self: TensorFiles, name: str) -> Tensor:
        nonlocal alive, peak
        tensor = read(self, name)
        alive += 1
        peak = max(peak, alive)
        weakref.finalize(tensor, dead)
        return tensor

    def dead() -> None:
        nonlocal alive
        alive -= 1

    monkeypatch.setattr(TensorFiles, "read", counting)
    for work in (
        lambda: write_moved_model(folder, delta, 1.0, tmp_path / "out"),
        lambda: set_weights(model, base, delta),
        lambda: delta.inner(delta),
        lambda: write_full_delta(tmp_path / "again", model, base),
    ):
        work()
        assert alive == 0
        assert 1 <= peak <= 2
        peak = 0
