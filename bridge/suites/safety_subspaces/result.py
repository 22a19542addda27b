"""What `bridge.safety_subspaces` finds: what every projected fine-tune does, and how the updates themselves lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from bridge.data.mixtures import Part
from bridge.deltas.choices import Basis, Scheme, Side, Vectors
from bridge.experiments.harmfulness.result import Judged
from bridge.experiments.subspaces.result import PairSummary
from bridge.experiments.utility.result import Counts
from bridge.reports.results import Result
from bridge.suites.measures import Measures
from bridge.training.plan import Method

ALIGNED, BASE = "aligned", "base"
"""The models that no fine-tune has changed."""
Ends = tuple[float, float, float]
"""Value, and the two ends of its interval."""


@dataclass(frozen=True)
class FinetuneUpdate:
    """A fine-tune and its change of the weights.

    Attributes:
        data: what `--data` takes.
        parts: the rows by the sets that they are from.
        norm: of the change, over all matrices.
        cosine: with the alignment update.
        matrices: that both moved; `zero` counts those that the fine-tune did not.

    """

    data: str
    method: Method
    rows: int
    steps: int
    epochs: float
    response_tokens: int
    first_loss: float
    last_loss: float
    parts: list[Part]
    norm: float
    cosine: float | None
    matrices: int
    zero: int


@dataclass(frozen=True)
class JudgedModel(Judged):
    """What judges find of a model's responses, as harmfulness.json has it."""

    schema_version: int = 1


@dataclass(frozen=True)
class Measured(Result):
    """What a model does.

    Attributes:
        measures: by name, utility first.
        unanswered: on how many items a judge did not answer, in words; None if there are none.
        utility: counts of right answers.
        harmfulness: what judges found.

    """

    FILE: ClassVar[str] = "measured.json"

    measures: Measures
    unanswered: str | None
    utility: Counts
    harmfulness: JudgedModel

    def ends(self, measure: str) -> Ends | None:
        """Value and interval of a measure; None where it has none."""
        named = self.measures.get(measure)
        if named is None or named.value is None or named.low is None or named.high is None:
            return None
        return named.value, named.low, named.high


@dataclass(frozen=True)
class ProjectedUpdate:
    """The part of a fine-tune's change that a model has.

    Attributes:
        name: of the model in the records.
        basis: its kind; `label` tells draws apart.
        draw: of a random basis, from 1; else 0.
        seed: of the draw.
        fraction: rank over min(rows, columns) of each matrix.
        energy: share of the change's squared norm that the part has.
        isotropic: what it would be if the change had no preferred direction.

    """

    name: str
    finetune: str
    basis: Basis
    label: str
    draw: int
    seed: int
    scheme: Scheme
    fraction: float
    energy: float
    isotropic: float


@dataclass(frozen=True)
class ProjectedModel(Measured, ProjectedUpdate):
    """The aligned model with a part of a fine-tune's change, and what it does."""

    @classmethod
    def of(cls, update: ProjectedUpdate, measured: Measured) -> ProjectedModel:
        """From both."""
        return cls(**vars(update), **vars(measured))


@dataclass(frozen=True)
class UpdateOverlaps:
    """Mode subspace overlap of the alignment update and the fine-tunes.

    Attributes:
        energies: shares of the updates' squared norms that choose the ranks.
        permutations: behind the intervals of chance.
        zero: matrices that an update did not move, by its label.
        pairs: of updates.

    """

    energies: list[float]
    permutations: int
    zero: dict[str, int]
    pairs: list[PairSummary]


@dataclass(frozen=True)
class SafetySubspacesResult(Result):
    """What fine-tunes keep when they are projected.

    Attributes:
        updates: the fine-tunes by name.
        references: the models without projection by name: base, aligned, and every fine-tune.
        points: the projected ones.
        overlap: of the updates.
        unanswered: a line for each model about which a judge did not answer.

    """

    FILE: ClassVar[str] = "safety_subspaces.json"

    title: str
    model: str
    base: str
    method: Method
    side: Side
    vectors: Vectors
    bases: list[Basis]
    schemes: list[Scheme]
    fractions: list[float]
    repeats: int
    contamination: float
    updates: dict[str, FinetuneUpdate]
    references: dict[str, Measured]
    points: list[ProjectedModel]
    overlap: UpdateOverlaps
    unanswered: list[str]

    @property
    def measures(self) -> list[str]:
        """Names of what was measured of every model: utility first."""
        return list(self.references[ALIGNED].measures)

    def is_share(self, measure: str) -> bool:
        """Whether a measure is a share; scores go from 1 to 5."""
        return self.references[ALIGNED].measures[measure].kind == "share"

    def series(self, finetune: str, scheme: Scheme) -> dict[str, list[ProjectedModel]]:
        """The points of one fine-tune and scheme by the label of their basis, by rising fraction."""
        lines: dict[str, list[ProjectedModel]] = {}
        for point in self.points:
            if point.finetune == finetune and point.scheme == scheme:
                lines.setdefault(point.label, []).append(point)
        return lines

    def records(self) -> list[dict[str, object]]:
        """A row for every measured model: every number in full, intervals and counts in columns of their own."""
        nothing = dict.fromkeys(("fraction", "basis", "draw", "scheme", "energy", "isotropic"))
        rows: list[dict[str, object]] = []
        for name, reference in self.references.items():
            about = {"name": name, "finetune": name if name in self.updates else None, **nothing}
            rows.append(about | self._numbers(reference))
        for point in self.points:
            about = {key: getattr(point, key) for key in ("name", "finetune", *nothing)}
            rows.append(about | self._numbers(point))
        return rows

    def _numbers(self, measured: Measured) -> dict[str, object]:
        numbers: dict[str, object] = {}
        for name in self.measures:
            measure = measured.measures.get(name)
            numbers[name] = None if measure is None else measure.value
            for key in ("low", "high", "count"):
                numbers[f"{name} {key}"] = None if measure is None else getattr(measure, key)
        return numbers

    def others(self, finetune: str) -> Sequence[str]:
        """The fine-tunes but one."""
        return [name for name in self.updates if name != finetune]
