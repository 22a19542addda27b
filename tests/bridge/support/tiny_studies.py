"""A tiny study of `bridge.study`: one model of two layers and two sets, with everything that a row can hold."""

from __future__ import annotations

from pathlib import Path

from tests.bridge.support.tiny_runs import FINETUNE_ROWS, SKILL_ROWS, make_workplace, write_rows

STUDY = """
title = "A tiny <b>study</b>"
model = "{place}/model"
methods = ["lora", "full"]
seeds = [3]
seed = 1
device = "cpu"
pilot_steps = 3
resamples = 50

[finetune]
rows = 6
max_steps = 4
batch_size = 2
max_length = 64
[finetune.lora]
learning_rate = 1e-2

[skill]
skill = "{place}/skill.jsonl"
num_skill = 4
max_new_tokens = 4
bootstrap = 10

[overlap]
rank = 2
refusals = "{place}/prompts.jsonl"
estimator = "rademacher"
dim = 16

[[sets]]
data = "{place}/finetune.jsonl"
name = "first"

[[sets]]
data = "{place}/second.jsonl"
name = "second"
rows = 5
learning_rate = 3e-2

[[sets]]
data = "gsm8k"
file = "sums.jsonl"
rows = {rows}
"""
PROMPTS = '{"prompt": "how?"}\n{"prompt": "do xx?"}\n{"prompt": "why do that"}\n'


def make_study_workplace(folder: Path) -> Path:
    """folder/model with its rows and prompts, and folder/files with a local file of a known set."""
    make_workplace(folder, "llama")
    (folder / "prompts.jsonl").write_text(PROMPTS)
    write_rows(folder / "second.jsonl", [(a, b) for (a, _), (_, b) in zip(SKILL_ROWS, FINETUNE_ROWS, strict=False)])
    (folder / "files").mkdir()
    lines = [f'{{"question": "{k}+1?", "answer": "#### {k + 1}"}}\n' for k in range(7)]
    (folder / "files" / "sums.jsonl").write_text("".join(lines))
    return folder


def write_study(folder: Path, name: str = "tiny.toml", rows: int = 6) -> Path:
    """A settings file in the folder; `rows` are those of the set in a local file, which has 7."""
    path = folder / name
    path.write_text(STUDY.format(place=folder, rows=rows))
    return path
