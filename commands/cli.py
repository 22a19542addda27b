"""What every command shares: how errors of the user's input, of memory, and an interrupt end it."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable

from commands.errors import UserError

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")
INTERRUPTED = 130
_RESUMES = "stopped; the same command goes on from here"
_owns_process = False


def owns_process() -> bool:
    """Whether this process is a command's own, and not that of somebody who imports the package."""
    return _owns_process


def run_command(command: Callable[[], object], memory_advice: str, interrupted: str = _RESUMES) -> None:
    """Run a command; a `UserError` becomes one line on standard error and exit code 2.

    NumPy's BLAS is held to one thread: its many small eigenproblems lose time on more, and torch has its own.
    Running out of memory is such an error too. Everything else keeps its traceback.

    Args:
        command: the whole command, options included.
        memory_advice: what to lower when memory ran out, as "lower --batch-size".
        interrupted: what to say after an interrupt.

    """
    global _owns_process
    _owns_process = True
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when NumPy is imported, which is later
    # torch's forward mode calls what torch itself deprecates; that is no news for a user
    warnings.filterwarnings("ignore", message=".*torch.jit.script. is deprecated")
    try:
        command()
    except UserError as error:
        _fail(" ".join(str(error).split()))
    except MemoryError:
        _fail(f"out of memory: {memory_advice}")
    except RuntimeError as error:  # torch.OutOfMemoryError is one, and so is its CPU allocator's
        if not any(words in str(error).lower() for words in _OUT_OF_MEMORY):
            raise
        _fail(f"out of memory: {memory_advice}")
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        sys.exit(INTERRUPTED)


def _fail(line: str) -> None:
    print(f"error: {line}", file=sys.stderr)
    sys.exit(2)
