"""A tiny model with a full change and a LoRA change of it, and the options of `bridge.overlap` on them."""

from __future__ import annotations

import warnings
from pathlib import Path

from bridge.deltas.parameters import parameter_files, write_full_delta
from bridge.models.load import load_model
from tests.bridge.support.tiny_deltas import adapted, jolted, save_adapter
from tests.bridge.support.tiny_runs import make_workplace

COMPARED = (
    "overlap.json", "samples.jsonl", "refusals.jsonl", "statistics.npz", "report.html",
    "scores.png", "modules.png", "damage.png",
)  # fmt: skip
PROMPTS = '{"prompt": "how?"}\n{"prompt": "do xx?"}\n{"prompt": "why do that"}\n'


def make_changes(folder: Path) -> Path:
    """folder/model with its rows, full.safetensors, adapter/ and prompts.jsonl."""
    make_workplace(folder, "llama")
    (folder / "prompts.jsonl").write_text(PROMPTS)
    loaded = load_model(str(folder / "model"), device="cpu")
    moved = jolted(loaded.model, size=3e-3)
    base = parameter_files(folder / "model", loaded.model)
    write_full_delta(folder / "full.safetensors", moved, base, {"base_sha256": loaded.weights_hash})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save_adapter(adapted(loaded.model, ["q_proj", "down_proj"], r=2, lora_alpha=4), folder / "adapter")
    return folder


def overlap_options(folder: Path, out: Path, *more: str) -> list[str]:
    """Options of a tiny run; later ones win."""
    return [
        *("--model", str(folder / "model"), "--skill", str(folder / "skill.jsonl"), "--num-skill", "6"),
        *("--delta", f"full={folder / 'full.safetensors'}", "--delta", str(folder / "adapter")),
        *("--max-new-tokens", "6", "--max-length", "64", "--rank", "3", "--bootstrap", "20", "--batch-size", "3"),
        *("--device", "cpu", "--out", str(out), *more),
    ]
