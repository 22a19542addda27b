"""How transformers is imported quickly and made to be quiet, and how it reads GGUF files."""

from __future__ import annotations

import gc
import importlib.util
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

from bridge.errors import UserError


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import torch and transformers inside this block: a quarter faster, and so is the end of the process.

    Their modules are about a million objects that live as long as the process. The cyclic garbage collector,
    which would walk them again and again, is paused while they appear and told to leave them out afterwards.
    """
    if not gc.isenabled() or "transformers.modeling_utils" in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hold back the progress bars and warnings of transformers inside this block."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def read_gguf(path: Path) -> tuple[Any, Any]:
    """Read a GGUF file: its model, de-quantised to float32 on the CPU, and its tokenizer.

    Raises UserError if a package that this needs is missing or the file cannot be read.
    """
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{path.name} is a GGUF file, which needs: pip install {' '.join(missing)}")
    with quick_imports():
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
    where = {"gguf_file": path.name, "local_files_only": True, "trust_remote_code": False}
    try:
        # Its progress bar heeds no setting, so it is caught.
        with quiet_transformers(), redirect_stderr(io.StringIO()):
            loaded: Any = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **where)
            tokenizer = AutoTokenizer.from_pretrained(path.parent, **where)
    except (OSError, ValueError, KeyError, IndexError, NotImplementedError) as error:
        raise UserError(f"{path} cannot be read as a GGUF model: {first_line(error)}") from error
    config = loaded.config
    # The numbers are float32 now: a model that still calls itself quantised refuses to be saved.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.random.fork_rng(devices=[]):  # a new model draws weights, here in vain
        model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict())
    return model.float(), tokenizer


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type where it has none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
