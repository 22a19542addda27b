"""A copy of a set's file without some of its rows: every other line as it was, byte for byte."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path

from bridge.data.rows import RowSet
from bridge.data.sets import NAMED_SETS
from commands.errors import UserError
from commands.paths import expanded
from commands.store import write_atomically

_SHIPPED = Path(__file__).with_name("shipped")


def source_file(spec: str) -> Path:
    """The JSON Lines file that a set is read from.

    Raises:
        UserError: the set is not read from one: it is made, of the hub, or a file that is one JSON list.

    """
    name, equals, file = spec.partition("=")
    known = NAMED_SETS.get(name)
    if known is not None and not equals:
        if not known.shipped:
            raise UserError(
                f"--clean: expected a set in a JSON Lines file, got {spec}; give a local copy ({name}=FILE)"
            )
        return _SHIPPED / f"{name}.jsonl"
    path = expanded(file if known is not None else spec)
    if path.suffix == ".json":
        raise UserError(f"--clean: expected JSON Lines, one row a line (FILE.jsonl), got {path}")
    return path


def without_lines(spec: str, rows: RowSet, lines: Collection[int]) -> bytes:
    """The bytes of a set's file without some lines (counted from 1); all others and their order stay.

    Raises:
        UserError: the set has no file, or it has changed since its rows were read.

    """
    path = source_file(spec)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"--clean: {path} cannot be read: {error.strerror}") from error
    if hashlib.sha256(content).hexdigest() != rows.sha256:
        raise UserError(f"--clean: expected {path} as it was when its rows were measured, but it has changed since")
    kept = [line for number, line in enumerate(content.split(b"\n"), start=1) if number not in lines]
    return b"\n".join(kept)


def check_target(path: Path, spec: str, is_resumed: bool) -> None:
    """Raise UserError for a file that a cleaned copy must not replace: the set itself, or anything else that exists.

    A run that goes on may have written its copy already.
    """
    if path.resolve() == source_file(spec).resolve():
        raise UserError(f"--clean-out: expected another file than the set's own, got {path}")
    if path.is_dir() or (path.exists() and not is_resumed):
        raise UserError(f"--clean-out: expected a new file, got {path}, which exists; choose another")


def write_copy(path: Path, content: bytes) -> None:
    """Write the copy, unless it is there already.

    Raises:
        UserError: another file is there, or it cannot be written.

    """
    try:
        if path.exists() and path.read_bytes() == content:
            return
        if path.exists():
            raise UserError(f"--clean-out: expected a new file, got {path}, which holds something else")
        write_atomically(path, content)
    except OSError as error:
        raise UserError(f"--clean-out: cannot write {path} ({error.strerror}); choose another") from error


def fingerprint(content: bytes) -> str:
    """Sha256 of a file's content."""
    return hashlib.sha256(content).hexdigest()
