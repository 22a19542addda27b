"""The table of defences: its counts of refusals belong to their prompts and weights."""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from commands.store import write_json
from tests.bridge.support.tiny_runs import write_rows

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "defences_on_the_organism.py"


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, whose model answers every prompt with a refusal; `table.opened` counts how often one was loaded."""
    specification = importlib.util.spec_from_file_location("defences_table", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    found: Any = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(found)
    found.opened = []

    def open_changed(model: str, delta: Path | None, **_: Any) -> SimpleNamespace:
        found.opened.append(delta)
        return SimpleNamespace(tokenizer=None)

    monkeypatch.setattr(found, "open_changed", open_changed)
    monkeypatch.setattr(found, "ChatFormat", lambda tokenizer: None)
    monkeypatch.setattr(
        found,
        "generate_texts",
        lambda loaded, chat, rows, **_: [SimpleNamespace(text="I'm sorry, but I cannot help with that.") for _ in rows],
    )
    return found


def make_run(folder: Path, seed: int, **settings: Any) -> Path:
    """A finished run of bridge.finetune, as far as the refusals are counted from it; the seed chose the prompts."""
    folder.mkdir(exist_ok=True)
    identity = {
        "weights_sha256": "a", "config": "b", "dtype": "float32", "device": "cpu", "threads": 1, "end_token_ids": [1],
        "skill_tokens": f"seed {seed}", "data": "benign",
    }  # fmt: skip
    write_json(folder / "manifest.json", {"settings": identity | settings})
    (folder / "skill.jsonl").write_text("".join(json.dumps({"group": 1 + (k + seed) % 6}) + "\n" for k in range(5)))
    return folder


def test_refusals_are_counted_again_for_other_prompts_or_weights(table: Any, tmp_path: Path) -> None:
    write_rows(tmp_path / "skill.jsonl", [(f"how {k}?", "no") for k in range(6)])
    options = argparse.Namespace(
        model="m", skill=str(tmp_path / "skill.jsonl"), dtype=None, device=None, num_skill=2, prompts=3,
        max_new_tokens=4,
    )  # fmt: skip
    run, kept = make_run(tmp_path / "run", 0), tmp_path / "kept.json"

    def counts_again(moved: bool) -> bool:
        before = len(table.opened)
        assert table.refusals(options, run, kept, moved=moved)["refused"] == options.prompts
        return len(table.opened) > before

    for moved in (False, True):
        assert counts_again(moved)
        assert not counts_again(moved)
        options.prompts = 2
        assert counts_again(moved)
        options.max_new_tokens += 1
        assert counts_again(moved)
        make_run(run, 1)
        assert counts_again(moved)
        make_run(run, 1, data="gsm8k")  # what is trained on is nothing to the base
        assert counts_again(moved) == moved
        make_run(run, 1, weights_sha256="c")
        assert counts_again(moved)
        options.prompts = 3
        make_run(run, 0)
    write_json(kept, {"refused": 0, "total": 3})  # of a file that does not say what it is of nothing is taken
    assert counts_again(True)
    assert table.opened[0] is None
    assert table.opened[-1] == run


def test_the_base_has_a_line_of_each_seed(table: Any) -> None:
    losses = {"mean": 1.0, "standard_error": None, "responses": 1}
    row = {
        "method": "full", "defence": "none", "refresh": None, "seed": 0, "steps": 3, "refusals": None,
        "utility_loss": {"probe": losses, "held_out": losses}, "summary": {"inside": None}, "loss_reached": 1.0,
        "extra_share": 0.1,
    }  # fmt: skip
    options = argparse.Namespace(model="m", data="d", skill="s", optimizer="adamw", learning_rate=1e-5)
    base = {0: {"refused": 3, "total": 4}, 7: {"refused": 2, "total": 4}}
    text = table.markdown(options, [row], base)
    assert "| base | | | 0 | 0 | 0 | 3 of 4 |" in text
    assert "| base | | | 7 | 0 | 0 | 2 of 4 |" in text


def test_each_seed_keeps_its_base(table: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[tuple[str, bool]] = []

    def refusals(options: argparse.Namespace, run: Path, file: Path, moved: bool) -> dict[str, int]:
        kept.append((file.name, moved))
        return {"refused": 1, "total": 2}

    def configurations(options: argparse.Namespace) -> Any:
        plans = [SimpleNamespace(plan=SimpleNamespace(seed=seed)) for seed in (0, 0, 7)]
        return iter([(f"run-{k}", plan) for k, plan in enumerate(plans)])

    def run(settings: Any, folder: Path, quiet: bool) -> Path:
        folder.mkdir(parents=True)
        write_json(folder / "finetune.json", {})
        return folder

    monkeypatch.setattr(
        table, "parse", lambda: argparse.Namespace(model="random:smollm2-135m", out=tmp_path, prompts=3)
    )
    monkeypatch.setattr(table, "measured", lambda *_: {})
    monkeypatch.setattr(table, "markdown", lambda *_: "")
    monkeypatch.setattr(table, "picture", lambda _: b"")
    for name, fake in (("refusals", refusals), ("configurations", configurations), ("run", run)):
        monkeypatch.setattr(table, name, fake)
    table.main()
    assert [name for name, moved in kept if not moved] == ["refusals-base-seed-0.json", "refusals-base-seed-7.json"]
    assert json.loads((tmp_path / "defences.json").read_text())["base"] == {
        seed: {"refused": 1, "total": 2} for seed in ("0", "7")
    }
