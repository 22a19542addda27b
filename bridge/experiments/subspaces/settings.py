"""The options of `bridge.subspaces energy`, `project` and `mso`, and what they must satisfy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le, MinLen

from bridge.deltas.choices import BASES, Basis, Scheme, Side, Vectors
from bridge.experiments.labels import check_deltas, labelled_deltas
from bridge.experiments.options import Device
from bridge.models.names import check_device_name, resolve
from commands.errors import UserError
from commands.options import chosen, require
from commands.paths import expanded
from commands.settings import Option, Settings

FRACTIONS = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
ENERGIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
ALIGNMENT = "alignment"
"""Label of the alignment update among others."""

_DELTA = (
    "[LABEL=]PATH of a weight change of the aligned model: a run folder of bridge.finetune, an adapter, a "
    "delta.safetensors, or the folder of the changed model"
)
Dtype = Literal["float32", "float64"]
Modules = Literal["all", "blocks"]
Fraction = Annotated[float, Gt(0), Le(1)]


def numbers(option: str, texts: str | Sequence[str]) -> tuple[float, ...]:
    """The numbers in a comma-separated option; UserError for what is none."""
    text = texts if isinstance(texts, str) else ",".join(texts)
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UserError(f"--{option}: expected numbers separated by commas, got {text!r}") from error


def check_rising(option: str, values: Sequence[float]) -> None:
    """Raise UserError unless there are fractions, and they rise."""
    rising = bool(values) and list(values) == sorted(set(values))
    require(rising, option, "increasing numbers above 0, at most 1", ",".join(map(str, values)) or "none")


def _bases(texts: str | Sequence[str]) -> tuple[str, ...]:
    text = texts if isinstance(texts, str) else ",".join(texts)
    return tuple(dict.fromkeys(chosen("--bases", text, BASES)))


@dataclass(frozen=True, kw_only=True)
class Decomposition(Settings):
    """The matrices and their decompositions."""

    side: Annotated[
        Side,
        Option(
            "Left singular vectors (the paper's), or right ones, of weights as stored: left is the output side of "
            "torch.nn.Linear, but the input side of GPT-2's Conv1D."
        ),
    ] = "left"
    modules: Annotated[
        Modules, Option("Which matrices: all, embeddings included, or those of the numbered blocks.")
    ] = "all"
    seed: Annotated[int, Option("Seed of the random draws; repeat i has the seed SEED + i."), Ge(0)] = 0
    dtype: Annotated[Dtype, Option("Type of the decompositions.")] = "float64"
    device: Device = None

    def check_together(self) -> None:
        """Raise UserError for a device that there is none of."""
        check_device_name(self.device)
        super().check_together()


@dataclass(frozen=True, kw_only=True)
class OfAlignment(Decomposition):
    """The alignment update."""

    UPDATES: ClassVar[str]  # the option that names the other updates

    alignment: Annotated[
        str | None,
        Option("The alignment update: a run folder of bridge.align, an adapter, or a delta.safetensors."),
    ] = None
    aligned: Annotated[
        str | None,
        Option("The aligned model, from which the fine-tunes start: alias, hub name or local folder."),
    ] = None
    base: Annotated[str | None, Option("The model it was aligned from: the update is the difference.")] = None

    @property
    def updates(self) -> dict[str, str]:
        """The other updates by label: the tasks, or those that are compared."""
        named: dict[str, str] = getattr(self, self.UPDATES)
        return named

    @property
    def with_alignment(self) -> bool:
        """Whether an alignment update is given."""
        return self.alignment is not None or self.base is not None

    def identity(self) -> dict[str, object]:
        """The options as the manifest of a run holds them: the updates under one name."""
        options = super().identity()
        return options | {"updates": options.pop(self.UPDATES)}

    def check_together(self) -> None:
        """Raise UserError for models or updates that there are none of, or that do not go together."""
        super().check_together()
        if self.base is not None:
            require(self.aligned is not None, "base", "--aligned beside it, whose difference is the update", "none")
            require(self.alignment is None, "base", "either --aligned and --base, or --alignment", "both")
        if self.alignment is not None and not expanded(self.alignment).exists():
            raise UserError(
                f"--alignment: no such change of weights: {self.alignment}; expected a run folder of bridge.align or "
                f"a delta.safetensors, or give --aligned MODEL --base MODEL"
            )
        for model in (self.aligned, self.base):
            if model is not None:
                resolve(model)
        check_deltas(self.updates, self.UPDATES)

    def require_alignment(self) -> None:
        """Raise UserError unless an alignment update is given."""
        wanted = "the alignment update: --alignment DELTA, or --aligned MODEL --base MODEL"
        require(self.with_alignment, "alignment", wanted, "none")


@dataclass(frozen=True, kw_only=True)
class EnergySettings(OfAlignment):
    """The options of `energy`."""

    UPDATES: ClassVar[str] = "task"

    task: Annotated[
        dict[str, str],
        Option(f"{_DELTA}; may be repeated.", read=partial(labelled_deltas, option="task"), several=True),
    ] = field(default_factory=dict)
    fractions: Annotated[
        tuple[Fraction, ...],
        Option(
            "Ranks as fractions of min(M, N).",
            wanted="increasing numbers above 0, at most 1",
            read=partial(numbers, "fractions"),
        ),
    ] = FRACTIONS
    bases: Annotated[
        tuple[Basis, ...], Option("Bases to project onto, separated by commas.", wanted=f"some of {', '.join(BASES)}",
        read=_bases), MinLen(1),
    ] = BASES  # fmt: skip
    repeats: Annotated[int, Option("Draws of each random basis."), Ge(1)] = 5

    def check_together(self) -> None:
        """Raise UserError for options that do not go together."""
        require(len(self.task) > 0, "task", "a task update, such as a run folder of bridge.finetune", "none")
        check_rising("fractions", self.fractions)
        super().check_together()
        self.require_alignment()


@dataclass(frozen=True, kw_only=True)
class ProjectSettings(OfAlignment):
    """The options of `project`."""

    UPDATES: ClassVar[str] = "task"

    task: Annotated[
        dict[str, str], Option(f"{_DELTA}.", wanted="[LABEL=]PATH", read=partial(labelled_deltas, option="task"))
    ]
    basis: Annotated[Basis, Option("Basis to project onto.")] = "top-k"
    fraction: Annotated[Fraction, Option("Rank as a fraction of min(M, N).")] = 0.5
    scheme: Annotated[Scheme, Option("What is kept: the part inside the subspace, or the rest.")] = "parallel"
    vectors: Annotated[
        Vectors,
        Option(
            "Norms, biases, and matrices left out by --modules, which no basis projects: kept whole in either part "
            "(parallel plus orthogonal then hold them twice), or dropped from both."
        ),
    ] = "keep"
    save_model: Annotated[bool, Option("Write the moved model's folder, too.", flag=True)] = False

    def check_together(self) -> None:
        """Raise UserError for options that do not go together."""
        require(len(self.task) == 1, "task", "one task update", len(self.task))
        if self.save_model:
            require(self.aligned is not None, "save_model", "--aligned beside it, the model that is moved", "none")
        super().check_together()
        self.require_alignment()


@dataclass(frozen=True, kw_only=True)
class MsoSettings(OfAlignment):
    """The options of `mso`."""

    UPDATES: ClassVar[str] = "update"

    update: Annotated[
        dict[str, str],
        Option(f"{_DELTA}; may be repeated.", read=partial(labelled_deltas, option="update"), several=True),
    ] = field(default_factory=dict)
    energies: Annotated[
        tuple[Fraction, ...],
        Option(
            "Energy fractions that choose the ranks.",
            wanted="increasing numbers above 0, at most 1",
            read=partial(numbers, "energies"),
        ),
    ] = ENERGIES
    permutations: Annotated[
        int, Option("Permutations for the intervals of chance; 0 for none."), Ge(0)
    ] = 20  # fmt: skip

    def check_together(self) -> None:
        """Raise UserError for options that do not go together."""
        count = len(self.update) + self.with_alignment
        require(count >= 2, "update", "two updates or more (the alignment update counts as one)", count)
        labelled = self.with_alignment and ALIGNMENT in self.update
        require(not labelled, "update", "another label", ALIGNMENT)
        check_rising("energies", self.energies)
        super().check_together()
