"""Kills commands that run other commands from a settings file, and compares everything that they leave."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from tests.bridge.support.killing import Killed, kill_everywhere


def kill_sequence(
    main: Callable[..., int],
    advice: str,
    settings: Path,
    folder: Path,
    moments: Collection[str],
    often: tuple[int, int],
) -> None:
    """`kill_everywhere` at the moments, for a command that takes --settings; everything is imported already."""
    whole = folder / "whole"
    _in_child(main, settings, whole)
    files = sorted(str(p.relative_to(whole)) for p in whole.rglob("*") if p.is_file())
    killed = Killed(
        main=main,
        advice=advice,
        arguments=lambda out: ["--settings", str(settings), "--out", str(out)],
        compared=[name for name in files if name != "manifest.json"],
        watch=lambda at: None,
        skip=lambda moment: moment not in moments,
        normal=_without_time_and_place,
        often=often,
    )
    kill_everywhere(killed, folder)


def _in_child(main: Callable[..., int], settings: Path, out: Path) -> None:
    """A whole run, for the names of its files; in a child, since later forks would lose its threads."""
    child = os.fork()
    if child == 0:
        with open(os.devnull, "w") as null, redirect_stdout(null), redirect_stderr(null):
            os._exit(main(settings=str(settings), out=out))
    if os.waitpid(child, 0)[1] != 0:
        raise SystemExit("the undisturbed run failed")


def _without_time_and_place(name: str, content: bytes) -> bytes:
    """What may differ are seconds, memory, and the paths of the run itself."""
    content = re.sub(rb"/(?:undisturbed|killed-\d+|often)/", b"/RUN/", content)
    if name.endswith(".jsonl"):
        return re.sub(rb'"latency": [0-9.e-]+', b"", content)
    if name.endswith(("manifest.json", "finetune.json")):
        found = json.loads(content)
        for key in ("seconds", "wall_seconds", "peak_memory_bytes", "stage_seconds"):
            found.pop(key, None)
        return json.dumps(found).encode()
    return content
