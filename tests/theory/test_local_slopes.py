from __future__ import annotations

import math

import numpy as np
import pytest

from theory.local_slopes import Stretch, first_departure, kind_of, readable, readable_exponents, stretches
from theory.onset import local_slope

T = np.geomspace(1e-3, 1.0, 13)


def test_kinds_are_by_the_nearest_law_within_its_width() -> None:
    assert {kind_of(e) for e in (1.81, 2.0, 2.19)} == {"quadratic"}
    assert {kind_of(e) for e in (3.71, 4.0, 4.29)} == {"quartic"}
    assert {kind_of(e) for e in (-1.0, 1.79, 2.21, 3.0, 3.69, 4.31)} == {"neither"}


def test_a_curve_that_turns_from_quadratic_to_quartic_has_three_stretches() -> None:
    t = np.geomspace(1e-3, 1e3, 61)
    exponents = local_slope(t, t**2 / 2 + t**4 / 8)
    found = stretches(t, exponents)
    assert [s.kind for s in found] == ["quadratic", "neither", "quartic"]
    assert found[0].start == t[0]
    assert found[-1].end == t[-1]
    crossing = next(s for s in found if s.kind == "neither")
    assert crossing.start < 2 < crossing.end  # t_c = 2, where the exponent is 3
    assert sum(np.count_nonzero((t >= s.start) & (t <= s.end)) for s in found) == len(t)


def test_points_without_an_exponent_end_a_stretch() -> None:
    exponents = np.array([2.0, math.nan, 2.1, 1.95])
    assert stretches(T[:4], exponents) == [
        Stretch("quadratic", T[0], T[0], 2.0, 2.0),
        Stretch("quadratic", T[2], T[3], 1.95, 2.1),
    ]
    assert stretches(T[:2], np.full(2, math.nan)) == []


@pytest.mark.parametrize("sign", [1, -1])
def test_the_departure_of_power_laws_is_where_they_are_a_factor_apart(sign: int) -> None:
    """u/p = (t / 0.1)^(+-3) from 0.1 on: exactly 2 at 0.1 * 2^(1/3), and linear in the logarithms."""
    ratio = np.maximum(T / 0.1, 1.0) ** (3.0 * sign)
    grid = np.sort(np.append(T[np.abs(T - 0.1) > 1e-9], 0.1))
    ratio = np.maximum(grid / 0.1, 1.0) ** (3.0 * sign)
    found = first_departure(grid, ratio * grid**2, grid**2, 2.0)
    assert found == pytest.approx(0.1 * 2 ** (1 / 3), rel=1e-12)


def test_curves_that_stay_together_have_no_departure() -> None:
    assert first_departure(T, T**2, 1.05 * T**2, 1.1) is None


def test_curves_apart_from_the_start_depart_at_the_start() -> None:
    assert first_departure(T, T**2, 3 * T**2, 2.0) == T[0]


def test_a_ratio_that_is_no_number_is_a_departure() -> None:
    predicted = T**2
    predicted[5:] = math.inf
    assert first_departure(T, T**2, predicted, 2.0) == T[5]
    measured = T**2
    measured[4:] = 0.0
    assert first_departure(T, measured, T**2, 2.0) == T[4]


def test_curves_that_come_together_again_have_not_parted() -> None:
    ratio = np.array([3.0, 1.0, 3.0, 1.0, 1.0])
    assert first_departure(T[:5], ratio, np.ones(5), 2.0) is None
    ratio = np.array([3.0, 1.0, 3.0, 1.0, 4.0, 16.0])
    assert first_departure(T[:6], ratio, np.ones(6), 2.0) == pytest.approx(math.sqrt(T[3] * T[4]), rel=1e-12)


def test_a_loss_is_read_where_rounding_can_change_it_by_five_percent_at_most() -> None:
    floor = 1e-9
    losses = floor * np.array([0.0, 1.0, 1600.0, 1700.0])
    assert readable(losses, floor).tolist() == [False, False, False, True]
    assert (math.sqrt(1700) + 1) ** 2 / 1700 < 1.05 < (math.sqrt(1600) + 1) ** 2 / 1600
    assert readable(np.array([0.0, 1e-30]), 0.0).tolist() == [False, True]


def test_exponents_rest_on_readable_points_alone() -> None:
    losses = 3 * T**2
    losses[[0, 4]] = 1.0  # rounding
    read = np.ones(len(T), dtype=bool)
    read[[0, 4]] = False
    found = readable_exponents(T, losses, read)
    assert found[read] == pytest.approx(2.0, rel=1e-12)
    assert np.isnan(found[~read]).all()
    assert np.isnan(readable_exponents(T, losses, np.arange(len(T)) == 1)).all()


def test_impossible_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="above 1"):
        first_departure(T, T, T, 1.0)
    with pytest.raises(ValueError, match="increasing"):
        first_departure(T[::-1].copy(), T, T, 2.0)
