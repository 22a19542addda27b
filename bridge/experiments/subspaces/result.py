"""What `bridge.subspaces` finds: energies that bases keep, overlaps of subspaces, and what is left of a projection.

A list over fractions has a number for each of the result's `fractions` (energies) or `energies` (overlaps).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from bridge.deltas.choices import Basis, ProjectionCounts, Scheme, Side, Vectors
from bridge.experiments.subspaces.settings import Dtype, Modules
from bridge.reports.results import Result


@dataclass(frozen=True)
class Source:
    """A weight change: where it is from, of what kind, and of which model."""

    source: str
    kind: Literal["full", "lora"]
    base_sha256: str | None


@dataclass(frozen=True)
class AlignmentUpdate(Source):
    """The alignment update.

    Attributes:
        matrices: how many are looked at; `zero` are those that it did not move.
        norm: over these matrices.
        ranks: numerical rank of each that it moved.

    """

    matrices: int
    zero: list[str]
    norm: float
    ranks: dict[str, int]


@dataclass(frozen=True)
class KeptBy:
    """Energy kept by one kind of basis, over fractions.

    Attributes:
        kept: share of the task's energy, the mean over draws.
        sd: over draws; None for one.
        interval: where 95 % of further draws would lie; None for one.
        isotropic: what the basis would keep of an isotropic update.
        directions: that the basis has, over all matrices.
        short: matrices with fewer than were asked for.

    """

    kept: list[float]
    sd: list[float | None]
    interval: list[list[float] | None]
    isotropic: list[float]
    directions: list[int]
    short: list[int]


@dataclass(frozen=True)
class KeptEnergy:
    """Norm of a task over some matrices, its cosine with the alignment update, and what each basis keeps of it."""

    norm: float
    cosine: float | None
    bases: dict[Basis, KeptBy]


@dataclass(frozen=True)
class TaskEnergy(Source):
    """One task's update.

    Attributes:
        norm: over all matrices.
        matrices: those that it and the alignment update moved.
        zero: matrices that the alignment update moved and it did not.
        without_directions: matrices that the alignment update did not move.
        energy_without_directions: share of the task's energy in these.
        cosine: with the alignment update, over the matrices.
        cosine_all_parameters: the same over everything.
        whole: over the matrices together; `layers` by block, `tensors` by matrix.

    """

    norm: float
    matrices: int
    zero: int
    without_directions: int
    energy_without_directions: float
    cosine: float | None
    cosine_all_parameters: float | None
    whole: KeptEnergy
    layers: dict[str, KeptEnergy]
    tensors: dict[str, KeptEnergy]


@dataclass(frozen=True)
class EnergyResult(Result):
    """How much of the energy of task updates subspaces of the alignment update keep."""

    FILE: ClassVar[str] = "energy.json"

    side: Side
    fractions: list[float]
    bases: list[Basis]
    repeats: int
    seed: int
    dtype: Dtype
    modules: Modules
    alignment: AlignmentUpdate
    tasks: dict[str, TaskEnergy]

    def records(self) -> list[dict[str, object]]:
        """A row for a task, a kind of basis and a fraction."""
        return [
            {
                "task": label,
                "cosine": task.cosine,
                "basis": kind,
                "fraction": fraction,
                "kept": kept.kept[k],
                "sd": kept.sd[k],
                "isotropic": kept.isotropic[k],
            }
            for label, task in self.tasks.items()
            for kind, kept in task.whole.bases.items()
            for k, fraction in enumerate(self.fractions)
        ]


@dataclass(frozen=True)
class ComparedUpdate(Source):
    """An update that is compared with others; `zero` counts matrices that it did not move."""

    zero: int


@dataclass(frozen=True)
class Permuted:
    """Overlaps after the coordinates of one update's vectors are permuted, over energies.

    Attributes:
        mean: over permutations.
        interval: the central 95 % of them.
        p_value: one-sided, of the overlap.

    """

    mean: list[float]
    interval: list[list[float]]
    p_value: list[float]


@dataclass(frozen=True)
class Overlap:
    """Mode subspace overlap of two updates over energies, mean over some matrices.

    Attributes:
        overlap: the overlap.
        chance: mean of random subspaces of the same ranks.
        cosine: of the two updates over these matrices.
        ranks: of the one and of the other.
        permuted: None without permutations.

    """

    overlap: list[float]
    chance: list[float]
    cosine: float | None
    ranks: list[list[float]]
    permuted: Permuted | None


@dataclass(frozen=True)
class PairSummary:
    """Two updates and their overlap.

    Attributes:
        updates: the two labels.
        matrices: that both move.
        skipped: that one of them does not move.
        whole: overlap over the matrices together.
        layers: by block.

    """

    updates: list[str]
    matrices: int
    skipped: int
    whole: Overlap
    layers: dict[str, Overlap]


@dataclass(frozen=True)
class PairOverlap(PairSummary):
    """Two updates and their overlap, by matrix too (`tensors`)."""

    tensors: dict[str, Overlap]

    def summary(self) -> PairSummary:
        """The same without the matrices."""
        return PairSummary(self.updates, self.matrices, self.skipped, self.whole, self.layers)


@dataclass(frozen=True)
class MsoResult(Result):
    """Mode subspace overlap of every pair of updates, against chance."""

    FILE: ClassVar[str] = "mso.json"

    modules: Modules
    side: Side
    energies: list[float]
    permutations: int
    seed: int
    dtype: Dtype
    updates: dict[str, ComparedUpdate]
    pairs: dict[str, PairOverlap]

    def records(self) -> list[dict[str, object]]:
        """A row for a pair and an energy fraction."""
        return [
            {
                "updates": label,
                "cosine": pair.whole.cosine,
                "energy": energy,
                "overlap": pair.whole.overlap[k],
                "chance": pair.whole.chance[k],
                "p_value": pair.whole.permuted.p_value[k] if pair.whole.permuted else None,
            }
            for label, pair in self.pairs.items()
            for k, energy in enumerate(self.energies)
        ]


@dataclass(frozen=True)
class ProjectResult(Result):
    """The part of a task update inside or outside a subspace of the alignment update.

    Attributes:
        file: of the change that was written, in the run's folder.
        norm_before: of the task update.
        norm_after: of what is left.
        energy_kept: squared norm after over before, with what was kept whole.
        counts: what became of the parameters.

    """

    FILE: ClassVar[str] = "project.json"

    basis: Basis
    fraction: float
    scheme: Scheme
    side: Side
    seed: int
    vectors: Vectors
    modules: Modules
    dtype: Dtype
    task: Source
    alignment: Source
    file: str
    norm_before: float
    norm_after: float
    energy_kept: float
    counts: ProjectionCounts
