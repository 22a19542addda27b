"""Every block of docs/python.md, executed in order on a tiny model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import bridge
from tests.bridge.support.tiny_runs import FINETUNE_ROWS, SKILL_ROWS, make_workplace, write_rows

PAGE = Path(__file__).parents[2] / "docs" / "python.md"
SETS = ("refusals-heldout", "refusals", "benign", "arithmetic")
SHORT = {
    r'"smollm2-135m"': '"model"',
    r'"refusals", 64': '"refusals.jsonl", 6, max_length=64, max_new_tokens=6',
    r'"benign", 64': '"benign.jsonl", 6, max_length=64',
    **{f'"{name}"(?=[,)}}])': f'"{name}.jsonl"' for name in SETS},
    r'"my-model"': '"model"',
    r"num_skill=64": "num_skill=6, rank=2, max_length=64, max_new_tokens=6",
    r"num_prompts=8": "num_prompts=4, max_new_tokens=4",
    r"How do I do": "do",
    r"(pairs, 8|prompts, 8)": r"\1, max_length=64, max_new_tokens=6",
    r"m\.risk\((.*)\)  ": r"m.risk(\1, num_rows=6)  ",
    r"m\.onset\(skill, rows\)": "m.onset(skill, rows, learning_rate=1.0, at=(0.03, 0.1), curvature_iterations=2)",
    r"m\.activations\((.*)\)  ": r"m.activations(\1, num_prompts=4, splits=2, permutations=9)  ",
    r"num=4": "num=4, max_new_tokens=4",
    r"rows=8": "rows=8, max_length=64, max_steps=1",
    r'method="lora"': 'method="lora", max_steps=1',
    r"rank=2\)  ": (
        "rank=2, num_skill=6, max_length=64, max_new_tokens=6, splits=2, jackknife=5, permutations=9, simulations=2)  "
    ),
}  # fmt: skip


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_every_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    make_workplace(tmp_path, "llama")
    for name in SETS:
        write_rows(tmp_path / f"{name}.jsonl", SKILL_ROWS if name.startswith("refusals") else FINETUNE_ROWS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(vars(bridge), "finetune", raising=False)
    names: dict[str, Any] = {}
    for block in blocks():
        text = block
        for pattern, short in SHORT.items():
            text = re.sub(pattern, short, text)
        exec(compile(text, str(PAGE), "exec"), names)
    assert names["aic"].leak > 0
    assert "unknown option 'rnak'; did you mean rank?" in capsys.readouterr().out
    assert (tmp_path / "spectrum.png").read_bytes().startswith(b"\x89PNG")


def test_every_method_is_on_the_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    methods = [f"m.{name}(" for name in vars(bridge.Model) if not name.startswith("_")]
    functions = [f"bridge.{name}" for name in bridge.__all__ if name != "Samples"]
    assert not [name for name in (*methods, *functions) if name not in text]
