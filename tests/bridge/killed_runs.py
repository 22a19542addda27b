"""Kills tiny runs with SIGKILL at chosen moments; `python -m tests.bridge.killed_runs WORKPLACE OPTIMIZER`.

Everything is imported once, in a process that never computes; every run is a fork of it. A moment is a tick of a
stage's progress, or a file about to be renamed into place, or just renamed. Prints one line of JSON a moment: its
name, how each process ended, and the files that differ from an undisturbed run's.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

BEFORE = ("before velocity.safetensors", "before aic.json")  # elsewhere the moment before a rename is like the last
PICTURES = ("spectrum.png", "coupling.png", "prediction.png")
COMPARED = ("aic.json", "samples.jsonl", "statistics.npz", "report.html", *PICTURES)


def main(folder: Path, optimizer: str) -> None:
    _import_everything()
    moments: list[str] = json.loads(_in_child(folder, optimizer, "undisturbed", None)[1])
    for number, moment in enumerate(moments):
        if moment in moments[:number] or (moment.startswith("before") and moment not in BEFORE):
            continue
        ends = [_in_child(folder, optimizer, f"killed-{number}", number)[0]]
        ends.append(_in_child(folder, optimizer, f"killed-{number}", None)[0])
        print(json.dumps({"moment": moment, "ends": ends, "differ": _differ(folder, f"killed-{number}")}))
    ends = []  # one run killed again and again, a little further on each time
    while not ends or ends[-1] < 0:
        ends.append(_in_child(folder, optimizer, "often", 3 + 4 * len(ends))[0])
    print(json.dumps({"moment": "often", "ends": ends, "differ": _differ(folder, "often")}))


def _import_everything() -> None:
    import jinja2  # noqa: F401
    import matplotlib.backends.backend_agg  # noqa: F401
    import rich.table  # noqa: F401
    import safetensors.torch  # noqa: F401
    import torch
    import transformers

    from bridge import aic_run  # noqa: F401

    torch.set_num_threads(1)  # no thread pool that a fork would lose
    for name in ("AutoModelForCausalLM", "AutoTokenizer", "LlamaForCausalLM", "PreTrainedTokenizerFast"):
        getattr(transformers, name)


def _in_child(folder: Path, optimizer: str, out: str, kill_at: int | None) -> tuple[int, str]:
    """Exit status (negative: the signal) and what the child printed: the moments it went through."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _run(folder, optimizer, out, kill_at, writing)
    os.close(writing)
    with os.fdopen(reading) as stream:
        printed = stream.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), printed


def _run(folder: Path, optimizer: str, out: str, kill_at: int | None, writing: int) -> None:
    """The command itself, in the child; never returns."""
    from bridge.estimate_aic import MEMORY_ADVICE, main
    from commands.cli import run_command
    from commands.options import command_of
    from tests.bridge.tiny_runs import options

    moments = _watch(kill_at)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - for the rest of the process
    more = ("--optimizer", optimizer, "--adam-batch-size", "2", "--batch-size", "3", "--out", str(folder / out))
    sys.argv = ["estimate_aic", *options(folder, *more)]
    try:
        run_command(command_of(main), MEMORY_ADVICE)
    except SystemExit as end:
        os.write(writing, json.dumps(moments).encode())
        os._exit(end.code if isinstance(end.code, int) else 0)
    os._exit(99)


def _watch(kill_at: int | None) -> list[str]:
    """Count the moments of this process, and die at number `kill_at`."""
    from contextlib import contextmanager

    from bridge import checkpoints
    from commands.progress import Progress

    checkpoints._SAVE_EVERY_SECONDS = -1.0  # every step is a checkpoint
    moments: list[str] = []

    def at(name: str) -> None:
        if len(moments) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        moments.append(name)

    replace, stage = Path.replace, Progress.stage

    def watched_replace(self: Path, target: Path) -> Path:
        at(f"before {Path(target).name}")
        found = replace(self, target)
        at(f"after {Path(target).name}")
        return found

    @contextmanager
    def watched_stage(self: Progress, name: str, total: int, done: int = 0) -> Any:
        with stage(self, name, total, done) as tick:

            def watched_tick() -> None:
                at(f"tick of {name}")
                tick()

            yield watched_tick

    Path.replace = watched_replace  # type: ignore[method-assign,assignment]
    Progress.stage = watched_stage  # type: ignore[method-assign,assignment]
    return moments


def _differ(folder: Path, out: str) -> list[str]:
    def content(run: str, name: str) -> bytes | None:
        path = folder / run / name
        return path.read_bytes() if path.exists() else None

    left = sorted(p.name for p in (folder / out).iterdir())
    extra = [] if left == sorted([*COMPARED, "manifest.json"]) else [f"holds {left}"]
    return [name for name in COMPARED if content(out, name) != content("undisturbed", name)] + extra


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
