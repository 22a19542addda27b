"""The overlaps of skills beside their floors and ceilings, put together from the Gram matrices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from bridge.experiments.fisher_overlap.result import (
    BlockNumbers,
    Curves,
    Layer,
    PairNumbers,
    PairOverlap,
    Skill,
    SkillNumbers,
    not_excluded,
)
from bridge.experiments.fisher_overlap.settings import Settings
from theory.cross_overlap import (
    Permuted,
    Questions,
    Subspace,
    Union,
    chance_overlap,
    compare,
    permuted_overlaps,
    set_cosines,
    subspace,
)
from theory.resampling import percentile_interval
from theory.spectra import effective_rank, mean_score_shares
from theory.split_overlap import (
    Deleted,
    Halves,
    SplitMeans,
    SplitOverlaps,
    deleted_overlaps,
    isotropic_overlaps,
    split_halves,
    split_overlaps,
)

LEVEL = 0.95
_BLOCK_SPLITS = 20  # at most, for the blocks: they have no intervals
_MEASURES = ("cross", "own_a", "own_b", "b_in_a", "a_in_b", "a_in_a", "b_in_b")
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Floor:
    """The overlaps of simulated unrelated scores: by pair (R, Q), with their means and without them."""

    uncentred: list[list[list[float]]]
    centred: list[list[list[float]]]


@dataclass(frozen=True)
class WholeModel:
    """Skills and pairs over all parameters, with or without their mean scores."""

    skills: list[SkillNumbers]
    pairs: list[PairNumbers]


@dataclass(frozen=True, eq=False)
class Scores:
    """What was measured: by module the inner products of all samples' scores, and whose samples they are."""

    grams: dict[str, Float[np.ndarray, "N N"]]
    dimensions: dict[str, int]
    skills: Int[np.ndarray, " N"]
    groups: Int[np.ndarray, " N"]

    def union(self, names: Sequence[str]) -> Union:
        """The samples with the parameters of some modules."""
        total = sum((self.grams[name] for name in names[1:]), start=self.grams[names[0]])
        return Union((total + total.T) / 2, self.skills, self.groups, sum(self.dimensions[name] for name in names))

    @cached_property
    def whole(self) -> Union:
        """The samples with all parameters."""
        return self.union(list(self.grams))


@dataclass(frozen=True, eq=False)
class Analysis:
    """The parts of the result that take time: what was measured, read as the settings ask."""

    scores: Scores
    settings: Settings

    @cached_property
    def asked(self) -> Questions:
        """Every rank that the whole model is asked at."""
        return Questions(tuple(range(1, self.settings.most + 1)), self.settings.energy)

    def floor(self) -> Floor:
        """The overlaps of unrelated scores of the same norms in every module."""
        scores, settings = self.scores, self.settings
        norms = [gram.diagonal() for gram in scores.grams.values()]
        dimensions = list(scores.dimensions.values())
        drawn = isotropic_overlaps(scores.whole, norms, dimensions, self.asked, settings.simulations, settings.seed)
        kept, removed = ([table.tolist() for table in drawn[centred].values()] for centred in (False, True))
        return Floor(uncentred=kept, centred=removed)

    def whole_model(self, centred: bool, floor: Floor) -> WholeModel:
        """Skills and pairs over all parameters, with or without their mean scores."""
        union, asked, seed = self.scores.whole, self.asked, self.settings.seed
        halves = split_halves(union, self.settings.splits, seed, centred)
        deleted = deleted_overlaps(union, halves, asked, self.settings.jackknife, seed, centred)
        sets = _sets(union, centred)
        pairs = []
        for number, (a, b) in enumerate(union.pairs()):
            permuted = permuted_overlaps(union, a, b, asked, self.settings.permutations, seed, centred)
            split = split_overlaps(union.gram, halves[a], halves[b], asked)
            floors = np.array((floor.centred if centred else floor.uncentred)[number])
            random = _random(halves[a], halves[b], asked, union.dimension)
            curves = {
                **_at_all_samples(union, sets[a], sets[b], asked),
                **_exchanged(permuted),
                **_curves(split, deleted[a, b], floors, random),
            }
            at_rank, at_energy = _by_question(curves, len(asked.ranks))
            pairs.append(
                PairNumbers(
                    cosines=set_cosines(union.gram, sets[a], sets[b], self.settings.rank).tolist(),
                    mean_score_cosine=_mean_score_cosine(union, sets[a], sets[b]),
                    at_rank=Curves(**at_rank),
                    at_energy=Curves(**at_energy),
                )
            )
        return WholeModel([_spectrum(part, asked) for part in sets], pairs)

    def layer(self, names: Sequence[str]) -> Layer:
        """One block's parameters at the rank of the verdict, by pair; the floor is that of chance."""
        union = self.scores.union(names)
        kept, removed = (self._block(union, centred) for centred in (False, True))
        return Layer(num_parameters=union.dimension, uncentred=kept, centred=removed)

    def _block(self, union: Union, centred: bool) -> list[BlockNumbers]:
        asked = Questions((self.settings.rank,))
        halves = split_halves(union, min(self.settings.splits, _BLOCK_SPLITS), self.settings.seed, centred)
        sets = _sets(union, centred)
        found = []
        for a, b in union.pairs():
            means = split_overlaps(union.gram, halves[a], halves[b], asked).means()
            floor = chance_overlap(halves[a][0][0], halves[b][0][0], asked, union.dimension)
            curves = {name: getattr(means, name) for name in _MEASURES}
            curves |= {"floor": floor, "ceiling": means.ceiling(floor), "relative": means.relative_overlap(floor)}
            curves["overlap"] = compare(union.gram, sets[a], sets[b], asked).overlap
            found.append(BlockNumbers(**{name: values[0] for name, values in _by_question(curves, 1)[0].items()}))
        return found


def judged(numbers: PairNumbers, rank: int) -> PairOverlap:
    """A pair with what its numbers at a rank say; "undetermined" where they leave several verdicts."""
    left = not_excluded(numbers.at(rank))
    return PairOverlap(**vars(numbers), verdict=left[0] if len(left) == 1 else "undetermined", not_excluded=left)


def describe(union: Union, skill: int, uncentred: SkillNumbers, centred: SkillNumbers) -> Skill:
    """One skill's samples and scores."""
    held, weights = union.skills == skill, union.weights(skill)
    return Skill(
        num_samples=int(np.count_nonzero(held)),
        num_prompts=len(np.unique(union.groups[held])),
        root_mean_square_norm=float(np.sqrt(union.gram.diagonal()[held].mean())),
        mean_score_share=float(mean_score_shares(union.gram, weights[None])[0]),
        uncentred=uncentred,
        centred=centred,
    )


def _sets(union: Union, centred: bool) -> list[Subspace]:
    """By skill, the eigenvectors of its Fisher information."""
    return [subspace(union.gram, union.weights(skill), centred) for skill in range(union.num_skills)]


def _spectrum(part: Subspace, asked: Questions) -> SkillNumbers:
    values, ranks = part.eigenvalues, part.ranks(asked)
    shares = np.concatenate([[0.0], np.cumsum(values)]) / (part.trace or 1.0)
    return SkillNumbers(
        trace=part.trace,
        effective_rank=effective_rank(values),
        top_share=shares[ranks][: len(asked.ranks)].tolist(),
        rank_by_energy=ranks[len(asked.ranks) :].tolist(),
    )


def _at_all_samples(union: Union, a: Subspace, b: Subspace, asked: Questions) -> Arrays:
    """What all samples show, (Q,) each: overlap, and shares of the trace."""
    compared = compare(union.gram, a, b, asked)
    return {
        "overlap": compared.overlap,
        "b_in_a_all": compared.b_in_a,
        "a_in_b_all": compared.a_in_b,
        "rank_a": a.ranks(asked),
        "rank_b": b.ranks(asked),
    }


def _mean_score_cosine(union: Union, a: Subspace, b: Subspace) -> float | None:
    w_a, w_b = (np.bincount(p.indices, p.weights, len(union.gram)) for p in (a, b))
    norms = np.sqrt(max(w_a @ union.gram @ w_a, 0.0) * max(w_b @ union.gram @ w_b, 0.0))
    return float(np.clip(w_a @ union.gram @ w_b / norms, -1, 1)) if norms > 0 else None


def _exchanged(permuted: Permuted) -> Arrays:
    """The permutation test: its p-values, and what exchanged labels give."""
    if len(permuted.drawn) == 0:
        return {}
    ends = np.array([percentile_interval(column, LEVEL) for column in permuted.drawn.T])
    return {
        "p_value": permuted.p_values,
        "exchanged": permuted.drawn.mean(axis=0),
        "exchanged_low": ends[:, 0],
        "exchanged_high": ends[:, 1],
    }


def _random(a: Halves, b: Halves, asked: Questions, dimension: int) -> dict[str, np.ndarray]:
    """What random subspaces of the halves' ranks have in common, and the share of any trace that each of them holds."""
    pairs = list(zip(a, b, strict=True))
    return {
        "random": np.mean([chance_overlap(x, y, asked, dimension) for (x, _), (y, _) in pairs], axis=0),
        "random_in_a": np.mean([x.ranks(asked) / dimension for (x, _), _ in pairs], axis=0),
        "random_in_b": np.mean([y.ranks(asked) / dimension for _, (y, _) in pairs], axis=0),
    }


def _curves(split: SplitOverlaps, deleted: Deleted, floors: Float[np.ndarray, "R Q"], random: Arrays) -> Arrays:
    """Means over the splits with their intervals, floor, ceiling, and the relative overlap: (Q,) each."""
    floor, means = floors.mean(axis=0), split.means()
    functions: dict[str, Callable[[SplitMeans], np.ndarray]] = {name: attrgetter(name) for name in _MEASURES}
    functions |= {
        "ceiling": lambda m: m.ceiling(floor),
        "relative": lambda m: m.relative_overlap(floor),
        "relative_b_in_a": lambda m: m.relative_energy(random["random_in_a"], random["random_in_b"])[0],
        "relative_a_in_b": lambda m: m.relative_energy(random["random_in_a"], random["random_in_b"])[1],
    }
    curves = {"floor": floor, "floor_high": floors.max(axis=0), **random}
    for name, function in functions.items():
        value, (low, high) = function(means), deleted.interval(function, LEVEL)
        curves |= {name: value, f"{name}_low": value + low, f"{name}_high": value + high}
    for name, table in (("cross", split.cross), ("own_a", split.own_a), ("own_b", split.own_b)):
        ends = np.array([percentile_interval(column, LEVEL) for column in table.T])
        curves |= {f"{name}_splits_low": ends[:, 0], f"{name}_splits_high": ends[:, 1]}
    return curves


def _by_question(curves: Arrays, ranks: int) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
    """The curves cut into those at ranks and those at shares of energy, as JSON (NaN is None)."""
    listed = {name: [None if np.isnan(x) else x for x in values.tolist()] for name, values in curves.items()}
    return (
        {name: values[:ranks] for name, values in listed.items()},
        {name: values[ranks:] for name, values in listed.items()},
    )
