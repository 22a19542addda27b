"""A fine-tune killed with SIGKILL, anywhere, and started again: the same weights and files, byte for byte."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bridge.killed_finetunes import DEFENDED_MOMENTS, MOMENTS
from tests.bridge.tiny_runs import make_workplace

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize(("method", "defence"), [("lora", None), ("full", None), ("full", "tracked")])
def test_killed_anywhere_and_started_again(tmp_path: Path, method: str, defence: str | None) -> None:
    make_workplace(tmp_path, "llama")
    command = [sys.executable, "-m", "tests.bridge.killed_finetunes", str(tmp_path), method]
    command += [] if defence is None else [defence]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert {entry["moment"] for entry in found} == {"often"} | (
        MOMENTS[method] if defence is None else DEFENDED_MOMENTS
    )
    assert len(found[-1]["ends"]) > 3  # the one that is killed often
    for entry in found:
        *killed, last = entry["ends"]
        assert last == 0, entry
        assert set(killed) == {-signal.SIGKILL}, entry
        assert entry["differ"] == [], entry
