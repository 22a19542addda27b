"""Overlaps of skills from grams alone, against dense projectors, closed forms and the laws they obey."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ortho_group

from tests.oracles import cross_fisher
from tests.oracles.cross_fisher import DenseSet
from theory.cross_overlap import (
    Questions,
    Union,
    chance_overlap,
    compare,
    inner_products,
    isotropic_gram,
    permuted_overlaps,
    set_cosines,
    subspace,
    weights_on,
)
from theory.spectra import mode_subspace_overlap, principal_cosines
from theory.split_overlap import (
    Deleted,
    SplitMeans,
    deleted_overlaps,
    isotropic_overlaps,
    skill_halves,
    split_halves,
    split_overlaps,
)
from theory.statistics import ScoreStatistics

ASKED = Questions((1, 2, 3), (0.5, 0.9))
EACH = [*ASKED.ranks, *ASKED.energies]
MEASURES = ("cross", "own_a", "own_b", "b_in_a", "a_in_b", "a_in_a", "b_in_b")


def scores_of(seed, counts=(7, 9), n=20, common=2.0):
    """Skills whose scores share a mean and are otherwise their own."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=n)
    return [
        rng.normal(size=(count, 4)) @ rng.normal(size=(4, n)) + rng.normal(size=(count, n)) + common * shared
        for count in counts
    ]


def union_of(parts, groups=None):
    rows = np.concatenate(parts)
    skills = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    return Union(rows @ rows.T, skills, np.arange(len(rows)) if groups is None else groups, rows.shape[1])


def sets_of(union, centred=False):
    return [subspace(union.gram, union.weights(skill), centred) for skill in range(union.num_skills)]


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("n", [20, 5])
def test_everything_equals_dense_projectors(centred, n):
    parts = scores_of(0, n=n)
    union = union_of(parts)
    a, b = sets_of(union, centred)
    dense = [DenseSet(part, centred) for part in parts]
    found = compare(union.gram, a, b, ASKED)
    for q, question in enumerate(EACH):
        assert found.overlap[q] == pytest.approx(cross_fisher.overlap(*dense, question), abs=1e-9)
        assert found.b_in_a[q] == pytest.approx(cross_fisher.energy(dense[1], dense[0], question), abs=1e-9)
        assert found.a_in_b[q] == pytest.approx(cross_fisher.energy(dense[0], dense[1], question), abs=1e-9)
        assert [x.ranks(ASKED)[q] for x in (a, b)] == [x.rank_of(question) for x in dense]
    np.testing.assert_allclose(set_cosines(union.gram, a, b, 3), cross_fisher.cosines(*dense, 3), atol=1e-9)
    for one, other in ((a, dense[0]), (b, dense[1])):
        assert one.trace == pytest.approx(np.trace(other.fisher), rel=1e-10)
        u = np.concatenate(parts)[one.indices].T @ one.coefficients
        np.testing.assert_allclose(u.T @ u, np.eye(other.most), atol=1e-8)
        np.testing.assert_allclose(u[:, :2] @ u[:, :2].T, other.projector(2), atol=1e-9)


def test_it_is_the_overlap_of_the_spectra():
    parts = scores_of(3)
    union = union_of(parts)
    a, b = sets_of(union)
    stats = [ScoreStatistics.from_scores(part, np.ones(20), np.ones(20)) for part in parts]
    cross = parts[0] @ parts[1].T
    found = compare(union.gram, a, b, Questions(tuple(range(1, 8))))
    for d in range(1, 8):
        assert found.overlap[d - 1] == pytest.approx(mode_subspace_overlap(*stats, cross, d), rel=1e-10)
        np.testing.assert_allclose(set_cosines(union.gram, a, b, d), principal_cosines(*stats, cross, d), rtol=1e-10)


def test_weights_are_those_of_repeated_samples():
    (rows,) = scores_of(1, counts=(5,))
    repeated = rows[[0, 0, 1, 2, 3, 4, 4, 4]]
    once = subspace(rows @ rows.T, np.array([2, 1, 1, 1, 3]) / 8, True)
    often = subspace(repeated @ repeated.T, np.full(8, 1 / 8), True)
    np.testing.assert_allclose(once.eigenvalues[:4], often.eigenvalues[:4], rtol=1e-10)
    projectors = [(u := r[s.indices].T @ s.coefficients[:, :2]) @ u.T for r, s in ((rows, once), (repeated, often))]
    np.testing.assert_allclose(*projectors, atol=1e-10)


def test_a_skill_has_everything_in_common_with_itself():
    part = scores_of(2, counts=(8,))[0]
    for centred in (False, True):
        a, b = sets_of(union_of([part, part]), centred)
        found = compare(union_of([part, part]).gram, a, b, ASKED)
        np.testing.assert_allclose(found.overlap, 1, rtol=1e-10)
        shares = np.cumsum(a.eigenvalues) / a.trace
        np.testing.assert_allclose(found.b_in_a, shares[a.ranks(ASKED) - 1], rtol=1e-10)


def test_skills_on_disjoint_parameters_have_nothing_in_common():
    first, second = scores_of(4, counts=(6, 6), n=10)
    zero = np.zeros((6, 10))
    union = union_of([np.hstack([first, zero]), np.hstack([zero, second])])
    for centred in (False, True):
        found = compare(union.gram, *sets_of(union, centred), ASKED)
        for values in (found.overlap, found.b_in_a, found.a_in_b):
            np.testing.assert_array_equal(values, 0)
    means = split_overlaps(union.gram, *split_halves(union, 3, 0), ASKED).means()
    np.testing.assert_array_equal(means.relative_overlap(np.zeros(5)), 0)


def test_a_shared_mean_makes_skills_alike_until_it_is_removed():
    union = union_of(scores_of(5, counts=(30, 30), n=400, common=40.0))
    first = Questions((1,))
    assert compare(union.gram, *sets_of(union), first).overlap[0] > 0.95
    assert compare(union.gram, *sets_of(union, True), first).overlap[0] < 0.1


def test_degenerate_sets():
    one = np.array([[3.0, 4.0, 0.0]])
    union = union_of([one, np.eye(3)])
    single, three = sets_of(union, True)
    assert single.coefficients.shape == (1, 0)
    assert single.trace == 0
    nothing = compare(union.gram, single, three, ASKED)
    for values in (nothing.overlap, nothing.b_in_a, nothing.a_in_b):
        np.testing.assert_array_equal(values, 0)
    np.testing.assert_array_equal(chance_overlap(single, three, ASKED, 3), 0)
    assert inner_products(union.gram, single, three).shape == (0, 2)
    alike = subspace(union_of([one + np.zeros((4, 1))]).gram, np.full(4, 1 / 4), True)
    assert alike.coefficients.shape[1] == 0
    assert np.all(alike.eigenvalues == 0)
    assert chance_overlap(*sets_of(union), Questions((3,)), 12)[0] == 3 / 12


@given(seed=st.integers(0, 10**6), centred=st.booleans())
def test_invariances(seed, centred):
    rng = np.random.default_rng(seed)
    parts = scores_of(seed, counts=(5, 6), n=9)
    base = compare(union_of(parts).gram, *sets_of(union_of(parts), centred), ASKED)
    shuffled = [part[rng.permutation(len(part))] for part in parts]
    rotated = [part @ ortho_group.rvs(9, random_state=seed) for part in parts]
    scaled = [7.0 * parts[0], 0.01 * parts[1]]
    changed = [shuffled, rotated, scaled, [-parts[0], parts[1]]]
    if centred:
        changed.append([parts[0] + rng.normal(size=9), parts[1] - 3 * rng.normal(size=9)])
    for other in changed:
        found = compare(union_of(other).gram, *sets_of(union_of(other), centred), ASKED)
        for name in ("overlap", "b_in_a", "a_in_b"):
            np.testing.assert_allclose(getattr(found, name), getattr(base, name), atol=1e-7)
    swapped = compare(union_of(parts[::-1]).gram, *sets_of(union_of(parts[::-1]), centred), ASKED)
    np.testing.assert_allclose(swapped.overlap, base.overlap, atol=1e-9)
    np.testing.assert_allclose(swapped.b_in_a, base.a_in_b, atol=1e-9)


@given(seed=st.integers(0, 10**6))
def test_laws_of_shares(seed):
    parts = scores_of(seed, counts=(6, 6), n=30)
    union = union_of(parts)
    found = compare(union.gram, *sets_of(union), Questions((1, 2, 3, 4, 5, 6)))
    own = sets_of(union)[1]
    best = np.cumsum(own.eigenvalues) / own.trace
    assert np.all(np.diff(found.b_in_a) >= -1e-12)
    assert np.all(found.b_in_a <= best + 1e-10)  # no d directions hold more than the set's own top d


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"skills": np.array([0, 0, 2])}, "numbered 0, 1"),
        ({"skills": np.array([0, 0])}, "a skill and a group for each of the 3"),
        ({"groups": np.array([0, 1, 1])}, "cannot belong to two skills"),
    ],
)
def test_unions_that_cannot_be(change, message):
    usual = {"gram": np.eye(3), "skills": np.array([0, 0, 1]), "groups": np.arange(3), "dimension": 3}
    with pytest.raises(ValueError, match=message):
        Union(**(usual | change))


def test_questions_and_weights_that_cannot_be():
    with pytest.raises(ValueError, match="1 or more"):
        Questions((0, 1))
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        Questions((1,), (1.5,))
    for weights in (np.zeros(2), np.array([1.5, -0.5])):
        with pytest.raises(ValueError, match="not negative and not all zero"):
            subspace(np.eye(2), weights)


# ------------------------------------------------------------------------------------------ permutations


@pytest.mark.parametrize("centred", [False, True])
def test_permutations_are_partitions_of_whole_groups(centred):
    parts = scores_of(6, counts=(4, 6))
    groups = np.array([0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
    union = union_of(parts, groups)
    found = permuted_overlaps(union, 0, 1, ASKED, 60, 0, centred)
    rows = np.concatenate(parts)
    possible = []
    for chosen in combinations(range(5), 2):
        inside = np.isin(groups, chosen)
        possible.append(
            [cross_fisher.overlap(*(DenseSet(rows[m], centred) for m in (inside, ~inside)), q) for q in EACH]
        )
    possible = np.array(possible)
    np.testing.assert_allclose(found.observed, possible[0], atol=1e-9)
    seen = {int(np.argmin(np.abs(possible - draw).sum(axis=1))) for draw in found.drawn}
    assert len(seen) == 10  # all of them, in 60 draws
    for draw in found.drawn:
        assert np.abs(possible - draw).max(axis=1).min() < 1e-9
    expected = (1 + (found.drawn <= found.observed + 1e-9).sum(axis=0)) / 61
    np.testing.assert_allclose(found.p_values, expected)


def test_the_permutation_test_tells_skills_apart_and_only_those():
    rng = np.random.default_rng(1)
    basis = rng.normal(size=(2, 3, 60))
    apart = [3 * rng.normal(size=(16, 3)) @ basis[k] + rng.normal(size=(16, 60)) for k in range(2)]
    found = permuted_overlaps(union_of(apart), 0, 1, Questions((3,)), 99, 0)
    assert found.p_values[0] == 0.01
    p_values = []
    for seed in range(40):
        draw = np.random.default_rng(seed)
        same = [3 * draw.normal(size=(8, 3)) @ basis[0] + draw.normal(size=(8, 60)) for _ in range(2)]
        p_values.append(permuted_overlaps(union_of(same), 0, 1, Questions((3,)), 39, seed).p_values[0])
    assert 0.35 < np.mean(p_values) < 0.65  # uniform: 0.5, with a standard error of 0.05
    assert np.mean(np.array(p_values) <= 0.1) < 0.25


def test_permutations_of_a_third_skill_do_not_enter():
    three = union_of(scores_of(7, counts=(6, 6, 6)))
    two = union_of(scores_of(7, counts=(6, 6, 6))[:2])
    found, expected = (permuted_overlaps(u, 0, 1, ASKED, 5, 3) for u in (three, two))
    np.testing.assert_allclose(found.drawn, expected.drawn, rtol=1e-12)
    none = permuted_overlaps(two, 0, 1, ASKED, 0, 3)
    assert none.drawn.shape == (0, 5)
    assert np.all(none.p_values == 1)
    with pytest.raises(ValueError, match="0 or more"):
        permuted_overlaps(two, 0, 1, ASKED, -1, 0)


# ------------------------------------------------------------------------------------------------- floors


def test_isotropic_grams_have_the_norms_and_the_moments_of_random_directions():
    rng = np.random.default_rng(0)
    squares = np.array([1.0, 4.0, 0.0, 9.0])
    for dimension in (2, 4, 50, 10**9):
        grams = np.array([isotropic_gram([squares], [dimension], rng) for _ in range(4000)])
        np.testing.assert_allclose(np.diagonal(grams, axis1=1, axis2=2), np.tile(squares, (4000, 1)), rtol=1e-12)
        assert np.all(grams[:, 2] == 0)
        cosines = grams[:, 0, 1] / 2
        n = dimension
        assert np.mean(cosines**2) * n == pytest.approx(1, abs=0.11)  # 4 standard errors of at most sqrt(2/4000)
        assert np.mean(cosines**4) * n * (n + 2) == pytest.approx(3, abs=0.7)
        assert np.mean(grams[:, 0, 1] * grams[:, 0, 3]) * n == pytest.approx(0, abs=0.5)
    assert np.linalg.matrix_rank(isotropic_gram([np.ones(6)], [3], rng)) == 3


def test_modules_of_isotropic_grams_add():
    rng = np.random.default_rng(0)
    norms = [np.array([1.0, 3.0]), np.array([5.0, 2.0])]
    grams = np.array([isotropic_gram(norms, [4, 9], rng) for _ in range(6000)])
    np.testing.assert_allclose(grams[0].diagonal(), [6.0, 5.0])
    assert np.mean(grams[:, 0, 1] ** 2) == pytest.approx(3 / 4 + 10 / 9, rel=0.1)
    with pytest.raises(ValueError, match="norms and a dimension by module"):
        isotropic_gram([], [], rng)
    with pytest.raises(ValueError, match="got 1 and 2"):
        isotropic_gram(norms[:1], [4, 9], rng)


def test_the_floor_of_one_module_is_that_of_random_subspaces():
    union = union_of(scores_of(0, counts=(10, 12), n=40))
    norms = union.gram.diagonal()
    found = isotropic_overlaps(union, [norms], [40], Questions((1, 3)), 150, 0)
    for centred in (False, True):
        table = found[centred][0, 1]
        assert table.shape == (150, 2)
        np.testing.assert_allclose(
            table.mean(axis=0), [1 / 40, 3 / 40], atol=4 * table.std(axis=0).max() / np.sqrt(150)
        )
    again = isotropic_overlaps(union, [norms], [40], Questions((1, 3)), 3, 0)
    np.testing.assert_array_equal(again[True][0, 1], found[True][0, 1][:3])


# ------------------------------------------------------------------------------------- halves, intervals


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
def test_splits_and_intervals_equal_brute_force(centred, grouped):
    parts = scores_of(8, counts=(12, 15), n=18)
    groups = np.concatenate([np.arange(12) // 2, 6 + np.arange(15) // 3]) if grouped else np.arange(27)
    union = union_of(parts, groups)
    own = [groups[:12], groups[12:]]
    halves = [cross_fisher.halves(part, 4, 5, k, own[k]) for k, part in enumerate(parts)]
    found = split_halves(union, 4, 5, centred)
    means = split_overlaps(union.gram, *found, ASKED).means()
    deleted = deleted_overlaps(union, found, ASKED, 5, 5, centred)[0, 1]
    floor = np.full(5, 0.01)
    low, high = deleted.interval(lambda m: m.relative_overlap(floor))
    for q, question in enumerate(EACH):
        expected = cross_fisher.split_means(*parts, *halves, question, centred)
        for name in MEASURES:
            assert getattr(means, name)[q] == pytest.approx(expected[name], abs=1e-9), (name, question)
        value = cross_fisher.relative_overlap(expected, 0.01)
        assert means.relative_overlap(floor)[q] == pytest.approx(value, abs=1e-8)
        assert means.ceiling(floor)[q] == pytest.approx(0.01 + (expected["cross"] - 0.01) / value, abs=1e-8)
    left_out = _left_out(parts, halves, own, centred)
    for q, question in enumerate(EACH[:2]):
        values = [[cross_fisher.relative_overlap(m, 0.01) for m in side] for side in left_out(question)]
        assert high[q] == pytest.approx(cross_fisher.jackknife_reach(values, 0.95), rel=1e-6)
        assert low[q] == -high[q]


def _left_out(parts, halves, own, centred):
    """By question and skill, the means without each of its blocks, drawn as the package draws them."""

    def found(question):
        sides = []
        for skill in range(2):
            seed = int(np.random.SeedSequence([5, skill]).generate_state(1)[0])
            numbers = np.unique(own[skill])
            order = np.random.default_rng([seed, 5]).permutation(numbers)
            rows = []
            for block in np.array_split(order, 5):
                gone = np.flatnonzero(np.isin(own[skill], block))
                kept = list(halves)
                kept[skill] = [tuple(np.setdiff1d(half, gone) for half in pair) for pair in halves[skill]]
                rows.append(cross_fisher.split_means(*parts, *kept, question, centred))
            sides.append(rows)
        return sides

    return found


def test_one_skill_in_two_halves_is_shared_and_two_are_not():
    rng = np.random.default_rng(0)
    bases = rng.normal(size=(2, 4, 300))
    parts = [2 * rng.normal(size=(40, 4)) @ bases[k] + rng.normal(size=(40, 300)) for k in (0, 0, 1)]
    union = union_of(parts)
    asked, halves = Questions((4,)), split_halves(union_of(parts), 20, 0)
    floor = np.array([4 / 300])
    deleted = deleted_overlaps(union, halves, asked, 10, 0)
    same, other = (split_overlaps(union.gram, halves[0], halves[k], asked).means() for k in (1, 2))
    relative = [m.relative_overlap(floor)[0] for m in (same, other)]
    reach = [deleted[0, k].interval(lambda m: m.relative_overlap(floor))[1][0] for k in (1, 2)]
    assert abs(relative[0] - 1) < 2 * reach[0] < 0.2
    assert abs(relative[1]) < 0.05
    assert reach[1] < 0.05
    there, back = same.relative_energy(floor, floor)
    assert there[0] == pytest.approx(1, abs=0.05)
    assert back[0] == pytest.approx(1, abs=0.05)
    assert other.relative_energy(floor, floor)[0][0] < 0.05


@pytest.mark.slow
def test_intervals_are_as_wide_as_the_estimates_scatter():
    asked, floor = Questions((2,)), np.array([2 / 100])
    rng = np.random.default_rng(0)
    bases = rng.normal(size=(3, 2, 100))
    mixed = [bases[0], (bases[0] + bases[1]) / np.sqrt(2)]
    values, reaches = [], []
    for seed in range(30):
        draw = np.random.default_rng([1, seed])
        parts = [draw.normal(size=(24, 2)) @ mixed[k] + draw.normal(size=(24, 100)) for k in range(2)]
        union = union_of(parts)
        halves = split_halves(union, 4, seed)
        values.append(split_overlaps(union.gram, *halves, asked).means().relative_overlap(floor)[0])
        deleted = deleted_overlaps(union, halves, asked, 8, seed)[0, 1]
        reaches.append(deleted.interval(lambda m: m.relative_overlap(floor))[1][0])
    covered = np.mean(np.abs(np.array(values) - np.mean(values)) <= np.array(reaches))
    assert 0.85 <= covered <= 1
    assert 0.6 < np.median(reaches) / (2.14 * np.std(values)) < 2


def test_no_ceiling_no_relative_overlap():
    flat = {name: np.array([0.2]) for name in MEASURES}
    weak = SplitMeans(**(flat | {"own_b": np.array([0.05])}))
    assert np.isnan(weak.relative_overlap(np.array([0.1]))[0])
    assert weak.ceiling(np.array([0.1]))[0] == 0.1
    strong = SplitMeans(**flat)
    assert strong.relative_overlap(np.array([0.1]))[0] == pytest.approx(1)
    low, high = Deleted(((strong, weak), (strong, strong))).interval(lambda m: m.relative_overlap(np.array([0.1])))
    assert np.isnan(low[0])
    assert np.isnan(high[0])


def test_halves_that_cannot_be():
    union = union_of(scores_of(0, counts=(5, 3)))
    alone = Union(union.gram, union.skills, np.where(union.skills == 0, 0, 1 + np.arange(8)), 20)
    with pytest.raises(ValueError, match="skill 0 has fewer than two groups"):
        skill_halves(alone, 0, 2, 0)
    with pytest.raises(ValueError, match="4 groups or more, got 5 and 3"):
        deleted_overlaps(union, split_halves(union, 2, 0), ASKED, 5, 0)
    with pytest.raises(ValueError, match="5 blocks or more"):
        deleted_overlaps(union, split_halves(union, 2, 0), ASKED, 4, 0)
    with pytest.raises(ValueError, match="as many splits"):
        split_overlaps(union.gram, skill_halves(union, 0, 2, 0), skill_halves(union, 1, 3, 0), ASKED)


@given(first=st.integers(4, 14), blocks=st.integers(5, 12), seed=st.integers(0, 10**6))
@settings(max_examples=20)
def test_no_block_is_a_whole_half(first, blocks, seed):
    union = union_of(scores_of(seed, counts=(first, 4)))
    found = deleted_overlaps(union, split_halves(union, 1, seed), Questions((1,)), blocks, seed)[0, 1]
    assert [len(part) for part in found.parts] == [min(first, blocks), 4]


def test_splits_of_different_skills_are_independent_and_samples_stay_in_their_skill():
    union = union_of(scores_of(0, counts=(8, 8)))
    halves = split_halves(union, 3, 0)
    for skill, splits in enumerate(halves):
        for first, second in splits:
            assert sorted([*first.indices, *second.indices]) == [*range(8 * skill, 8 * skill + 8)]
    assert any(not np.array_equal(a.indices, b.indices - 8) for (a, _), (b, _) in zip(*halves, strict=True))
    np.testing.assert_array_equal(weights_on(np.array([True, False, True])), [0.5, 0, 0.5])
