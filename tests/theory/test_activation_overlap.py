"""Overlaps of activation subspaces: against dense decompositions, in closed form, and what they are without cause."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from tests.oracles import activations as naive
from theory.activation_overlap import (
    PairOverlap,
    Plan,
    compare_sets,
    draw_plan,
    leading_modes,
    mean_of,
    mode_overlaps,
    pairs,
    relabelling_p_value,
    residuals,
    share_of_ceiling,
)

ENERGIES = (0.1, 0.3, 0.5, 0.7, 0.9, 0.99)


def draw(seed: int, rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns))


def rotation(seed: int, size: int) -> np.ndarray:
    return np.linalg.qr(draw(seed, size, size))[0]


def overlaps(a: np.ndarray, b: np.ndarray, centred: bool = False) -> np.ndarray:
    return mode_overlaps(leading_modes(a, ENERGIES, centred), leading_modes(b, ENERGIES, centred), len(ENERGIES))


CASES = {
    "wide": (draw(1, 9, 30), draw(2, 7, 30)),
    "tall": (draw(3, 40, 6), draw(4, 50, 6)),
    "square": (draw(5, 12, 12), draw(6, 12, 12)),
    "rank-deficient": (draw(7, 20, 3) @ draw(8, 3, 25), draw(9, 10, 2) @ draw(10, 2, 25)),
    "one direction holds almost all": (draw(11, 15, 20) + 300, draw(12, 15, 20) + 300),
    "falling": (draw(13, 15, 20) * 0.5 ** np.arange(20), draw(14, 15, 20) * 0.6 ** np.arange(20)),
    "huge": (draw(15, 8, 10) * 1e200, draw(16, 8, 10) * 1e200),
    "tiny": (draw(17, 8, 10) * 1e-200, draw(18, 8, 10) * 1e-180),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("centred", [False, True])
def test_overlap_is_that_of_dense_decompositions(case: str, centred: bool) -> None:
    a, b = CASES[case]
    wanted = [naive.overlap(a, b, energy, centred) for energy in ENERGIES]
    assert overlaps(a, b, centred) == pytest.approx(wanted, abs=1e-10)
    modes = leading_modes(a, ENERGIES, centred)
    assert modes is not None
    assert modes.ranks.tolist() == [len(naive.subspace(a, energy, centred)) for energy in ENERGIES]
    gram = modes.directions.T @ modes.directions
    assert gram == pytest.approx(np.eye(len(gram)), abs=1e-9)


@pytest.mark.parametrize("centred", [False, True])
def test_a_set_overlaps_with_itself_by_one(centred: bool) -> None:
    for a, _ in CASES.values():
        assert overlaps(a, a, centred) == pytest.approx(np.ones(len(ENERGIES)), abs=1e-10)
        assert overlaps(a, 7 * a[::-1], centred) == pytest.approx(np.ones(len(ENERGIES)), abs=1e-10)


@pytest.mark.parametrize("centred", [False, True])
def test_sets_in_orthogonal_spaces_do_not_overlap(centred: bool) -> None:
    turned = rotation(0, 20)
    a, b = draw(1, 8, 9) @ turned[:9], draw(2, 6, 11) @ turned[9:]
    assert overlaps(a, b, centred) == pytest.approx(np.zeros(len(ENERGIES)), abs=1e-12)


def test_a_subspace_inside_the_other_overlaps_by_one_though_ranks_differ() -> None:
    basis = rotation(3, 12)
    a = np.diag([3.0, 3.0, 3.0]) @ basis[:3]
    found = overlaps(a, 5 * basis[:1])
    assert found[-1] == pytest.approx(1.0)  # ranks 3 and 1: the line lies in the space


@pytest.mark.parametrize("centred", [False, True])
def test_isotropic_sets_overlap_as_chance_says(centred: bool) -> None:
    size, draws = 16, 300
    differences = []
    for k in range(draws):
        a, b = leading_modes(draw(2 * k, 6, size), ENERGIES, centred), leading_modes(
            draw(2 * k + 1, 9, size), ENERGIES, centred
        )  # fmt: skip
        assert a is not None
        assert b is not None
        differences.append(mode_overlaps(a, b, len(ENERGIES)) - np.maximum(a.ranks, b.ranks) / size)
    error = np.std(differences, axis=0, ddof=1) / np.sqrt(draws)
    assert (np.abs(np.mean(differences, axis=0)) < 4 * error).all()
    assert error.max() < 0.01  # the test could tell a chance level that is off by a tenth


def test_nothing_overlaps_with_zero_states() -> None:
    a = draw(0, 5, 8)
    zero = np.zeros((5, 8))
    assert np.isnan(overlaps(a, zero)).all()
    assert np.isnan(overlaps(zero, zero)).all()


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e6])
def test_equal_rows_have_no_direction_once_centred(size: float) -> None:
    same = np.tile(draw(0, 1, 50) * size, (7, 1))
    assert leading_modes(same, ENERGIES, centred=True) is None
    assert not residuals(same).any()
    assert leading_modes(same, ENERGIES) is not None
    almost = same + 1e-7 * size * draw(1, 7, 50)
    assert leading_modes(almost, ENERGIES, centred=True) is not None


def test_what_cannot_be_decomposed() -> None:
    with pytest.raises(ValueError, match="finite"):
        leading_modes(np.array([[1.0, np.nan]]), ENERGIES)
    with pytest.raises(ValueError, match="at least one"):
        leading_modes(np.zeros((0, 3)), ENERGIES)


# ------------------------------------------------------------------------------------------------ the plan


def test_halves_are_disjoint_and_as_large_for_every_set() -> None:
    plan = draw_plan([9, 20, 14], splits=30, permutations=11, seed=3)
    assert plan.rows_in_half == 4
    for count, halves in zip([9, 20, 14], plan.halves, strict=True):
        assert halves.shape == (30, 2, 4)
        for first, second in halves:
            assert len({*first, *second}) == 8
        assert {*halves.ravel()} == {*range(count)}
    for (a, b), orders in zip(pairs(3), plan.relabellings, strict=True):
        assert orders.shape == (11, [9, 20, 14][a] + [9, 20, 14][b])
        assert (np.sort(orders, axis=1) == np.arange(orders.shape[1])).all()
        assert len({tuple(order) for order in orders.tolist()}) == 11


def test_the_plan_follows_from_the_seed() -> None:
    def numbers(plan: Plan) -> list[list[int]]:
        return [array.ravel().tolist() for array in (*plan.halves, *plan.relabellings)]

    first = numbers(draw_plan([6, 6], 3, 3, 0))
    assert first == numbers(draw_plan([6, 6], 3, 3, 0))
    assert all(x != y for x, y in zip(first, numbers(draw_plan([6, 6], 3, 3, 1)), strict=True))
    assert first[0] != first[1]  # sets of one size are not split alike


@pytest.mark.parametrize(
    ("counts", "splits", "permutations"), [([9], 1, 0), ([9, 3], 1, 0), ([4, 4], 0, 0), ([4, 4], 1, -1)]
)
def test_plans_that_cannot_be(counts: list[int], splits: int, permutations: int) -> None:
    with pytest.raises(ValueError, match="expected two or more sets"):
        draw_plan(counts, splits, permutations, 0)


# ------------------------------------------------------------------------------------------------ pairs of sets


def three_sets(size: int) -> list[np.ndarray]:
    mixed = draw(20, size, size) * 0.8 ** np.arange(size)
    return [draw(21, 9, size) @ mixed + 2, draw(22, 12, size) @ mixed, draw(23, 8, size)]


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("size", [5, 40])  # fewer and more directions than rows
def test_pairs_are_what_loops_say(size: int, centred: bool) -> None:
    sets = three_sets(size)
    plan = draw_plan([len(x) for x in sets], splits=3, permutations=4, seed=1)
    found = compare_sets(sets, ENERGIES, plan, centred)
    assert len(found) == 3
    for (i, j), orders, pair in zip(pairs(3), plan.relabellings, found, strict=True):
        a, b = sets[i], sets[j]
        rows = [a, b]
        if centred:
            splits = [plan.halves[k][0].T for k in (i, j)]
            rows = [np.array([x[k] - x[m] for k, m in split]) for x, split in zip((a, b), splits, strict=True)]
        pooled = np.concatenate(rows)
        for e, energy in enumerate(ENERGIES):
            near = {"abs": 1e-10}
            assert pair.overlap[e] == pytest.approx(naive.overlap(a, b, energy, centred), **near)
            assert pair.chance[e] == pytest.approx(naive.chance(a, b, energy, centred), **near)
            assert pair.ranks[:, e].tolist() == [len(naive.subspace(x, energy, centred)) for x in (a, b)]
            chances = []
            for r in range(3):
                halves = [[sets[k][rows] for rows in plan.halves[k][r]] for k in (i, j)]
                for side in (0, 1):
                    wanted = naive.overlap(*halves[side], energy, centred)
                    assert pair.self_half[side, r, e] == pytest.approx(wanted, **near)
                crossed = [(x, y) for x in halves[0] for y in halves[1]]
                wanted = np.mean([naive.overlap(x, y, energy, centred) for x, y in crossed])
                assert pair.cross_half[r, e] == pytest.approx(wanted, **near)
                chances += [naive.chance(x, y, energy, centred) for x, y in crossed]
            assert pair.chance_half[e] == pytest.approx(np.mean(chances), **near)
            assert pair.tested[e] == pytest.approx(naive.overlap(*rows, energy, centred=False), **near)
            for p, order in enumerate(orders):
                drawn = [row for row in order if row < len(pooled)]
                parts = pooled[drawn[: len(rows[0])]], pooled[drawn[len(rows[0]) :]]
                assert pair.permuted[p, e] == pytest.approx(naive.overlap(*parts, energy, centred=False), **near)
        assert pair.mean_share == pytest.approx([len(x) * np.sum(x.mean(0) ** 2) / np.sum(x**2) for x in (a, b)])
        cosine = a.mean(0) @ b.mean(0) / np.linalg.norm(a.mean(0)) / np.linalg.norm(b.mean(0))
        assert float(pair.mean_cosine) == pytest.approx(cosine)


def test_rotations_scales_and_when_centred_shifts_change_nothing() -> None:
    a, b, _ = three_sets(30)
    plan = draw_plan([len(a), len(b)], splits=2, permutations=3, seed=0)
    turned = rotation(9, 30)
    for centred in (False, True):
        first = compare_sets([a, b], ENERGIES, plan, centred)[0]
        moved = [5 * (a + 3 * centred) @ turned, 5 * (b - 8 * centred) @ turned]
        second = compare_sets(moved, ENERGIES, plan, centred)[0]
        for name in ("ranks", "overlap", "self_half", "cross_half", "permuted"):
            assert getattr(second, name) == pytest.approx(getattr(first, name), abs=1e-9), name


def test_a_set_whose_states_are_all_equal_has_no_centred_overlap() -> None:
    same, other = np.tile(draw(0, 1, 30), (6, 1)), draw(1, 6, 30)
    plan = draw_plan([6, 6], splits=2, permutations=2, seed=0)
    (pair,) = compare_sets([same, other], ENERGIES, plan, centred=True)
    assert np.isnan(pair.overlap).all()
    assert not pair.ranks[0].any()
    assert pair.ranks[1].all()
    assert np.isnan(pair.cross_half).all()
    assert np.isnan(share_of_ceiling(pair)).all()
    assert not pair.defined
    (as_they_are,) = compare_sets([same, other], ENERGIES, plan, centred=False)
    assert as_they_are.defined
    assert as_they_are.self_half[0] == pytest.approx(np.ones((2, len(ENERGIES))))


def anisotropic(seed: int, rows: int, directions: np.ndarray) -> np.ndarray:
    return draw(seed, rows, len(directions)) * 0.7 ** np.arange(len(directions)) @ directions


def test_two_halves_of_one_set_reach_the_ceiling_and_different_sets_do_not() -> None:
    directions, others = rotation(5, 24), rotation(6, 24)
    plan = draw_plan([40, 40], splits=10, permutations=49, seed=0)
    same = anisotropic(1, 80, directions)
    (alike,) = compare_sets([same[:40], same[40:]], ENERGIES, plan, centred=False)
    (unlike,) = compare_sets([same[:40], anisotropic(2, 40, others)], ENERGIES, plan, centred=False)
    assert share_of_ceiling(alike)[2:] == pytest.approx(np.ones(4), abs=0.1)  # of rank 1 it is noise
    assert (share_of_ceiling(unlike) < 0.6).all()
    assert (relabelling_p_value(alike.overlap, alike.permuted) > 0.05).all()
    assert relabelling_p_value(unlike.overlap, unlike.permuted) == pytest.approx(np.full(len(ENERGIES), 1 / 50))


def test_a_difference_of_means_counts_as_they_are_and_not_centred() -> None:
    directions = rotation(5, 24)
    a, b = anisotropic(1, 30, directions), anisotropic(2, 30, directions)
    moved = a + 2 * directions[-1], b - 2 * directions[-2]
    plan = draw_plan([30, 30], splits=2, permutations=49, seed=0)
    values = [
        relabelling_p_value(pair.tested, pair.permuted)[2]
        for centred in (False, True)
        for pair in compare_sets(moved, ENERGIES, plan, centred)
    ]
    assert values[0] == pytest.approx(1 / 50)
    assert values[1] > 0.05


def test_centred_sets_of_other_directions_differ() -> None:
    a, b = anisotropic(1, 40, rotation(5, 24)) + 3, anisotropic(2, 40, rotation(6, 24)) + 3
    plan = draw_plan([40, 40], splits=2, permutations=49, seed=0)
    (pair,) = compare_sets([a, b], ENERGIES, plan, centred=True)
    assert (relabelling_p_value(pair.tested, pair.permuted) <= 0.05).all()


def test_halves_that_share_nothing_are_no_ceiling() -> None:
    axes = np.eye(8)  # every state has a direction of its own
    plan = draw_plan([4, 4], splits=2, permutations=1, seed=0)
    (pair,) = compare_sets([axes[:4], axes[4:]], ENERGIES, plan, centred=False)
    assert pair.defined
    assert not pair.self_half.any()
    assert np.isnan(share_of_ceiling(pair)).all()


# ------------------------------------------------------------------------------------------------ p-values, means


def test_p_values_count_the_sets_themselves_and_ties() -> None:
    observed = np.array([0.5, 0.1, 0.9, np.nan])
    permuted = np.array([[0.4, 0.2, 0.1, 0.1], [0.5 + 1e-14, 0.3, 0.2, 0.2], [0.6, 0.4, 0.3, 0.3]])
    found = relabelling_p_value(observed, permuted)
    assert found[:3] == pytest.approx([3 / 4, 1 / 4, 1.0])
    assert np.isnan(found[3])


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize(
    ("size", "energy", "heavy"),
    [(10, 0.7, False), (40, 0.99, False), (40, 0.99, True)],  # 40 directions: more than rows
)
def test_p_values_of_sets_that_do_not_differ_are_small_no_more_often_than_they_say(
    size: int, energy: float, heavy: bool, centred: bool
) -> None:
    small, trials = 0, 120
    for k in range(trials):
        plan = draw_plan([8, 8], splits=1, permutations=19, seed=k)
        states = anisotropic(1000 + k, 16, np.eye(size)) if size == 10 else draw(1000 + k, 16, size)
        if heavy:
            states *= np.exp(2 * draw(2000 + k, 16, 1))  # a few rows hold almost all the energy
        first = states[:8] + 5 * centred * draw(k, 1, size)  # centred, where a set lies does not count
        (pair,) = compare_sets([first, states[8:]], (energy,), plan, centred)
        small += relabelling_p_value(pair.tested, pair.permuted)[0] <= 0.1
    assert 2 <= small <= 24  # a tenth of 120; 3.6 standard deviations to either side


def test_means_over_layers_are_field_by_field() -> None:
    sets = three_sets(12)
    plan = draw_plan([len(x) for x in sets], splits=2, permutations=2, seed=0)
    first, second, third = compare_sets(sets, ENERGIES, plan, centred=False)
    found = mean_of([first, second, third])
    assert found is not None
    for field in fields(PairOverlap):
        parts = [getattr(x, field.name) for x in (first, second, third)]
        assert getattr(found, field.name) == pytest.approx(sum(parts) / 3)
    assert mean_of([]) is None
    assert not replace(first, overlap=np.full(len(ENERGIES), np.nan)).defined
