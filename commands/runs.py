"""What a run goes through in its folder: arrays that are kept one by one, and the result that is read at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from commands.progress import Progress
from commands.store import Checkpoints, RunFolder, read_arrays, read_result, write_arrays

Arrays = dict[str, np.ndarray]


def result_of(folder: RunFolder, name: str, measure: Callable[[], None], progress: Progress) -> dict[str, Any]:
    """The JSON result of a run, which is measured first unless the folder is complete; closes the folder.

    Args:
        folder: the run's folder, open.
        name: of the result's file in it.
        measure: leaves the folder complete.
        progress: where a run that is complete already is told.

    Raises:
        UserError: the result of a complete run cannot be read.

    """
    try:
        already = folder.complete
        if not already:
            measure()
        found = read_result(folder.path / name)
        if already:
            progress.say(f"complete already: {folder.path}{folder.made_with()}")
    finally:
        folder.close()
    return found


def arrays_of(
    names: Sequence[str], compute: Callable[[str], Arrays], folder: Checkpoints, stage: str, progress: Progress
) -> dict[str, Arrays]:
    """Arrays by name, computed one name after the other; the folder keeps each as NUMBER.npz."""
    files = [folder.checkpoint(f"{number}.npz") for number in range(len(names))]
    with progress.stage(stage, len(names), sum(file.exists() for file in files)) as tick:
        for name, file in zip(names, files, strict=True):
            if not file.exists():
                write_arrays(file, compute(name))
                tick()
    return {name: read_arrays(file) for name, file in zip(names, files, strict=True)}
