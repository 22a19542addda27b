"""The options of `bridge.finetune`, and what they must satisfy."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from bridge.training.defences.plan import DefencePlan, make_defence
from bridge.training.plan import Plan
from bridge.training.presets import make_plan
from commands.errors import UserError
from commands.options import at_least, require


@dataclass(frozen=True)
class Settings:
    """What decides a run's numbers: model, rows and plan, and a defence if there is one. `rows` 0 is all rows."""

    model: str
    data: str
    rows: int
    mix: str | None
    share: float
    max_length: int
    preset: str
    plan: Plan
    dtype: str | None
    device: str | None
    skip_bad_rows: bool
    defence: DefencePlan | None = None

    def check(self) -> None:
        """Raise UserError for options that no run can have."""
        at_least(0, self, "rows")
        at_least(2, self, "max_length")
        require(0 <= self.share < 1, "share", "a share of the rows in [0, 1)", self.share)
        require((self.share > 0) == (self.mix is not None), "share", "--mix and --share together", "one of them")
        if self.dtype not in (None, "float32", "float64"):
            raise UserError(
                f"--dtype: expected float32 or float64, the dtype of the trained weights, got {self.dtype}; "
                "for speed on a GPU use --set bf16=true, which computes in bfloat16 and keeps float32 weights"
            )
        self.plan.check()
        if self.defence is not None:
            self.defence.check()


def parse_overrides(items: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE strings as a dictionary; values are read as JSON where they are, else as text.

    Raises:
        UserError: without "=", or a name given twice.

    """
    found: dict[str, Any] = {}
    for item in items:
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


_TRAINING = (
    "learning_rate", "epochs", "max_steps", "batch_size", "micro_batch_size", "lora_rank", "lora_alpha",
    "lora_dropout", "lora_targets", "seed",
)  # fmt: skip


_DEFENCE = (
    "refresh", "rank", "max_utility_loss", "num_skill", "held_out", "max_new_tokens", "measure_every",
)  # fmt: skip


def make_settings(options: Mapping[str, Any]) -> Settings:
    """Settings from options by the names of `main`, checked; UserError for options that no run can have."""
    given = {name: options[name] for name in _TRAINING}
    defence = {name: options[name] for name in _DEFENCE}
    settings = Settings(
        plan=make_plan(options["preset"], options["method"], given, parse_overrides(options["override"] or [])),
        defence=make_defence(
            options["defend"], options["skill"], **defence, batch_size=options["probe_batch_size"],
            memory=options["probe_memory"],
        ),
        **{field.name: options[field.name] for field in fields(Settings) if field.name not in ("plan", "defence")},
    )  # fmt: skip
    settings.check()
    return settings
