"""The risk of sets at equal progress: subsets, resamples around the set's own value, the worst of several."""

from __future__ import annotations

import numpy as np
import pytest

from theory.resampling import bootstrap_weights
from theory.risk import (
    EQUALS,
    Motion,
    RowParts,
    attribution,
    motion,
    order_by,
    probability_worst,
    random_removals,
    removal_effects,
    resampled_motion,
)


def parts_of(skill: np.ndarray, rows: np.ndarray, scale: np.ndarray, tokens: np.ndarray) -> RowParts:
    moved = rows * scale
    return RowParts(skill @ moved.T, rows @ moved.T, moved @ moved.T, tokens)


def example(rows: int = 12, seed: int = 0, mean: float = 0.3) -> tuple[np.ndarray, np.ndarray, np.ndarray, RowParts]:
    rng = np.random.default_rng(seed)
    skill, scale = rng.normal(size=(9, 30)), rng.uniform(0.5, 2.0, 30)
    scores = rng.normal(size=(rows, 30)) + mean
    return skill, scores, scale, parts_of(skill, scores, scale, rng.integers(1, 9, rows))


def test_weighted_rows_are_those_rows() -> None:
    skill, scores, scale, parts = example()
    weights = np.array([[1.0] * 12, [0, 2, 0, 1] * 3, [0] * 11 + [1]])
    found = motion(parts, weights)
    for k, row in enumerate(weights):
        v = scale * (row @ scores) / (row @ parts.tokens)
        assert found.leak_squared[k] == pytest.approx(np.mean((skill @ v) ** 2))
        assert found.squared_norm[k] == pytest.approx(v @ v)
        assert found.decrease[k] == pytest.approx(v @ (v / scale))
        assert found.per_progress("norm")[k] == pytest.approx(np.mean((skill @ v) ** 2) / (v @ v))
        assert found.per_progress("loss")[k] == pytest.approx(np.mean((skill @ v) ** 2) / (v @ (v / scale)) ** 2)
        assert found.time("norm", 0.2)[k] * np.linalg.norm(v) == pytest.approx(0.2)
        assert found.time("loss", 0.2)[k] * (v @ (v / scale)) == pytest.approx(0.2)


@pytest.mark.parametrize("equal", EQUALS)
def test_equal_progress_knows_no_scale(equal: str) -> None:
    """Twice the learning rate, or every row twice, is the same set; at an equal norm twice the gradient is too."""
    skill, scores, scale, parts = example()
    value = motion(parts, parts.every_row).per_progress(equal)
    doubled = motion(parts, 2 * parts.every_row).per_progress(equal)
    faster = parts_of(skill, scores, 2 * scale, parts.tokens)
    assert doubled == pytest.approx(value)
    assert motion(faster, faster.every_row).per_progress(equal) == pytest.approx(value)
    steeper = parts_of(skill, 2 * scores, scale, parts.tokens)
    factor = 1 if equal == "norm" else 1 / 4  # the same fall of the loss is reached after half the way
    assert motion(steeper, steeper.every_row).per_progress(equal) == pytest.approx(factor * value)


def test_contributions_add_up() -> None:
    *_, parts = example()
    found = attribution(parts)
    leak = motion(parts, parts.every_row).leak_squared[0]
    assert found.contribution.sum() == pytest.approx(leak, rel=1e-13)
    assert np.allclose(found.leave_one_out, 2 * found.contribution - found.own)


def test_a_row_alike_twice_contributes_as_much_each() -> None:
    skill, scores, scale, _ = example()
    twin = np.concatenate([scores, scores[:1]])
    found = attribution(parts_of(skill, twin, scale, np.full(13, 3)))
    assert found.contribution[0] == pytest.approx(found.contribution[-1])


@pytest.mark.parametrize("equal", EQUALS)
def test_the_row_that_does_the_damage_is_found(equal: str) -> None:
    """One row alone points into the skill's direction."""
    skill = np.eye(30)[:1] * 5
    scores = np.random.default_rng(1).normal(size=(12, 30)) + 0.5
    scores[:, 0] = 0
    scores[7, 0] = 4
    parts = parts_of(skill, scores, np.ones(30), np.full(12, 2))
    effects = removal_effects(parts, equal)
    assert order_by((-effects).tolist())[0] == 7
    assert effects[7] == pytest.approx(-1.0)
    assert (np.delete(effects, 7) > 0).sum() > 5  # without another row less of the way is made elsewhere
    assert order_by(attribution(parts).contribution.tolist())[0] == 7


def test_random_removals_leave_as_many_rows() -> None:
    *_, parts = example()
    none = random_removals(parts, 0, 3, seed=0)
    assert np.allclose(none.leak_squared, motion(parts, parts.every_row).leak_squared)
    first, second = (random_removals(parts, 5, 50, seed=0) for _ in range(2))
    assert np.array_equal(first.leak_squared, second.leak_squared)
    assert len(np.unique(first.leak_squared)) > 40
    for count in (-1, 12):
        with pytest.raises(ValueError, match="expected 0 to 11 rows"):
            random_removals(parts, count, 3, seed=0)


# ------------------------------------------------------------------------------------------------ resamples


def test_resamples_of_the_rows_spread_around_the_sets_own_value() -> None:
    """Not around the value of a set that has some rows twice, which is larger by the rows' noise."""
    *_, parts = example(rows=40, mean=0.0)
    equal_tokens = RowParts(parts.skill, parts.decrease, parts.norm, np.full(40, 3))
    weights = np.full((20_000, 9), 1 / 9)
    whole = motion(equal_tokens, equal_tokens.every_row)
    found = resampled_motion(equal_tokens, weights, seed=1)
    for value, drawn in zip(whole, found, strict=True):
        assert drawn.mean() == pytest.approx(value[0], abs=5 * drawn.std() / np.sqrt(len(drawn)))
        assert drawn.std() > 0.05 * value[0]
    plain = motion(equal_tokens, np.random.default_rng(0).multinomial(40, np.full(40, 1 / 40), 20_000).astype(float))
    assert plain.squared_norm.mean() > 1.5 * whole.squared_norm[0]


def test_resamples_of_the_skill_alone_keep_the_rows() -> None:
    skill, scores, scale, parts = example()
    weights = bootstrap_weights(np.full(9, 1 / 9), 30, seed=0)
    found = resampled_motion(parts, weights)
    v = scale * scores.sum(axis=0) / parts.tokens.sum()
    assert np.allclose(found.leak_squared, weights @ (skill @ v) ** 2)
    assert np.allclose(found.squared_norm, v @ v)
    assert np.allclose(found.decrease, v @ (v / scale))


def test_intervals_cover_the_value_of_sets_from_the_source() -> None:
    """95 % intervals of leak^2 per squared norm hold what sets of 60 rows of one source have on average."""
    rng = np.random.default_rng(4)
    skill = rng.normal(size=(40, 25)) * np.geomspace(3, 0.1, 25)
    direction = rng.normal(size=25) * 0.2

    def one_set() -> RowParts:
        return parts_of(skill, rng.normal(size=(60, 25)) + direction, np.ones(25), np.full(60, 2))

    def value(parts: RowParts) -> float:
        return float(motion(parts, parts.every_row).per_progress("norm")[0])

    average = np.mean([value(one_set()) for _ in range(2000)])
    weights = np.full((300, 40), 1 / 40)
    held = 0
    for k in range(150):
        drawn = resampled_motion(one_set(), weights, seed=k).per_progress("norm")
        low, high = np.quantile(drawn, [0.025, 0.975])
        held += low <= average <= high
    assert 0.88 <= held / 150 <= 0.995


@pytest.mark.parametrize(("mean", "heavy"), [(0.0, 0.0), (0.6, 0.0), (0.1, 0.7)])
def test_resamples_spread_as_other_sets_and_other_samples_do(mean: float, heavy: float) -> None:
    """Also where the rows' own noise exceeds what they have in common, and where they differ in size."""
    rng = np.random.default_rng(0)
    common, size = mean * rng.normal(size=120), np.sqrt(np.linspace(0.01, 3, 120))
    found, drawn = [], []
    for k in range(80):
        rows = common + rng.normal(size=(50, 120)) * np.exp(heavy * rng.normal(size=(50, 1)))
        parts = parts_of(rng.normal(size=(48, 120)) * size, rows, np.ones(120), np.full(50, 2))
        found.append(motion(parts, parts.every_row))
        if k < 20:
            drawn.append(resampled_motion(parts, bootstrap_weights(np.full(48, 1 / 48), 100, k), seed=k))
    for equal in EQUALS:
        values = np.array([one.per_progress(equal)[0] for one in found])
        resampled = np.array([one.per_progress(equal) for one in drawn])
        assert 0.85 < np.median(resampled.std(axis=1)) / values.std() < 1.4
        assert 0.95 < np.median(np.median(resampled, axis=1) / values[:20]) < 1.1


def test_rows_that_say_the_same_leave_nothing_uncertain() -> None:
    """v is a mean over tokens: a row twice as long, with twice the gradient, is no other row."""
    skill, scores, scale, _ = example(rows=5)
    tokens = np.array([1, 7, 2, 2, 4])
    parts = parts_of(skill, scores[0] * tokens[:, None], scale, tokens)
    found, whole = resampled_motion(parts, np.full((20, 9), 1 / 9), seed=0), motion(parts, parts.every_row)
    for drawn, value in zip(found, whole, strict=True):
        assert drawn == pytest.approx(value[0], rel=1e-12)
    single = parts_of(skill, scores[:1], scale, np.array([3]))
    alone = resampled_motion(single, np.full((20, 9), 1 / 9), seed=0)
    assert alone.leak_squared == pytest.approx(motion(single, single.every_row).leak_squared[0])


def test_sets_are_resampled_apart_and_again_alike() -> None:
    *_, parts = example()
    weights = np.full((50, 9), 1 / 9)
    one, again, other = (resampled_motion(parts, weights, seed).leak_squared for seed in ((3, 0), (3, 0), (3, 1)))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_the_worst_of_several() -> None:
    values = np.array([[3.0, 1, 2, np.nan], [1, 1, 5, 0], [0, 0, 5, 9]])
    assert probability_worst(values).tolist() == pytest.approx([0.5, 1 / 3, 1 / 6])
    assert np.isnan(probability_worst(np.full((2, 3), np.nan))).all()


def test_order() -> None:
    assert order_by([1.0, 3.0, 1.0, float("nan"), 2.0]) == [1, 4, 0, 2, 3]


# --------------------------------------------------------------------------------------------------- edges


def test_rows_that_do_not_move_make_no_progress() -> None:
    zero = RowParts(np.zeros((2, 3)), np.zeros((3, 3)), np.zeros((3, 3)), np.ones(3, dtype=int))
    found = motion(zero, zero.every_row)
    for equal in EQUALS:
        assert np.isnan(found.per_progress(equal)).all()
        assert np.isnan(found.time(equal, 1.0)).all()
        assert np.isnan(removal_effects(zero, equal)).all()


def test_a_set_that_does_not_touch_the_skill_has_no_risk() -> None:
    *_, parts = example()
    harmless = RowParts(np.zeros_like(parts.skill), parts.decrease, parts.norm, parts.tokens)
    assert motion(harmless, harmless.every_row).per_progress("norm") == 0
    assert np.isnan(removal_effects(harmless, "norm")).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"skill": np.zeros((2, 2))}, "inner products of 3 rows"),
        ({"skill": np.zeros((0, 3))}, "inner products of 3 rows"),
        ({"norm": np.zeros((2, 2))}, "inner products of 3 rows"),
        ({"decrease": np.full((3, 3), np.inf)}, "must be finite"),
        ({"tokens": np.array([1, 0, 2])}, "at least one response token"),
    ],
)
def test_parts_that_cannot_be(change: dict[str, np.ndarray], message: str) -> None:
    good = {"skill": np.zeros((2, 3)), "decrease": np.eye(3), "norm": np.eye(3), "tokens": np.ones(3, dtype=int)}
    with pytest.raises(ValueError, match=message):
        RowParts(**(good | change))


def test_nothing_is_left() -> None:
    *_, parts = example()
    with pytest.raises(ValueError, match="at least one"):
        motion(parts, np.zeros((1, 12)))


def test_motion_without_a_descent_has_no_progress() -> None:
    found = Motion(np.ones(2), np.array([0.0, 1.0]), np.ones(2))
    assert np.isnan(found.per_progress("norm")[0])
    assert found.per_progress("loss")[1] == 1
