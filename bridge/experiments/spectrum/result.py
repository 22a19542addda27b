"""What `bridge.spectrum` finds: the spectrum of every skill, of its blocks and of its modules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from bridge.reports.results import Result
from theory.growth import Growth


@dataclass(frozen=True)
class Spectrum:
    """Spectrum of one block of parameters, and the effective ranks that it is to be compared with.

    Attributes:
        eigenvalues: of F, descending; the largest of them, but all of the whole model.
        trace: sum of all eigenvalues.
        effective_rank: participation ratio of the eigenvalues.
        orthogonal: eigenvalues of orthogonal scores with the same norms.
        effective_rank_orthogonal: of these: what the norms alone allow.
        effective_rank_norm_shuffled: of scores whose norms are shuffled.
        effective_rank_centred_normalised: of the scores scaled to unit norm, without their mean.

    """

    eigenvalues: list[float]
    trace: float
    effective_rank: float
    orthogonal: list[float]
    effective_rank_orthogonal: float
    effective_rank_norm_shuffled: float
    effective_rank_centred_normalised: float | None


@dataclass(frozen=True)
class HalvesAgree:
    """Mode subspace overlap of the top directions of two halves of the samples, and that of random ones."""

    rank: int
    overlap: float
    random: float


@dataclass(frozen=True)
class SkillSpectrum:
    """One skill's spectrum: of the whole model, of its blocks (`layers`), and of its modules (`blocks`)."""

    num_samples: int
    num_parameters: int
    whole_model: Spectrum
    mean_score_share: float
    growth: list[Growth]
    split_half: list[HalvesAgree]
    layers: dict[str, Spectrum]
    blocks: dict[str, Spectrum]

    def halves_at(self, rank: int) -> HalvesAgree | None:
        """Agreement of two halves on that number of top directions, if it was measured."""
        return next((halves for halves in self.split_half if halves.rank == rank), None)

    @property
    def effective_rank_of_half(self) -> float | None:
        """Effective rank of half the samples, from the growth; None where there is no such subset."""
        half = self.num_samples / 2
        near = min(self.growth, key=lambda point: abs(point.count - half))
        return near.effective_rank if abs(near.count - half) <= 0.1 * half else None

    def top_share(self, rank: int) -> float:
        """Share of the trace in the top directions."""
        whole = self.whole_model
        return sum(whole.eigenvalues[:rank]) / whole.trace if whole.trace else 0.0


@dataclass(frozen=True)
class SpectrumResult(Result):
    """Spectra of the Fisher information of some skills on one model."""

    FILE: ClassVar[str] = "spectrum.json"

    model: str
    fisher: Literal["sampled", "empirical"]
    rank: int
    skills: dict[str, SkillSpectrum]

    def records(self) -> list[dict[str, object]]:
        """A row a skill, numbers in full."""
        return [
            {
                "skill": name,
                "samples": skill.num_samples,
                "trace": skill.whole_model.trace,
                "largest_eigenvalue": skill.whole_model.eigenvalues[0],
                "top_share": skill.top_share(self.rank),
                "effective_rank": skill.whole_model.effective_rank,
                "effective_rank_orthogonal": skill.whole_model.effective_rank_orthogonal,
                "effective_rank_of_half": skill.effective_rank_of_half,
                "effective_rank_centred_normalised": skill.whole_model.effective_rank_centred_normalised,
                "split_half_overlap": halves.overlap if (halves := skill.halves_at(self.rank)) else None,
                "split_half_overlap_random": halves.random if halves else None,
            }
            for name, skill in self.skills.items()
        ]
