"""Fine-tunes of a tiny model on five rows: their options, and the files that they leave."""

from __future__ import annotations

from pathlib import Path

COMPARED = ("delta.json", "finetune.json", "samples.jsonl", "loss.png", "report.html")
RESULTS = {
    "lora": ("adapter/adapter_config.json", "adapter/adapter_model.safetensors"),
    "full": (
        "delta.safetensors", "model/model.safetensors", "model/config.json", "model/generation_config.json",
        "model/chat_template.jinja", "model/tokenizer.json", "model/tokenizer_config.json",
    ),
}  # fmt: skip
DEFENDED = ("skill.jsonl", "defence.png")


def defence_options(folder: Path, kind: str, *more: str) -> list[str]:
    """A defence of the skill in folder/skill.jsonl: four responses to project off, three to judge by."""
    measure = () if kind == "budget" else ("--measure-every", "2")
    return [
        *("--defend", kind, "--skill", str(folder / "skill.jsonl"), "--num-skill", "4", "--held-out", "3"),
        *("--max-new-tokens", "5", *measure, "--probe-batch-size", "3", *more),
    ]


def finetune_options(folder: Path, method: str, out: Path, *more: str) -> list[str]:
    """A fine-tune of folder/model: five rows, two passes of three steps (the last of one row), LoRA with dropout."""
    return [
        *("--model", str(folder / "model"), "--data", str(folder / "finetune.jsonl"), "--method", method),
        *("--rows", "5", "--epochs", "2", "--batch-size", "2", "--micro-batch-size", "1", "--max-length", "64"),
        *("--lora-dropout", "0.2", "--learning-rate", "0.01", "--device", "cpu", "--out", str(out), *more),
    ]
