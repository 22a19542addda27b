"""How far the subspaces of several sets of states overlap, and what that number would be without a difference.

A set is a matrix of states, one row a prompt. Its subspace at the energy fraction eta is spanned by its first k right
singular vectors, k the smallest rank whose squared singular values hold the share eta of all. Two subspaces of R^D
with ranks k_a and k_b have the mode subspace overlap ``|Q_a^T Q_b|_F^2 / min(k_a, k_b)``, between 0 and 1, as in
"Safety Subspaces are Not Distinct" (equation numbers not checked). Beside it stand

- chance: ``max(k_a, k_b) / D``, its mean for subspaces of random direction;
- the ceiling: the overlap of two disjoint halves of one set, which is what one distribution reaches at that number of
  rows. Overlaps depend on the number of rows, so that of two sets is also taken at halves: only those compare;
- relabelling: the overlaps when it is drawn which rows belong to which set. Sets that differ overlap less than those.
  For centred sets it is drawn which differences of two rows of one set belong to which: see :func:`compare_sets`.

States can be taken as they are or centred, each set's own mean removed. As they are, the first direction of a set is
mostly its mean, so that overlaps at low energies compare two means.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import combinations

import numpy as np
from jaxtyping import Float, Int

from theory.spectra import rank_by_energy, without_rounding
from theory.subspaces import chance_overlap, overlaps_at, permutation_p_value

LEAST_ROWS = 4
"""Rows that a set needs: two halves of two."""
_HALVES_STREAM, _LABELS_STREAM = 0, 1  # separate random streams of one user-visible seed
_EQUAL = 1e-12  # of their norm: rows that differ by less are equal, and what they differ by is rounding


@dataclass(frozen=True, eq=False)
class Modes:
    """Leading right singular vectors of a matrix of states.

    Attributes:
        ranks: (E,) for each energy fraction the smallest rank that holds it.
        directions: (D, K) orthonormal, by falling singular value; K is the largest of the ranks.
    """

    ranks: Int[np.ndarray, " E"]
    directions: Float[np.ndarray, "D K"]


def leading_modes(states: Float[np.ndarray, "n D"], energies: Sequence[float], centred: bool = False) -> Modes | None:
    """The modes of a matrix, or None where it is zero up to rounding.

    The total energy is exact: all singular values are found, by the eigenvalues of the smaller Gram matrix.

    Args:
        states: n rows.
        energies: fractions in (0, 1).
        centred: whether the rows' mean is removed first.

    Raises:
        ValueError: if there is no row or a number is not finite.
    """
    if len(states) == 0 or not np.isfinite(states).all():
        raise ValueError(f"states must be finite and at least one, got shape {states.shape}")
    scale = float(np.abs(states).max(initial=0.0))
    if scale == 0:
        return None
    rows = states / scale  # no overflow, no underflow
    if centred:
        rows = residuals(rows)
        if not rows.any():
            return None
    wide = len(rows) <= rows.shape[1]
    ascending, vectors = np.linalg.eigh(rows @ rows.T if wide else rows.T @ rows)
    values = without_rounding(ascending[::-1], len(ascending))
    ranks = np.array([rank_by_energy(values, energy) for energy in energies])
    largest = min(int(ranks.max()), int(np.count_nonzero(values)))
    top = vectors[:, ::-1][:, :largest]
    return Modes(np.minimum(ranks, largest), rows.T @ top / np.sqrt(values[:largest]) if wide else top)


def residuals(states: Float[np.ndarray, "n D"]) -> Float[np.ndarray, "n D"]:
    """The rows less their mean; exactly zero where all rows are equal up to rounding."""
    rows = states - states.mean(0)
    rows = rows - rows.mean(0)  # what the rounding of a large mean has left
    return rows if np.linalg.norm(rows) > _EQUAL * np.linalg.norm(states) else np.zeros_like(rows)


def mode_overlaps(a: Modes | None, b: Modes | None, count: int) -> Float[np.ndarray, " E"]:
    """Mode subspace overlap at each of ``count`` energy fractions; NaN where a side has no direction at all."""
    if a is None or b is None:
        return np.full(count, np.nan)
    return overlaps_at(a.directions.T @ b.directions, a.ranks, b.ranks, len(a.directions))


@dataclass(frozen=True, eq=False)
class Plan:
    """Which rows are drawn together, the same for every layer.

    Attributes:
        halves: for each set (R, 2, n): the rows of the two halves of every split, n the same for all sets.
        relabellings: for each pair (P, N_a + N_b): an order of the pair's rows, the first N_a of which stand for a;
            without numbers from 2 n it is an order of the pair's differences of rows, n of each set.
    """

    halves: tuple[Int[np.ndarray, "R two n"], ...]
    relabellings: tuple[Int[np.ndarray, "P _pooled"], ...]

    @property
    def rows_in_half(self) -> int:
        """n, half the rows of the smallest set."""
        return int(self.halves[0].shape[2])


def draw_plan(counts: Sequence[int], splits: int, permutations: int, seed: int) -> Plan:
    """Draw the splits of every set and the relabellings of every pair of sets.

    Args:
        counts: rows of each set.
        splits: R, from 1.
        permutations: P, from 0.
        seed: the same seed gives the same plan; a set's splits depend on its place, its rows and n alone.

    Raises:
        ValueError: if there are fewer than two sets or a set is too small to be split.
    """
    if len(counts) < 2 or min(counts) < LEAST_ROWS or splits < 1 or permutations < 0:
        raise ValueError(f"expected two or more sets of {LEAST_ROWS} rows or more, got {list(counts)}")
    half = min(counts) // 2
    halves = tuple(
        _orders(count, splits, (seed, _HALVES_STREAM, number))[:, : 2 * half].reshape(splits, 2, half)
        for number, count in enumerate(counts)
    )
    labels = tuple(
        _orders(counts[a] + counts[b], permutations, (seed, _LABELS_STREAM, a, b)) for a, b in pairs(len(counts))
    )
    return Plan(halves, labels)


def _orders(count: int, draws: int, seed: Sequence[int]) -> Int[np.ndarray, "draws count"]:
    return np.random.default_rng(list(seed)).permuted(np.tile(np.arange(count), (draws, 1)), axis=1)


def pairs(count: int) -> list[tuple[int, int]]:
    """All pairs of sets by number, the smaller first."""
    return list(combinations(range(count), 2))


@dataclass(frozen=True, eq=False)
class PairOverlap:
    """The overlap of two sets a and b at E energy fractions; NaN where a set has no direction.

    Attributes:
        ranks: (2, E) ranks of a and of b, from all rows; 0 where there is no direction.
        overlap: (E,) overlap of a and b, from all rows.
        chance: (E,) mean overlap of random subspaces of those ranks.
        self_half: (2, R, E) overlap of the two halves of a, and of b, in every split.
        cross_half: (R, E) overlap of a half of a with a half of b, mean of the four pairs of halves of a split.
        chance_half: (E,) chance of cross_half, mean over the splits.
        tested: (E,) the overlap that the relabelled ones compare with: of the rows, or centred of their differences.
        permuted: (P, E) that after each relabelling.
        mean_share: (2,) share of the energy as it is that the mean of a, and of b, holds.
        mean_cosine: () cosine of the two means; NaN where one is zero.
    """

    ranks: Float[np.ndarray, "two E"]
    overlap: Float[np.ndarray, " E"]
    chance: Float[np.ndarray, " E"]
    self_half: Float[np.ndarray, "two R E"]
    cross_half: Float[np.ndarray, "R E"]
    chance_half: Float[np.ndarray, " E"]
    tested: Float[np.ndarray, " E"]
    permuted: Float[np.ndarray, "P E"]
    mean_share: Float[np.ndarray, " two"]
    mean_cosine: Float[np.ndarray, ""]

    @property
    def defined(self) -> bool:
        """Whether both sets have directions, from all rows, in every half and after every relabelling."""
        arrays = (self.overlap, self.self_half, self.cross_half, self.tested, self.permuted)
        return not any(np.isnan(array).any() for array in arrays)


def mean_of(overlaps: Sequence[PairOverlap]) -> PairOverlap | None:
    """The mean over layers of every number, splits and relabellings kept apart; None of none."""
    if not overlaps:
        return None
    stacked = {
        field.name: np.asarray(np.mean([getattr(x, field.name) for x in overlaps], axis=0))
        for field in fields(PairOverlap)
    }
    return PairOverlap(**stacked)


def compare_sets(
    sets: Sequence[Float[np.ndarray, "_n D"]], energies: Sequence[float], plan: Plan, centred: bool
) -> list[PairOverlap]:
    """The overlaps of every pair of sets, in the order of :func:`pairs`.

    With ``centred`` each set's own mean is removed, in halves that of their own rows. Rows less their mean must not be
    relabelled: each set's sum to zero, which ties them to each other and makes relabelled sets share directions that
    the sets themselves cannot share. Relabelled are instead differences of two rows of one set, each row in one of
    them at most: they have no mean and are independent, so that the p-value is exact whatever the distribution of the
    rows, as that of states as they are is. The hypotheses: both sets' rows have one distribution, or centred, one but
    for its mean.

    Args:
        sets: (N, D) states of each set.
        energies: fractions in (0, 1).
        plan: splits and relabellings for sets of these sizes.
        centred: whether means are removed.

    Raises:
        ValueError: if a number is not finite.
    """
    dimension, count = sets[0].shape[1], len(energies)
    reduced = _coordinates(sets)
    whole = [leading_modes(states, energies, centred) for states in reduced]
    halves = [
        [[leading_modes(states[rows], energies, centred) for rows in split] for split in splits]
        for states, splits in zip(reduced, plan.halves, strict=True)
    ]
    own = np.array([[mode_overlaps(x, y, count) for x, y in splits] for splits in halves])  # (S, R, E)
    found = []
    drawn = [_differences(states, plan, k) if centred else states for k, states in enumerate(reduced)]
    for (a, b), orders in zip(pairs(len(sets)), plan.relabellings, strict=True):
        crossed = list(_crossed(halves[a], halves[b], count, dimension))
        found.append(
            PairOverlap(
                ranks=np.array([_ranks(whole[a], count), _ranks(whole[b], count)]),
                overlap=mode_overlaps(whole[a], whole[b], count),
                chance=_chance(whole[a], whole[b], count, dimension),
                self_half=own[[a, b]],
                cross_half=np.array([overlap for overlap, _ in crossed]),
                chance_half=np.mean([chance for _, chance in crossed], axis=0),
                tested=_relabelled(drawn[a], drawn[b], np.arange(orders.shape[1])[None], energies)[0],
                permuted=_relabelled(drawn[a], drawn[b], orders, energies),
                mean_share=np.array([_mean_share(sets[a]), _mean_share(sets[b])]),
                mean_cosine=np.asarray(_cosine(sets[a].mean(0), sets[b].mean(0))),
            )
        )
    return found


def _coordinates(sets: Sequence[Float[np.ndarray, "_n D"]]) -> list[Float[np.ndarray, "_n r"]]:
    """The same states in an orthonormal basis of what they span together, which keeps every inner product."""
    pooled = np.concatenate(sets)
    if len(pooled) >= pooled.shape[1]:
        return list(sets)
    inside = np.asarray(np.linalg.qr(pooled.T, mode="r")).T
    return np.split(inside, np.cumsum([len(states) for states in sets])[:-1])


def _crossed(
    a: Sequence[Sequence[Modes | None]], b: Sequence[Sequence[Modes | None]], count: int, dimension: int
) -> Iterator[tuple[Float[np.ndarray, " E"], Float[np.ndarray, " E"]]]:
    """For every split the mean overlap of a half of a with a half of b, and its chance."""
    for split_a, split_b in zip(a, b, strict=True):
        both = [(x, y) for x in split_a for y in split_b]
        overlaps = [mode_overlaps(x, y, count) for x, y in both]
        yield np.mean(overlaps, axis=0), np.mean([_chance(x, y, count, dimension) for x, y in both], axis=0)


def _relabelled(
    a: Float[np.ndarray, "na r"],
    b: Float[np.ndarray, "nb r"],
    orders: Int[np.ndarray, "P pooled"],
    energies: Sequence[float],
) -> Float[np.ndarray, "P E"]:
    pooled = np.concatenate([a, b])
    out = np.empty((len(orders), len(energies)))
    for row, order in zip(out, orders, strict=True):
        first, second = np.split(pooled[order[order < len(pooled)]], [len(a)])
        row[:] = mode_overlaps(leading_modes(first, energies), leading_modes(second, energies), len(energies))
    return out


def _differences(states: Float[np.ndarray, "_N r"], plan: Plan, number: int) -> Float[np.ndarray, "_n r"]:
    """Rows of one half of a set's first split less those of the other; exactly zero where all rows are equal."""
    first, second = plan.halves[number][0]
    rows = residuals(states)
    return rows[first] - rows[second]


def _ranks(modes: Modes | None, count: int) -> Float[np.ndarray, " E"]:
    return np.zeros(count) if modes is None else modes.ranks.astype(np.float64)


def _chance(a: Modes | None, b: Modes | None, count: int, dimension: int) -> Float[np.ndarray, " E"]:
    if a is None or b is None:
        return np.full(count, np.nan)
    return np.array(
        [chance_overlap(*ranks, dimension) for ranks in zip(a.ranks.tolist(), b.ranks.tolist(), strict=True)]
    )


def _mean_share(states: Float[np.ndarray, "n D"]) -> float:
    """``n |mean|^2 / |X|_F^2``, 0 of zero states."""
    total = float(np.sum(states**2))
    return float(len(states) * np.sum(states.mean(0) ** 2) / total) if total else 0.0


def _cosine(a: Float[np.ndarray, " D"], b: Float[np.ndarray, " D"]) -> float:
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(np.clip(a @ b / norms, -1.0, 1.0)) if norms else float("nan")


def share_of_ceiling(overlap: PairOverlap) -> Float[np.ndarray, " E"]:
    """How much of what the sets reach with themselves they reach with each other, at halves.

    The mean of ``cross_half`` over the geometric mean of the two ceilings: 1 where the two sets look like two halves
    of one, and above it by chance at times. NaN where there is no direction.
    """
    ceilings = overlap.self_half.mean(1)
    ceiling = np.sqrt(ceilings[0] * ceilings[1])
    crossed = overlap.cross_half.mean(0)
    return np.divide(crossed, ceiling, out=np.full_like(crossed, np.nan), where=ceiling > 0)


def relabelling_p_value(
    overlap: Float[np.ndarray, " E"], permuted: Float[np.ndarray, "P E"]
) -> Float[np.ndarray, " E"]:
    """The share of relabellings with an overlap no larger than the sets' own, the sets themselves counted as one.

    ``(1 + #{permuted <= overlap}) / (1 + P)``: the probability, if the labels meant nothing, of sets that overlap as
    little as these (Phipson and Smyth 2010). One-sided: sets that differ overlap less. NaN where there is no direction.
    """
    values = [permutation_p_value(-most, -draws) for most, draws in zip(overlap.tolist(), permuted.T, strict=True)]
    return np.where(np.isnan(overlap) | np.isnan(permuted).any(axis=0), np.nan, values)
