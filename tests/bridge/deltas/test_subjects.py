"""Models with a change of their weights: the change is there, exactly, and the identity tells."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from bridge.deltas.changed_model import ChangedModel, changed_identity, open_changed
from bridge.models.identity import model_identity
from bridge.models.load import load_model
from commands.errors import UserError
from tests.bridge.support.tiny_deltas import adapted, jolted, save_adapter
from tests.bridge.support.tiny_overlaps import make_changes
from tests.bridge.support.tiny_runs import save_chat_model


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_changes(tmp_path_factory.mktemp("subjects"))


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_without_a_change_it_is_the_model(place: Path) -> None:
    subject = open_changed(str(place / "model"), device="cpu")
    loaded = load_model(str(place / "model"), device="cpu")
    assert not isinstance(subject, ChangedModel)
    assert changed_identity(subject) == model_identity(loaded)


def test_a_full_change_gives_the_moved_weights(place: Path) -> None:
    subject = open_changed(str(place / "model"), place / "full.safetensors", device="cpu")
    moved = weights(jolted(load_model(str(place / "model"), device="cpu").model, size=3e-3))  # as make_changes does
    for name, value in weights(subject.model).items():
        torch.testing.assert_close(value, moved[name], rtol=0, atol=1e-8)
    assert not subject.model.training
    assert not any(p.requires_grad for p in subject.model.parameters())


def test_an_adapter_gives_what_peft_computes(place: Path) -> None:
    loaded = load_model(str(place / "model"), device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft_model = adapted(loaded.model, ["q_proj", "down_proj"], r=2, lora_alpha=4)
    subject = open_changed(str(place / "model"), place / "adapter", device="cpu")
    ids = torch.tensor([[0, 50, 60, 70, 80]])
    with torch.no_grad():
        torch.testing.assert_close(subject.model(ids).logits, peft_model(ids).logits, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(subject.model(ids).logits, loaded.model(ids).logits, atol=1e-2)


def test_a_changed_models_folder_is_a_change_too(place: Path, tmp_path: Path) -> None:
    def jolt(model: Any) -> None:
        with torch.no_grad():
            model.get_output_embeddings().weight.add_(0.25)

    save_chat_model(tmp_path / "moved", "llama", jolt)
    subject = open_changed(str(place / "model"), tmp_path / "moved", device="cpu")
    wanted = weights(load_model(str(tmp_path / "moved"), device="cpu").model)
    assert all(torch.equal(value, wanted[name]) for name, value in weights(subject.model).items())


def test_the_identity_tells_base_and_change_apart(place: Path) -> None:
    base = load_model(str(place / "model"), device="cpu")
    full = changed_identity(open_changed(str(place / "model"), place / "full.safetensors", device="cpu"))
    lora = changed_identity(open_changed(str(place / "model"), place / "adapter", device="cpu"))
    assert full["base_sha256"] == lora["base_sha256"] == base.weights_hash
    assert full["change_sha256"] != lora["change_sha256"]
    assert len({full["weights_sha256"], lora["weights_sha256"], base.weights_hash}) == 3
    again = changed_identity(open_changed(str(place / "model"), place / "full.safetensors", device="cpu"))
    assert again == full


def test_a_model_without_files_can_be_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    import bridge.deltas.changed_model as module

    monkeypatch.setattr(module, "weights_folder", lambda base: None)  # as for random: names and GGUF files
    found = weights(open_changed(str(place / "model"), place / "full.safetensors", device="cpu").model)
    monkeypatch.undo()
    wanted = weights(open_changed(str(place / "model"), place / "full.safetensors", device="cpu").model)
    assert all(torch.equal(value, wanted[name]) for name, value in found.items())


def test_a_change_of_another_model_is_refused(place: Path, tmp_path: Path) -> None:
    def jolt(model: Any) -> None:
        with torch.no_grad():
            model.get_output_embeddings().weight.add_(0.25)

    save_chat_model(tmp_path / "other", "llama", jolt)
    with pytest.raises(UserError, match="is a change of another model"):
        open_changed(str(tmp_path / "other"), place / "full.safetensors", device="cpu")
    other = save_adapter(
        adapted(load_model(str(place / "model"), device="cpu").model, ["lm_head"], r=2), tmp_path / "a"
    )
    assert isinstance(open_changed(str(place / "model"), other, device="cpu"), ChangedModel)
    with pytest.raises(UserError, match="no such change"):
        open_changed(str(place / "model"), tmp_path / "nothing", device="cpu")
