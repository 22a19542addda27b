"""A tiny base, the model aligned from it and changes of that: what `bridge.subspaces` takes; and changes in memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bridge.deltas.parameters import parameter_files, write_full_delta
from bridge.deltas.weight_delta import Kind, WeightDelta
from bridge.models.load import load_model
from tests.bridge.support.tiny_deltas import adapted, jolted, save_adapter
from tests.bridge.support.tiny_runs import save_chat_model

REPORT = ("report.html",)
ENERGY = ("energy.json", "energy.npz", "energy.png", "layers.png", *REPORT)
MSO = ("mso.json", "mso.npz", "mso.png", "layers.png", *REPORT)
MODEL = ("chat_template.jinja", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
         "tokenizer_config.json")  # fmt: skip
PROJECT = ("project.json", "delta.json", "delta.safetensors", *(f"model/{name}" for name in MODEL), *REPORT)


class MemoryDelta(WeightDelta):
    """A change that is held in memory."""

    kind: Kind = "full"

    def __init__(self, tensors: Mapping[str, Tensor], label: str = "memory") -> None:
        self._tensors, self.names, self.label = dict(tensors), tuple(tensors), label

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def _exact(self, name: str) -> Tensor:
        return self._tensors[name]


def make_updates(folder: Path) -> Path:
    """folder/base, folder/aligned, folder/alignment.safetensors; full.safetensors, other.safetensors and adapter/.

    One matrix of `other` did not move.
    """
    save_chat_model(folder / "base", "llama")
    base = load_model(str(folder / "base"), device="cpu")

    def shift(model: Any) -> None:
        model.load_state_dict(jolted(base.model, 1, 3e-3).state_dict())

    save_chat_model(folder / "aligned", "llama", shift)
    aligned = load_model(str(folder / "aligned"), device="cpu")
    start = parameter_files(folder / "base", base.model)
    write_full_delta(folder / "alignment.safetensors", aligned.model, start, {"base_sha256": base.weights_hash})
    start = parameter_files(folder / "aligned", aligned.model)
    metadata = {"base_sha256": aligned.weights_hash}
    write_full_delta(folder / "full.safetensors", jolted(aligned.model, 2, 3e-3), start, metadata)
    other: Any = jolted(aligned.model, 3, 3e-3)
    with torch.no_grad():
        still = "model.layers.0.mlp.up_proj.weight"
        other.get_parameter(still).copy_(aligned.model.get_parameter(still))
    write_full_delta(folder / "other.safetensors", other, start, metadata)
    save_adapter(adapted(aligned.model, ["q_proj", "down_proj"], r=2, lora_alpha=4), folder / "adapter")
    return folder


def energy_options(folder: Path, out: Path, *more: str) -> list[str]:
    return [
        *("energy", "--aligned", str(folder / "aligned"), "--base", str(folder / "base")),
        *("--task", f"full={folder / 'full.safetensors'}", "--task", str(folder / "adapter")),
        *("--task", f"other={folder / 'other.safetensors'}", "--fractions", "0.1,0.3,0.7,1", "--repeats", "3"),
        *("--device", "cpu", "--out", str(out), *more),
    ]


def mso_options(folder: Path, out: Path, *more: str) -> list[str]:
    return [
        *("mso", "--aligned", str(folder / "aligned"), "--base", str(folder / "base")),
        *("--update", f"full={folder / 'full.safetensors'}", "--update", f"other={folder / 'other.safetensors'}"),
        *("--energies", "0.2,0.5,0.9", "--permutations", "6", "--device", "cpu", "--out", str(out), *more),
    ]


def project_options(folder: Path, task: str, out: Path, *more: str) -> list[str]:
    return [
        *("project", "--aligned", str(folder / "aligned"), "--base", str(folder / "base")),
        *("--task", f"task={folder / task}", "--fraction", "0.3", "--device", "cpu", "--out", str(out), *more),
    ]
