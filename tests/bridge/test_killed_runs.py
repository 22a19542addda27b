"""A run killed with SIGKILL, anywhere, and started again: the same files, byte for byte."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bridge.tiny_runs import make_workplace

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_killed_anywhere_and_started_again(tmp_path: Path) -> None:
    make_workplace(tmp_path, "llama")
    command = [sys.executable, "-m", "tests.bridge.killed_runs", str(tmp_path), "adamw"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    names = {entry["moment"] for entry in found}
    written = {name.removeprefix("after ") for name in names if name.startswith("after ")}
    assert written >= {
        "manifest.json", "samples.jsonl", "responses-0.json", "gradient.safetensors", "velocity.safetensors",
        "hessian_product.safetensors", "scores-0.npz", "output-0.npz", "statistics.npz", "aic.json", "report.html",
    }  # fmt: skip
    assert {name for name in names if name.startswith("tick of ")} == {
        "tick of responses of the model", "tick of gradient of the fine-tuning loss", "tick of Hessian-vector product",
        "tick of scores on the skill", "tick of motion of the policy",
    }  # fmt: skip
    assert len(found[-1]["ends"]) > 3  # the one that is killed often
    for entry in found:
        *killed, last = entry["ends"]
        assert last == 0, entry
        assert set(killed) == {-signal.SIGKILL}, entry
        assert entry["differ"] == [], entry
