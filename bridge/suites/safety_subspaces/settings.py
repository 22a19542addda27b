"""The settings file of `bridge.safety_subspaces`: the models, the fine-tunes, the projections, and what is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bridge.evaluation.judges import read_judge
from bridge.models.names import resolve
from bridge.suites.settings_file import Options, SettingsReader, check_set, command_main, read_toml, with_defaults
from commands.errors import UserError

if TYPE_CHECKING:
    from bridge.deltas.bases import Kind, Scheme, Side

SHIPPED = {"offline": "safety_subspaces/offline.toml", "paper": "safety_subspaces/paper.toml"}
"""Settings that come with the package, by name."""

# As bridge.deltas.bases and bridge.deltas.projections have them, which import torch.
KINDS: tuple[Kind, ...] = ("top-k", "random-k", "random")
SCHEMES: tuple[Scheme, ...] = ("parallel", "orthogonal")
SIDES: tuple[Side, ...] = ("left", "right")
VECTORS = ("keep", "drop")
FRACTIONS = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
METHODS = ("lora", "full")
USEFUL, HARMFUL, CONTAMINATED = "useful", "harmful", "contaminated"
# Options that the experiment gives to its commands, or that it has no use for.
_OWNED = {
    "model", "delta", "method", "seed", "device", "dtype", "out", "show_preset", "rescore", "retry_failed", "mix",
    "share",
}  # fmt: skip
_TOP: dict[str, type] = {
    "title": str, "model": str, "base": str, "method": str, "seed": int, "device": str, "dtype": str,
    "keep_weights": bool, "side": str, "vectors": str, "bases": list, "schemes": list, "fractions": list,
    "repeats": int, "energies": list, "contamination": float, "useful": dict, "harmful": dict, "finetune": dict,
    "utility": dict, "harmfulness": dict,
}  # fmt: skip


@dataclass(frozen=True)
class ExperimentSettings:
    """One experiment: what is fine-tuned, on what, which parts of the changes are kept, and what is measured.

    `finetunes` are the options of `bridge.finetune` by the name of the fine-tune: useful, harmful and, where
    `contamination` is not 0, contaminated, whose rows are in that share of the harmful set. Every projected model is
    a basis, a scheme and a fraction of min(rows, columns); random bases are drawn `repeats` times. `energies` are the
    shares of an update's squared norm over which the subspaces of the updates are compared. `vectors` says what
    becomes of parameters that are no matrices. Without `keep_weights`, the weights of the fine-tunes are deleted at
    the end.
    """

    title: str
    model: str
    base: str
    method: str
    seed: int
    device: str | None
    dtype: str | None
    keep_weights: bool
    side: Side
    vectors: str
    bases: tuple[Kind, ...]
    schemes: tuple[Scheme, ...]
    fractions: tuple[float, ...]
    repeats: int
    energies: tuple[float, ...]
    contamination: float
    finetunes: Mapping[str, Options]
    utility: Options
    harmfulness: Options


def read_settings(spec: str) -> ExperimentSettings:
    """Read a settings file, or those that come with the package by their name, and check all that can be at once.

    Raises:
        UserError: there is no such file, it is not TOML, a key is unknown (with the nearest ones), a value has the
            wrong type or lies outside its range, or a model, set or judge is not known or not ready.

    """
    reader = _Reader(spec, _OWNED)
    settings = reader.settings(read_toml(spec, SHIPPED))
    with reader.naming_file():
        _check(settings)
    return settings


class _Reader(SettingsReader):
    """Turns a TOML document into settings."""

    def settings(self, found: dict[str, Any]) -> ExperimentSettings:
        if isinstance(found.get("contamination"), int) and not isinstance(found["contamination"], bool):
            found["contamination"] = float(found["contamination"])
        self.top(found, _TOP)
        for name in ("model", "base", "useful", "harmful", "utility", "harmfulness"):
            if name not in found:
                raise UserError(f"--settings {self.file}: {name} is missing; the settings offline have all there is")
        contamination = found.get("contamination", 0.2)
        if not 0 <= contamination < 1:
            raise self.error("contamination", "a share of the rows in [0, 1), 0 for no such fine-tune", contamination)
        utility, harmfulness = (self.options(name, name, found[name]) for name in ("utility", "harmfulness"))
        repeats = found.get("repeats", 1)
        if repeats < 1:
            raise self.error("repeats", "a whole number from 1", repeats)
        return ExperimentSettings(
            title=found.get("title", "What a fine-tune keeps when it is projected"),
            model=found["model"],
            base=found["base"],
            method=self._one(found, "method", METHODS),
            seed=found.get("seed", 0),
            device=found.get("device"),
            dtype=found.get("dtype"),
            keep_weights=found.get("keep_weights", True),
            side=self._one(found, "side", SIDES),
            vectors=self._one(found, "vectors", VECTORS),
            bases=self._several(found, "bases", KINDS),
            schemes=self._several(found, "schemes", SCHEMES),
            fractions=self._shares(found, "fractions", FRACTIONS),
            repeats=repeats,
            energies=self._shares(found, "energies", FRACTIONS[1:]),
            contamination=contamination,
            finetunes=self._finetunes(found, contamination),
            utility=utility,
            harmfulness=harmfulness,
        )

    def _one(self, found: Options, key: str, allowed: Sequence[Any]) -> Any:
        """One of the allowed names; the first where none is given."""
        value = found.get(key, allowed[0])
        if value not in allowed:
            raise self.error(key, " or ".join(allowed), value)
        return value

    def _several(self, found: Options, key: str, allowed: Sequence[Any]) -> tuple[Any, ...]:
        """Some of the allowed names, each once; all where none are given."""
        values = found.get(key, list(allowed))
        if not values or any(values.count(value) > 1 or value not in allowed for value in values):
            raise self.error(key, f"a list of {', '.join(allowed)}, each once", values)
        return tuple(values)

    def _shares(self, found: Options, key: str, default: Sequence[float]) -> tuple[float, ...]:
        values = found.get(key, list(default))
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        rising = numbers and all(0 < value <= 1 for value in values) and sorted(set(values)) == values
        if not values or not rising:
            raise self.error(key, "numbers above 0 and up to 1, in rising order", values)
        return tuple(map(float, values))

    def _finetunes(self, found: Options, contamination: float) -> dict[str, dict[str, Any]]:
        """The options of each fine-tune by its name."""
        common = self.options("finetune", "finetune", found.get("finetune", {}), without=["data"])
        own: dict[str, dict[str, Any]] = {}
        for name in (USEFUL, HARMFUL):
            own[name] = common | self.options(name, "finetune", found[name])
            if "data" not in own[name]:
                raise self.error(name, 'data = "NAME"', found[name])
        if contamination:
            own[CONTAMINATED] = own[USEFUL] | {"mix": own[HARMFUL]["data"], "share": contamination}
        return own


def _check(settings: ExperimentSettings) -> None:
    """Raise UserError for a model, set, judge or option that no run could use; without the network or any work."""
    for model in (settings.model, settings.base):
        resolve(model)
    for options in settings.finetunes.values():
        check_set(options["data"])
    check_set(settings.utility.get("data", with_defaults("utility", {})["data"]))
    check_set(settings.harmfulness.get("prompts") or "advbench")
    for judge in settings.harmfulness.get("judge", ()):
        read_judge(judge).require_ready()
    utility_settings(settings)
    harmfulness_settings(settings)


def _options(settings: ExperimentSettings, command: str, options: Options) -> dict[str, Any]:
    given = {"model": settings.model, "device": settings.device, "dtype": settings.dtype, "seed": settings.seed}
    return with_defaults(command, given | dict(options))


def utility_settings(settings: ExperimentSettings) -> Any:
    """The settings of `bridge.utility` with which every model is measured; UserError for options that none can have."""
    from bridge.experiments.utility.settings import make_settings

    return make_settings(_options(settings, "utility", settings.utility))


def harmfulness_settings(settings: ExperimentSettings) -> tuple[Any, Any]:
    """The same of `bridge.harmfulness`: its settings, and how patiently judges are asked."""
    from bridge.experiments.harmfulness.settings import make_settings

    return make_settings(_options(settings, "harmfulness", settings.harmfulness))


def finetune_command(settings: ExperimentSettings, name: str) -> tuple[Any, dict[str, Any]]:
    """The function of `bridge.finetune` and all its options for one fine-tune but the folder."""
    given = {"model": settings.model, "method": settings.method, "seed": settings.seed, "device": settings.device}
    return command_main("finetune"), {**given, **settings.finetunes[name]}
