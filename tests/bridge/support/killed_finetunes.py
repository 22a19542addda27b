"""Kills tiny fine-tunes everywhere, for `kill_server`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from bridge.finetune import MEMORY_ADVICE
from bridge.finetune import main as command
from tests.bridge.support.killing import At, Killed, kill_everywhere

COMPARED = ("settings.toml", "delta.json", "finetune.json", "samples.jsonl", "loss.png", "report.html")
RESULTS = {
    "lora": ("adapter/adapter_config.json", "adapter/adapter_model.safetensors"),
    "full": (
        "delta.safetensors", "model/model.safetensors", "model/config.json", "model/generation_config.json",
        "model/chat_template.jinja", "model/tokenizer.json", "model/tokenizer_config.json",
    ),
}  # fmt: skip
DEFENDED = ("skill.jsonl", "defence.png")
# Where a process dies: what both methods share is tried with one of them.
MOMENTS = {
    "lora": {
        "writing rng_state.pth", "before whole.json", "tick of training", "before adapter",
        "after adapter", "after delta.json", "after report.html",
    },
    "full": {
        "after base.safetensors", "writing optimizer.pt", "tick of training", "before delta.safetensors",
        "before model", "after model",
    },
}  # fmt: skip

DEFENDED_MOMENTS = {
    "after skill-responses-0.json", "after skill.jsonl", "after defence-gram.npz", "before defence.json",
    "after defence.json", "tick of training", "after defence.png",
}  # fmt: skip


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


def main(folder: Path, method: str, defence: str | None = None) -> None:
    more = () if defence is None else defence_options(folder, defence, "--refresh", "2")
    moments = MOMENTS[method] if defence is None else DEFENDED_MOMENTS
    killed = Killed(
        main=command,
        advice=MEMORY_ADVICE,
        arguments=lambda out: finetune_options(folder, method, out, *more),
        compared=(*COMPARED, *RESULTS[method], *(DEFENDED if defence else ())),
        watch=_watch,
        skip=lambda moment: moment not in moments,
        normal=_without_seconds,
        often=(10, 5) if defence is None else (15, 14),
    )
    kill_everywhere(killed, folder)


def _without_seconds(name: str, content: bytes) -> bytes:
    if name == "report.html":
        return re.sub(rb"<tr><td>extra time.*?</tr>", b"", content)
    if name != "finetune.json":
        return content
    found = json.loads(content)
    found.pop("seconds")
    for timed in ("extra_seconds", "extra_share"):
        (found["defence"] or {}).pop(timed, None)
    return json.dumps(found).encode()


def _watch(at: At) -> None:
    """Every step is a checkpoint, and the moments in the middle of writing one are marked."""
    import torch

    from bridge.training import sft

    sft._SAVE_EVERY_SECONDS, sft._SAVE_SHARE = -1.0, float("inf")
    save = torch.save

    def watched_save(value: Any, file: Any, *more: Any, **options: Any) -> None:
        at(f"writing {Path(file).name}")
        save(value, file, *more, **options)

    torch.save = watched_save
