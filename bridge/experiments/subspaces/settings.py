"""The options of `bridge.subspaces`, and what they must satisfy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from bridge.experiments.labels import check_deltas, labelled_deltas
from bridge.experiments.options import Device
from bridge.models.names import check_device_name, resolve
from commands.errors import UserError
from commands.options import chosen, require
from commands.settings import Option
from commands.settings import Settings as Options

ALIGNMENT = "alignment"  # the label of the alignment update among others
Kind = Literal["top-k", "random-k", "random"]
Side = Literal["left", "right"]
BASES: tuple[Kind, ...] = ("top-k", "random-k", "random")
_DELTA = (
    "[LABEL=]PATH of a weight change of the aligned model: a run folder of bridge.finetune, an adapter, a "
    "delta.safetensors, or the folder of the changed model"
)


_TASK = partial(labelled_deltas, option="task")


def numbers(text: str | Sequence[str], option: str) -> tuple[float, ...]:
    """Increasing fractions in a comma-separated option; UserError for anything else."""
    given = text if isinstance(text, str) else ",".join(text)
    try:
        return tuple(float(part) for part in given.split(","))
    except ValueError as error:
        raise UserError(f"--{option}: expected numbers separated by commas, got {given!r}") from error


def check_increasing(values: tuple[float, ...], option: str) -> None:
    """Raise UserError unless the values are increasing fractions."""
    good = bool(values) and all(0 < value <= 1 for value in values) and list(values) == sorted(set(values))
    require(good, option, "increasing numbers above 0, at most 1", ",".join(map(str, values)))


def _bases(text: str | Sequence[str]) -> tuple[str, ...]:
    given = text if isinstance(text, str) else ",".join(text)
    return tuple(dict.fromkeys(chosen("--bases", given, BASES)))


@dataclass(frozen=True, kw_only=True)
class Settings(Options):
    """The alignment update, and how matrices are decomposed."""

    alignment: Annotated[
        str | None, Option("The alignment update: a run folder of bridge.align, an adapter, or a delta.safetensors.")
    ] = None
    aligned: Annotated[
        str | None, Option("The aligned model, from which the fine-tunes start: alias, hub name or local folder.")
    ] = None
    base: Annotated[str | None, Option("The model it was aligned from: the update is the difference.")] = None
    side: Annotated[
        Side,
        Option(
            "Left singular vectors (the paper's), or right ones, of weights as stored: left is the output side of "
            "torch.nn.Linear, but the input side of GPT-2's Conv1D."
        ),
    ] = "left"
    modules: Annotated[
        Literal["all", "blocks"], Option("All matrices, embeddings included, or those of the numbered blocks.")
    ] = "all"
    seed: Annotated[int, Option("Seed of the random draws; repeat i has the seed SEED + i."), Ge(0)] = 0
    dtype: Annotated[Literal["float32", "float64"], Option("Precision of the decompositions.")] = "float64"
    device: Device = None

    @property
    def updates(self) -> dict[str, str]:
        """The task updates, or the updates that are compared, by label."""
        raise NotImplementedError

    @property
    def has_alignment(self) -> bool:
        """Whether an alignment update is given."""
        return self.alignment is not None or self.base is not None

    def identity(self) -> dict[str, object]:
        """The options as the manifest of a run holds them: updates under that name, whatever the option's."""
        whole = super().identity() | {"updates": dict(self.updates)}
        return {name: value for name, value in whole.items() if name not in ("task", "update")}

    def check_together(self) -> None:
        """Raise UserError for options that do not go together, and for models that there are none of."""
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
        wanted = "the alignment update: --alignment DELTA, or --aligned MODEL --base MODEL"
        require(self.has_alignment, "alignment", wanted, "none")


@dataclass(frozen=True, kw_only=True)
class EnergySettings(Settings):
    """The options of `energy`."""

    task: Annotated[
        dict[str, str],
        Option(f"{_DELTA}; may be repeated.", read=_TASK, several=True),
    ] = field(default_factory=dict)
    fractions: Annotated[
        tuple[float, ...], Option("Ranks as fractions of min(M, N).", read=partial(numbers, option="fractions"))
    ] = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
    bases: Annotated[
        tuple[Kind, ...], Option("Which bases, separated by commas.", wanted=" or ".join(BASES), read=_bases)
    ] = BASES
    repeats: Annotated[int, Option("Draws of each random basis."), Ge(1)] = 5

    @property
    def updates(self) -> dict[str, str]:
        """The task updates by label."""
        return self.task

    def check_together(self) -> None:
        """Raise UserError for options that do not go together."""
        require(len(self.task) > 0, "task", "a task update, such as a run folder of bridge.finetune", "none")
        check_deltas(self.task, "task")
        check_increasing(self.fractions, "fractions")
        require(len(self.bases) > 0, "bases", " or ".join(BASES), "none")
        super().check_together()
        self.check_alignment()


@dataclass(frozen=True, kw_only=True)
class ProjectSettings(Settings):
    """The options of `project`."""

    task: Annotated[
        dict[str, str],
        Option(f"{_DELTA}.", wanted="a task update, such as a run folder of bridge.finetune", read=_TASK),
    ]
    basis: Annotated[Kind, Option("Which basis.")] = "top-k"
    fraction: Annotated[
        float,
        Option("Rank as a fraction of min(M, N).", wanted="a number above 0, at most 1"),
        Gt(0),
        Le(1),
    ] = 0.5
    scheme: Annotated[Literal["parallel", "orthogonal"], Option("The part inside the subspace, or the rest.")] = (
        "parallel"
    )
    vectors: Annotated[
        Literal["keep", "drop"],
        Option(
            "Norms, biases, and matrices left out by --modules, which no basis projects: kept whole in either part "
            "(parallel plus orthogonal then hold them twice), or dropped from both."
        ),
    ] = "keep"
    save_model: Annotated[bool, Option("Write the moved model's folder, too.", flag=True)] = False

    @property
    def updates(self) -> dict[str, str]:
        """The task update by its label."""
        return self.task

    def check_together(self) -> None:
        """Raise UserError for options that do not go together."""
        require(len(self.task) == 1, "task", "one task update", ", ".join(self.task) or "none")
        check_deltas(self.task, "task")
        if self.save_model:
            require(self.aligned is not None, "save_model", "--aligned beside it, the model that is moved", "none")
        super().check_together()
        self.check_alignment()


@dataclass(frozen=True, kw_only=True)
class MsoSettings(Settings):
    """The options of `mso`."""

    update: Annotated[
        dict[str, str],
        Option(f"{_DELTA}; may be repeated.", read=partial(labelled_deltas, option="update"), several=True),
    ] = field(default_factory=dict)
    energies: Annotated[
        tuple[float, ...],
        Option("Energy fractions that choose the ranks.", read=partial(numbers, option="energies")),
    ] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
    permutations: Annotated[int, Option("Permutations for the intervals of chance; 0 for none."), Ge(0)] = 20

    @property
    def updates(self) -> dict[str, str]:
        """The updates that are compared, by label."""
        return self.update

    def check_together(self) -> None:
        """Raise UserError for options that do not go together."""
        count = len(self.update) + self.has_alignment
        require(count >= 2, "update", "two updates or more (the alignment update counts as one)", count)
        require(not self.has_alignment or ALIGNMENT not in self.update, "update", "another label", ALIGNMENT)
        check_deltas(self.update, "update")
        check_increasing(self.energies, "energies")
        super().check_together()
