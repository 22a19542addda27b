"""Kills tiny runs of `bridge.study`, for `kill_server`."""

from __future__ import annotations

from pathlib import Path

from bridge.study import MEMORY_ADVICE
from bridge.study import main as command
from tests.bridge.support.killed_sequences import kill_sequence

MOMENTS = {"before pilot.json", "after row.json"}


def main(folder: Path) -> None:
    settings = folder / "tiny.toml"
    text = settings.read_text().replace('"lora", "full"', '"full"').replace("pilot_steps", "risk = false\npilot_steps")
    settings.write_text(text[: text.index("[[sets]]", text.index("[[sets]]") + 1)])  # the first set alone
    kill_sequence(command, MEMORY_ADVICE, settings, folder, MOMENTS, (20, 40))
