"""A tiny experiment of `bridge.safety_subspaces`: a model of two layers, a base beside it, three fine-tunes."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.bridge.support.tiny_runs import make_workplace, save_chat_model, write_rows
from tests.bridge.support.tiny_tables import PROMPTS

EXPERIMENT = """
title = "A tiny experiment"
model = "{place}/model"
base = "{place}/base"
method = "{method}"
seed = 1
device = "cpu"
{top}
[finetune]
rows = 4
max_steps = 2
batch_size = 2
max_length = 64
learning_rate = 1e-2

[useful]
data = "{place}/finetune.jsonl"

[harmful]
data = "{place}/skill.jsonl"

[utility]
data = "{place}/sums.jsonl"
num = 4
max_new_tokens = 4
preset = "safety-subspaces"

[harmfulness]
prompts = "{place}/prompts.jsonl"
judge = "{judge}"
max_new_tokens = 4
preset = "safety-subspaces"
"""
TOP = """fractions = [0.25, 0.6]
energies = [0.5, 0.9]
bases = ["top-k", "random"]
contamination = 0.25
repeats = 2
"""


def make_experiment_workplace(folder: Path) -> Path:
    """folder/model, the base/ that it was "aligned" from, and all rows."""
    make_workplace(folder, "llama")

    def unalign(model: torch.nn.Module) -> None:
        draw = torch.Generator().manual_seed(5)
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.05)

    save_chat_model(folder / "base", "llama", unalign)
    (folder / "prompts.jsonl").write_text(PROMPTS)
    write_rows(folder / "sums.jsonl", [(f"{k}+1?", f"#### {k + 1}") for k in range(6)])
    return folder


def write_experiment(
    folder: Path, name: str = "tiny.toml", method: str = "full", top: str = TOP, judge: str = "refusal"
) -> Path:
    """A settings file in the folder."""
    path = folder / name
    path.write_text(EXPERIMENT.format(place=folder, method=method, top=top, judge=judge))
    return path
