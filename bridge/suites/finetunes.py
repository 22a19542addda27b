"""What suites of many fine-tunes share: the sets to train on, by each of some methods, and the options of all."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, get_args

from annotated_types import MinLen

from bridge.experiments.finetune.settings import Settings as FinetuneSettings
from bridge.suites.settings_file import Distinct, Faults, Options, SettingsFile, SuiteSettings, check_set
from bridge.training.plan import Method
from commands.settings import Option

_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")
METHODS: tuple[Method, ...] = get_args(Method)
_NOTHING = Options(FinetuneSettings)


@dataclass(frozen=True)
class TrainingSet:
    """What is fine-tuned on: a name for the tables, what `--data` takes, and further options of the fine-tune."""

    name: str
    data: str
    options: Options[FinetuneSettings] = _NOTHING

    def document(self) -> dict[str, object]:
        """The set as a file gives it."""
        return {"name": self.name, "data": self.data, **self.options.given}


@dataclass(frozen=True)
class LocalSet(TrainingSet):
    """A set in a local file, whose folder is given apart; `data` is its own format's name."""

    file: str = ""

    def document(self) -> dict[str, object]:
        """The set as a file gives it."""
        return {**super().document(), "file": self.file}


@dataclass(frozen=True, kw_only=True)
class Finetunes(SuiteSettings):
    """Fine-tunes of every set by every method: the options of a method go before those of all, a set's before both."""

    methods: Annotated[
        tuple[Method, ...], Option("Methods of fine-tuning.", wanted=f"a list of {' and '.join(METHODS)}, each once"),
        MinLen(1), Distinct,
    ] = METHODS  # fmt: skip
    sets: Annotated[
        tuple[TrainingSet, ...], Option("Sets to train on.", wanted="at least one [[sets]] entry"), MinLen(1)
    ] = ()
    finetune: Annotated[Options[FinetuneSettings], Option("Options of bridge.finetune.")] = _NOTHING
    finetune_by_method: Annotated[
        Mapping[Method, Options[FinetuneSettings]], Option("Options of bridge.finetune for one method alone.")
    ] = field(default_factory=dict)

    def finetune_options(self, method: Method, chosen: TrainingSet) -> Options[FinetuneSettings]:
        """The options of one fine-tune that the file gives."""
        return self.finetune.over(self.finetune_by_method.get(method, _NOTHING), chosen.options)

    def document(self) -> dict[str, object]:
        """The settings as a file gives them."""
        found = super().document()
        del found["finetune_by_method"]
        by_method: dict[str, object] = {method: more.given for method, more in self.finetune_by_method.items()}
        found["finetune"] = {**self.finetune.given, **by_method}
        found["sets"] = [each.document() for each in self.sets]
        return found


def checked_finetune(make: Callable[[], FinetuneSettings], faults: Faults) -> FinetuneSettings | None:
    """A fine-tune's settings, if they can be; options that no run could use are faults, and so are unknown sets."""
    with faults.at("[finetune]"):
        settings = make()
        settings.check()
        for option in ("data", "mix", "skill"):
            spec = getattr(settings, option)
            if spec is not None:
                with faults.at(f"[finetune] --{option}:"):
                    check_set(spec)
        return settings
    return None


class Reading:
    """Reads what is of `Finetunes` in a settings file."""

    def __init__(self, file: SettingsFile, only: Collection[str], shared: Collection[str] = ()) -> None:
        """Begin with a file.

        Args:
            file: the file.
            only: options of a fine-tune that it may give; the others are the suite's.
            shared: those of them that are the same for all fine-tunes.

        """
        self.file, self._only, self._of_some = file, only, [name for name in only if name not in shared]

    def finetune(self) -> tuple[Options[FinetuneSettings], dict[Method, Options[FinetuneSettings]]]:
        """The table [finetune]: what is for all fine-tunes, and what for those by one method."""
        table = self.file.table("[finetune]", self.file.take("finetune", {}))
        of_methods = {method: table.pop(method) for method in METHODS if method in table}
        by_method = {method: self._of(f"[finetune.{method}]", found) for method, found in of_methods.items()}
        return self.file.options("[finetune]", table, FinetuneSettings, self._only), by_method

    def _of(self, place: str, found: object) -> Options[FinetuneSettings]:
        """The options of some fine-tunes."""
        return self.file.options(place, found, FinetuneSettings, self._of_some)

    def sets(self, local: bool = False) -> list[TrainingSet]:
        """The tables [[sets]], without those that cannot be, which are faults; `local`: they may name files."""
        entries = self.file.take("sets", [])
        found: list[TrainingSet] = []
        for number, entry in enumerate(entries if isinstance(entries, list) else [entries], start=1):
            place = f"sets, entry {number}:"
            texts = ("name", "data", "file") if local else ("name", "data")
            if not isinstance(entry, dict) or not _has_texts(entry, texts):
                more = ', and file = "FILE" for a local file' if local else ""
                self.file.faults.add(place, f'expected a table with data = "NAME"{more}, got {entry!r}')
                continue
            options = self._of(place, {key: value for key, value in entry.items() if key not in texts})
            data = entry["data"]
            name = entry.get("name", data.partition("=")[0])
            if not _NAME.fullmatch(name):
                self.file.faults.add(place, f"name: expected letters, digits and . + - _, got {name!r}")
            elif name.lower() in (other.name.lower() for other in found):
                self.file.faults.add(place, f"name: expected different names, got {name} twice")
            else:
                own = local and "file" in entry
                found.append(LocalSet(name, data, options, entry["file"]) if own else TrainingSet(name, data, options))
        return found


def _has_texts(entry: Mapping[str, object], keys: Collection[str]) -> bool:
    """Check that a set names its data, and that these keys have texts."""
    return "data" in entry and all(isinstance(entry.get(key, ""), str) for key in keys)


_WEIGHTS = ("model", "adapter", "delta.safetensors")


def drop_weights(folder: Path) -> None:
    """Delete what a fine-tune left of weights in its run folder."""
    for name in _WEIGHTS:
        place = folder / name
        shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
