"""Runs of `bridge.estimate_aic` on tiny random models: their folders, rows and options."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bridge.experiments.estimate_aic.settings import Settings
from tests.bridge.support.tiny_models import save_model, tiny_gpt2_model, tiny_llama_model, tiny_tokenizer
from tests.in_process import run_module

TEMPLATE = (
    "{% for m in messages %}{{ '<s>' + m.content + '\n' if m.role == 'user' else m.content + '</s>' }}{% endfor %}"
)
SCRIPT = "<script>alert(1)</script>"

# Bytes are tokens, and the tiny GPT-2 has 64 positions.
SKILL_ROWS = [(f"how {'x' * i}?", "no" + "y" * (7 * i % 5)) for i in range(7)] + [(SCRIPT, "<b>no</b>")]
FINETUNE_ROWS = [(f"do {'a' * (3 * i % 7)}", "ok" + "z" * i) for i in range(7)]


def save_chat_model(folder: Path, architecture: str, change: Callable[[Any], None] = lambda model: None) -> Path:
    """A tiny model that talks: "gpt2" or "llama" (embeddings not tied), its weights spread out, then changed."""
    import torch

    model = tiny_gpt2_model() if architecture == "gpt2" else tiny_llama_model(tied=False)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(5)  # as drawn, its outputs are almost uniform and its derivatives tiny
        change(model)
    save_model(model, folder)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: Sequence[tuple[str, str]]) -> str:
    path.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in rows))
    return str(path)


def tiny_settings(folder: Path, **changes: Any) -> Settings:
    """Settings of a run on the model in `folder`/model and the rows beside it."""
    base = Settings(
        model=str(folder / "model"), skill=str(folder / "skill.jsonl"), finetune=str(folder / "finetune.jsonl"),
        num_skill=6, num_finetune=5, max_new_tokens=6, rank=3, adam_batch_size=2, learning_rate=1e-3, steps=50,
        dtype="float64", device="cpu", batch_size=3, memory=1.0, max_length=64, bootstrap=20,
    )  # fmt: skip
    return replace(base, **changes)


def make_workplace(folder: Path, architecture: str) -> Path:
    """A folder with model/, skill.jsonl and finetune.jsonl."""
    save_chat_model(folder / "model", architecture)
    write_rows(folder / "skill.jsonl", SKILL_ROWS)
    write_rows(folder / "finetune.jsonl", FINETUNE_ROWS)
    return folder


def options(folder: Path, *more: str) -> list[str]:
    """Command-line options of a tiny run; later ones win."""
    files = {"model": "model", "skill": "skill.jsonl", "finetune": "finetune.jsonl", "out": "run"}
    numbers = {"num-skill": 6, "num-finetune": 5, "max-new-tokens": 6, "max-length": 64, "bootstrap": 20}
    paths = [text for name, file in files.items() for text in (f"--{name}", str(folder / file))]
    return [
        *paths,
        "--device",
        "cpu",
        *(text for name, value in numbers.items() for text in (f"--{name}", str(value))),
        *more,
    ]


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of `python -m bridge.estimate_aic`."""
    return run_module("bridge.estimate_aic", *arguments).code
