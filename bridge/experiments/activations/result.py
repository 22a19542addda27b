"""What `bridge.activations` finds: overlaps of the subspaces of sets of prompts, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from bridge.reports.results import Result

Centring = Literal["uncentred", "centred"]
CENTRINGS: tuple[Centring, ...] = ("uncentred", "centred")


@dataclass(frozen=True)
class Answered:
    """Responses of a set, where their last tokens were measured: `empty` ended at once, `cut` before their end."""

    empty: int
    finished: int
    cut: int
    mean_tokens: float


@dataclass(frozen=True)
class SetSummary:
    """A set: where it is from, what was left out, which tokens were measured (the commonest, with their counts)."""

    name: str
    sha256: str
    rows: int
    prompts: int
    repeated: int
    skipped: list[str]
    different_tokens: int
    commonest_tokens: list[tuple[str, int]]
    responses: Answered | None = None


@dataclass(frozen=True)
class Halves:
    """Overlap at equal numbers of prompts, means over random splits; a list has a number for each energy fraction.

    Attributes:
        overlap: of a half of one set with a half of the other; `interval` the central 95 % over splits.
        ceilings: of two halves of each set; `ceiling_intervals` likewise.
        share_of_ceiling: the overlap over the geometric mean of the ceilings.
        chance: of random directions.

    """

    overlap: list[float | None]
    interval: list[list[float] | None]
    ceilings: list[list[float | None]]
    ceiling_intervals: list[list[list[float] | None]]
    share_of_ceiling: list[float | None]
    chance: list[float | None]


@dataclass(frozen=True)
class Relabelled:
    """The tested overlap, and what it is when the prompts' labels are drawn anew, for each energy fraction."""

    tested: list[float | None]
    mean: list[float | None]
    interval: list[list[float] | None]
    p_value: list[float | None]
    p_value_over_energies: float | None


@dataclass(frozen=True)
class SetOverlap:
    """The numbers of a pair of sets in one layer, or of a mean over layers; lists are over energy fractions.

    Attributes:
        ranks: of each set's subspace.
        overlap: of all prompts, as in the paper; `chance` of random directions of these ranks.
        mean_share: share of each set's energy in its mean; `mean_cosine` of the two means.

    """

    ranks: list[list[float]]
    overlap: list[float | None]
    chance: list[float | None]
    half: Halves
    mean_share: list[float]
    mean_cosine: float | None


@dataclass(frozen=True)
class LayerOverlap(SetOverlap):
    """One layer: 0 are the embeddings, i what block i hands on."""

    layer: int
    permuted: Relabelled | None = None


@dataclass(frozen=True)
class MeanOverlap(SetOverlap):
    """The mean over the layers that are summed up and have directions."""

    layers: list[int]
    permuted: Relabelled | None = None


@dataclass(frozen=True)
class CentredPair:
    """A pair of sets, states centred or not: the mean, every layer, and the layers without directions."""

    mean: MeanOverlap | None
    layers: list[LayerOverlap]
    without_directions: list[int]


@dataclass(frozen=True)
class SetPair:
    """A pair of sets, and how many prompts they have in common."""

    sets: list[str]
    shared_prompts: int
    uncentred: CentredPair
    centred: CentredPair

    def centring(self, name: Centring) -> CentredPair:
        """The pair with states as they are, or less their own set's mean."""
        return self.centred if name == "centred" else self.uncentred


@dataclass(frozen=True)
class ActivationsResult(Result):
    """Do sets of prompts share their subspaces in a model's hidden states?"""

    FILE: ClassVar[str] = "activations.json"

    model: str
    delta: str | None
    dtype: str
    token: Literal["prompt", "generated"]
    blocks: int
    hidden_size: int
    summed_layers: list[int]
    summed_depths: list[float]
    energies: list[float]
    rows_in_half: int
    splits: int
    permutations: int
    sets: dict[str, SetSummary]
    pairs: list[SetPair]

    def means(self) -> Iterator[tuple[SetPair, Centring, MeanOverlap | None]]:
        """Every pair of sets, uncentred and centred, with its mean over layers."""
        for pair in self.pairs:
            for name in CENTRINGS:
                yield pair, name, pair.centring(name).mean

    def records(self) -> list[dict[str, object]]:
        """A row a pair, centring and energy fraction: means over the layers that are summed up."""
        return [
            {
                "sets": " × ".join(pair.sets), "states": name, "energy": energy, "overlap": mean.overlap[k],
                "chance": mean.chance[k], "overlap_of_halves": mean.half.overlap[k],
                "share_of_ceiling": mean.half.share_of_ceiling[k],
                "p_value": mean.permuted.p_value[k] if mean.permuted else None,
            }
            for pair, name, mean in self.means()
            if mean is not None
            for k, energy in enumerate(self.energies)
        ]  # fmt: skip
