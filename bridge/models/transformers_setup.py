"""How transformers is imported quickly and made to be quiet."""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from commands.cli import owns_process


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import torch and transformers inside this block: a quarter faster, and so is the end of the process.

    Their modules are about a million objects that live as long as the process. The cyclic garbage collector,
    which would walk them again and again, is paused while they appear and told to leave them out afterwards.
    Where triton is among them, they are given back to it at the end: triton counts what outlives it, and says so in
    thirty lines on standard error. In a process that is not a command's own nothing of this happens.
    """
    if not owns_process() or not gc.isenabled() or "transformers.modeling_utils" in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        atexit.register(_thaw)


def _thaw() -> None:
    if "triton" in sys.modules:
        gc.disable()  # the interpreter collects by itself as it ends: once is enough
        gc.unfreeze()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Inside this block transformers shows no bars or warnings; torch's generator is put back at its end."""
    import torch
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
