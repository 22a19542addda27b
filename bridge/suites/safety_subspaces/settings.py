"""The settings of `bridge.safety_subspaces`: the models, the fine-tunes, the projections, and what is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le, Lt, MinLen

from bridge.deltas.choices import BASES, SCHEMES, Basis, Scheme, Side, Vectors
from bridge.experiments.finetune.settings import Settings as FinetuneSettings
from bridge.experiments.harmfulness.settings import Settings as HarmfulnessSettings
from bridge.experiments.options import Device, Dtype, Seed
from bridge.experiments.utility.settings import HELDOUT
from bridge.experiments.utility.settings import Settings as UtilitySettings
from bridge.models.names import resolve
from bridge.suites.settings_file import Distinct, Faults, Kind, Options, SettingsFile, SuiteSettings, check_set
from bridge.training.plan import Method
from commands.options import require
from commands.settings import Option

SHIPPED = {"offline": "safety_subspaces/offline.toml", "paper": "safety_subspaces/paper.toml"}
"""Settings that come with the package, by name."""

FRACTIONS = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
USEFUL, HARMFUL, CONTAMINATED = "useful", "harmful", "contaminated"
# Options that the suite gives to its commands, or that it has no use for.
_OWNED = ("model", "delta", "method", "seed", "device", "dtype", "rescore", "mix", "share")
_RISING = "numbers above 0 and up to 1, in rising order"
Fraction = Annotated[float, Gt(0), Le(1)]


@dataclass(frozen=True, kw_only=True)
class ExperimentSettings(SuiteSettings):
    """One experiment: what is fine-tuned, on what, which parts of the changes are kept, and what is measured.

    Every projected model is a basis, a scheme and a fraction of min(rows, columns).
    """

    title: Annotated[str, Option("Heading of the report.")] = "What a fine-tune keeps when it is projected"
    model: Annotated[str, Option("The aligned model, which is fine-tuned.", wanted="a model's name")]
    base: Annotated[str, Option("The model that it was aligned from.", wanted="a model's name")]
    method: Annotated[Method, Option("Method of fine-tuning.")] = "lora"
    seed: Seed = 0
    device: Device = None
    dtype: Dtype = None
    keep_weights: Annotated[bool, Option("Keep the weights of the fine-tunes at the end.")] = True
    side: Annotated[Side, Option("Side of the matrices that the bases are of.")] = "left"
    vectors: Annotated[Vectors, Option("What becomes of parameters that are no matrices.")] = "keep"
    bases: Annotated[
        tuple[Basis, ...], Option("Kinds of bases.", wanted=f"a list of {', '.join(BASES)}, each once"),
        MinLen(1), Distinct,
    ] = BASES  # fmt: skip
    schemes: Annotated[
        tuple[Scheme, ...], Option("Parts that are kept.", wanted=f"a list of {', '.join(SCHEMES)}, each once"),
        MinLen(1), Distinct,
    ] = SCHEMES  # fmt: skip
    fractions: Annotated[
        tuple[Fraction, ...], Option("Ranks as fractions of min(rows, columns).", wanted=_RISING), MinLen(1)
    ] = FRACTIONS
    repeats: Annotated[int, Option("Draws of each random basis."), Ge(1)] = 1
    energies: Annotated[
        tuple[Fraction, ...],
        Option("Shares of an update's squared norm over which subspaces are compared.", wanted=_RISING), MinLen(1),
    ] = FRACTIONS[1:]  # fmt: skip
    contamination: Annotated[
        float,
        Option(
            "Share of the harmful set among the rows of a third fine-tune; 0 for no such fine-tune.",
            wanted="a share of the rows in [0, 1), 0 for no such fine-tune",
        ),
        Ge(0),
        Lt(1),
    ] = 0.2
    finetune: Annotated[Options[FinetuneSettings], Option("Options of bridge.finetune for all fine-tunes.")]
    useful: Annotated[Options[FinetuneSettings], Option("The same for the useful one.")]
    harmful: Annotated[Options[FinetuneSettings], Option("The same for the harmful one.")]
    utility: Annotated[Options[UtilitySettings], Option("Options of bridge.utility.")]
    harmfulness: Annotated[Options[HarmfulnessSettings], Option("Options of bridge.harmfulness.")]

    @property
    def finetunes(self) -> dict[str, Options[FinetuneSettings]]:
        """The options of each fine-tune by its name; the contaminated one is the useful one with other rows in it."""
        own = {USEFUL: self.finetune.over(self.useful), HARMFUL: self.finetune.over(self.harmful)}
        if self.contamination:
            mixed = {"mix": own[HARMFUL].given.get("data"), "share": self.contamination}
            own[CONTAMINATED] = own[USEFUL].over(Options(FinetuneSettings, mixed))
        return own

    def identity(self) -> dict[str, object]:
        """The settings as the manifest of a run holds them: the fine-tunes with all of their options."""
        found = super().identity()
        for name in ("finetune", USEFUL, HARMFUL):
            del found[name]
        return found | {"finetunes": {name: dict(options.given) for name, options in self.finetunes.items()}}

    def document(self) -> dict[str, object]:
        """The settings as a file gives them."""
        return super().identity()

    def finetune_settings(self, name: str) -> FinetuneSettings:
        """The settings of one fine-tune."""
        own = {"model": self.model, "method": self.method, "seed": self.seed, "device": self.device}
        return self.finetunes[name].settings(**own)

    def utility_settings(self) -> UtilitySettings:
        """Those with which every model is measured."""
        return self._measured(self.utility)

    def harmfulness_settings(self) -> HarmfulnessSettings:
        """The same of its harmfulness."""
        return self._measured(self.harmfulness)

    def _measured(self, options: Options[Kind]) -> Kind:
        return options.settings(model=self.model, device=self.device, dtype=self.dtype, seed=self.seed)

    def check_together(self) -> None:
        """Raise UserError for a model, set, judge or option that no run could use; without the network or any work."""
        faults = Faults()
        for name in ("fractions", "energies"):
            values = getattr(self, name)
            if list(values) != sorted(set(values)):
                faults.add(f"{name}:", f"expected {_RISING}, got {list(values)}")
        for name in ("model", "base"):
            with faults.at(f"{name}:"):
                resolve(getattr(self, name))
        for name, options in self.finetunes.items():
            with faults.at(f"[{name}]"):
                require("data" in options.given, "data", 'data = "NAME"', "none")
                self.finetune_settings(name).check()
                check_set(self.finetune_settings(name).data)
        with faults.at("[utility]"):
            useful = self.utility_settings()
            useful.check()
            check_set(HELDOUT.get(useful.data, useful.data))
        with faults.at("[harmfulness]"):
            judged = self.harmfulness_settings()
            judged.check()
            check_set(judged.prompts)
        faults.end()


def read_settings(spec: str) -> ExperimentSettings:
    """Read a settings file, or those that come with the package by their name, and check all that can be at once.

    Raises:
        UserError: there is no such file, it is not TOML, a key is unknown (with the nearest ones), a value has the
            wrong type or lies outside its range, or a model, set or judge is not known or not ready.

    """
    file = SettingsFile(spec, "bridge.safety_subspaces", SHIPPED)

    def table(name: str, kind: type[Kind], *without: str, default: object = None) -> Options[Kind]:
        return file.options(f"[{name}]", file.take(name, default), kind, without=(*_OWNED, *without))

    return file.settings(
        ExperimentSettings,
        finetune=table("finetune", FinetuneSettings, "data", default={}),
        useful=table(USEFUL, FinetuneSettings),
        harmful=table(HARMFUL, FinetuneSettings),
        utility=table("utility", UtilitySettings),
        harmfulness=table("harmfulness", HarmfulnessSettings),
    )
