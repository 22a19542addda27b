"""The options of `bridge.activations`, and what they must satisfy."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from commands.errors import UserError
from commands.options import at_least, require

ENERGIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


SETS = ("useful=arithmetic-heldout", "harmful=refusals-heldout")


LEAST_PROMPTS = 4
"""Of a set: two halves of two."""


DEPTH = (0.65, 0.90)
"""The layers of Safety Subspaces are Not Distinct (arXiv 2505.14185), as shares of the depth."""


@dataclass(frozen=True)
class Settings:
    """The options that decide a run's numbers; batch size decides their rounding only. `num_prompts` 0 is all."""

    model: str
    delta: str | None
    sets: dict[str, str]
    num_prompts: int
    token: Literal["prompt", "generated"]
    max_new_tokens: int
    energies: tuple[float, ...]
    layers: str | None
    splits: int
    permutations: int
    dtype: str | None
    device: str | None
    batch_size: int
    seed: int
    skip_bad_rows: bool

    def check(self) -> None:
        """Raise UserError for options that no run can have."""
        at_least(0, self, "num_prompts", "permutations", "seed")
        at_least(1, self, "max_new_tokens", "batch_size", "splits")
        require(len(self.sets) >= 2, "set", "at least two sets of prompts to compare", len(self.sets))
        enough = self.num_prompts == 0 or self.num_prompts >= LEAST_PROMPTS
        require(enough, "num_prompts", f"{LEAST_PROMPTS} or more (two halves of two), or 0 for all", self.num_prompts)
        rising = list(self.energies) == sorted(set(self.energies)) and bool(self.energies)
        inside = all(0 < energy < 1 for energy in self.energies)
        require(rising and inside, "energies", "rising fractions between 0 and 1", _joined(self.energies))
        if self.layers is not None:
            layer_numbers(self.layers)
        if self.delta is not None:
            require(Path(self.delta).expanduser().exists(), "delta", "a change of weights that exists", self.delta)


def _joined(energies: tuple[float, ...]) -> str:
    return ",".join(map(str, energies)) or "none"


def energy_fractions(text: str) -> tuple[float, ...]:
    """The fractions in a comma-separated option; UserError for what is no number."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--energies: expected numbers with commas between them, got {text!r}") from None


def layer_numbers(text: str) -> tuple[int, ...]:
    """The layers that "20-27,30" names, rising; UserError for another text."""
    found: set[int] = set()
    for part in text.split(","):
        ends = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part, re.ASCII)
        if ends is None:
            raise UserError(f"--layers: expected numbers and ranges such as 20-27,30, got {text!r}")
        first, last = int(ends[1]), int(ends[2] or ends[1])
        require(first <= last, "layers", "ranges that rise", part)
        require(last < 10_000, "layers", "numbers of layers", part)
        found |= {*range(first, last + 1)}
    return tuple(sorted(found))


def paper_layers(blocks: int) -> tuple[int, ...]:
    """The layers at 65 to 90 % of the depth: layer i, behind block i of n, is at i / n.

    Of a model so shallow that none is there, the one nearest to the middle of that range.
    """
    low, high = math.ceil(DEPTH[0] * blocks - 1e-9), math.floor(DEPTH[1] * blocks + 1e-9)
    return tuple(range(low, high + 1)) or (max(1, round(sum(DEPTH) / 2 * blocks)),)
