"""A tiny table of `bridge.table1`: one model of two layers, two sets, and everything that a row can hold."""

from __future__ import annotations

import json
from pathlib import Path

from tests.bridge.support.tiny_runs import make_workplace, write_rows

TABLE = """
title = "A tiny table"
models = ["{place}/model"]
methods = ["lora", "full"]
seed = 1
device = "cpu"
keep_weights = {keep}

[finetune]
rows = 4
max_steps = 2
batch_size = 2
max_length = 64
[finetune.full]
learning_rate = 1e-2

[[sets]]
data = "{place}/finetune.jsonl"
name = "first"

{second}
[harmfulness]
prompts = "{place}/prompts.jsonl"
judge = "refusal"
max_new_tokens = 6

[utility]
data = "{place}/sums.jsonl"
num = 4
max_new_tokens = 6

[overlap]
skill = "{place}/skill.jsonl"
num_skill = 4
max_new_tokens = 4
max_length = 64
rank = 2
bootstrap = 10
"""
SECOND = """[[sets]]
data = "{data}"
name = "second"
rows = 3
"""
PROMPTS = '{"prompt": "how?"}\n{"prompt": "do xx?"}\n{"prompt": "why do that"}\n'


def make_table_workplace(folder: Path) -> Path:
    """folder/model with its rows, prompts and problems."""
    make_workplace(folder, "llama")
    (folder / "prompts.jsonl").write_text(PROMPTS)
    write_rows(folder / "sums.jsonl", [(f"{k}+1?", f"#### {k + 1}") for k in range(6)])
    return folder


def table_text(folder: Path, second: str | None = "skill.jsonl", keep: bool = True) -> str:
    """A settings file on the folder's files, of two sets or one."""
    more = SECOND.format(data=folder / second) if second else ""
    return TABLE.format(place=folder, second=more, keep=json.dumps(keep))


def write_table(folder: Path, name: str = "tiny.toml", second: str | None = "skill.jsonl", keep: bool = True) -> Path:
    """The same, written into the folder."""
    path = folder / name
    path.write_text(table_text(folder, second, keep))
    return path
