"""Sums over batches that survive a kill: the accumulators and the number of batches they hold."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from bridge.estimators.curvature import Direction

_SAVE_EVERY_SECONDS = 30.0
_SAVE_SHARE = 0.05  # of the time at most, where one save takes long


def save_directions(path: Path, directions: Mapping[str, Direction], meta: Mapping[str, object]) -> None:
    """Write named directions and a small JSON value as one safetensors file, atomically."""
    from safetensors.torch import save_file

    flat = {f"{name}/{key}": t.contiguous() for name, d in directions.items() for key, t in d.items()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(flat, temporary, {"meta": json.dumps(meta), "order": json.dumps(list(flat))})
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_directions(path: Path, device: torch.device | str) -> tuple[dict[str, Direction], dict]:
    """Read what `save_directions` wrote, in its order: sums over the parts are the same to the last bit."""
    from safetensors import safe_open

    directions: dict[str, Direction] = {}
    with safe_open(path, framework="pt", device=str(device)) as file:
        saved = file.metadata()
        for key in json.loads(saved["order"]) if "order" in saved else file.keys():  # the file's own: by dtype, name
            name, _, module = key.partition("/")
            # a copy: a tensor inside the file's memory starts anywhere, and the order of a BLAS sum depends on where
            directions.setdefault(name, {})[module] = file.get_tensor(key).clone()
        meta = json.loads(saved["meta"])
    return directions, meta


class Accumulator:
    """Sums that `body` adds to, step by step, saved every half minute and at the end.

    Stopping at any moment and running again adds the same numbers in the same order: the result is the same
    to the last bit.
    """

    def __init__(self, path: Path, start: Callable[[], dict[str, Direction]], device: torch.device | str) -> None:
        self._path = path
        if path.exists():
            read, meta = load_directions(path, device)
            # how tensors lie in memory decides the last bit of their sums, and a file's lie otherwise than new ones
            self.sums = {name: {key: part.clone() for key, part in parts.items()} for name, parts in read.items()}
            self.done, self.value = int(meta["done"]), float(meta["value"])
        else:
            self.sums, self.done, self.value = start(), 0, 0.0

    def run(self, count: int, body: Callable[[int], float], tick: Callable[[], None]) -> None:
        """Call body(k) for every step k not yet done; it changes `sums` in place and returns a number to add."""
        saved, saved_at, pause = self.done, time.monotonic(), _SAVE_EVERY_SECONDS
        for step in range(self.done, count):
            self.value += body(step)
            self.done = step + 1
            if (now := time.monotonic()) - saved_at > pause:
                self._save()
                saved, saved_at = self.done, time.monotonic()
                pause = max(_SAVE_EVERY_SECONDS, (saved_at - now) / _SAVE_SHARE)
            tick()
        if saved < self.done:
            self._save()

    def _save(self) -> None:
        save_directions(self._path, self.sums, {"done": self.done, "value": self.value})


def in_order(direction: Mapping[str, Tensor], names: list[str]) -> Direction:
    """The same direction with its modules in the model's order (files sort them by name)."""
    return {name: direction[name] for name in names}
