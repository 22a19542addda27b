"""The options of `bridge.finetune`, and what they must satisfy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Annotated, Literal

from annotated_types import Ge, Lt

from bridge.experiments.options import Device, Model, Rows
from bridge.training.defences.plan import DefenceOptions
from bridge.training.plan import Count, Epochs, LearningRate, LoraAlpha, LoraDropout, Method, Plan, TrainingSeed
from bridge.training.presets import DEFAULT_PRESET, PRESETS, make_plan
from commands.errors import UserError
from commands.options import require
from commands.settings import Option


def parse_overrides(given: str | Sequence[str]) -> dict[str, object]:
    """NAME=VALUE, or several, as a dictionary; values are read as JSON where they are, else as text.

    Raises:
        UserError: without "=", a name given twice, or a number that is not finite.

    """
    found: dict[str, object] = {}
    for item in [given] if isinstance(given, str) else given:
        name, equals, text = item.partition("=")
        if not equals or not name:
            raise UserError(f"--set: expected NAME=VALUE, got {item!r}")
        if name in found:
            raise UserError(f"--set: {name} is given twice")
        try:
            found[name] = json.loads(text)
        except ValueError:
            found[name] = text
        try:
            json.dumps(found[name], allow_nan=False)
        except ValueError:
            raise UserError(f"--set {name}: expected finite numbers, got {text}") from None
    return found


def written_overrides(found: dict[str, object]) -> list[str]:
    """The same as NAME=VALUE, the values in JSON: a TOML table could not hold its null."""
    return [f"{name}={json.dumps(value)}" for name, value in found.items()]


_OF_PLAN = (
    "learning_rate", "epochs", "max_steps", "batch_size", "micro_batch_size", "lora_rank", "lora_alpha",
    "lora_dropout", "lora_targets", "seed",
)  # fmt: skip
_OWN = ("model", "data", "rows", "mix", "share", "max_length", "preset", "dtype", "device", "skip_bad_rows")


@dataclass(frozen=True, kw_only=True)
class Settings(DefenceOptions, Rows):
    """What decides a run's numbers: model, rows and plan, and a defence if there is one."""

    model: Model = "smollm2-135m"
    data: Annotated[str, Option("What to train on: a set's NAME, NAME=FILE, or FILE.jsonl.")] = "benign"
    method: Annotated[Method, Option("What is trained: low-rank adapters, or all weights.")] = "lora"
    rows: Annotated[int, Option("Rows to train on, drawn by the seed; 0 for all."), Ge(0)] = 100
    mix: Annotated[str | None, Option("A second set to mix in.")] = None
    share: Annotated[
        float,
        Option("Share of --rows that is of the second set.", wanted="a share of the rows in [0, 1)"),
        Ge(0),
        Lt(1),
    ] = 0.0
    preset: Annotated[str, Option(f"Defaults of what follows: {', '.join(PRESETS)}.")] = DEFAULT_PRESET
    learning_rate: Annotated[LearningRate | None, Option("Highest learning rate of the schedule.", shown="preset")] = (
        None
    )
    epochs: Annotated[Epochs | None, Option("Passes over the rows.", shown="preset")] = None
    max_steps: Annotated[Count | None, Option("Optimizer steps, in place of --epochs.")] = None
    batch_size: Annotated[Count | None, Option("Rows of one step.", shown="preset")] = None
    micro_batch_size: Annotated[
        Count | None, Option("Rows computed at a time: memory only.", shown="a divisor up to 4")
    ] = None
    lora_rank: Annotated[Count | None, Option("Rank of the adapters.", shown="preset")] = None
    lora_alpha: Annotated[
        LoraAlpha | None, Option("Alpha of the adapters, whose scale is alpha / rank.", shown="preset")
    ] = None
    lora_dropout: Annotated[LoraDropout | None, Option("Dropout before the adapters.", shown="preset")] = None
    lora_targets: Annotated[
        str | None, Option("Regular expression for the modules that get an adapter.", shown="all in the blocks")
    ] = None
    seed: Annotated[TrainingSeed, Option("Seed of the rows, their order, and the adapters' start.")] = 0
    override: Annotated[
        dict[str, object],
        Option(
            "NAME=VALUE of any field of TrainingArguments; may be repeated.",
            read=parse_overrides,
            written=written_overrides,
            several=True,
            name="set",
        ),
    ] = field(default_factory=dict)
    dtype: Annotated[
        Literal["float32", "float64"] | None,
        Option(
            "Type of the weights: float32 or float64.",
            wanted="float32 or float64, the dtype of the trained weights (for speed on a GPU use --set bf16=true, "
            "which computes in bfloat16 and keeps float32 weights)",
            read=str,
            shown="float32",
        ),
    ] = None
    device: Device = None

    @cached_property
    def plan(self) -> Plan:
        """The preset's plan with what was given; UserError for one that no run can have."""
        return make_plan(self.preset, self.method, {name: getattr(self, name) for name in _OF_PLAN}, self.override)

    def check_together(self) -> None:
        """Raise UserError for a mixture of nothing, and as `make_plan` and a defence do."""
        require((self.share > 0) == (self.mix is not None), "share", "--mix and --share together", "one of them")
        self.plan.check()
        super().check_together()

    def identity(self) -> dict[str, object]:
        """The options as a manifest holds them: those of the training and of a defence as their plans."""
        given = super().identity()
        defence = None if self.defence is None else asdict(self.defence)
        return {name: given[name] for name in _OWN} | {"plan": self.plan.identity(), "defence": defence}
