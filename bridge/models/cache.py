"""The user's cache folder of this project, and where in it the default model is."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from commands.paths import expanded

CACHE_VARIABLE = "ALIGNMENT_COLLAPSE_CACHE"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
"""sha256 of the file that the default model is made from."""

Report = Callable[[str], None]
"""Is given lines about slow steps."""


def cache_folder() -> Path:
    """The user's cache folder of this project (not created here).

    `$ALIGNMENT_COLLAPSE_CACHE`, else `$XDG_CACHE_HOME/alignment-collapse`, else in `~/.cache`.
    """
    if own := os.environ.get(CACHE_VARIABLE):
        return expanded(own).absolute()
    shared = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return expanded(shared).absolute() / "alignment-collapse"


def default_folder() -> Path:
    """Where the converted default model is, or would be."""
    return cache_folder() / "models" / f"smollm2-135m-{GGUF_SHA256[:12]}"


def file_sha256(path: Path) -> str:
    """The sha256 of a file's content, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
