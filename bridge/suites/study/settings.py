"""The settings of `bridge.study`: a model, sets, methods and seeds, and how the damage is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, MinLen

from bridge.experiments.estimate_aic.settings import Settings as AicSettings
from bridge.experiments.finetune.settings import Settings as FinetuneSettings
from bridge.experiments.options import Device, Dtype, Seed
from bridge.experiments.overlap.settings import Settings as OverlapSettings
from bridge.experiments.risk.settings import Settings as RiskSettings
from bridge.models.names import resolve
from bridge.suites.finetunes import Finetunes, LocalSet, Reading, TrainingSet, checked_finetune
from bridge.suites.settings_file import Distinct, Faults, Options, SettingsFile, check_set
from bridge.training.plan import Method
from commands.errors import UserError
from commands.paths import expanded
from commands.settings import Option

SHIPPED = {"offline": "study/offline.toml", "paper": "study/paper.toml"}
"""Settings that come with the package, by name."""

CHANGE = "change"
"""Label of a fine-tune's change of the weights."""
_SKILL = ("skill", "num_skill", "draws", "max_new_tokens", "modules", "batch_size", "memory", "bootstrap")
_OVERLAP = ("rank", "refusals", "estimator", "dim")
_FINETUNE = (
    "rows", "max_length", "preset", "learning_rate", "epochs", "max_steps", "batch_size", "micro_batch_size",
    "lora_rank", "lora_alpha", "lora_dropout", "lora_targets", "override", "skip_bad_rows",
)  # fmt: skip
_NOTHING = Options(OverlapSettings)
_HERE = "."  # stands for a row's change, which is not there yet


@dataclass(frozen=True, kw_only=True)
class StudySettings(Finetunes):
    """One study: a fine-tune for every set, method and seed.

    `left_out` are sets in local files, where the folder of these files was not given.
    """

    title: Annotated[str, Option("Heading of the study.")] = "Which number predicts the damage of a fine-tune?"
    model: Annotated[str, Option("The model to fine-tune.", wanted="a model's name")]
    seeds: Annotated[
        tuple[Annotated[int, Ge(0)], ...],
        Option("Seeds of the fine-tunes.", wanted="whole numbers from 0, each once"), MinLen(1), Distinct,
    ] = (0, 1)  # fmt: skip
    seed: Seed = 0
    device: Device = None
    dtype: Dtype = None
    keep_weights: Annotated[bool, Option("Keep the weights of fine-tunes that are done.")] = False
    pilot_steps: Annotated[int, Option("Steps of a pilot before each fine-tune; 0 for none."), Ge(0)] = 0
    risk: Annotated[bool, Option("Run bridge.risk on every set.")] = True
    resamples: Annotated[int, Option("Resamples for the correlations' intervals."), Ge(0)] = 2000
    left_out: Annotated[tuple[LocalSet, ...], Option("Sets whose local files were not given.")] = ()
    skill: Annotated[Options[OverlapSettings], Option("What damage and predictions are measured on.")] = _NOTHING
    overlap: Annotated[Options[OverlapSettings], Option("Further options of bridge.overlap.")] = _NOTHING

    def identity(self) -> dict[str, object]:
        """The settings as the manifest of a run holds them: of the sets left out the names."""
        return super().identity() | {"left_out": [each.name for each in self.left_out]}

    def document(self) -> dict[str, object]:
        """The settings as a file gives them."""
        found = super().document()
        del found["left_out"]
        return found | {"sets": [each.document() for each in (*self.sets, *self.left_out)]}

    def finetune_settings(self, method: Method, chosen: TrainingSet, seed: int) -> FinetuneSettings:
        """The settings of one fine-tune."""
        given = self.finetune_options(method, chosen)
        return given.settings(**self._common(), data=chosen.data, method=method, seed=seed)

    def overlap_settings(self, delta: str) -> OverlapSettings:
        """Those of the overlap of a fine-tune's change, and of what it did."""
        given = Options(OverlapSettings, self.skill_options()).over(self.overlap)
        return given.settings(**self._common(), delta={CHANGE: delta}, utility_loss=True)

    def skill_settings(self) -> OverlapSettings:
        """The same where nothing has changed yet: what the skill is, and how it is measured."""
        return self.skill.settings(**self._common(), max_length=self.max_length, seed=self.seed)

    def skill_options(self) -> dict[str, object]:
        """Options of `bridge.overlap`, `estimate_aic` and `risk` that say what the skill is, defaults included."""
        skill = self.skill_settings()
        return {name: getattr(skill, name) for name in (*_SKILL, "max_length", "seed")}

    def aic_settings(self, path: dict[str, object]) -> AicSettings:
        """Those of the estimate along the path of a fine-tune."""
        return AicSettings.read({**self._common(), **path})

    def risk_settings(self, path: dict[str, object]) -> RiskSettings:
        """Those of the risk of its rows."""
        return RiskSettings.read({**self._common(), **path})

    def _common(self) -> dict[str, object]:
        """Options that every command gets."""
        return {"model": self.model, "device": self.device, "dtype": self.dtype}

    @property
    def max_length(self) -> int:
        """Longest row in tokens, of everything that is trained on or measured."""
        return self.finetune.settings().max_length

    def check_together(self) -> None:
        """Raise UserError for what no run could use: a model, set or option; without the network or any work."""
        faults = Faults()
        with faults.at("model:"):
            resolve(self.model)
        for each in self.sets:
            for method in self.methods:
                tuned = checked_finetune(partial(self.finetune_settings, method, each, self.seeds[0]), faults)
                if tuned is not None:
                    with faults.at("[finetune]"):
                        kind_of_optimizer(tuned.plan.optimizer)
                    with faults.at("pilot_steps:"):
                        _check_pilot(self.pilot_steps, tuned, f"{method} on {each.name}")
        measured = self.overlap_settings(_HERE)
        with faults.at("[skill] and [overlap]"):
            measured.check()
        with faults.at("[skill] --skill:"):
            check_set(measured.skill)
        if measured.refusals is not None:
            with faults.at("[overlap] --refusals:"):
                check_set(measured.refusals)
        faults.end()


def read_settings(spec: str, files: Path | None = None) -> StudySettings:
    """Read a settings file, or those that come with the package by their name, and check all that can be at once.

    Args:
        spec: the file, or the name.
        files: the folder that the sets' local files are in; without it these sets are left out.

    Raises:
        UserError: there is no such file, it is not TOML, a key is unknown (with the nearest ones), a value has the
            wrong type or one that no run can have, a model or set is not known, or a local file is not there.

    """
    file = SettingsFile(spec, "bridge.study", SHIPPED)
    reading = Reading(file, only=_FINETUNE, shared=["max_length"])  # the skill's rows are as long as those trained on
    finetune, by_method = reading.finetune()
    sets, left_out = _with_files(reading.sets(local=True), files)
    return file.settings(
        StudySettings,
        finetune=finetune,
        finetune_by_method=by_method,
        sets=tuple(sets),
        left_out=tuple(left_out),
        skill=file.options("[skill]", file.take("skill", {}), OverlapSettings, only=_SKILL),
        overlap=file.options("[overlap]", file.take("overlap", {}), OverlapSettings, only=_OVERLAP),
    )


def _with_files(sets: Sequence[TrainingSet], files: Path | None) -> tuple[list[TrainingSet], list[LocalSet]]:
    """The sets, those in local files with the paths of these; and those that are left out without their folder."""
    if files is None:
        local = [each for each in sets if isinstance(each, LocalSet)]
        return [each for each in sets if not isinstance(each, LocalSet)], local
    return [_with_file(each, files) if isinstance(each, LocalSet) else each for each in sets], []


def _with_file(chosen: LocalSet, files: Path) -> TrainingSet:
    path = expanded(files) / chosen.file
    if not path.is_file():
        raise UserError(
            f"--files: expected {chosen.file} in {files} (the set {chosen.data}), found no such file"
        )  # fmt: skip
    return TrainingSet(chosen.name, f"{chosen.data}={path}", chosen.options)


def _check_pilot(pilot: int, tuned: FinetuneSettings, which: str) -> None:
    """Raise UserError unless a pilot, if there is one, gives a forecast its points, and the fine-tune goes on after it.

    With a warm-up the first step's learning rate is 0, and nothing has moved after it. A constant schedule has none.
    """
    if not pilot:
        return
    from theory.damage_forecast import LEAST_POINTS  # SciPy takes a while to import: --help should not wait for it

    plan = tuned.plan
    idle = int(plan.warmup > 0 and plan.scheduler != "constant")
    if pilot < LEAST_POINTS + idle:
        why = f"{LEAST_POINTS} points for the forecast{f', and the warm-up of {which}' if idle else ''}"
        raise UserError(f"expected 0 (no pilot) or at least {LEAST_POINTS + idle} ({why}), got {pilot}")
    steps = plan.steps(tuned.rows) if tuned.rows or plan.max_steps else None
    if steps is not None and pilot >= steps:
        raise UserError(f"expected fewer than {steps}, the steps of {which}, got {pilot}")


def kind_of_optimizer(name: str) -> Literal["adamw", "sgd"]:
    """What `bridge.estimate_aic` calls an optimizer of transformers: adamw or sgd; UserError for any other."""
    if name.startswith("adamw"):
        return "adamw"
    if name == "sgd":
        return "sgd"
    raise UserError(f"the damage is predicted for AdamW and SGD, and the optimizer is {name}")
