from __future__ import annotations

import numpy as np
import pytest
from dense_oracle import fisher, random_problem
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import subspace_angles
from scipy.stats import ortho_group

from theory.resampling import half_weights
from theory.spectra import (
    check_rank,
    effective_rank,
    mean_score_share,
    mode_subspace_overlap,
    numerical_rank,
    participation_ratio,
    principal_angles,
    principal_cosines,
    rank_by_energy,
    spectrum,
    split_half,
    split_half_overlap,
    without_rounding,
)
from theory.statistics import ScoreStatistics

EPS = np.finfo(float).eps


def from_rows(rows, **options):
    rows = np.asarray(rows, dtype=float)
    return ScoreStatistics.from_scores(rows, np.ones(rows.shape[1]), np.ones(rows.shape[1]), **options)


def top_basis(problem, d):
    """Top-d eigenvectors of the dense Fisher matrix."""
    return np.linalg.eigh(fisher(problem))[1][:, ::-1][:, :d]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("n_samples", "n_params"), [(6, 11), (11, 6), (4, 4)])
def test_spectrum_is_that_of_the_dense_fisher(n_samples, n_params, weighted):
    problem = random_problem(1, n_samples, n_params, weighted=weighted)
    found = spectrum(problem.stats())
    size = min(n_samples, n_params)
    dense = np.linalg.eigvalsh(fisher(problem))[::-1]
    np.testing.assert_allclose(found.eigenvalues[:size], dense[:size], rtol=1e-9)
    assert np.all(found.eigenvalues[size:] == 0)
    assert found.numerical_rank == size
    for d in range(1, size + 1):
        u = problem.scores.T @ found.basis(d)
        np.testing.assert_allclose(u.T @ u, np.eye(d), atol=1e-9)
        dense_u = top_basis(problem, d)
        np.testing.assert_allclose(u @ u.T, dense_u @ dense_u.T, atol=1e-8)
        following = dense[d] if d < size else 0.0
        assert found.gap(d) == pytest.approx(dense[d - 1] - following, rel=1e-8, abs=1e-12)


def test_rank_deficient_scores_have_exact_zeros_and_a_small_basis():
    problem = random_problem(2, 8, 20, rank=3)
    found = spectrum(problem.stats())
    assert found.numerical_rank == numerical_rank(found.eigenvalues) == 3
    assert np.all(found.eigenvalues[3:] == 0)
    assert found.basis(8).shape == (8, 3)
    u = problem.scores.T @ found.basis(8)
    np.testing.assert_allclose(u @ u.T @ problem.scores.T, problem.scores.T, atol=1e-9)


def test_degenerate_spectra():
    one = spectrum(from_rows([[3.0, 4.0]]))
    assert one.eigenvalues.tolist() == [25.0]
    assert one.gap(1) == 25.0
    zero = spectrum(from_rows(np.zeros((3, 2))))
    assert zero.eigenvalues.tolist() == [0.0, 0.0, 0.0]
    assert zero.numerical_rank == 0
    assert zero.basis(2).shape == (3, 0)
    equal = spectrum(from_rows(np.eye(4)))
    np.testing.assert_allclose(equal.eigenvalues, 0.25, rtol=1e-14)
    assert equal.gap(2) == pytest.approx(0.0, abs=1e-16)
    assert equal.gap(4) == pytest.approx(0.25, rel=1e-14)


def test_a_matrix_that_is_no_gram_matrix_is_refused():
    stats = ScoreStatistics(
        gram=np.array([[1.0, 2.0, 0.0], [2.0, 1.0, 0.0], [0.0, 0.0, 0.1]]),
        velocity=np.zeros(3),
        acceleration=np.zeros(3),
        velocity_squared=0.0,
        acceleration_squared=0.0,
        velocity_dot_acceleration=0.0,
        dimension=2,
        fisher="exact",
        labels=("a", "b", "c"),
    )
    with pytest.raises(ValueError, match=r"negative eigenvalue -0\.333 beside 1$"):
        spectrum(stats)


@pytest.mark.parametrize("d", [0, -1, 4])
def test_ranks_outside_the_samples_are_refused(d):
    found = spectrum(from_rows(np.eye(3)))
    for refused in (lambda: check_rank(d, 3), lambda: found.gap(d), lambda: found.basis(d)):
        with pytest.raises(ValueError, match=rf"1\.\.3.*got {d}"):
            refused()


@pytest.mark.parametrize(
    ("eigenvalues", "energy", "d"),
    [
        ([4.0, 3.0, 2.0, 1.0], 0.4, 1),
        ([4.0, 3.0, 2.0, 1.0], 0.41, 2),
        ([1.0, 4.0, 2.0, 3.0], 0.7, 2),
        ([4.0, 3.0, 2.0, 1.0], 1.0, 4),
        ([4.0, 3.0, 0.0, 0.0], 1.0, 2),
        ([0.0, 0.0], 0.9, 1),
        ([0.1] * 10, 0.3, 3),  # 0.1 + 0.1 + 0.1 and 0.3 * 1.0 differ in the last bit
        ([0.1] * 10, 0.9, 9),
        ([5.0], 0.01, 1),
        ([1 - 2 * EPS, 2 * EPS], 1.0, 1),  # N eps of the trace is rounding
        ([1 - 4 * EPS, 4 * EPS], 1.0, 2),
    ],
)
def test_rank_by_energy(eigenvalues, energy, d):
    assert rank_by_energy(np.array(eigenvalues), energy) == d


@given(st.lists(st.integers(0, 50), min_size=1, max_size=12), st.integers(1, 100))
def test_rank_by_energy_against_exact_integers(values, percent):
    ordered = sorted(values, reverse=True)
    expected = next(d for d in range(1, len(values) + 1) if 100 * sum(ordered[:d]) >= percent * sum(ordered))
    assert rank_by_energy(np.array(values, dtype=float), percent / 100) == expected


@pytest.mark.parametrize("energy", [0.0, -0.1, 1.1, float("nan")])
def test_energy_must_be_a_share(energy):
    with pytest.raises(ValueError, match="share of the trace"):
        rank_by_energy(np.ones(3), energy)


def test_a_spectrum_needs_an_eigenvalue():
    with pytest.raises(ValueError, match=r"^expected at least one eigenvalue"):
        rank_by_energy(np.zeros(0), 0.5)


@pytest.mark.parametrize("scale", [1e-120, 1.0, 1e120])
def test_rounding_is_relative_to_the_largest_eigenvalue(scale):
    limit = 3 * EPS * scale
    kept = np.nextafter(limit, np.inf)
    np.testing.assert_array_equal(without_rounding(np.array([scale, kept, limit]), 3), [scale, kept, 0.0])
    assert numerical_rank(np.array([limit, kept, scale])) == 2
    np.testing.assert_array_equal(without_rounding(np.array([-scale, -2 * scale]), 2), [0.0, 0.0])
    problem = random_problem(2, 8, 20, rank=3)
    assert spectrum(from_rows(scale * problem.scores)).numerical_rank == 3


def test_effective_rank_closed_forms():
    assert effective_rank(np.ones(7)) == pytest.approx(7, rel=1e-15)
    assert effective_rank(np.array([5.0, 0, 0])) == 1
    assert effective_rank(np.array([3.0, 1.0])) == pytest.approx(16 / 10, rel=1e-15)
    assert effective_rank(np.zeros(3)) == effective_rank(np.zeros(0)) == 0
    assert effective_rank(np.array([3e300, 1e300])) == pytest.approx(1.6, rel=1e-15)
    assert effective_rank(np.array([3e-300, 1e-300])) == pytest.approx(1.6, rel=1e-15)
    np.testing.assert_allclose(participation_ratio(np.array([[3.0, 1.0], [0.0, 0.0]])), [1.6, 0.0], rtol=1e-15)


@pytest.mark.parametrize("weighted", [False, True])
def test_mean_score_share(weighted):
    problem = random_problem(5, 7, 9, weighted=weighted)
    mean = problem.w @ problem.scores
    expected = mean @ mean / np.trace(fisher(problem))
    assert mean_score_share(problem.stats()) == pytest.approx(expected, rel=1e-12)
    assert mean_score_share(from_rows(np.zeros((2, 3)))) == 0
    assert mean_score_share(from_rows([[1.0, 2.0]] * 3)) == pytest.approx(1, rel=1e-15)
    assert mean_score_share(from_rows([[1.0, 2.0], [-1.0, -2.0]])) == 0


def test_mean_score_share_stays_a_share_where_rounding_shows():
    for seed in range(20):
        problem = random_problem(seed, 6, 3, weighted=True)
        centred = from_rows(problem.scores - problem.w @ problem.scores, weights=problem.weights)
        assert 0 <= mean_score_share(centred) < 1e-15
        same = from_rows(np.tile(problem.scores[:1], (6, 1)), weights=problem.weights)
        assert 1 - 1e-15 < mean_score_share(same) <= 1


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("d", [1, 2, 5])
def test_principal_angles_agree_with_scipy(d, weighted):
    a = random_problem(1, 6, 12, weighted=weighted)
    b = random_problem(2, 8, 12, weighted=weighted)
    arguments = (a.stats(), b.stats(), a.scores @ b.scores.T, d)
    expected = np.sort(subspace_angles(top_basis(a, d), top_basis(b, d)))
    np.testing.assert_allclose(principal_angles(*arguments), expected, rtol=1e-8)
    np.testing.assert_allclose(principal_cosines(*arguments), np.cos(expected), rtol=1e-8)
    assert mode_subspace_overlap(*arguments) == pytest.approx(np.sum(np.cos(expected) ** 2) / d, rel=1e-8)


def test_overlap_of_equal_anti_aligned_and_orthogonal_subspaces():
    rows = np.array([[2.0, 0, 0, 0], [0, 1.0, 0, 0]])
    other = np.array([[0, 0, 1.0, 0], [0, 0, 0, 3.0]])
    a, minus, b, zero = from_rows(rows), from_rows(-rows), from_rows(other), from_rows(0 * rows)
    assert mode_subspace_overlap(a, a, rows @ rows.T, 2) == pytest.approx(1, rel=1e-15)
    assert mode_subspace_overlap(a, minus, -rows @ rows.T, 1) == pytest.approx(1, rel=1e-15)
    assert mode_subspace_overlap(a, b, rows @ other.T, 2) == 0
    assert mode_subspace_overlap(a, zero, 0 * rows @ rows.T, 2) == 0
    assert principal_cosines(a, zero, 0 * rows @ rows.T, 2).shape == (0,)
    np.testing.assert_allclose(principal_angles(a, b, rows @ other.T, 2), np.pi / 2)


def test_cosines_of_equal_subspaces_do_not_exceed_one():
    for seed in range(20):
        problem = random_problem(seed, 6, 9)
        arguments = (problem.stats(), problem.stats(), problem.scores @ problem.scores.T, 4)
        cosines = principal_cosines(*arguments)
        assert np.all(cosines <= 1)
        assert 1 - 1e-11 < mode_subspace_overlap(*arguments) <= 1
        np.testing.assert_allclose(cosines, 1, rtol=1e-11)


def test_overlap_uses_only_directions_that_exist():
    line, plane = from_rows([[1.0, 0, 0], [2.0, 0, 0]]), from_rows([[1.0, 1.0, 0], [0, 1.0, 0]])
    cross = np.array([[1.0, 0], [2.0, 0]])
    assert mode_subspace_overlap(line, plane, cross, 2) == pytest.approx(1, rel=1e-12)


def test_cross_gram_must_fit():
    a, b = from_rows(np.eye(3)), from_rows(np.eye(3)[:2])
    with pytest.raises(ValueError, match=r"shape \(3, 2\)"):
        principal_cosines(a, b, np.zeros((2, 3)), 1)
    with pytest.raises(ValueError, match=r"^the cross-gram holds numbers that are not finite"):
        principal_cosines(a, b, np.full((3, 2), np.nan), 1)
    with pytest.raises(ValueError, match=r"1\.\.2"):
        principal_cosines(a, b, np.zeros((3, 2)), 3)
    with pytest.raises(ValueError, match="dimensions 3 and 4"):
        principal_cosines(a, from_rows(np.eye(4)[:2]), np.zeros((3, 2)), 1)


@pytest.mark.parametrize(("n_samples", "d", "weighted"), [(8, 2, False), (9, 3, True), (7, 5, False)])
def test_split_half_against_dense_projectors(n_samples, d, weighted):
    problem = random_problem(4, n_samples, 13, weighted=weighted)
    overlaps, ranks, chance = [], [], []
    for pair in zip(*half_weights(problem.w, 6, 3), strict=True):
        bases = []
        for w in pair:
            values, vectors = np.linalg.eigh((problem.scores.T * w) @ problem.scores)
            bases.append(vectors[:, ::-1][:, : min(d, np.count_nonzero(w))])
            ranks.append(values.sum() ** 2 / (values @ values))
        sizes = [b.shape[1] for b in bases]
        overlaps.append(np.sum((bases[0].T @ bases[1]) ** 2) / min(sizes))
        chance.append(max(sizes) / 13)
    found = split_half(problem.stats(), d, 6, 3)
    assert found.overlap == pytest.approx(np.mean(overlaps), rel=1e-9)
    assert found.effective_rank == pytest.approx(np.mean(ranks), rel=1e-9)
    assert found.overlap_random == pytest.approx(np.mean(chance), rel=1e-12)
    assert split_half_overlap(problem.stats(), d, 6, 3) == found.overlap
    groups = np.arange(len(problem.scores)) // 2
    grouped = split_half(problem.stats(), d, 6, 3, groups)
    assert split_half_overlap(problem.stats(), d, 6, 3, groups) == grouped.overlap != found.overlap
    default = split_half(problem.stats(), d, 10, 0)
    assert split_half(problem.stats(), d) == default
    assert split_half_overlap(problem.stats(), d) == default.overlap


def test_split_half_tells_structure_from_noise():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(40, 400))
    planted = noise + 200 * rng.normal(size=(40, 2)) @ np.eye(2, 400)
    assert split_half_overlap(from_rows(planted), 2) > 0.99
    mean_overlap = split_half_overlap(from_rows(noise), 20, splits=20)
    assert mean_overlap == pytest.approx(20 / 400, rel=0.15)  # both halves of 20 span random 20-spaces


def test_split_half_degenerate():
    assert split_half(from_rows([[1.0, 2.0]]), 1) is None
    assert split_half_overlap(from_rows([[1.0, 2.0]]), 1) is None
    assert split_half(from_rows(np.eye(4)), 1, groups=np.zeros(4, dtype=int)) is None
    assert split_half_overlap(from_rows(np.zeros((4, 3))), 2) == 0
    halted = split_half(from_rows([[1.0, 2.0], [0.0, 0.0]]), 1)  # one half has a direction, the other none
    assert (halted.overlap, halted.overlap_random, halted.effective_rank) == (0, 0, 0.5)
    with pytest.raises(ValueError, match="splits"):
        split_half(from_rows(np.eye(4)), 1, splits=0)
    with pytest.raises(ValueError, match=r"1\.\.4"):
        split_half(from_rows(np.eye(4)), 5)


@given(seed=st.integers(0, 10**6), n_samples=st.integers(2, 6), n_params=st.integers(2, 6))
def test_spectrum_invariances(seed, n_samples, n_params):
    problem = random_problem(seed, n_samples, n_params)
    base = spectrum(problem.stats()).eigenvalues
    tolerance = {"rtol": 1e-9, "atol": 1e-13 * base[0]}
    rotated = from_rows(problem.scores @ ortho_group.rvs(n_params, random_state=seed))
    np.testing.assert_allclose(spectrum(rotated).eigenvalues, base, **tolerance)
    shuffled = problem.stats().select(np.random.default_rng(seed).permutation(n_samples))
    np.testing.assert_allclose(spectrum(shuffled).eigenvalues, base, **tolerance)
    doubled = problem.stats().select([*range(n_samples), *range(n_samples)])
    np.testing.assert_allclose(spectrum(doubled).eigenvalues[:n_samples], base, **tolerance)
    assert np.all(spectrum(doubled).eigenvalues[n_samples:] == 0)
