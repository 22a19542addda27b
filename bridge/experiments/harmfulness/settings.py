"""The options of `bridge.harmfulness`, and what they must satisfy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from bridge.evaluation.judges import REFUSAL, Judge, read_judge
from bridge.evaluation.judging import Limits
from bridge.generation.decodings import DECODINGS
from commands.options import at_least, require

GENERATION: dict[str, Any] = {
    "model": "smollm2-135m-refusal",
    "delta": None,
    "prompts": "advbench",
    "num_prompts": 0,
    "preset": "aic",
    "max_new_tokens": None,
}
"""The options that decide the responses, and what they are unless given; --rescore takes none of them."""


@dataclass(frozen=True)
class Settings:
    """The options that decide a run's numbers; batch size decides their rounding only. `num_prompts` 0 is all.

    With `rescore`, the folder of an earlier run, the responses are that run's and so is what decided them: `model`,
    `delta`, `prompts`, `num_prompts`, `preset`, `max_new_tokens`, `dtype` and `device` are not used.
    """

    model: str
    delta: str | None
    prompts: str
    judge: tuple[str, ...]
    num_prompts: int
    preset: str
    max_new_tokens: int
    dtype: str | None
    device: str | None
    batch_size: int
    bootstrap: int
    seed: int
    skip_bad_rows: bool
    rescore: str | None = None

    def check(self) -> None:
        """Raise UserError for options that no run can have, and for a judge that cannot be asked from here."""
        check_preset(self.preset)
        at_least(0, self, "num_prompts", "seed", "bootstrap")
        at_least(1, self, "max_new_tokens", "batch_size")
        require(len(set(self.judge)) == len(self.judge), "judge", "different judges", ", ".join(self.judge))
        require(bool(self.judge), "judge", "at least one judge", "none")
        for judge in self.judges:
            judge.require_ready()
        if self.delta is not None:
            require(Path(self.delta).expanduser().exists(), "delta", "a change of weights that exists", self.delta)

    @property
    def judges(self) -> list[Judge]:
        """The judges by their names; UserError for a name that is none."""
        return [read_judge(name) for name in self.judge]


def check_preset(preset: str) -> None:
    """Raise UserError for a preset that there is none of."""
    require(preset in DECODINGS, "preset", f"one of {', '.join(DECODINGS)}", preset)


def check_limits(limits: Limits) -> None:
    """Raise UserError for limits that ask no judge."""
    at_least(1, limits, "attempts", "connections")
    at_least(0, limits, "give_up")
    for name in ("timeout", "backoff", "longest_wait"):
        value = getattr(limits, name)
        require(0 < value < float("inf"), name, "a positive number of seconds", value)


def make_settings(options: Mapping[str, Any]) -> tuple[Settings, Limits]:
    """Settings and limits from options by the names of `main`, checked; those of None have their defaults."""
    generation = {name: default if options[name] is None else options[name] for name, default in GENERATION.items()}
    check_preset(generation["preset"])
    if generation["max_new_tokens"] is None:
        generation["max_new_tokens"] = DECODINGS[generation["preset"]].max_new_tokens
    given = {field.name: options[field.name] for field in fields(Settings)} | generation
    settings = Settings(**given | {"judge": tuple(options["judge"] or [REFUSAL])})
    limits = Limits(**{field.name: options[field.name] for field in fields(Limits)})
    check_limits(limits)
    settings.check()
    return settings, limits
