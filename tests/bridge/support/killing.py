"""Kills runs of a command with SIGKILL at chosen moments and starts them again, in forks of one process.

Everything is imported once, in a process without threads of its own (`warmed`); every run is a fork of it. A moment
is a tick of a stage's progress, a file or folder about to be renamed into place or just renamed, or whatever else the
command marks.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

At = Callable[[str], None]
_RUNS = 3


@dataclass(frozen=True)
class Killed:
    """A command to be killed.

    main, advice: what `run_command` takes; arguments: the command line for an output folder; compared: files that
    must not differ, below that folder; normal: what of a file's content must not; watch: marks further moments and
    makes checkpoints frequent, in the child; skip: moments that are like another.
    """

    main: Callable[..., None]
    advice: str
    arguments: Callable[[Path], Sequence[str]]
    compared: Sequence[str]
    watch: Callable[[At], None]
    skip: Callable[[str], bool] = lambda moment: False
    normal: Callable[[str, bytes], bytes] = lambda name, content: content
    often: tuple[int, int] = (3, 4)


def like_another(left_out: Callable[[str], bool]) -> Callable[[str], bool]:
    """A `skip`: whether a moment is left out, or like one that was tried: the same but for a number or a picture."""
    tried: set[str] = set()

    def skip(moment: str) -> bool:
        kind = re.sub(r"\d+", "#", re.sub(r"\w+\.png", "PICTURE", moment))
        if kind in tried or left_out(moment):
            return True
        tried.add(kind)
        return False

    return skip


def kill_everywhere(killed: Killed, folder: Path) -> None:
    """Print one line of JSON a moment: its name, how the processes ended, and the files that differ.

    Differences are to a run that nobody disturbed. Of `_RUNS` runs each is killed at every third of the moments and
    started again after each: when it dies again, what it resumed has been written. The last line is of a run killed
    again and again, a little further on each time.
    """
    moments: list[str] = json.loads(_in_child(killed, folder / "undisturbed", None)[1])
    tried = [moment for moment in dict.fromkeys(moments) if not killed.skip(moment)]
    for first in range(_RUNS):
        _kill_at(killed, folder, dict(list(enumerate(tried))[first::_RUNS]))
    ends: list[int] = []
    start, further = killed.often
    while not ends or ends[-1] < 0:
        ends.append(_in_child(killed, folder / "often", start + further * len(ends))[0])
    print(json.dumps({"moment": "often", "ends": ends, "differ": _differ(killed, folder, folder / "often")}))


def _kill_at(killed: Killed, folder: Path, moments: Mapping[int, str]) -> None:
    """Kill one run at each moment in turn; a moment that it does not come to any more is tried with another run."""
    left = list(moments.items())
    while left:
        out = folder / f"killed-{left[0][0]}"
        ends: list[int] = []
        died: list[str] = []
        while left and (not ends or ends[-1] < 0):
            ends.append(_in_child(killed, out, left[0][1])[0])
            if ends[-1] < 0:
                died.append(left.pop(0)[1])
        if not died:
            raise SystemExit(f"a run that ended with {ends[0]} before {left[0][1]}")
        if ends[-1] < 0:
            ends.append(_in_child(killed, out, None)[0])
        differ = _differ(killed, folder, out)
        for moment in died:
            print(json.dumps({"moment": moment, "ends": ends, "differ": differ}))


def _in_child(killed: Killed, out: Path, kill_at: str | int | None) -> tuple[int, str]:
    """Exit status (negative: the signal) and what the child printed: the moments it went through.

    It is killed at a moment of a name, or at a number of moments after its start.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _run(killed, out, kill_at, writing)
    os.close(writing)
    with os.fdopen(reading) as stream:
        printed = stream.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), printed


def _run(killed: Killed, out: Path, kill_at: str | int | None, writing: int) -> None:
    """The command itself, in the child; never returns."""
    from matplotlib.figure import Figure

    from commands.cli import run_command
    from commands.options import command_of
    from tests.sketches import sketch

    moments: list[str] = []

    def at(name: str) -> None:
        if kill_at in (name, len(moments)):
            os.kill(os.getpid(), signal.SIGKILL)
        moments.append(name)

    _watch(at)
    killed.watch(at)
    Figure.savefig = sketch  # type: ignore[method-assign,assignment]
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - for the rest of the process
    sys.argv = ["command", *killed.arguments(out)]
    try:
        run_command(command_of(killed.main), killed.advice)
    except SystemExit as end:
        os.write(writing, json.dumps(moments).encode())
        os._exit(end.code if isinstance(end.code, int) else 0)
    os._exit(99)


def _watch(at: At) -> None:
    from commands.progress import Progress

    stage = Progress.stage

    def watched(method: str) -> Callable[[Path, Path], Path]:
        rename = getattr(Path, method)

        def renamed(self: Path, target: Path) -> Path:
            at(f"before {Path(target).name}")
            found: Path = rename(self, target)
            at(f"after {Path(target).name}")
            return found

        return renamed

    @contextmanager
    def watched_stage(self: Progress, name: str, total: int, done: int = 0) -> Any:
        with stage(self, name, total, done) as tick:

            def watched_tick() -> None:
                at(f"tick of {name}")
                tick()

            yield watched_tick

    Path.replace, Path.rename = watched("replace"), watched("rename")  # type: ignore[method-assign,assignment]
    Progress.stage = watched_stage  # type: ignore[method-assign,assignment]


def _differ(killed: Killed, folder: Path, out: Path) -> list[str]:
    def content(run: Path, name: str) -> bytes | None:
        path = run / name
        return killed.normal(name, path.read_bytes()) if path.exists() else None

    left = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
    extra = [] if left == sorted([*killed.compared, "manifest.json"]) else [f"holds {left}"]
    return [name for name in killed.compared if content(out, name) != content(folder / "undisturbed", name)] + extra
