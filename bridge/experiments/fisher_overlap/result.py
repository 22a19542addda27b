"""fisher_overlap.json: the overlaps of skills beside their floors and ceilings, put together from the Gram matrices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from operator import attrgetter
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from bridge.models.blocks import group_by_block
from commands.store import SCHEMA_VERSION
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
CENTRINGS = {"uncentred": False, "centred": True}
LEAST_CEILING = 0.1  # below it nine tenths of the directions are chance at this N
DISTINCT, SHARED = 0.25, 0.75  # of the relative overlap: below, and above
VERDICTS = ("distinct", "partly shared", "shared")  # of a relative overlap below, between and above these
_BLOCK_SPLITS = 20  # at most, for the blocks: they have no intervals
_MEASURES = ("cross", "own_a", "own_b", "b_in_a", "a_in_b", "a_in_a", "b_in_b")


@dataclass(frozen=True)
class Question:
    """What decides how the Gram matrices are read."""

    rank: int  # d of the verdict
    most: int  # the curves go from 1 to this
    energies: tuple[float, ...]
    splits: int
    jackknife: int
    permutations: int
    simulations: int
    seed: int

    @property
    def ranks(self) -> Questions:
        """Every rank that the whole model is asked at."""
        return Questions(tuple(range(1, self.most + 1)), self.energies)


@dataclass(frozen=True, eq=False)
class Scores:
    """What was measured: by module the inner products of all samples' scores, and whose samples they are."""

    grams: dict[str, Float[np.ndarray, "N N"]]
    dimensions: dict[str, int]
    skills: Int[np.ndarray, " N"]
    groups: Int[np.ndarray, " N"]

    def union(self, names: list[str]) -> Union:
        """The samples with the parameters of some modules."""
        total = sum((self.grams[name] for name in names[1:]), start=self.grams[names[0]])
        return Union((total + total.T) / 2, self.skills, self.groups, sum(self.dimensions[name] for name in names))

    @cached_property
    def whole(self) -> Union:
        """The samples with all parameters."""
        return self.union(list(self.grams))


Job = Callable[[Mapping[str, Any]], Any]
"""A part of the result, given the parts before it; what it returns is JSON."""


def jobs(scores: Scores, question: Question) -> dict[str, Job]:
    """The parts of the result by name, in the order in which they are to be done."""
    found: dict[str, Job] = {"floor": lambda _: _floor(scores, question)}
    for name, centred in CENTRINGS.items():
        found[name] = partial(_whole_model, scores, question, centred, name)
    for block, names in group_by_block(list(scores.grams)).items():
        found[f"block {block}"] = partial(_block, scores, names, question)
    return found


def assemble(
    described: Mapping[str, Any],
    scores: Scores,
    question: Question,
    found: Mapping[str, Any],
    shared_prompts: Mapping[tuple[int, int], int],
) -> dict[str, Any]:
    """The content of fisher_overlap.json.

    Args:
        described: model, fisher, skill_names.
        scores: what was measured.
        question: ranks and resampling.
        found: what the jobs returned, by name.
        shared_prompts: by pair, how many prompts both skills have.

    """
    union, names = scores.whole, list(described["skill_names"])
    pairs = [
        {"a": names[a], "b": names[b], "shared_prompts": shared_prompts[a, b]}
        | {centring: found[centring]["pairs"][number] for centring in CENTRINGS}
        for number, (a, b) in enumerate(union.pairs())
    ]
    for pair in pairs:
        for centring in CENTRINGS:
            pair[centring]["verdict"] = verdict(pair[centring], question.rank)
            pair[centring]["not_excluded"] = not_excluded(pair[centring], question.rank)
    return {
        "schema_version": SCHEMA_VERSION,
        "model": described["model"],
        "fisher": described["fisher"],
        "num_parameters": union.dimension,
        "rank": question.rank,
        "ranks": list(question.ranks.ranks),
        "energies": list(question.energies),
        "level": LEVEL,
        "splits": question.splits,
        "permutations": question.permutations,
        "simulations": question.simulations,
        "skills": {
            name: _skill(union, number) | {c: found[c]["skills"][number] for c in CENTRINGS}
            for number, name in enumerate(names)
        },
        "pairs": pairs,
        "layers": {name.removeprefix("block "): part for name, part in found.items() if name.startswith("block ")},
    }


def verdict(entry: Mapping[str, Any], rank: int) -> str:
    """The only verdict that a pair's numbers at a rank do not exclude; "undetermined" where several are left."""
    left = not_excluded(entry, rank)
    return left[0] if len(left) == 1 else "undetermined"


def not_excluded(entry: Mapping[str, Any], rank: int) -> list[str]:
    """The verdicts that the interval of the relative overlap reaches; all of them where it says nothing."""
    found = at(entry, rank)
    low, high = found["relative_low"], found["relative_high"]
    if weak(found) or found["relative"] is None or low is None or high is None:
        return list(VERDICTS)
    reached = (low < DISTINCT, low <= SHARED and high >= DISTINCT, high > SHARED)
    return [name for name, here in zip(VERDICTS, reached, strict=True) if here]


def weak(found: Mapping[str, Any]) -> bool:
    """Whether, by a pair's numbers at one rank, half of a skill does not clearly find its own other half again."""
    return bool(found["ceiling"] < LEAST_CEILING or min(found["own_a_low"], found["own_b_low"]) <= found["floor_high"])


def at(entry: Mapping[str, Any], rank: int) -> dict[str, Any]:
    """A pair's numbers at one rank."""
    return {name: values[rank - 1] for name, values in entry["at_rank"].items()}


def _skill(union: Union, skill: int) -> dict[str, Any]:
    held, weights = union.skills == skill, union.weights(skill)
    return {
        "num_samples": int(np.count_nonzero(held)),
        "num_prompts": len(np.unique(union.groups[held])),
        "root_mean_square_norm": float(np.sqrt(union.gram.diagonal()[held].mean())),
        "mean_score_share": float(mean_score_shares(union.gram, weights[None])[0]),
    }


def _floor(scores: Scores, question: Question) -> dict[str, Any]:
    """By centring, and in the order of the pairs, the overlaps of simulated unrelated scores: (R, Q) each."""
    norms = [gram.diagonal() for gram in scores.grams.values()]
    dimensions = list(scores.dimensions.values())
    drawn = isotropic_overlaps(scores.whole, norms, dimensions, question.ranks, question.simulations, question.seed)
    return {name: [table.tolist() for table in drawn[centred].values()] for name, centred in CENTRINGS.items()}


def _whole_model(
    scores: Scores, question: Question, centred: bool, centring: str, found: Mapping[str, Any]
) -> dict[str, Any]:
    """Skills and pairs over all parameters, with or without their mean scores."""
    union, asked, seed = scores.whole, question.ranks, question.seed
    halves = split_halves(union, question.splits, seed, centred)
    deleted = deleted_overlaps(union, halves, asked, question.jackknife, seed, centred)
    sets = [subspace(union.gram, union.weights(skill), centred) for skill in range(union.num_skills)]
    pairs = []
    for number, (a, b) in enumerate(union.pairs()):
        entry = _at_all_samples(union, sets[a], sets[b], question)
        permuted = permuted_overlaps(union, a, b, asked, question.permutations, seed, centred)
        split = split_overlaps(union.gram, halves[a], halves[b], asked)
        floor = np.array(found["floor"][centring][number])
        random = _random(halves[a], halves[b], asked, union.dimension)
        curves = entry.pop("curves") | _exchanged(permuted) | _curves(split, deleted[a, b], floor, random)
        entry |= _by_question(curves, len(asked.ranks))
        pairs.append(entry)
    return {"skills": [_spectrum(part, asked) for part in sets], "pairs": pairs}


def _spectrum(part: Subspace, asked: Questions) -> dict[str, Any]:
    values, ranks = part.eigenvalues, part.ranks(asked)
    shares = np.concatenate([[0.0], np.cumsum(values)]) / (part.trace or 1.0)
    return {
        "trace": part.trace,
        "effective_rank": effective_rank(values),
        "top_share": shares[ranks][: len(asked.ranks)].tolist(),
        "rank_by_energy": ranks[len(asked.ranks) :].tolist(),
    }


def _at_all_samples(union: Union, a: Subspace, b: Subspace, question: Question) -> dict[str, Any]:
    """What all samples show: angles, overlap, shares of the trace; and how the mean scores lie."""
    compared = compare(union.gram, a, b, question.ranks)
    w_a, w_b = (np.bincount(p.indices, p.weights, len(union.gram)) for p in (a, b))
    norms = np.sqrt(max(w_a @ union.gram @ w_a, 0.0) * max(w_b @ union.gram @ w_b, 0.0))
    return {
        "cosines": set_cosines(union.gram, a, b, question.rank).tolist(),
        "mean_score_cosine": float(np.clip(w_a @ union.gram @ w_b / norms, -1, 1)) if norms > 0 else None,
        "curves": {
            "overlap": compared.overlap,
            "b_in_a_all": compared.b_in_a,
            "a_in_b_all": compared.a_in_b,
            "rank_a": a.ranks(question.ranks),
            "rank_b": b.ranks(question.ranks),
        },
    }


def _exchanged(permuted: Permuted) -> dict[str, np.ndarray]:
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


def _curves(
    split: SplitOverlaps,
    deleted: Deleted,
    floors: Float[np.ndarray, "R Q"],
    random: dict[str, np.ndarray],
) -> dict[str, np.ndarray]:
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
    for name in ("cross", "own_a", "own_b"):
        ends = np.array([percentile_interval(column, LEVEL) for column in getattr(split, name).T])
        curves |= {f"{name}_splits_low": ends[:, 0], f"{name}_splits_high": ends[:, 1]}
    return curves


def _by_question(curves: Mapping[str, np.ndarray], ranks: int) -> dict[str, dict[str, list[Any]]]:
    """The curves cut into those at ranks and those at shares of energy, as JSON (NaN is None)."""
    listed = {name: [None if np.isnan(x) else x for x in values.tolist()] for name, values in curves.items()}
    return {
        "at_rank": {name: values[:ranks] for name, values in listed.items()},
        "at_energy": {name: values[ranks:] for name, values in listed.items()},
    }


def _block(scores: Scores, names: list[str], question: Question, _: Mapping[str, Any]) -> dict[str, Any]:
    """One block's parameters at the rank of the verdict, in the order of the pairs; the floor is that of chance."""
    union, asked = scores.union(names), Questions((question.rank,))
    out: dict[str, Any] = {"num_parameters": union.dimension}
    for centring, centred in CENTRINGS.items():
        halves = split_halves(union, min(question.splits, _BLOCK_SPLITS), question.seed, centred)
        sets = [subspace(union.gram, union.weights(skill), centred) for skill in range(union.num_skills)]
        entries = []
        for a, b in union.pairs():
            means = split_overlaps(union.gram, halves[a], halves[b], asked).means()
            floor = chance_overlap(halves[a][0][0], halves[b][0][0], asked, union.dimension)
            curves = {name: getattr(means, name) for name in _MEASURES}
            curves |= {"floor": floor, "ceiling": means.ceiling(floor), "relative": means.relative_overlap(floor)}
            curves["overlap"] = compare(union.gram, sets[a], sets[b], asked).overlap
            entries.append({name: values[0] for name, values in _by_question(curves, 1)["at_rank"].items()})
        out[centring] = entries
    return out
