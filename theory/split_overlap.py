"""The overlap of two skills' subspaces beside the most that so few samples can show.

Top eigenspaces estimated from N samples differ between two draws of the same skill, so the overlap of two skills means
nothing by itself. Its ceiling is the overlap of two halves of one skill, which rank <= N cannot fake; its floor is what
unrelated scores show. All are taken between sets of the same size, half a skill's samples:

    relative overlap = (cross - floor) / sqrt((own_a - floor) (own_b - floor))

is 1 where the skills' halves are as alike as two halves of one skill, and 0 where they are unrelated: the correction of
a correlation for attenuation (Spearman 1904), applied to the mode subspace overlap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import t as student

from theory.cross_overlap import Questions, Subspace, Union, compare, isotropic_gram, subspace
from theory.resampling import half_weights

Halves = list[tuple[Subspace, Subspace]]
"""The two halves of one skill, in every split."""

_BLOCKS_STREAM, _FLOOR_STREAM = 5, 6  # random streams apart from the others


@dataclass(frozen=True, eq=False)
class SplitOverlaps:
    """Two skills a and b compared half by half; S splits, Q ranks, means over the pairs of halves of one split.

    Attributes:
        cross: (S, Q) overlap of a half of a with a half of b.
        own_a: (S, Q) overlap of the two halves of a.
        own_b: (S, Q) overlap of the two halves of b.
        b_in_a: (S, Q) share of the Fisher trace of a half of b in the subspace of a half of a.
        a_in_b: (S, Q) share of that of a in b's.
        a_in_a: (S, Q) share of that of a half of a in the subspace of a's other half.
        b_in_b: (S, Q) share of that of a half of b in the subspace of b's other half.
    """

    cross: Float[np.ndarray, "S Q"]
    own_a: Float[np.ndarray, "S Q"]
    own_b: Float[np.ndarray, "S Q"]
    b_in_a: Float[np.ndarray, "S Q"]
    a_in_b: Float[np.ndarray, "S Q"]
    a_in_a: Float[np.ndarray, "S Q"]
    b_in_b: Float[np.ndarray, "S Q"]

    def means(self) -> SplitMeans:
        """Means over the splits."""
        return SplitMeans(**{field.name: getattr(self, field.name).mean(axis=0) for field in fields(self)})


@dataclass(frozen=True, eq=False)
class SplitMeans:
    """:class:`SplitOverlaps` averaged over the splits: (Q,) each."""

    cross: Float[np.ndarray, " Q"]
    own_a: Float[np.ndarray, " Q"]
    own_b: Float[np.ndarray, " Q"]
    b_in_a: Float[np.ndarray, " Q"]
    a_in_b: Float[np.ndarray, " Q"]
    a_in_a: Float[np.ndarray, " Q"]
    b_in_b: Float[np.ndarray, " Q"]

    def ceiling(self, floor: Float[np.ndarray, " Q"]) -> Float[np.ndarray, " Q"]:
        """``floor + sqrt((own_a - floor) (own_b - floor))``: the cross overlap of two skills that are one."""
        return floor + np.sqrt(np.maximum(self.own_a - floor, 0.0) * np.maximum(self.own_b - floor, 0.0))

    def relative_overlap(self, floor: Float[np.ndarray, " Q"]) -> Float[np.ndarray, " Q"]:
        """``(cross - floor) / (ceiling - floor)``; NaN where the ceiling is not above the floor."""
        return _ratio(self.cross - floor, self.ceiling(floor) - floor)

    def relative_energy(
        self, chance_a: Float[np.ndarray, " Q"], chance_b: Float[np.ndarray, " Q"]
    ) -> tuple[Float[np.ndarray, " Q"], Float[np.ndarray, " Q"]]:
        """Share of b's trace in a's subspace over that in b's own held-out one, less chance; then a's in b's.

        Args:
            chance_a: share of any trace in a random subspace of the rank that a's has, d / n.
            chance_b: of the rank that b's has.
        """
        b_in_a = _ratio(self.b_in_a - chance_a, self.b_in_b - chance_b)
        return b_in_a, _ratio(self.a_in_b - chance_b, self.a_in_a - chance_a)


def _ratio(part: Float[np.ndarray, " Q"], whole: Float[np.ndarray, " Q"]) -> Float[np.ndarray, " Q"]:
    positive = whole > 1e-12  # smaller differences of numbers up to 1 are rounding
    return np.where(positive, part / np.where(positive, whole, 1.0), np.nan)


def split_halves(union: Union, splits: int, seed: int, centred: bool = False) -> list[Halves]:
    """By skill, the subspaces of random halves of its samples; see :func:`skill_halves`."""
    return [skill_halves(union, skill, splits, seed, centred) for skill in range(union.num_skills)]


def skill_halves(
    union: Union,
    skill: int,
    splits: int,
    seed: int,
    centred: bool = False,
    without: Bool[np.ndarray, " N"] | None = None,
) -> Halves:
    """The subspaces of random halves of one skill's samples; the splits of different skills are independent.

    Args:
        union: the samples.
        skill: its number.
        splits: S.
        seed: of the splits.
        centred: remove the mean score of every half.
        without: samples that are taken out of the halves, which stay the same otherwise.

    Raises:
        ValueError: if ``splits`` is not positive, the skill has fewer than two groups, or a half is left empty.
    """
    drawn = half_weights(union.weights(skill), splits, skill_seed(seed, skill), union.groups)
    if drawn is None:
        raise ValueError(f"skill {skill} has fewer than two groups of samples, so it has no halves")
    kept = drawn if without is None else drawn * ~without
    return [
        (subspace(union.gram, first, centred), subspace(union.gram, second, centred))
        for first, second in kept.swapaxes(0, 1)
    ]


def skill_seed(seed: int, skill: int) -> int:
    """A seed of one skill's own, so that the draws of different skills are independent."""
    return int(np.random.SeedSequence([seed, skill]).generate_state(1)[0])


def split_overlaps(
    gram: Float[np.ndarray, "N N"], halves_a: Halves, halves_b: Halves, questions: Questions
) -> SplitOverlaps:
    """Compare two skills half by half; every split of a is met by the same split of b.

    Raises:
        ValueError: if the skills do not have the same number of splits.
    """
    if len(halves_a) != len(halves_b):
        raise ValueError(f"expected as many splits of both skills, got {len(halves_a)} and {len(halves_b)}")
    rows: dict[str, list[np.ndarray]] = {field.name: [] for field in fields(SplitOverlaps)}
    for a, b in zip(halves_a, halves_b, strict=True):
        crossed = [compare(gram, x, y, questions) for x in a for y in b]
        own_a, own_b = compare(gram, *a, questions), compare(gram, *b, questions)
        found = {
            "cross": np.mean([c.overlap for c in crossed], axis=0),
            "own_a": own_a.overlap,
            "own_b": own_b.overlap,
            "b_in_a": np.mean([c.b_in_a for c in crossed], axis=0),
            "a_in_b": np.mean([c.a_in_b for c in crossed], axis=0),
            "a_in_a": (own_a.b_in_a + own_a.a_in_b) / 2,
            "b_in_b": (own_b.b_in_a + own_b.a_in_b) / 2,
        }
        for name, value in found.items():
            rows[name].append(value)
    return SplitOverlaps(**{name: np.array(values) for name, values in rows.items()})


@dataclass(frozen=True, eq=False)
class Deleted:
    """The means of two skills' splits with one block of prompts left out at a time.

    Attributes:
        parts: by skill (a, then b), the means without each of its blocks in turn.
    """

    parts: tuple[tuple[SplitMeans, ...], tuple[SplitMeans, ...]]

    def interval(
        self, function: Callable[[SplitMeans], Float[np.ndarray, " Q"]], level: float = 0.95
    ) -> tuple[Float[np.ndarray, " Q"], Float[np.ndarray, " Q"]]:
        """Ends of the interval of a function of the means, less its value: add them to the value.

        The block jackknife (Quenouille 1949, Tukey 1958) of two independent samples: the variance is the sum over the
        skills of ``(J - 1)/J sum_j (f_j - mean f)^2``, the interval Student's with ``J_a + J_b - 2`` degrees of
        freedom. NaN where the function is, without some block. It covers the choice of prompts and responses, at this
        number of samples; the overlap at another number is another quantity.
        """
        variance, freedom = np.zeros(()), -2
        for blocks in self.parts:
            values = np.array([function(means) for means in blocks])
            variance = variance + (len(values) - 1) / len(values) * np.sum((values - values.mean(axis=0)) ** 2, axis=0)
            freedom += len(values)
        reach = student.ppf((1 + level) / 2, freedom) * np.sqrt(variance)
        return -reach, reach


def deleted_overlaps(
    union: Union, halves: Sequence[Halves], questions: Questions, blocks: int, seed: int, centred: bool = False
) -> dict[tuple[int, int], Deleted]:
    """Leave out one block of every skill's prompts at a time, and compare the halves that remain, by pair of skills.

    Args:
        union: the samples.
        halves: by skill, as :func:`split_halves` gives them for the same seed.
        questions: the ranks.
        blocks: J, 5 or more; a skill of fewer groups has one a group.
        seed: of the splits and the blocks.
        centred: as the halves are.

    Raises:
        ValueError: if there are fewer than five blocks, or a skill has fewer than four groups: a block could then be
            a whole half.
    """
    found: dict[tuple[int, int], tuple[list[SplitMeans], list[SplitMeans]]] = {p: ([], []) for p in union.pairs()}
    for skill in range(union.num_skills):
        for without in _blocks(union, skill, blocks, seed):
            changed = [*halves]
            changed[skill] = skill_halves(union, skill, len(halves[skill]), seed, centred, without)
            for (a, b), parts in found.items():
                if skill in (a, b):
                    means = split_overlaps(union.gram, changed[a], changed[b], questions).means()
                    parts[(a, b).index(skill)].append(means)
    return {pair: Deleted((tuple(a), tuple(b))) for pair, (a, b) in found.items()}


def _blocks(union: Union, skill: int, blocks: int, seed: int) -> list[Bool[np.ndarray, " N"]]:
    """Random blocks of a skill's groups, as masks over the union."""
    numbers = np.unique(union.groups[union.skills == skill])
    if blocks < 5 or len(numbers) < 4:
        raise ValueError(f"expected 5 blocks or more and 4 groups or more, got {blocks} and {len(numbers)}")
    order = np.random.default_rng([skill_seed(seed, skill), _BLOCKS_STREAM]).permutation(numbers)
    return [np.isin(union.groups, part) for part in np.array_split(order, min(blocks, len(numbers)))]


def isotropic_overlaps(
    union: Union,
    squared_norms: Sequence[Float[np.ndarray, " N"]],
    dimensions: Sequence[int],
    questions: Questions,
    simulations: int,
    seed: int,
) -> dict[bool, dict[tuple[int, int], Float[np.ndarray, "R Q"]]]:
    """The overlap of halves of skills whose scores are unrelated, by centring and pair of skills.

    Every simulation draws scores of the union's norms with independent uniform directions in every module, splits
    the skills once, and compares their halves as :func:`split_overlaps` does. Without modules of very different norms
    the mean is that of random subspaces, d / n.

    Args:
        union: whose skills and groups are used; its inner products are not.
        squared_norms: by module, of every sample's score.
        dimensions: by module, its number of parameters.
        questions: the ranks.
        simulations: R.
        seed: of the simulations.
    """
    found: dict[bool, dict[tuple[int, int], list[np.ndarray]]] = {
        c: {p: [] for p in union.pairs()} for c in (False, True)
    }
    for number in range(simulations):
        rng = np.random.default_rng([seed, _FLOOR_STREAM, number])
        drawn = replace(union, gram=isotropic_gram(squared_norms, dimensions, rng))
        for centred, pairs in found.items():
            halves = split_halves(drawn, 1, seed + number, centred)
            for (a, b), rows in pairs.items():
                crossed = [compare(drawn.gram, x, y, questions).overlap for x in halves[a][0] for y in halves[b][0]]
                rows.append(np.mean(crossed, axis=0))
    shape = (simulations, len(questions))
    return {c: {pair: np.array(rows).reshape(shape) for pair, rows in pairs.items()} for c, pairs in found.items()}
