"""One mind in several processes: what the first one of a distributed training found, in all of them."""

from __future__ import annotations

from typing import TypeVar

from torch import distributed

Found = TypeVar("Found")


def of_first_process(value: Found) -> Found:
    """The first process's value, in every process; all of them must ask. The value itself where there is one process.

    Each process draws and measures for itself, to rounding alike. A rounding difference must not let one of them stop
    while the others wait for it.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return value
    kept = [value]
    distributed.broadcast_object_list(kept, src=0)
    return kept[0]
