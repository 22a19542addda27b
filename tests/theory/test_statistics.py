from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from dense_oracle import random_problem
from hypothesis import given
from hypothesis import strategies as st

from theory.statistics import ScoreStatistics


def base_fields(**changes):
    fields = {
        "gram": np.array([[2.0, 1.0], [1.0, 3.0]]),
        "velocity": np.array([1.0, -1.0]),
        "acceleration": np.array([0.5, 0.25]),
        "velocity_squared": 4.0,
        "acceleration_squared": 1.0,
        "velocity_dot_acceleration": -0.5,
        "dimension": 7,
        "fisher": "sampled",
        "labels": ("a", "b"),
    }
    return fields | changes


def assert_same(one, two, *, exact=True):
    for field in dataclasses.fields(ScoreStatistics):
        x, y = getattr(one, field.name), getattr(two, field.name)
        if isinstance(x, np.ndarray | float) and not exact:
            np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-12, err_msg=field.name)
        elif isinstance(x, np.ndarray):
            assert x.dtype == y.dtype
            assert x.tobytes() == y.tobytes(), field.name
        else:
            assert x == y, field.name


def test_from_scores_holds_the_inner_products():
    problem = random_problem(0, 4, 6, weighted=True)
    stats = problem.stats(labels=["w", "x", "y", "z"], fisher="empirical")
    for i, s in enumerate(problem.scores):
        assert stats.velocity[i] == pytest.approx(sum(s * problem.v), rel=1e-13)
        assert stats.acceleration[i] == pytest.approx(sum(s * problem.a), rel=1e-13)
        for j, r in enumerate(problem.scores):
            assert stats.gram[i, j] == pytest.approx(sum(s * r), rel=1e-12, abs=1e-13)
    assert stats.velocity_norm == pytest.approx(np.linalg.norm(problem.v), rel=1e-14)
    assert stats.acceleration_norm == pytest.approx(np.linalg.norm(problem.a), rel=1e-14)
    assert stats.velocity_dot_acceleration == pytest.approx(problem.v @ problem.a, rel=1e-13)
    assert (stats.dimension, stats.num_samples, stats.fisher) == (6, 4, "empirical")
    assert stats.labels == ("w", "x", "y", "z")
    assert stats.expectation(stats.velocity) == pytest.approx(problem.weights @ problem.scores @ problem.v, rel=1e-12)
    np.testing.assert_array_equal(stats.second_derivative, stats.acceleration + problem.curvature)


def test_uniform_weights_are_written_out():
    stats = ScoreStatistics(**base_fields())
    np.testing.assert_array_equal(stats.sample_weights, [0.5, 0.5])
    assert stats.expectation(np.array([1.0, 4.0])) == 2.5
    with pytest.raises(ValueError, match=r"one value for each of the 2 samples, got shape \(3,\)"):
        stats.expectation(np.zeros(3))


def test_arrays_are_private_read_only_float64_copies():
    gram = np.array([[2.0, 1.0], [1.0, 3.0]], dtype=np.float32)
    stats = ScoreStatistics(**base_fields(gram=gram))
    gram[0, 0] = 99
    assert stats.gram[0, 0] == 2
    assert stats.gram.dtype == np.float64
    for name in ("gram", "velocity", "acceleration"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(stats, name)[0] = 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        stats.dimension = 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gram": np.zeros((0, 0)), "velocity": np.zeros(0), "labels": ()}, "at least one sample"),
        ({"gram": np.zeros((2, 3))}, "square matrix"),
        ({"gram": np.zeros(4)}, "square matrix"),
        ({"gram": np.array([[1.0, 0.5], [0.4, 1.0]])}, "symmetric"),
        ({"gram": np.array([[1.0, np.nan], [np.nan, np.nan]])}, "gram holds 3 numbers that are not finite"),
        ({"gram": np.diag([1.0, -1.0])}, "squared norms"),
        ({"velocity": np.zeros(3)}, r"velocity must have shape \(2,\)"),
        ({"acceleration": np.zeros((2, 1))}, r"acceleration must have shape \(2,\)"),
        ({"curvature": np.zeros(1)}, r"curvature must have shape \(2,\)"),
        ({"acceleration": np.array([0.0, np.inf])}, "acceleration holds 1 numbers"),
        ({"curvature": np.array([0.0, np.nan])}, "curvature holds 1 numbers"),
        ({"velocity_squared": float("nan")}, "velocity_squared must be finite"),
        ({"velocity_dot_acceleration": float("inf")}, "velocity_dot_acceleration must be finite"),
        ({"acceleration_squared": -1.0}, "cannot be negative"),
        ({"weights": np.array([0.5, 0.6])}, "sum to 1"),
        ({"weights": np.array([1.5, -0.5])}, "weights cannot be negative"),
        ({"dimension": 0}, "dimension"),
        ({"labels": ("a",)}, "one label for each of the 2 samples, got 1"),
    ],
)
def test_impossible_statistics_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ScoreStatistics(**base_fields(**changes))


def test_duplicate_labels_are_allowed_and_rounding_asymmetry_is_removed():
    gram = np.array([[2.0, 1.0], [1.0 + 1e-7, 3.0]])
    stats = ScoreStatistics(**base_fields(gram=gram, labels=["same", "same"]))
    assert stats.labels == ("same", "same")
    assert stats.gram[0, 1] == stats.gram[1, 0] == pytest.approx(1 + 5e-8, rel=1e-15)
    with pytest.raises(ValueError, match="read-only"):
        stats.gram[0, 0] = 0


def test_a_symmetric_gram_matrix_is_kept_to_the_last_bit():
    gram = np.array([[5e-324, 0.0], [0.0, 3.0]])  # half of the smallest number is 0
    np.testing.assert_array_equal(ScoreStatistics(**base_fields(gram=gram)).gram, gram)


def test_single_precision_scores_are_multiplied_in_double_precision():
    problem = random_problem(0, 5, 30)
    single = [x.astype(np.float32) for x in (problem.scores, problem.v, problem.a)]
    double = [x.astype(np.float64) for x in single]
    assert_same(ScoreStatistics.from_scores(*single), ScoreStatistics.from_scores(*double))


@given(
    seed=st.integers(0, 10**6),
    n_samples=st.integers(1, 6),
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    weighted=st.booleans(),
)
def test_blocks_add_up_to_the_whole(seed, n_samples, sizes, weighted):
    whole = random_problem(seed, n_samples, sum(sizes), weighted=weighted)
    whole.curvature = None
    ends = np.cumsum([0, *sizes])
    parts = [
        ScoreStatistics.from_scores(
            whole.scores[:, i:j], whole.v[i:j], whole.a[i:j], weights=whole.weights, fisher="sampled"
        )
        for i, j in itertools.pairwise(ends)
    ]
    assert_same(sum(parts), whole.stats(fisher="sampled"), exact=False)


def test_a_sum_has_no_curvature_but_a_single_block_keeps_it():
    stats = random_problem(0, 3, 4).stats()
    assert (stats + stats).curvature is None
    assert (stats + stats).dimension == 8
    assert sum([stats]).curvature is not None
    with pytest.raises(ValueError, match="with_curvature"):
        _ = (stats + stats).second_derivative
    restored = (stats + stats).with_curvature(np.ones(3))
    np.testing.assert_array_equal(restored.second_derivative, 2 * stats.acceleration + 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ("a", "c")}, "same samples"),
        ({"fisher": "empirical"}, "cannot add sampled Fisher statistics to empirical"),
        ({"weights": np.array([0.25, 0.75])}, r"^cannot add statistics whose sample weights differ"),
    ],
)
def test_only_statistics_of_the_same_samples_add(changes, message):
    with pytest.raises(ValueError, match=message):
        ScoreStatistics(**base_fields()) + ScoreStatistics(**base_fields(**changes))


def test_adding_something_else_is_a_type_error():
    stats = ScoreStatistics(**base_fields())
    with pytest.raises(TypeError):
        1 + stats


@pytest.mark.parametrize("weighted", [False, True])
def test_select_repeats_and_renormalises(weighted):
    problem = random_problem(3, 5, 4, weighted=weighted)
    picked = problem.stats().select([4, 0, 0])
    rows = problem.scores[[4, 0, 0]]
    np.testing.assert_allclose(picked.gram, rows @ rows.T, rtol=1e-13)
    np.testing.assert_allclose(picked.velocity, rows @ problem.v, rtol=1e-13)
    np.testing.assert_allclose(picked.second_derivative, rows @ problem.a + problem.curvature[[4, 0, 0]])
    assert picked.labels == ("4", "0", "0")
    raw = problem.w[[4, 0, 0]]
    np.testing.assert_allclose(picked.sample_weights, raw / raw.sum(), rtol=1e-15)
    assert picked.velocity_squared == problem.stats().velocity_squared


def test_select_takes_indices_from_either_end():
    stats = random_problem(0, 5, 4).stats().with_curvature(None)
    assert_same(stats.select([-5, 4, -1]), stats.select([0, 4, 4]))
    assert stats.select([-5]).curvature is None


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([], r"^select\(\) needs a non-empty list of sample indices"),
        (np.zeros(0, dtype=int), r"^select\(\) needs a non-empty list of sample indices"),
        ([True, False, True, True, False], r"^select\(\) needs .* indices, which are integers"),  # a mask is no list
        ([0, 5], r"^sample indices must lie in 0\.\.4, got 0\.\.5"),
        ([-6, 1], r"^sample indices must lie in 0\.\.4, got -6\.\.1"),
    ],
)
def test_select_refuses_what_it_cannot_do(indices, message):
    with pytest.raises(ValueError, match=message):
        random_problem(0, 5, 4).stats().select(indices)


def test_a_selection_without_weight_is_refused():
    zero = ScoreStatistics(**base_fields(weights=np.array([1.0, 0.0])))
    with pytest.raises(ValueError, match=r"^all selected samples have weight zero"):
        zero.select([1])


labels_strategy = st.lists(st.text(st.characters(), max_size=5), min_size=1, max_size=4)


@given(labels=labels_strategy, seed=st.integers(0, 1000), curved=st.booleans(), weighted=st.booleans())
def test_arrays_round_trip_to_the_last_bit(labels, seed, curved, weighted):
    problem = random_problem(seed, len(labels), 3, weighted=weighted)
    if not curved:
        problem.curvature = None
    stats = problem.stats(labels=labels)
    arrays = stats.to_arrays("one/")
    assert all(array.dtype != object for array in arrays.values())
    assert_same(ScoreStatistics.from_arrays(arrays, "one/"), stats)


def test_files_round_trip_and_hold_many_blocks(tmp_path):
    one = random_problem(1, 3, 4).stats(labels=["a", "trailing\0", "\ud800"], fisher="empirical")
    two = random_problem(2, 5, 3, weighted=True).stats()
    one.save(tmp_path / "plain-name")
    assert [p.name for p in tmp_path.iterdir()] == ["plain-name"]
    assert_same(ScoreStatistics.load(tmp_path / "plain-name"), one)
    with open(tmp_path / "both.npz", "wb") as file:
        np.savez(file, **one.to_arrays("layer.0:"), **two.to_arrays("layer.1:"))
    with np.load(tmp_path / "both.npz", allow_pickle=False) as arrays:
        assert_same(ScoreStatistics.from_arrays(arrays, "layer.0:"), one)
        assert_same(ScoreStatistics.from_arrays(arrays, "layer.1:"), two)
        with pytest.raises(ValueError, match=r"layer\.2:gram"):
            ScoreStatistics.from_arrays(arrays, "layer.2:")


def test_files_that_need_pickle_are_not_read(tmp_path):
    arrays = ScoreStatistics(**base_fields()).to_arrays()
    np.savez(tmp_path / "pickled.npz", **(arrays | {"velocity": arrays["velocity"].astype(object)}))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        ScoreStatistics.load(tmp_path / "pickled.npz")


def test_a_stored_fisher_kind_that_does_not_exist_is_refused():
    arrays = ScoreStatistics(**base_fields()).to_arrays()
    text = arrays["text"].tobytes().replace(b"sampled", b"guessed")
    with pytest.raises(ValueError, match="exact, sampled, empirical"):
        ScoreStatistics.from_arrays(arrays | {"text": np.frombuffer(text, dtype=np.uint8)})
