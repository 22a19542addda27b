"""The settings file of `bridge.table1`: models, methods, sets, and the options of the commands that fill a row."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

from bridge.experiments.finetune import settings as finetune_settings
from bridge.experiments.harmfulness import settings as harmfulness_settings
from bridge.experiments.overlap import settings as overlap_settings
from bridge.experiments.utility import settings as utility_settings
from bridge.models.names import resolve
from bridge.suites.settings_file import Options, SettingsReader, check_set, read_toml, with_defaults
from commands.errors import UserError

SHIPPED = {"offline": "table1/offline.toml", "paper": "table1/paper.toml"}
"""Settings that come with the package, by name."""

COMMANDS = ("finetune", "harmfulness", "utility", "overlap")
_METHODS = ("lora", "full")
# Options that the table itself gives to its commands, or that a row has no use for.
_OWNED = {"model", "delta", "method", "seed", "device", "out", "show_preset", "rescore", "retry_failed"}
_TOP: dict[str, type] = {
    "title": str, "models": list, "methods": list, "sets": list, "seed": int, "device": str, "keep_weights": bool,
    "finetune": dict, "harmfulness": dict, "utility": dict, "overlap": dict,
}  # fmt: skip
_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")


@dataclass(frozen=True)
class TableSet:
    """What rows are fine-tuned on: a name for the table, what `--data` takes, and further options of the fine-tune."""

    name: str
    data: str
    options: Options = field(default_factory=dict)


@dataclass(frozen=True)
class TableSettings:
    """One table: a row for every model, method and set.

    The options of each command are under its name; of `harmfulness`, `utility` and `overlap` those are left out (None)
    that the table does not ask for. `finetune_by_method` overrides `finetune`, a set's own options both. Without
    `keep_weights`, the weights of a row are deleted when the row is done.
    """

    title: str
    models: tuple[str, ...]
    methods: tuple[str, ...]
    sets: tuple[TableSet, ...]
    seed: int
    device: str | None
    keep_weights: bool
    finetune: Options
    finetune_by_method: Mapping[str, Options]
    harmfulness: Options | None
    utility: Options | None
    overlap: Options | None

    def finetune_options(self, method: str, chosen: TableSet) -> dict[str, Any]:
        """The options of one row's fine-tune."""
        return {**self.finetune, **self.finetune_by_method.get(method, {}), **chosen.options}

    def judges(self) -> tuple[str, ...]:
        """The names of the judges."""
        return tuple((self.harmfulness or {}).get("judge", ()))


def read_settings(spec: str) -> TableSettings:
    """Read a settings file, or those that come with the package by their name, and check all that can be at once.

    Raises:
        UserError: there is no such file, it is not TOML, a key is unknown (with the nearest ones), a value has the
            wrong type or one that no run can have, or a model, set or judge is not known or not ready.

    """
    found = read_toml(spec, SHIPPED)
    reader = _Reader(spec, _OWNED)
    settings = reader.settings(found)
    with reader.naming_file():
        _check(settings)
    return settings


class _Reader(SettingsReader):
    """Turns a TOML document into settings."""

    def settings(self, found: Mapping[str, Any]) -> TableSettings:
        self.top(found, _TOP)
        by_method = {m: found["finetune"][m] for m in _METHODS if m in found.get("finetune", {})}
        for method, options in by_method.items():
            self.table(f"finetune.{method}", options)
        tuning = {k: v for k, v in found.get("finetune", {}).items() if k not in by_method}
        measured = {name: self.options(name, name, found[name]) if name in found else None for name in COMMANDS[1:]}
        if not any(options is not None for options in measured.values()):
            raise UserError(
                f"--settings {self.file}: nothing is measured: expected [harmfulness], [utility] or [overlap]"
            )
        return TableSettings(
            title=found.get("title", "Fine-tuning and what it does"),
            models=self._names(found, "models", None),
            methods=self._names(found, "methods", _METHODS),
            sets=self._sets(found),
            seed=found.get("seed", 0),
            device=found.get("device"),
            keep_weights=found.get("keep_weights", True),
            finetune=self._finetune("finetune", tuning),
            finetune_by_method={m: self._finetune(f"finetune.{m}", o) for m, o in by_method.items()},
            **measured,
        )

    def _finetune(self, where: str, found: Options) -> dict[str, Any]:
        return self.options(where, "finetune", found, without=["data"])

    def _names(self, found: Mapping[str, Any], key: str, allowed: Sequence[str] | None) -> tuple[str, ...]:
        wanted = f"a list of {' and '.join(allowed)}" if allowed else "a list of names"
        names = found.get(key)
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise self.error(key, wanted, names)
        if len(set(names)) < len(names) or (allowed and not set(names) <= set(allowed)):
            raise self.error(key, f"{wanted}, each once", names)
        return tuple(names)

    def _sets(self, found: Mapping[str, Any]) -> tuple[TableSet, ...]:
        sets: list[TableSet] = []
        known = {"name": str, "data": str, **self.command_options("finetune", without=["data"])}
        for number, entry in enumerate(found.get("sets", []), start=1):
            where = f"sets, entry {number}"
            if not isinstance(entry, dict) or not isinstance(entry.get("data"), str):
                raise self.error(where, 'a table with data = "NAME"', entry)
            self.known(where, entry, known)
            name = entry.get("name", entry["data"].partition("=")[0])
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise self.error(f"{where}: name", "letters, digits and . + - _", name)
            if name.lower() in {other.name.lower() for other in sets}:
                raise self.error(f"{where}: name", "different names", f"{name} twice")
            options = {k: v for k, v in entry.items() if k not in ("name", "data")}
            sets.append(TableSet(name, entry["data"], self._finetune(where, options)))
        if not sets:
            raise self.error("sets", "at least one [[sets]] entry", found.get("sets"))
        return tuple(sets)


def measured_sets(settings: TableSettings) -> dict[tuple[str, str], str]:
    """The sets on which every model is measured, by the command and the option that name them."""
    found: dict[tuple[str, str], str | None] = {}
    if settings.harmfulness is not None:
        prompts = settings.harmfulness.get("prompts")
        found["harmfulness", "prompts"] = harmfulness_settings.GENERATION["prompts"] if prompts is None else prompts
    if settings.utility is not None:
        data = with_defaults("utility", settings.utility)["data"]
        found["utility", "data"] = utility_settings.HELDOUT.get(data, data)
    if settings.overlap is not None:
        options = with_defaults("overlap", settings.overlap)
        found |= {("overlap", name): options[name] for name in ("skill", "refusals")}
    return {place: spec for place, spec in found.items() if spec is not None}


def _check(settings: TableSettings) -> None:
    """Raise UserError for what no run could use: a model, set, judge or option; without the network or any work."""
    for model in settings.models:
        resolve(model)
    for each in settings.sets:
        for method in settings.methods:
            options = {**settings.finetune_options(method, each), "data": each.data, "method": method}
            with _naming("finetune"):
                finetune_settings.make_settings(with_defaults("finetune", _common(settings) | options))
            for option in ("data", "mix", "skill"):
                if options.get(option) is not None:
                    with _naming(f"finetune: {option}"):
                        check_set(options[option])
    for (command, option), spec in measured_sets(settings).items():
        with _naming(f"{command}: {option}"):
            check_set(spec)
    if settings.harmfulness is not None:
        with _naming("harmfulness"):
            harmfulness_settings.make_settings(
                with_defaults("harmfulness", _common(settings) | dict(settings.harmfulness))
            )
    if settings.utility is not None:
        with _naming("utility"):
            utility_settings.make_settings(with_defaults("utility", _common(settings) | dict(settings.utility)))
    if settings.overlap is not None:
        with _naming("overlap"):
            given = with_defaults("overlap", _common(settings) | dict(settings.overlap)) | {
                "delta": {"change": "a row's"}
            }
            overlap_settings.Settings(
                **{field.name: given[field.name] for field in fields(overlap_settings.Settings)}
            ).check()


def _common(settings: TableSettings) -> dict[str, Any]:
    return {"seed": settings.seed, "device": settings.device}


@contextmanager
def _naming(place: str) -> Iterator[None]:
    """Errors of the user's input inside name a section of the file."""
    try:
        yield
    except UserError as error:
        raise UserError(f"[{place}] {error}") from error
