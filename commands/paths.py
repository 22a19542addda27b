"""Paths as users write them."""

from __future__ import annotations

from pathlib import Path


def expanded(path: str | Path) -> Path:
    """The path with ~ as the home folder; as it is where there is no such user: then that file is missing."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)
