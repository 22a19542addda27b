"""Running a simulator command inside the test process."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sim.session import app

Refusal = Callable[..., str]  # of the fixture `refusal`: a command's main and its arguments to its one error line


def run(monkeypatch: pytest.MonkeyPatch, main: Callable[..., None], *arguments: str) -> int:
    """The exit code of ``python -m sim.COMMAND ARGUMENTS``."""
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    with pytest.raises(SystemExit) as end:
        app(main)
    return int(end.value.code or 0)


def error_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    main: Callable[..., None],
    out: Path,
    *arguments: str,
) -> str:
    """The one line that a wrong command prints; it must exit with 2 and leave nothing behind."""
    assert run(monkeypatch, main, *arguments, "--out", str(out)) == 2
    assert not out.exists()
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [line for line in captured.err.splitlines() if not line.startswith("cases:")]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


def result(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    main: Callable[..., None],
    out: Path,
    *arguments: str,
) -> dict[str, Any]:
    """What a command prints with --json."""
    assert run(monkeypatch, main, *arguments, "--json", "--out", str(out)) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found
