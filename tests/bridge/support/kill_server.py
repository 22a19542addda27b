"""Kills commands (`kill_cases`) in forks of one process, in which everything is imported."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WARMED = "tests.bridge.support.warmed"
_LONGEST = 900.0  # seconds


def survived(place: Path, case: str, runs: Path | None = None) -> list[dict[str, Any]]:
    """What `kill_everywhere` prints of each moment at which it kills a case's command, after this was checked of each.

    Whatever was killed died of it, the run that followed went through, and left what an undisturbed one leaves. The
    last entry is of a run that was killed often. The runs are folders of `runs`, or else of the place.
    """
    runs = runs or place
    runs.mkdir(exist_ok=True)
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([WARMED])
    process = server.Process(target=_run, args=(case, place, runs, dict(os.environ)), daemon=True)
    process.start()
    process.join(_LONGEST)
    if process.is_alive():
        process.kill()
        process.join()
    assert process.exitcode == 0, (runs / "errors.txt").read_text()[-3000:]
    found: list[dict[str, Any]] = [json.loads(line) for line in (runs / "moments.jsonl").read_text().splitlines()]
    assert found[-1]["moment"] == "often"
    for entry in found:
        *killed, last = entry["ends"]
        assert last == 0, entry
        assert set(killed) == {-signal.SIGKILL}, entry
        assert entry["differ"] == [], entry
    return found


def _run(case: str, place: Path, runs: Path, environment: Mapping[str, str]) -> None:
    """In a fork of the server: it prints into files, and has the environment of the test."""
    for descriptor, name in ((1, "moments.jsonl"), (2, "errors.txt")):
        os.dup2(os.open(runs / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), descriptor)
    os.environ.clear()
    os.environ.update(environment, CUDA_VISIBLE_DEVICES="")
    importlib.import_module(WARMED)  # it is imported already, unless the server did not find it
    from tests.bridge.support.kill_cases import CASES
    from tests.bridge.support.killing import kill_everywhere

    kill_everywhere(CASES[case], place, runs)
