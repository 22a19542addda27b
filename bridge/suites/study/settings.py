"""The settings file of `bridge.study`: a model, sets, methods and seeds, and how the damage is measured."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from bridge.experiments.finetune import settings as finetune_settings
from bridge.experiments.finetune.settings import Settings as FinetuneSettings
from bridge.experiments.overlap import settings as overlap_settings
from bridge.models.names import resolve
from bridge.suites.settings_file import Options, SettingsReader, check_set, read_toml, with_defaults
from commands.errors import UserError

SHIPPED = {"offline": "study/offline.toml", "paper": "study/paper.toml"}
"""Settings that come with the package, by name."""

_METHODS = ("lora", "full")
_SKILL = ("skill", "num_skill", "draws", "max_new_tokens", "modules", "batch_size", "memory", "bootstrap")
_OVERLAP = ("rank", "refusals", "estimator", "dim")
_FINETUNE = (
    "rows", "max_length", "preset", "learning_rate", "epochs", "max_steps", "batch_size", "micro_batch_size",
    "lora_rank", "lora_alpha", "lora_dropout", "lora_targets", "override", "skip_bad_rows",
)  # fmt: skip
_TOP: dict[str, type] = {
    "title": str, "model": str, "methods": list, "seeds": list, "seed": int, "device": str, "dtype": str,
    "keep_weights": bool, "pilot_steps": int, "risk": bool, "resamples": int, "sets": list, "finetune": dict,
    "skill": dict, "overlap": dict,
}  # fmt: skip
_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")


@dataclass(frozen=True)
class StudySet:
    """What is fine-tuned on: a name for the tables, what `--data` takes, and further options of the fine-tune."""

    name: str
    data: str
    options: Options = field(default_factory=dict)


@dataclass(frozen=True)
class StudySettings:
    """One study: a fine-tune for every set, method and seed.

    `seeds` are those of the fine-tunes, `seed` that of what is measured. `skill` are the options that say on what the
    damage and the predictions are measured, `overlap` the further ones of `bridge.overlap`. `pilot_steps` 0 is no
    pilot, and fewer than a forecast needs are refused; `risk` says whether `bridge.risk` is run on every set.
    `left_out` are sets in local files, where the folder of these files was not given. `resamples` are those of the
    correlations' intervals.
    """

    title: str
    model: str
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    seed: int
    device: str | None
    dtype: str | None
    keep_weights: bool
    pilot_steps: int
    risk: bool
    resamples: int
    sets: tuple[StudySet, ...]
    left_out: tuple[str, ...]
    finetune: Options
    finetune_by_method: Mapping[str, Options]
    skill: Options
    overlap: Options

    @property
    def max_length(self) -> int:
        """Longest row in tokens, of everything that is trained on or measured."""
        return int(with_defaults("finetune", self.finetune)["max_length"])

    def common(self) -> dict[str, Any]:
        """Options that every command gets."""
        return {"model": self.model, "device": self.device, "dtype": self.dtype}

    def finetune_options(self, method: str, chosen: StudySet, seed: int) -> dict[str, Any]:
        """All options of one fine-tune but the folder."""
        own = {**self.finetune, **self.finetune_by_method.get(method, {}), **chosen.options}
        return {**self.common(), "data": chosen.data, "method": method, "seed": seed, **own}

    def finetune_settings(self, method: str, chosen: StudySet, seed: int) -> FinetuneSettings:
        """The same as `bridge.finetune` takes them, checked; UserError for options that no run can have."""
        return finetune_settings.make_settings(with_defaults("finetune", self.finetune_options(method, chosen, seed)))

    def skill_options(self) -> dict[str, Any]:
        """Options of `bridge.overlap`, `estimate_aic` and `risk` that say what the skill is, defaults included."""
        every = with_defaults("overlap", self.skill)
        return {name: every[name] for name in _SKILL} | {"max_length": self.max_length, "seed": self.seed}

    def overlap_options(self) -> dict[str, Any]:
        """All options of `bridge.overlap` but the model, the change and the folder."""
        return {**self.skill_options(), **self.overlap, "utility_loss": True}


def read_settings(spec: str, files: Path | None = None) -> StudySettings:
    """Read a settings file, or those that come with the package by their name, and check all that can be at once.

    Args:
        spec: the file, or the name.
        files: the folder that the sets' local files are in; without it these sets are left out.

    Raises:
        UserError: there is no such file, it is not TOML, a key is unknown (with the nearest ones), a value has the
            wrong type or one that no run can have, a model or set is not known, or a local file is not there.

    """
    reader = _Reader(spec, ())
    settings = reader.settings(read_toml(spec, SHIPPED), files)
    with reader.naming_file():
        _check(settings)
    return settings


class _Reader(SettingsReader):
    """Turns a TOML document into settings."""

    def settings(self, found: Mapping[str, Any], files: Path | None) -> StudySettings:
        self.top(found, _TOP)
        if "model" not in found:
            raise self.error("model", "a model's name", None)
        for name in ("pilot_steps", "resamples"):
            if found.get(name, 0) < 0:
                raise self.error(name, "a whole number from 0", found[name])
        tuning = found.get("finetune", {})
        by_method = {m: self.table(f"finetune.{m}", tuning[m]) for m in _METHODS if m in tuning}
        shared = {k: v for k, v in tuning.items() if k not in by_method}
        sets, left_out = self._sets(found, files)
        return StudySettings(
            title=found.get("title", "Which number predicts the damage of a fine-tune?"),
            model=found["model"],
            methods=self._distinct(found, "methods", list(_METHODS), str, "some of lora and full", set(_METHODS)),
            seeds=self._distinct(found, "seeds", [0, 1], int, "whole numbers from 0, each once", None),
            seed=found.get("seed", 0),
            device=found.get("device"),
            dtype=found.get("dtype"),
            keep_weights=found.get("keep_weights", False),
            pilot_steps=found.get("pilot_steps", 0),
            risk=found.get("risk", True),
            resamples=found.get("resamples", 2000),
            sets=sets,
            left_out=left_out,
            finetune=self._of("finetune", "finetune", shared, _FINETUNE),
            finetune_by_method={m: self._row_options(f"finetune.{m}", options) for m, options in by_method.items()},
            skill=self._of("skill", "overlap", found.get("skill", {}), _SKILL),
            overlap=self._of("overlap", "overlap", found.get("overlap", {}), _OVERLAP),
        )

    def _of(self, where: str, command: str, found: Options, allowed: Sequence[str]) -> dict[str, Any]:
        """Options of a command, those that this place may give."""
        every = self.command_options(command)
        return self.options(where, command, found, without=[name for name in every if name not in allowed])

    def _row_options(self, where: str, found: Options) -> dict[str, Any]:
        """Options of some fine-tunes: the length of rows is the same for all, since the skill's is too."""
        return self._of(where, "finetune", found, [name for name in _FINETUNE if name != "max_length"])

    def _distinct(
        self, found: Options, key: str, default: list[Any], kind: type, wanted: str, allowed: set[Any] | None
    ) -> tuple[Any, ...]:
        values = found.get(key, default)
        right = values and all(type(value) is kind for value in values) and len(set(values)) == len(values)
        if not right or (allowed is not None and not set(values) <= allowed) or (kind is int and min(values) < 0):
            raise self.error(key, wanted, values)
        return tuple(values)

    def _sets(self, found: Options, files: Path | None) -> tuple[tuple[StudySet, ...], tuple[str, ...]]:
        sets: list[StudySet] = []
        left_out: list[str] = []
        for number, entry in enumerate(found.get("sets", []), start=1):
            where = f"sets, entry {number}"
            if not isinstance(entry, dict) or not all(isinstance(entry.get(k, ""), str) for k in ("data", "file")):
                raise self.error(where, 'a table with data = "NAME", and file = "FILE" for a local file', entry)
            if "data" not in entry:
                raise self.error(where, 'data = "NAME"', entry)
            name = entry.get("name", entry["data"].partition("=")[0])
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise self.error(f"{where}: name", "letters, digits and . + - _", name)
            if name.lower() in {other.lower() for other in (*(s.name for s in sets), *left_out)}:
                raise self.error(f"{where}: name", "different names", f"{name} twice")
            options = self._row_options(where, {k: v for k, v in entry.items() if k not in ("name", "data", "file")})
            if "file" in entry and files is None:
                left_out.append(name)
            else:
                sets.append(StudySet(name, self._spec(entry, files), options))
        if not sets:
            raise self.error("sets", "at least one [[sets]] entry (--files DIR for local files)", found.get("sets"))
        return tuple(sets), tuple(left_out)

    def _spec(self, entry: Options, files: Path | None) -> str:
        """What `--data` takes for a set."""
        if "file" not in entry or files is None:
            return str(entry["data"])
        path = files.expanduser() / entry["file"]
        if not path.is_file():
            raise UserError(
                f"--files: expected {entry['file']} in {files} (the set {entry['data']}), found no such file"
            )
        return f"{entry['data']}={path}"


def _check(settings: StudySettings) -> None:
    """Raise UserError for what no run could use: a model, set or option; without the network or any work."""
    resolve(settings.model)
    for each in settings.sets:
        check_set(each.data)
        for method in settings.methods:
            tuned = settings.finetune_settings(method, each, settings.seeds[0])
            kind_of_optimizer(tuned.plan.optimizer)
            if settings.pilot_steps:
                _check_pilot(settings.pilot_steps, tuned, f"{method} on {each.name}")
    given = with_defaults("overlap", settings.common() | settings.overlap_options()) | {"delta": {"change": "a row's"}}
    check_set(given["skill"])
    if given["refusals"] is not None:
        check_set(given["refusals"])
    overlap_settings.Settings(**{each.name: given[each.name] for each in fields(overlap_settings.Settings)}).check()


def _check_pilot(pilot: int, tuned: FinetuneSettings, which: str) -> None:
    """Raise UserError unless a pilot gives a forecast its points, and the fine-tune goes on after it.

    With a warm-up the first step's learning rate is 0, and nothing has moved after it. A constant schedule has none.
    """
    from theory.damage_forecast import LEAST_POINTS  # SciPy takes a while to import: --help should not wait for it

    plan = tuned.plan
    idle = int(plan.warmup > 0 and plan.scheduler != "constant")
    if pilot < LEAST_POINTS + idle:
        why = f"{LEAST_POINTS} points for the forecast{f', and the warm-up of {which}' if idle else ''}"
        raise UserError(f"pilot_steps: expected 0 (no pilot) or at least {LEAST_POINTS + idle} ({why}), got {pilot}")
    steps = plan.steps(tuned.rows) if tuned.rows or plan.max_steps else None
    if steps is not None and pilot >= steps:
        raise UserError(f"pilot_steps: expected fewer than {steps}, the steps of {which}, got {pilot}")


def kind_of_optimizer(name: str) -> str:
    """What `bridge.estimate_aic` calls an optimizer of transformers: adamw or sgd; UserError for any other."""
    if name.startswith("adamw"):
        return "adamw"
    if name == "sgd":
        return "sgd"
    raise UserError(f"finetune: the damage is predicted for AdamW and SGD, and the optimizer is {name}")
