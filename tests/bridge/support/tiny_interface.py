"""Every measurement of the Python interface beside the command that makes the same: a line of options, and a call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bridge
from tests.bridge.support.tiny_activations import activation_options, make_prompts
from tests.bridge.support.tiny_experiments import write_rows
from tests.bridge.support.tiny_finetunes import finetune_options
from tests.bridge.support.tiny_fisher_overlaps import options as fisher_overlap_options
from tests.bridge.support.tiny_onsets import onset_options
from tests.bridge.support.tiny_overlaps import overlap_options
from tests.bridge.support.tiny_risks import risk_options
from tests.bridge.support.tiny_runs import FINETUNE_ROWS, SKILL_ROWS, options
from tests.bridge.support.tiny_subspaces import energy_options, make_updates, mso_options

SHORT: dict[str, Any] = {"max_new_tokens": 6, "max_length": 64, "batch_size": 3}


@dataclass(frozen=True)
class Case:
    """A command's options by the workplace and the run folder, and the call by the model, workplace and folder."""

    command: str
    line: Callable[[Path, Path], Sequence[str]]
    call: Callable[[Any, Path, Path | None], Any]
    draws: bool = True
    in_memory: bool = True


def make_interface_workplace(folder: Path) -> Path:
    """A tiny model with two changes and all rows that the cases need, and updates of another under updates/."""
    make_prompts(folder)
    write_rows(folder / "a.jsonl", FINETUNE_ROWS)
    write_rows(folder / "b.jsonl", [*SKILL_ROWS[1:], *FINETUNE_ROWS[:2]])
    write_rows(folder / "sums.jsonl", [(f"{k}+1?", f"#### {k + 1}") for k in range(6)])
    (folder / "updates").mkdir()
    make_updates(folder / "updates")
    return folder


def _skill(m: Any, w: Path, count: int = 6, **more: Any) -> Any:
    return m.samples(w / "skill.jsonl", count, **SHORT, **more)


def _rows(m: Any, w: Path) -> Any:
    return m.samples(w / "finetune.jsonl", 5, responses="rows", max_length=64)


def _model(w: Path, out: Path) -> list[str]:
    return ["--model", str(w / "model"), "--device", "cpu", "--out", str(out)]


def _changes(w: Path) -> dict[str, Path]:
    return {"full": w / "full.safetensors", "adapter": w / "adapter"}


CASES = {
    "estimate_aic": Case(
        "bridge.estimate_aic",
        lambda w, out: options(w, "--out", str(out), "--batch-size", "3"),
        lambda m, w, folder: m.estimate_aic(_skill(m, w), _rows(m, w), bootstrap=20, folder=folder),
    ),
    "estimate_aic of the data's responses": Case(
        "bridge.estimate_aic",
        lambda w, out: options(w, "--out", str(out), "--batch-size", "3", "--fisher", "empirical"),
        lambda m, w, folder: m.estimate_aic(
            _skill(m, w, responses="rows"), w / "finetune.jsonl", num_finetune=5, bootstrap=20, folder=folder
        ),
    ),
    "spectrum": Case(
        "bridge.spectrum",
        lambda w, out: [
            *("--skill", str(w / "skill.jsonl"), "--num-skill", "6", "--draws", "2", "--rank", "3"),
            *("--max-new-tokens", "6", "--max-length", "64", "--batch-size", "3", *_model(w, out)),
        ],
        lambda m, w, folder: m.spectrum(_skill(m, w, draws=2), rank=3, folder=folder),
    ),
    "fisher_overlap": Case(
        "bridge.fisher_overlap",
        fisher_overlap_options,
        lambda m, w, folder: m.fisher_overlap(
            _skill(m, w), m.samples(w / "finetune.jsonl", 6, **SHORT), rank=2, splits=2, jackknife=5, permutations=9,
            simulations=2, folder=folder,
        ),
    ),
    "overlap": Case(
        "bridge.overlap",
        lambda w, out: overlap_options(w, out, "--refusals", str(w / "prompts.jsonl")),
        lambda m, w, folder: m.overlap(
            _skill(m, w), _changes(w), rank=3, bootstrap=20, refusals=w / "prompts.jsonl", folder=folder
        ),
    ),
    "risk": Case(
        "bridge.risk",
        lambda w, out: risk_options(w, out, "--num-rows", "5"),
        lambda m, w, folder: m.risk(
            _skill(m, w),
            {"a": m.samples(w / "a.jsonl", 5, responses="rows", max_length=64), "other": w / "b.jsonl"},
            bootstrap=40, folder=folder,
        ),
    ),
    "onset": Case(
        "bridge.onset",
        lambda w, out: [text for text in onset_options(w, out) if text not in ("--dtype", "float64")],
        lambda m, w, folder: m.onset(
            _skill(m, w, 4), _rows(m, w), num_probe=3, adam_batch_size=2, bootstrap=20, curvature_iterations=2,
            at=(0.03, 0.1, 0.3), learning_rate=1.0, folder=folder,
        ),
    ),
    "activations": Case(
        "bridge.activations",
        activation_options,
        lambda m, w, folder: m.activations(
            {"useful": w / "useful.jsonl", "harmful": m.samples(w / "harmful.jsonl", 8, responses="rows")},
            energies=(0.5, 0.9), splits=3, permutations=19, batch_size=3, max_new_tokens=5, folder=folder,
        ),
    ),
    "harmfulness": Case(
        "bridge.harmfulness",
        lambda w, out: ["--prompts", str(w / "prompts.jsonl"), "--max-new-tokens", "5", *_model(w, out)],
        lambda m, w, folder: m.harmfulness(w / "prompts.jsonl", max_new_tokens=5, folder=folder),
        draws=False,
    ),
    "harmfulness of a change": Case(
        "bridge.harmfulness",
        lambda w, out: [
            *("--prompts", str(w / "prompts.jsonl"), "--max-new-tokens", "5", "--delta", str(w / "adapter")),
            *_model(w, out),
        ],
        lambda m, w, folder: m.harmfulness(
            w / "prompts.jsonl", delta=w / "adapter", max_new_tokens=5, folder=folder
        ),
        draws=False,
    ),
    "utility": Case(
        "bridge.utility",
        lambda w, out: [
            *("--data", str(w / "sums.jsonl"), "--num", "4", "--max-new-tokens", "4", *_model(w, out)),
        ],
        lambda m, w, folder: m.utility(w / "sums.jsonl", num=4, max_new_tokens=4, folder=folder),
        draws=False,
    ),
    "finetune": Case(
        "bridge.finetune",
        lambda w, out: finetune_options(w, "lora", out),
        lambda m, w, folder: m.finetune(
            _rows(m, w), epochs=2, batch_size=2, micro_batch_size=1, lora_dropout=0.2, learning_rate=0.01,
            folder=folder,
        ),
        in_memory=False,
    ),
    "energy": Case(
        "bridge.subspaces",
        lambda w, out: energy_options(w / "updates", out),
        lambda m, w, folder: bridge.energy(
            {"full": _task(w, "full"), "adapter": w / "updates" / "adapter", "other": _task(w, "other")},
            fractions=(0.1, 0.3, 0.7, 1.0), repeats=3, folder=folder, **_aligned(w),
        ),
        in_memory=False,
    ),
    "mso": Case(
        "bridge.subspaces",
        lambda w, out: mso_options(w / "updates", out),
        lambda m, w, folder: bridge.mso(
            {name: _task(w, name) for name in ("full", "other")}, energies=(0.2, 0.5, 0.9), permutations=6,
            folder=folder, **_aligned(w),
        ),
        in_memory=False,
    ),
    "project": Case(
        "bridge.subspaces",
        lambda w, out: [
            *("project", "--task", str(_task(w, "full")), "--fraction", "0.3", "--device", "cpu", "--out", str(out)),
            *("--aligned", str(w / "updates" / "aligned"), "--base", str(w / "updates" / "base")),
        ],
        lambda m, w, folder: bridge.project(
            _task(w, "full"), fraction=0.3, folder=folder, **_aligned(w)
        ),
        draws=False,
        in_memory=False,
    ),
}  # fmt: skip


def _task(w: Path, name: str) -> Path:
    return w / "updates" / f"{name}.safetensors"


def _aligned(w: Path) -> dict[str, Any]:
    return {"aligned": w / "updates" / "aligned", "base": w / "updates" / "base", "device": "cpu"}
