"""An alignment killed with SIGKILL, anywhere, and started again: the same files, byte for byte, and it is installed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bridge.models import built as built_models
from tests.bridge.support.kill_cases import CASES
from tests.bridge.support.kill_server import survived
from tests.bridge.support.tiny_aligns import make_align_workplace


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_killed_anywhere_and_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNMENT_COLLAPSE_CACHE", str(tmp_path / "cache"))
    make_align_workplace(tmp_path)
    found = survived(tmp_path, "align")
    assert len(found[-1]["ends"]) > 3  # the one that is killed often
    assert {entry["moment"] for entry in found} == {"often", *CASES["align"].moments}
    weights = (tmp_path / "undisturbed" / "model" / "model.safetensors").read_bytes()
    runs = [path.name for path in tmp_path.iterdir() if path.name.startswith(("killed-", "often", "undisturbed"))]
    assert len(runs) >= 5
    for name in runs:
        assert built_models.is_built(name)
        assert (built_models.built_folder(name) / "model.safetensors").read_bytes() == weights
