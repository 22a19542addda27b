"""A run of `bridge.onset` killed with SIGKILL, anywhere, and started again: the same files, byte for byte."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.bridge.support.kill_cases import CASES
from tests.bridge.support.kill_server import survived
from tests.bridge.support.tiny_runs import make_workplace


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_killed_anywhere_and_started_again(tmp_path: Path) -> None:
    make_workplace(tmp_path, "llama")
    found = survived(tmp_path, "onset")
    assert len(found[-1]["ends"]) > 3  # the one that is killed often
    assert {entry["moment"] for entry in found} == {"often", *CASES["onset"].moments}
