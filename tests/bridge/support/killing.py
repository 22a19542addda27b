"""Kills runs of a command with SIGKILL at chosen moments and starts them again, in forks of one process.

Everything is imported once, in a process without threads of its own (`warmed`); every run is a fork of it. A moment
is a tick of a stage's progress, a file or folder about to be renamed into place or just renamed, or a checkpoint of a
training about to be written.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
import warnings
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bridge.support.kill_cases import KillCase

_RUNS = 3
_NOT_COMPARED = {"manifest.json", "settings.toml"}  # at the top of a run: the first holds times and ends


def kill_everywhere(case: KillCase, place: Path, runs: Path) -> None:
    """Print one line of JSON a moment: its name, how the processes ended, and the files that differ.

    The command works in `place`; its runs are folders of `runs`. Differences are to a run that nobody disturbed. Of
    `_RUNS` runs each is killed at every third of the moments and started again after each: when it dies again, what it
    resumed has been written. The last line is of a run killed again and again, a little further on each time.
    """
    killed = _Killed(case, place, runs)
    status, printed = killed.run("undisturbed", None)
    left = killed.files("undisturbed") - _NOT_COMPARED
    if status or not (left >= set(case.leaves) if case.and_more else left == set(case.leaves)):
        raise SystemExit(f"the undisturbed run ended with {status} and left {sorted(left)}")
    tried = case.chosen(json.loads(printed))
    for first in range(_RUNS):
        killed.kill_at(dict(list(enumerate(tried))[first::_RUNS]))
    ends: list[int] = []
    start, further = case.often
    while not ends or ends[-1] < 0:
        ends.append(killed.run("often", start + further * len(ends))[0])
    print(json.dumps({"moment": "often", "ends": ends, "differ": killed.differing("often")}))


@dataclass(frozen=True)
class _Killed:
    """Runs of a case, by name; see `kill_everywhere`."""

    case: KillCase
    place: Path
    runs: Path

    def kill_at(self, moments: Mapping[int, str]) -> None:
        """Kill one run at each moment in turn; a moment that it does not come to any more is tried with another run."""
        left = list(moments.items())
        while left:
            name = f"killed-{left[0][0]}"
            ends: list[int] = []
            died: list[str] = []
            while left and (not ends or ends[-1] < 0):
                ends.append(self.run(name, left[0][1])[0])
                if ends[-1] < 0:
                    died.append(left.pop(0)[1])
            if not died:
                raise SystemExit(f"a run that ended with {ends[0]} before {left[0][1]}")
            if ends[-1] < 0:
                ends.append(self.run(name, None)[0])
            differ = self.differing(name)
            for moment in died:
                print(json.dumps({"moment": moment, "ends": ends, "differ": differ}))

    def run(self, name: str, kill_at: str | int | None) -> tuple[int, str]:
        """Exit status (negative: the signal) and what the child printed: the moments it went through.

        It is killed at a moment of a name, or at a number of moments after its start.
        """
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            _run(self.case, [*self.case.arguments(self.place, self.runs / name)], kill_at, writing)
        os.close(writing)
        with os.fdopen(reading) as stream:
            printed = stream.read()
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), printed

    def files(self, name: str) -> set[str]:
        """All that the run left, by their paths below its folder."""
        out = self.runs / name
        return {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}

    def differing(self, name: str) -> list[str]:
        """The files that are not those of the undisturbed run."""
        wanted, found = self.files("undisturbed"), self.files(name)
        both = (wanted & found) - _NOT_COMPARED
        return sorted((wanted ^ found) | {f for f in both if self._content(name, f) != self._content("undisturbed", f)})

    def _content(self, name: str, file: str) -> bytes:
        return self.case.normal(file, (self.runs / name / file).read_bytes())


def _run(case: KillCase, arguments: list[str], kill_at: str | int | None, writing: int) -> None:
    """The command itself, in the child; never returns."""
    from matplotlib.figure import Figure

    from tests.sketches import sketch

    moments: list[str] = []

    def at(name: str) -> None:
        if kill_at in (name, len(moments)):
            os.kill(os.getpid(), signal.SIGKILL)
        moments.append(name)

    _watch(at)
    if case.every_step:
        _save_every_step(at)
    Figure.savefig = sketch  # type: ignore[method-assign,assignment]
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    sys.argv = [case.module, *arguments]
    warnings.filterwarnings("ignore", message=".*found in sys.modules after import of package")
    code: object = 0
    try:
        runpy.run_module(case.module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
    except BaseException:
        code = 99
    os.write(writing, json.dumps(moments).encode())
    os._exit(code if isinstance(code, int) else int(code is not None))


def _watch(at: Callable[[str], None]) -> None:
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


def _save_every_step(at: Callable[[str], None]) -> None:
    """Every step of a sum or a training is a checkpoint, and the middle of writing one of a training is a moment."""
    import torch

    from bridge.estimators import checkpoints
    from bridge.training import sft

    checkpoints._SAVE_EVERY_SECONDS = -1.0
    sft._SAVE_EVERY_SECONDS, sft._SAVE_SHARE = -1.0, float("inf")
    save = torch.save

    def watched_save(value: Any, file: Any, *more: Any, **options: Any) -> None:
        at(f"writing {Path(file).name}")
        save(value, file, *more, **options)

    torch.save = watched_save
