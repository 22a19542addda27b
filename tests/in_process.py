"""`python -m MODULE ARGUMENTS` inside the test process, which has long imported what a command needs."""

from __future__ import annotations

import io
import runpy
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

import pytest


@dataclass(frozen=True)
class Done:
    """How a command ended: its exit code, and what it printed."""

    code: int
    out: str
    err: str


def run_module(module: str, *arguments: Any) -> Done:
    """Run the module as `python -m` does: its file is executed anew, with __name__ == "__main__".

    What it imports is what the test has imported, patches included. An exception that leaves the command is raised.
    """
    out, err = _stream(), _stream()
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(), redirect_stdout(out), redirect_stderr(err):
        # another copy of the module may be imported already: a command keeps nothing in its module
        warnings.filterwarnings("ignore", message=".*found in sys.modules after import of package")
        patch.setattr(sys, "argv", [module, *map(str, arguments)])
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
            code = 0
        except SystemExit as end:
            code = _exit_code(end.code, err)
    return Done(code, _text(out), _text(err))


def _exit_code(code: object, err: io.TextIOWrapper) -> int:
    """What the interpreter makes of it: none is 0, and what is no number is printed."""
    if code is None or isinstance(code, int):
        return code or 0
    print(code, file=err)
    return 1


def _stream() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)


def _text(stream: io.TextIOWrapper) -> str:
    stream.flush()
    return bytes(stream.buffer.getvalue()).decode()  # type: ignore[attr-defined]
