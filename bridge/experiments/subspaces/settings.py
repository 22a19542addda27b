"""The options of `bridge.subspaces`, and what they must satisfy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bridge.models.loading import check_device_name
from bridge.models.names import resolve
from commands.errors import UserError
from commands.options import at_least, require

FRACTIONS = "0.01,0.05,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,0.95,0.99"


ENERGIES = "0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,0.95,0.99"


BASES = "top-k,random-k,random"


ALIGNMENT = "alignment"  # the label of the alignment update among others


_SIDES = Literal["left", "right"]


_DTYPES = Literal["float32", "float64"]


@dataclass(frozen=True)
class Settings:
    """What the three commands share: the updates, and how their matrices are decomposed."""

    alignment: str | None
    aligned: str | None
    base: str | None
    updates: dict[str, str]  # tasks, or the updates compared, by label
    side: _SIDES
    modules: Literal["all", "blocks"]
    seed: int
    dtype: _DTYPES
    device: str | None

    def check(self) -> None:
        """Raise UserError for options that no run can have."""
        at_least(0, self, "seed")
        check_device_name(self.device)
        if self.base is not None:
            require(self.aligned is not None, "base", "--aligned beside it, whose difference is the update", "none")
            require(self.alignment is None, "base", "either --aligned and --base, or --alignment", "both")
        if self.alignment is not None and not Path(self.alignment).expanduser().exists():
            raise UserError(
                f"--alignment: no such change of weights: {self.alignment}; expected a run folder of bridge.align or "
                f"a delta.safetensors, or give --aligned MODEL --base MODEL"
            )
        for model in (self.aligned, self.base):
            if model is not None:
                resolve(model)

    def check_alignment(self) -> None:
        """Raise UserError unless an alignment update is given."""
        given = self.alignment is not None or self.base is not None
        require(given, "alignment", "the alignment update: --alignment DELTA, or --aligned MODEL --base MODEL", "none")


@dataclass(frozen=True)
class EnergySettings(Settings):
    """The options of `energy`."""

    fractions: tuple[float, ...]
    bases: tuple[str, ...]
    repeats: int

    def check(self) -> None:
        """Raise UserError for options that no run can have."""
        require(len(self.updates) > 0, "task", "a task update, such as a run folder of bridge.finetune", "none")
        at_least(1, self, "repeats")
        super().check()
        self.check_alignment()


@dataclass(frozen=True)
class ProjectSettings(Settings):
    """The options of `project`."""

    basis: Literal["top-k", "random-k", "random"]
    fraction: float
    scheme: Literal["parallel", "orthogonal"]
    vectors: Literal["keep", "drop"]
    save_model: bool

    def check(self) -> None:
        """Raise UserError for options that no run can have."""
        require(0 < self.fraction <= 1, "fraction", "a number above 0, at most 1", self.fraction)
        if self.save_model:
            require(self.aligned is not None, "save_model", "--aligned beside it, the model that is moved", "none")
        super().check()
        self.check_alignment()


@dataclass(frozen=True)
class MsoSettings(Settings):
    """The options of `mso`."""

    energies: tuple[float, ...]
    permutations: int

    def check(self) -> None:
        """Raise UserError for options that no run can have."""
        at_least(0, self, "permutations")
        with_alignment = self.alignment is not None or self.base is not None
        count = len(self.updates) + with_alignment
        require(count >= 2, "update", "two updates or more (the alignment update counts as one)", count)
        require(not with_alignment or ALIGNMENT not in self.updates, "update", "another label", ALIGNMENT)
        super().check()


def numbers(option: str, text: str) -> tuple[float, ...]:
    """Increasing fractions in a comma-separated option; UserError for anything else."""
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UserError(f"--{option}: expected numbers separated by commas, got {text!r}") from error
    good = all(0 < value <= 1 for value in found) and list(found) == sorted(set(found))
    require(good, option, "increasing numbers above 0, at most 1", text)
    return found
