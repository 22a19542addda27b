"""`python -m MODULE ARGUMENTS` inside the test process, which has long imported what a command needs."""

from __future__ import annotations

import io
import runpy
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any, cast

import pytest


@dataclass(frozen=True)
class Done:
    """How a command ended: its exit code, and what it printed."""

    code: int
    out: str
    err: str


def run_module(module: str, *arguments: Any) -> Done:
    """Run the module as `python -m` does: its file is executed anew, with __name__ == "__main__".

    What it imports is what the test has imported, patches included. What it prints is passed on when it has ended. An
    exception that leaves the command is raised.
    """
    out, err = _stream(), _stream()
    try:
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
            # another copy of the module may be imported already: a command keeps nothing in its module
            warnings.filterwarnings("ignore", message=".*found in sys.modules after import of package")
            patch.setattr(sys, "argv", [module, *map(str, arguments)])
            with redirect_stdout(out), redirect_stderr(err):
                code = _exit_code(module)
    finally:
        sys.stdout.write(_text(out))
        sys.stderr.write(_text(err))
    return Done(code, _text(out), _text(err))


def _exit_code(module: str) -> int:
    """What the interpreter makes of the end: no code is 0, and one that is no number is printed."""
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    return 0


def _stream() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)


def _text(stream: io.TextIOWrapper) -> str:
    return cast(io.BytesIO, stream.buffer).getvalue().decode()
