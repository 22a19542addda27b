"""The options of `bridge.utility`, and what they must satisfy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from bridge.generation.decodings import DECODINGS, DecodingPreset
from commands.errors import UserError
from commands.options import at_least, require

HELDOUT = {"gsm8k": "gsm8k-test", "math": "math-test", "arithmetic": "arithmetic-heldout"}
"""Sets whose name means their training rows elsewhere, and what of them is asked here."""


@dataclass(frozen=True)
class Settings:
    """The options that decide a run's numbers; batch size decides their rounding only. `num` 0 is all rows."""

    model: str
    delta: str | None
    data: str
    num: int
    shots: int
    preset: str
    max_new_tokens: int
    dtype: str | None
    device: str | None
    batch_size: int
    seed: int
    skip_bad_rows: bool

    def check(self) -> None:
        """Raise UserError for options that no run can have."""
        find_decoding(self.preset)
        at_least(0, self, "num", "shots", "seed")
        at_least(1, self, "max_new_tokens", "batch_size")
        if self.delta is not None:
            require(Path(self.delta).expanduser().exists(), "delta", "a change of weights that exists", self.delta)


def make_settings(options: Mapping[str, Any]) -> Settings:
    """Settings from options by the names of `main`, checked; without `max_new_tokens` it is the preset's."""
    longest = options["max_new_tokens"]
    if longest is None:
        longest = find_decoding(options["preset"]).max_new_tokens
    given = {field.name: options[field.name] for field in fields(Settings)}
    settings = Settings(**given | {"max_new_tokens": longest})
    settings.check()
    return settings


def find_decoding(preset: str) -> DecodingPreset:
    """The decoding of a name; UserError with the known names if there is none."""
    if preset not in DECODINGS:
        raise UserError(f"--preset: expected one of {', '.join(DECODINGS)}, got {preset!r}")
    return DECODINGS[preset]
