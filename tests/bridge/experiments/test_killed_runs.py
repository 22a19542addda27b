"""A run killed with SIGKILL, anywhere, and started again: the same files, byte for byte."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.bridge.support.kill_server import survived
from tests.bridge.support.tiny_runs import make_workplace


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_killed_anywhere_and_started_again(tmp_path: Path) -> None:
    make_workplace(tmp_path, "llama")
    found = survived(tmp_path, "estimate_aic")
    assert len(found[-1]["ends"]) > 3  # the one that is killed often
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
