"""What every command shares: how errors of the user's input, of memory, and an interrupt end it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from bridge.errors import UserError

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")
_INTERRUPTED = 130


def run_command(command: Callable[[], None]) -> None:
    """Run a command; a `UserError` becomes one line on standard error and exit code 2.

    NumPy's BLAS is held to one thread: its many small eigenproblems lose time on more, and torch has its own.
    Running out of memory is such an error too: it names the options to lower. Everything else keeps its
    traceback.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when NumPy is imported, which is later
    try:
        command()
    except UserError as error:
        _fail(" ".join(str(error).split()))
    except MemoryError:
        _fail(_memory_advice())
    except RuntimeError as error:  # torch.OutOfMemoryError is one, and so is its CPU allocator's
        if not any(words in str(error).lower() for words in _OUT_OF_MEMORY):
            raise
        _fail(_memory_advice())
    except KeyboardInterrupt:
        _say_stopped()
        sys.exit(_INTERRUPTED)
    except SystemExit as end:
        if end.code == _INTERRUPTED:  # what typer makes of an interrupt
            _say_stopped()
        raise


def _say_stopped() -> None:
    print("stopped; the same command goes on from here", file=sys.stderr)


def _memory_advice() -> str:
    return "out of memory: lower --batch-size first, then --memory or --max-length"


def _fail(line: str) -> None:
    print(f"error: {line}", file=sys.stderr)
    sys.exit(2)
