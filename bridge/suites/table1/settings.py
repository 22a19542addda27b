"""The settings of `bridge.table1`: models, methods, sets, and the options of the commands that fill a row."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated

from annotated_types import MinLen

from bridge.experiments.finetune.settings import Settings as FinetuneSettings
from bridge.experiments.harmfulness.settings import Settings as HarmfulnessSettings
from bridge.experiments.options import Device, Seed
from bridge.experiments.overlap.settings import Settings as OverlapSettings
from bridge.experiments.utility.settings import HELDOUT
from bridge.experiments.utility.settings import Settings as UtilitySettings
from bridge.models.names import resolve
from bridge.suites.finetunes import Finetunes, Reading, TrainingSet, checked_finetune
from bridge.suites.settings_file import Distinct, Faults, Kind, Options, SettingsFile, check_set
from bridge.training.plan import Method
from commands.settings import Option, fields_of

SHIPPED = {"offline": "table1/offline.toml", "paper": "table1/paper.toml"}
"""Settings that come with the package, by name."""

CHANGE = "change"
"""Label of a row's change of the weights."""
_HERE = "."  # stands for a row's change, which is not there yet
# Options that the table itself gives to its commands, or that a row has no use for.
_OWNED = ("model", "delta", "method", "data", "seed", "device", "rescore")


@dataclass(frozen=True, kw_only=True)
class TableSettings(Finetunes):
    """One table: a row for every model, method and set."""

    title: Annotated[str, Option("Heading of the table.")] = "Fine-tuning and what it does"
    models: Annotated[
        tuple[str, ...], Option("Models to fine-tune.", wanted="a list of names, each once"), MinLen(1), Distinct
    ]
    seed: Seed = 0
    device: Device = None
    keep_weights: Annotated[bool, Option("Keep the weights of rows that are done.")] = True
    harmfulness: Annotated[
        Options[HarmfulnessSettings] | None, Option("Options of bridge.harmfulness; none, and it is not measured.")
    ] = None
    utility: Annotated[
        Options[UtilitySettings] | None, Option("Options of bridge.utility; none, and it is not measured.")
    ] = None
    overlap: Annotated[
        Options[OverlapSettings] | None, Option("Options of bridge.overlap; none, and it is not measured.")
    ] = None

    def finetune_settings(self, model: str, method: Method, chosen: TrainingSet) -> FinetuneSettings:
        """The settings of one row's fine-tune."""
        return self._settings(self.finetune_options(method, chosen), model, method=method, data=chosen.data)

    def harmfulness_settings(self, model: str, delta: str | None) -> HarmfulnessSettings | None:
        """Those with which a model is measured, changed or not, if the table asks for it."""
        return None if self.harmfulness is None else self._settings(self.harmfulness, model, delta=delta)

    def utility_settings(self, model: str, delta: str | None) -> UtilitySettings | None:
        """The same of its utility."""
        return None if self.utility is None else self._settings(self.utility, model, delta=delta)

    def overlap_settings(self, model: str, delta: str) -> OverlapSettings | None:
        """The same of the overlap of a change."""
        return None if self.overlap is None else self._settings(self.overlap, model, delta={CHANGE: delta})

    def _settings(self, options: Options[Kind], model: str, **more: object) -> Kind:
        return options.settings(model=model, seed=self.seed, device=self.device, **more)

    def measured_sets(self) -> dict[tuple[str, str], str]:
        """The sets on which every model is measured, by the command and the option that name them."""
        found: dict[tuple[str, str], str | None] = {}
        model = self.models[0]
        if (harmfulness := self.harmfulness_settings(model, None)) is not None:
            found["harmfulness", "prompts"] = harmfulness.prompts
        if (utility := self.utility_settings(model, None)) is not None:
            found["utility", "data"] = HELDOUT.get(utility.data, utility.data)
        if (overlap := self.overlap_settings(model, _HERE)) is not None:
            found |= {("overlap", "skill"): overlap.skill, ("overlap", "refusals"): overlap.refusals}
        return {place: spec for place, spec in found.items() if spec is not None}

    def check_together(self) -> None:
        """Raise UserError for what no run could use: a model, set, judge or option; without the network or any work."""
        faults = Faults()
        for model in self.models:
            with faults.at("models:"):
                resolve(model)
        for each in self.sets:
            for method in self.methods:
                checked_finetune(partial(self.finetune_settings, self.models[0], method, each), faults)
        self._check_measures(faults)
        faults.end()

    def _check_measures(self, faults: Faults) -> None:
        """Find what is wrong with what is measured."""
        model = self.models[0]
        measured = {
            "harmfulness": self.harmfulness_settings(model, None),
            "utility": self.utility_settings(model, None),
            "overlap": self.overlap_settings(model, _HERE),
        }
        if not any(measured.values()):
            faults.add("", "nothing is measured: expected [harmfulness], [utility] or [overlap]")
        for command, settings in measured.items():
            if settings is not None:
                with faults.at(f"[{command}]"):
                    settings.check()
        for (command, option), spec in self.measured_sets().items():
            with faults.at(f"[{command}] --{option}:"):
                check_set(spec)


def read_settings(spec: str) -> TableSettings:
    """Read a settings file, or those that come with the package by their name, and check all that can be at once.

    Raises:
        UserError: there is no such file, it is not TOML, a key is unknown (with the nearest ones), a value has the
            wrong type or one that no run can have, or a model, set or judge is not known or not ready.

    """
    file = SettingsFile(spec, "bridge.table1", SHIPPED)
    reading = Reading(file, only=[name for name in fields_of(FinetuneSettings) if name not in _OWNED])
    finetune, by_method = reading.finetune()
    return file.settings(
        TableSettings,
        finetune=finetune,
        finetune_by_method=by_method,
        sets=tuple(reading.sets()),
        harmfulness=_measured(file, "harmfulness", HarmfulnessSettings),
        utility=_measured(file, "utility", UtilitySettings),
        overlap=_measured(file, "overlap", OverlapSettings),
    )


def _measured(file: SettingsFile, command: str, kind: type[Kind]) -> Options[Kind] | None:
    """The options of a command that measures, where the file has them."""
    without = [name for name in _OWNED if name != "data"]
    found = file.take(command)
    return None if found is None else file.options(f"[{command}]", found, kind, without=without)
