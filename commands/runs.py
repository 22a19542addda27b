"""What a run goes through in its folder: items that are kept one by one, and the result that is read at the end."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from commands.progress import Progress
from commands.store import Checkpoints, Folder, read_arrays, write_arrays, write_json

Arrays = dict[str, np.ndarray]
Item = TypeVar("Item")
Found = TypeVar("Found")


def result_of(folder: Folder, read: Callable[[Path], Found], measure: Callable[[], Found], progress: Progress) -> Found:
    """The result of a run, which is measured first unless the folder is complete; closes the folder.

    Args:
        folder: the run's folder, open.
        read: reads the result of a complete run from its folder.
        measure: gives the result, and leaves the folder complete.
        progress: where a run that is complete already is told.

    Raises:
        UserError: the result of a complete run cannot be read.

    """
    try:
        if not folder.complete:
            return measure()
        found = read(folder.path)
        progress.say(f"complete already: {folder.path}{folder.made_with()}")
        return found
    finally:
        folder.close()


def kept(
    items: Sequence[Item],
    compute: Callable[[Item], Found],
    files: Sequence[Path],
    stage: str,
    progress: Progress,
    *,
    write: Callable[[Path, Found], None],
    read: Callable[[Path], Found],
) -> Iterator[tuple[Item, Found]]:
    """Each item with what was computed of it: once, since its file keeps that; a killed run goes on at the next.

    What is given is always what was read from the file, so that a run that was killed gives the same to the last bit.

    Args:
        items: what there is to compute.
        compute: of one item.
        files: a checkpoint for every item.
        stage: what the progress is called.
        progress: where to show it.
        write: writes what was computed to its file, whole or not at all.
        read: reads it back.

    """
    with progress.stage(stage, len(items), sum(file.exists() for file in files)) as tick:
        for item, file in zip(items, files, strict=True):
            if not file.exists():
                write(file, compute(item))
                tick()
            yield item, read(file)


def numbered(folder: Checkpoints, items: Iterable[object], pattern: str) -> list[Path]:
    """A checkpoint for every item: the pattern with {} for its number."""
    return [folder.checkpoint(pattern.format(number)) for number, _ in enumerate(items)]


def arrays_of(
    items: Sequence[Item],
    compute: Callable[[Item], Arrays],
    folder: Checkpoints,
    stage: str,
    progress: Progress,
    pattern: str = "{}.npz",
) -> dict[Item, Arrays]:
    """Arrays by item, each computed once (`kept`)."""
    files = numbered(folder, items, pattern)
    return dict(kept(items, compute, files, stage, progress, write=write_arrays, read=read_arrays))


def values_of(
    items: Sequence[Item],
    compute: Callable[[Item], Found],
    folder: Checkpoints,
    stage: str,
    progress: Progress,
    pattern: str = "{}.json",
) -> dict[Item, Found]:
    """JSON values by item, each computed once (`kept`)."""
    files = numbered(folder, items, pattern)
    return dict(kept(items, compute, files, stage, progress, write=write_json, read=_read_json))


def _read_json(path: Path):  # type: ignore[no-untyped-def]  # what was written, as JSON has it
    return json.loads(path.read_text())
