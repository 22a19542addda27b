"""Measure how far the hidden states of two or more sets of prompts share their subspaces, layer by layer.

    python -m bridge.activations --model smollm2-135m-refusal --set useful=arithmetic --set harmful=refusals-heldout

Writes a run folder: manifest.json, activations.json, activations.npz (the states), prompts.jsonl, energies.png,
layers.png and report.html.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from bridge.models import resolve
from bridge.sets import NAMED_SETS
from commands.cli import run_command
from commands.errors import UserError
from commands.options import at_least, command_of, require

MEMORY_ADVICE = "lower --batch-size first, then --max-new-tokens"
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


def labelled_sets(specs: list[str]) -> dict[str, str]:
    """Sets of prompts by label: LABEL=SET, or SET under its own name; NAME=FILE reads a file in the format of NAME.

    Raises:
        UserError: two sets of one label, or a label that cannot be used.

    """
    found: dict[str, str] = {}
    for given in specs:
        label, equals, spec = given.partition("=")
        own_format = label in NAMED_SETS and spec not in NAMED_SETS  # gsm8k=FILE
        if not equals or own_format or "/" in label or Path(given).exists():
            label, spec = label if own_format else Path(given).stem, given
        usable = re.fullmatch(r"[\w.+ -]+", label) is not None
        require(usable, "set", "a label of letters, digits and . + - _ (LABEL=SET)", repr(label))
        require(label not in found, "set", "different labels (LABEL=SET)", f"{label} twice")
        require(bool(spec), "set", "a set behind the label (LABEL=SET)", given)
        found[label] = spec
    return found


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


def main(
    model: Annotated[
        str, typer.Option(help="Alias, hub name, local folder, GGUF file, or random:ALIAS.")
    ] = "smollm2-135m-refusal",
    delta: Annotated[
        str | None,
        typer.Option(
            help="A change of the model's weights: a run folder of bridge.finetune, an adapter, a delta.safetensors, "
            "or the folder of the changed model."
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="[LABEL=]SET of prompts: a known set, NAME=FILE or FILE.jsonl; to be given twice or more. "
            f"(default: {' and '.join(SETS)})",
        ),
    ] = None,
    num_prompts: Annotated[int, typer.Option(help="Prompts of each set, drawn by the seed; 0 for all.")] = 60,
    token: Annotated[
        Literal["prompt", "generated"],
        typer.Option(help="Whose states: the prompt's last token, or the last one of the model's greedy response."),
    ] = "prompt",
    max_new_tokens: Annotated[int, typer.Option(help="Longest response (--token generated).")] = 32,
    energies: Annotated[str, typer.Option(help="Energy fractions that the subspaces hold, with commas.")] = ",".join(
        map(str, ENERGIES)
    ),
    layers: Annotated[
        str | None,
        typer.Option(help="Layers to sum up, such as 20-27,30; 0: embeddings. (default: those at 65 to 90 % depth)"),
    ] = None,
    splits: Annotated[int, typer.Option(help="Random splits of every set into two halves.")] = 20,
    permutations: Annotated[int, typer.Option(help="Relabellings of the prompts; 0 for no test.")] = 199,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16 or float64. (default: float32)")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:N. (default: the GPU if there is one)")] = None,
    batch_size: Annotated[int, typer.Option(help="Prompts computed at a time.")] = 16,
    seed: Annotated[int, typer.Option(help="Of the choice of prompts, the splits and the relabellings.")] = 0,
    skip_bad_rows: Annotated[bool, typer.Option("--skip-bad-rows", help="Leave out bad rows and say so.")] = False,
    out: Annotated[Path | None, typer.Option(help="Run folder. (default: runs/activations/MODEL-HASH)")] = None,
) -> None:
    """Compare the subspaces of sets of prompts in the hidden states of MODEL, at every layer.

    The overlap of two sets stands beside that of two halves of one set, at equal numbers of prompts, beside chance,
    and beside what it is when the prompts' labels are drawn anew. The same command again goes on with a run that was
    stopped.
    """
    settings = Settings(
        model=model, delta=delta, sets=labelled_sets(list(set_ or SETS)), num_prompts=num_prompts, token=token,
        max_new_tokens=max_new_tokens, energies=energy_fractions(energies), layers=layers, splits=splits,
        permutations=permutations, dtype=dtype, device=device, batch_size=batch_size, seed=seed,
        skip_bad_rows=skip_bad_rows,
    )  # fmt: skip
    settings.check()
    resolve(model)
    from bridge.activations_run import run  # torch takes a second or two to import: wrong input should not wait for it

    run(settings, out)


if __name__ == "__main__":
    run_command(command_of(main), MEMORY_ADVICE)
