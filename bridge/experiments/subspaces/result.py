"""What `bridge.subspaces` finds: energies kept by bases, projected updates, overlaps of pairs of updates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from bridge.experiments.subspaces.settings import Kind, Side
from bridge.reports.results import Result


@dataclass(frozen=True)
class Described:
    """An update: where it is from, of what kind, and of which weights it is a change."""

    source: str
    kind: str
    base_sha256: str | None


# ------------------------------------------------------------------------------------------------- energy


@dataclass(frozen=True)
class BasisEnergies:
    """What one basis keeps of a task's energy, at every fraction.

    Attributes:
        kept: mean over the draws; `sd` their standard deviation, `interval` where 95 % of further draws would lie.
        isotropic: what the basis would keep of an isotropic update.
        directions: in the basis, over all matrices.
        short: matrices with fewer directions than the rank asked for.

    """

    kept: list[float]
    sd: list[float | None]
    interval: list[list[float] | None]
    isotropic: list[float]
    directions: list[int]
    short: list[int]


@dataclass(frozen=True)
class GroupEnergies:
    """A task over some matrices: its norm, its cosine with the alignment update, its energies by basis."""

    norm: float
    cosine: float | None
    bases: dict[str, BasisEnergies]


@dataclass(frozen=True)
class TaskEnergies(Described):
    """A task update.

    Attributes:
        matrices: that both updates moved; `zero` of the others did not move in the task, `without_directions` not in
            the alignment update, with a share `energy_without_directions` of the task's energy.
        cosine: with the alignment update over the matrices; `cosine_all_parameters` over all parameters.
        whole: over all matrices; `layers` by block, `tensors` by parameter.

    """

    norm: float
    matrices: int
    zero: int
    without_directions: int
    energy_without_directions: float
    cosine: float | None
    cosine_all_parameters: float | None
    whole: GroupEnergies
    layers: dict[str, GroupEnergies]
    tensors: dict[str, GroupEnergies]

    @property
    def short(self) -> int:
        """Matrices, at most, whose alignment update has fewer directions than the rank asked for."""
        bases = self.whole.bases
        return max((max(bases[kind].short) for kind in ("top-k", "random-k") if kind in bases), default=0)


@dataclass(frozen=True)
class AlignmentMatrices(Described):
    """The alignment update: its matrices, those that it did not move (`zero`), and numerical ranks of the others."""

    matrices: int
    zero: list[str]
    norm: float
    ranks: dict[str, int]


@dataclass(frozen=True)
class EnergyResult(Result):
    """How much of the energy of task updates the subspaces of the alignment update keep."""

    FILE: ClassVar[str] = "energy.json"

    side: Side
    fractions: list[float]
    bases: list[Kind]
    repeats: int
    seed: int
    dtype: str
    modules: str
    alignment: AlignmentMatrices
    tasks: dict[str, TaskEnergies]

    def records(self) -> list[dict[str, object]]:
        """A row a task, basis and fraction."""
        return [
            {
                "task": label, "basis": kind, "fraction": fraction, "kept": energies.kept[f], "sd": energies.sd[f],
                "isotropic": energies.isotropic[f], "cosine": task.cosine,
            }
            for label, task in self.tasks.items()
            for kind, energies in task.whole.bases.items()
            for f, fraction in enumerate(self.fractions)
        ]  # fmt: skip


# ------------------------------------------------------------------------------------------------ project


@dataclass(frozen=True)
class Counts:
    """Parameters by what became of them; `short`: projected with fewer directions than asked for."""

    projected: int
    short: int
    without_directions: int
    kept: int
    dropped: int


@dataclass(frozen=True)
class ProjectResult(Result):
    """The part of a task update inside, or outside, a subspace: a change of weights in `file`."""

    FILE: ClassVar[str] = "project.json"

    basis: Kind
    fraction: float
    scheme: Literal["parallel", "orthogonal"]
    side: Side
    seed: int
    vectors: Literal["keep", "drop"]
    modules: str
    dtype: str
    task: Described
    alignment: Described
    file: str
    norm_before: float
    norm_after: float
    energy_kept: float
    counts: Counts


# ---------------------------------------------------------------------------------------------------- mso


@dataclass(frozen=True)
class Permuted:
    """Overlaps after a permutation of coordinates: mean, central 95 %, one-sided p-value, by energy fraction."""

    mean: list[float]
    interval: list[list[float]]
    p_value: list[float]


@dataclass(frozen=True)
class GroupOverlap:
    """Overlap of a pair over some matrices, by energy fraction, beside chance; mean ranks of either update."""

    overlap: list[float]
    chance: list[float]
    cosine: float | None
    ranks: list[list[float]]
    permuted: Permuted | None


@dataclass(frozen=True)
class PairOverlap:
    """A pair of updates: over all matrices that both moved, by block, and by parameter; the others were skipped."""

    updates: list[str]
    matrices: int
    skipped: int
    whole: GroupOverlap
    layers: dict[str, GroupOverlap]
    tensors: dict[str, GroupOverlap]


@dataclass(frozen=True)
class ComparedUpdate(Described):
    """An update that is compared, and the matrices that it did not move."""

    zero: int


@dataclass(frozen=True)
class MsoResult(Result):
    """Mode subspace overlap of every pair of updates."""

    FILE: ClassVar[str] = "mso.json"

    modules: str
    side: Side
    energies: list[float]
    permutations: int
    seed: int
    dtype: str
    updates: dict[str, ComparedUpdate]
    pairs: dict[str, PairOverlap]

    def records(self) -> list[dict[str, object]]:
        """A row a pair and energy fraction."""
        return [
            {
                "pair": label, "energy": energy, "overlap": pair.whole.overlap[f], "chance": pair.whole.chance[f],
                "cosine": pair.whole.cosine,
                "p_value": pair.whole.permuted.p_value[f] if pair.whole.permuted else None,
            }
            for label, pair in self.pairs.items()
            for f, energy in enumerate(self.energies)
        ]  # fmt: skip
