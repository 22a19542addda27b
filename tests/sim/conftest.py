from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from commands_of_sim import Refusal, error_line
from hypothesis import settings

# a deadline would assert wall time, which depends on what else the machine does
settings.register_profile("sim", deadline=None, max_examples=10)
settings.register_profile("mutants", deadline=None, max_examples=10, derandomize=True, database=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "sim"))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Matrices of small models are slower on two threads than on one."""
    torch.set_num_threads(1)


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Refusal:
    """The one line in which a command refuses its arguments; nothing may be left behind."""
    return lambda main, *arguments: error_line(monkeypatch, capsys, main, tmp_path / "run", *arguments)
