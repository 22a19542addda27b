"""The options of `bridge.activations`, and what they must satisfy."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge

from bridge.experiments.labels import labelled_sets
from bridge.experiments.options import Delta, Device, Dtype, Model, Seed, SkipBadRows
from commands.errors import UserError
from commands.options import require
from commands.paths import expanded
from commands.settings import Option
from commands.settings import Settings as Options

SETS = {"useful": "arithmetic-heldout", "harmful": "refusals-heldout"}
LEAST_PROMPTS = 4
"""Fewest prompts of a set: two halves of two."""

DEPTH = (0.65, 0.90)
"""The layers of Safety Subspaces are Not Distinct (arXiv 2505.14185), as shares of the depth."""


def energy_fractions(text: str | Sequence[str]) -> tuple[float, ...]:
    """The fractions in a comma-separated option; UserError for what is no number."""
    given = text if isinstance(text, str) else ",".join(text)
    try:
        return tuple(float(part) for part in given.split(","))
    except ValueError:
        raise UserError(f"--energies: expected numbers with commas between them, got {given!r}") from None


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


@dataclass(frozen=True, kw_only=True)
class Settings(Options):
    """The options that decide a run's numbers; batch size decides their rounding only."""

    model: Model = "smollm2-135m-refusal"
    delta: Delta = None
    sets: Annotated[
        dict[str, str],
        Option(
            "[LABEL=]SET of prompts: a known set, NAME=FILE or FILE.jsonl; to be given twice or more.",
            read=labelled_sets,
            several=True,
            name="set",
            shown=" and ".join(f"{label}={spec}" for label, spec in SETS.items()),
        ),
    ] = field(default_factory=lambda: dict(SETS))
    num_prompts: Annotated[int, Option("Prompts of each set, drawn by the seed; 0 for all."), Ge(0)] = 60
    token: Annotated[
        Literal["prompt", "generated"],
        Option("Whose states: the prompt's last token, or the last one of the model's greedy response."),
    ] = "prompt"
    max_new_tokens: Annotated[int, Option("Longest response, in tokens (--token generated)."), Ge(1)] = 32
    energies: Annotated[
        tuple[float, ...], Option("Energy fractions that the subspaces hold, with commas.", read=energy_fractions)
    ] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
    layers: Annotated[
        str | None,
        Option("Layers to sum up, such as 20-27,30; 0: embeddings. (default: those at 65 to 90 % depth)"),
    ] = None
    splits: Annotated[int, Option("Random splits of every set into two halves."), Ge(1)] = 20
    permutations: Annotated[int, Option("Relabellings of the prompts; 0 for no test."), Ge(0)] = 199
    dtype: Dtype = None
    device: Device = None
    batch_size: Annotated[int, Option("Prompts computed at a time."), Ge(1)] = 16
    seed: Seed = 0
    skip_bad_rows: SkipBadRows = False

    def check_together(self) -> None:
        """Raise UserError for options that do not go together."""
        require(len(self.sets) >= 2, "set", "at least two sets of prompts to compare", len(self.sets))
        enough = self.num_prompts == 0 or self.num_prompts >= LEAST_PROMPTS
        require(enough, "num_prompts", f"{LEAST_PROMPTS} or more (two halves of two), or 0 for all", self.num_prompts)
        rising = list(self.energies) == sorted(set(self.energies)) and bool(self.energies)
        inside = all(0 < energy < 1 for energy in self.energies)
        shown = ",".join(map(str, self.energies)) or "none"
        require(rising and inside, "energies", "rising fractions between 0 and 1", shown)
        if self.layers is not None:
            layer_numbers(self.layers)
        if self.delta is not None:
            require(expanded(self.delta).exists(), "delta", "a change of weights that exists", self.delta)
