"""Run folders: a manifest, files that appear whole or not at all, and checkpoints that survive a kill."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import re
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any, Protocol, runtime_checkable

import numpy as np
from filelock import FileLock, Timeout

from commands.errors import UserError

SCHEMA_VERSION = 1
CHECKPOINTS = ".partial"
"""The folder in a run folder that holds the checkpoints until the run is complete."""
_LIBRARIES = (
    "alignment-collapse", "numpy", "scipy", "torch", "transformers", "tokenizers", "safetensors", "accelerate",
    "datasets", "peft", "trl",
)  # fmt: skip


def write_atomically(path: Path, content: bytes | Callable[[IO[bytes]], None]) -> None:
    """Write a file through a temporary one (write, fsync, rename), so that it is never seen half-written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Write strict JSON (no NaN: use None), keys in the given order, atomically."""
    write_atomically(path, (json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode())


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays as .npz, atomically."""
    buffer = io.BytesIO()
    np.savez(buffer, **{name: np.asarray(a) for name, a in arrays.items()})  # type: ignore[arg-type]
    write_atomically(path, buffer.getvalue())


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read an .npz file; pickled objects are refused."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that touch the numbers."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def short_hash(value: object) -> str:
    """Eight hexadecimal digits of the SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def read_result(path: Path) -> dict[str, Any]:
    """The JSON result of a complete run; UserError if it cannot be read."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"--out: a complete run, but {path} cannot be read; delete the folder and run again") from error
    return found


@runtime_checkable
class Checkpoints(Protocol):
    """Where a stage keeps what it has finished."""

    def checkpoint(self, name: str) -> Path:
        """Path of a checkpoint file."""
        ...


@dataclass(frozen=True)
class Part:
    """The checkpoints of one part of a run, apart from those of other parts that run the same stages."""

    of: Checkpoints
    name: str

    def checkpoint(self, name: str) -> Path:
        """Path of a checkpoint file of this part."""
        return self.of.checkpoint(f"{self.name}-{name}")

    def discard(self) -> None:
        """Delete the checkpoints of this part."""
        pattern = self.checkpoint("*")
        for file in pattern.parent.glob(pattern.name):
            file.unlink()


@runtime_checkable
class Folder(Checkpoints, Protocol):
    """A run's folder: `RunFolder`, or `Scratch` for a run whose result alone is wanted."""

    path: Path
    complete: bool

    def note_progress(self) -> None:
        """Record the time spent so far."""
        ...

    def made_with(self) -> str:
        """Other versions of libraries that a complete run was made with."""
        ...

    def finish(self, **extra: object) -> None:
        """Mark the run complete."""
        ...

    def close(self) -> None:
        """Release the folder."""
        ...


class Scratch:
    """A folder for the checkpoints of a run in memory; it is gone when it is closed."""

    complete = False

    def __init__(self) -> None:
        self._place = tempfile.TemporaryDirectory(prefix="alignment-collapse-")
        self.path = Path(self._place.name)

    def checkpoint(self, name: str) -> Path:
        """Path of a checkpoint file."""
        return self.path / name

    def note_progress(self) -> None:
        """Nothing: nobody resumes this run."""

    def made_with(self) -> str:
        """Nothing: it is of this process."""
        return ""

    def finish(self, **extra: object) -> None:
        """Nothing: nobody reads this folder."""

    def close(self) -> None:
        """Delete it."""
        self._place.cleanup()


class RunFolder:
    """The folder of one run of one command.

    `manifest.json` is written first (status "running") and last (status "complete"). Opening the folder
    again with the same settings resumes; with others it is refused with the differences shown.
    """

    def __init__(self, path: Path, command: str, settings: Mapping[str, Any]) -> None:
        """Open or create the folder.

        Args:
            path: the folder.
            command: the command's name, as `python -m` takes it.
            settings: everything that decides the numbers: options and content hashes, JSON values.

        Raises:
            UserError: if the folder holds another run or something else, or a live process is writing it.

        """
        self.path = path
        self.checkpoints = path / CHECKPOINTS
        self._started = time.time()
        self._manifest: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "command": command,
            "settings": dict(settings),
            "versions": library_versions(),
        }
        try:
            self._refuse_foreign()
            path.mkdir(parents=True, exist_ok=True)
            self._lock = self._acquire()
        except OSError as error:
            raise UserError(f"--out: cannot write to {path} ({error.strerror}); choose another folder") from error
        try:
            self._resume(self._previous())
        except BaseException:
            self.close()
            raise

    def _refuse_foreign(self) -> None:
        """Before anything is written: a folder without a manifest must hold nothing of anybody else's."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--out: expected a folder, got the file {self.path}; choose another")
        if not self.path.exists() or (self.path / "manifest.json").exists():
            return
        foreign = sorted(p.name for p in self.path.iterdir() if p.name != ".lock" and not _is_temporary(p))
        if foreign:
            raise UserError(
                f"--out: expected a new or empty folder or an earlier run's, got {self.path} which holds "
                f"{foreign[0]} and no manifest.json; choose another folder"
            )

    def _resume(self, previous: dict[str, Any] | None) -> None:
        """Take over what an earlier process left; the lock is held."""
        self.complete = previous is not None and previous["status"] == "complete"
        self._earlier_seconds = float((previous or {}).get("wall_seconds", 0.0))
        self._earlier_versions: dict[str, str] = (previous or {}).get("versions", {})
        for file in [*self.path.glob(".*"), *self.checkpoints.glob(".*")]:
            if _is_temporary(file):
                file.unlink()
        if self.complete:
            shutil.rmtree(self.checkpoints, ignore_errors=True)  # killed between the last two steps
            return
        if previous is None or previous["versions"] != self._manifest["versions"]:
            # Half a run under other libraries is not the same run: its checkpoints would mix two roundings.
            shutil.rmtree(self.checkpoints, ignore_errors=True)
        self._write_manifest("running", {})  # before the checkpoints: without it the folder would be foreign
        self.checkpoints.mkdir(exist_ok=True)

    def _previous(self) -> dict[str, Any] | None:
        file = self.path / "manifest.json"
        if not file.exists():
            return None
        try:
            previous: dict[str, Any] = json.loads(file.read_text())
            self._compare(previous)
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise UserError(
                f"--out: expected a run's manifest, got {file} ({type(error).__name__}: {error}); choose another folder"
            ) from error
        return previous

    def _compare(self, previous: dict[str, Any]) -> None:
        if previous["status"] not in ("running", "complete") or not isinstance(previous["versions"], dict):
            raise ValueError(f"status {previous['status']!r}")
        ours = {"command": self._manifest["command"], **_flat(self._manifest["settings"])}
        theirs = {"command": previous["command"], **_flat(previous["settings"])}
        names = [name for name in ours | theirs if ours.get(name) != theirs.get(name)]
        if names or previous["schema_version"] != SCHEMA_VERSION:
            shown = "; ".join(f"{n}: {theirs.get(n)!r} there, {ours.get(n)!r} now" for n in names[:4])
            raise UserError(
                f"--out: {self.path} holds another run ({shown or 'of another schema version'}); "
                f"choose another folder or delete it"
            )

    def _acquire(self) -> FileLock:
        lock = FileLock(self.path / ".lock", timeout=0)  # the kernel frees it when the process dies
        while not lock.is_locked:
            try:
                lock.acquire()
            except Timeout as error:
                if (self.path / ".lock").exists():
                    raise UserError(
                        f"--out: another process is writing {self.path}; wait for it or choose another"
                    ) from error
                # its holder removed the file between our opening and our locking it
        return lock

    def _write_manifest(self, status: str, extra: Mapping[str, Any]) -> None:
        seconds = self._earlier_seconds + time.time() - self._started
        usage = {"wall_seconds": round(seconds, 2), "peak_memory_bytes": peak_memory_bytes()}
        write_json(self.path / "manifest.json", {**self._manifest, "status": status, **usage, **extra})

    def made_with(self) -> str:
        """ ", made with X 1.0" for the libraries of a complete run that are of other versions now, or nothing."""
        now = self._manifest["versions"]
        other = [f"{name} {was}" for name, was in self._earlier_versions.items() if now.get(name) != was]
        return f", made with {', '.join(other)}" if other else ""

    def checkpoint(self, name: str) -> Path:
        """Path of a checkpoint file; it is deleted when the run is complete."""
        return self.checkpoints / name

    def note_progress(self) -> None:
        """Record the time spent so far, so that a resumed run reports the total."""
        self._write_manifest("running", {})

    def finish(self, **extra: object) -> None:
        """Mark the run complete and drop its checkpoints."""
        self._write_manifest("complete", extra)
        self.complete = True
        shutil.rmtree(self.checkpoints, ignore_errors=True)

    def close(self) -> None:
        """Release the folder to other processes."""
        if self._lock.is_locked:
            (self.path / ".lock").unlink(missing_ok=True)  # while it is still ours
            self._lock.release()


def _is_temporary(path: Path) -> bool:
    """Whether a killed `write_atomically` left this file."""
    return re.fullmatch(r"\..+\.\d+\.tmp", path.name) is not None


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            out |= _flat(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out


def peak_memory_bytes() -> int:
    """Largest resident size of this process so far."""
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
