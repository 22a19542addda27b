"""Kills tiny runs of `bridge.table1`, for `kill_server`."""

from __future__ import annotations

from pathlib import Path

from bridge.table1 import MEMORY_ADVICE
from bridge.table1 import main as command
from tests.bridge.support.killed_sequences import kill_sequence

MOMENTS = {"before row.json", "after table1.json", "after delta.json"}


def main(folder: Path) -> None:
    settings = folder / "tiny.toml"
    text = settings.read_text()
    short = text[: text.index("[overlap]")].replace('"lora", "full"', '"full"')
    parts = short.split("[[sets]]")  # before, first, second set with what follows
    settings.write_text(f"{parts[0]}[[sets]]{parts[1]}{parts[2][parts[2].index('[harmfulness]') :]}")
    kill_sequence(command, MEMORY_ADVICE, settings, folder, MOMENTS, (15, 30))
