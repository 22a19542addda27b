"""What is said of an onset, and that nothing is said that its numbers do not show."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest

from bridge.experiments.onset.assembly import Removed, removed_overlap, validity
from bridge.experiments.onset.readings import _acceleration, _agreement, _bend, _kinds, _pilot, _removal
from bridge.experiments.onset.report import HEADINGS, pilot_picture, set_table
from bridge.experiments.onset.result import OnsetPoint, OnsetResult, RemovedOverlap, SetName, SetOnset, Validity
from bridge.training.pilot import DRIFTING, PilotPoint, PilotResult, pilot_result
from bridge.training.plan import Plan, TrainingLog
from theory.local_slopes import Stretch
from theory.pilot_forecast import forecasts

RATES = (0.0, 1e-3, 2e-3, 3e-3, 4e-3)


def pilot(rates: tuple[float, ...], pilot_steps: int, measured: int) -> PilotResult:
    accumulated = np.cumsum(rates)
    points = [
        PilotPoint(step, float(accumulated[step - 1]), 0.1, 1.0, np.full(3, float(accumulated[step - 1]) ** 1.5))
        for step in range(1, measured + 1)
    ]
    count = len(rates)
    log = TrainingLog((1.0,) * count, rates, (), (), (), (), 0.0, measured < count)
    return pilot_result(points, log, Plan("full", 4e-3), pilot_steps, count)


def test_a_warm_ups_first_step_is_no_point_of_a_forecast() -> None:
    found = pilot(RATES, 4, 4)
    seen = np.cumsum(RATES)[1:4]
    expected = forecasts(seen, seen**1.5, math.fsum(RATES))
    assert {name: end.value for name, end in found.forecasts.items() if name in expected} == {
        name: f.value for name, f in expected.items()
    }
    assert found.forecasts[DRIFTING].num_points == 3
    assert len(found.points) == 4
    assert "forecast a utility loss of" in _pilot(found)[0]
    assert pilot_picture(found).startswith(b"\x89PNG")


@pytest.mark.parametrize("measured", [2, 5])
def test_a_pilot_inside_a_warm_ups_standstill_forecasts_nothing(measured: int, drawn: None) -> None:
    found = pilot((0.0, 0.0, 1e-3, 1e-3, 1e-3), 2, measured)
    assert found.forecasts == {}
    (line,) = _pilot(found)
    assert "forecast nothing: their learning rates are 0 (warm-up)" in line
    assert ("The full run did" in line) == (measured == 5)
    assert pilot_picture(found).startswith(b"\x89PNG")


# ---------------------------------------------------------------------------------------------- the path's bend


def point(t: float, cross: float = 1.0, ratio: float = 1.0, read: bool = True) -> OnsetPoint:
    """A point of which only these matter."""
    return OnsetPoint(
        t=t, crossovers=0.1 * t, steps=1, learning_rate=1.0, acceleration_share=1.0, finetuning_loss=1.0, distance=1.0,
        leak_part=1.0, cross_part=cross, quartic_part=1.0, higher_part=0.0, utility_loss=1.0, interval=None,
        predicted=1.0, ratio=ratio, ratio_interval=None, exponent=None, predicted_exponent=None, above_floor=read,
    )  # fmt: skip


def set_of(points: list[OnsetPoint], ten_percent: float | None = None) -> SetOnset:
    """`cross` is the flow's, which nothing may be read from."""
    return SetOnset(
        num_samples=4, leak=1.0, onset_coefficient=1.0, quartic=1.0, crossover=10.0, crossover_of_the_scores=10.0,
        cross=-1.0, floor=0.0, round_trip=0.0, points=points, curve=[],
        stretches=[Stretch("quadratic", 1.0, 2.0, 2.0, 2.0)], validity=Validity(ten_percent, None),
    )  # fmt: skip


def result_of(onset: SetOnset, along: float = 0.0, removed: RemovedOverlap | None = None) -> OnsetResult:
    return OnsetResult(
        model="m", skill="refusals", finetune="benign", optimizer="sgd", method="full", dtype="float32",
        finetuning_loss=1.0, largest_rate=1e-3, crossover=10.0, sets={"skill": onset}, curvature=None,
        acceleration_along_velocity=along, removed=removed, realistic=[], pilot=None, readings=[],
    )  # fmt: skip


def curve(*parts: float) -> SetOnset:
    return set_of([point(k + 1.0, cross=part) for k, part in enumerate(parts)])


def test_the_part_in_t_cubed_is_that_of_the_steps_taken() -> None:
    assert _bend(curve(0.0, 0.0)) == ""
    assert "is positive: the damage first runs ahead of the t² of its leak part." in _bend(curve(0.0, 1.0, 2.0))
    assert "is negative: the damage first lags behind the t² of its leak part." in _bend(curve(-1.0, -2.0))
    assert "is positive" in _bend(curve(1.0, 2.0, -1.0))
    assert "its sign changes at t = 3." in _bend(curve(1.0, 2.0, -1.0))
    assert not any("acceleration" in _bend(curve(part)) for part in (1.0, -1.0))


def test_the_acceleration_is_read_from_its_product_with_the_velocity() -> None:
    said = {along: _acceleration(result_of(curve(1.0), along)) for along in (-1.0, 0.0, 2.0)}
    assert "opposes its velocity" in said[-1.0]
    assert said[0.0] == ""
    assert "goes with its velocity" in said[2.0]


# ------------------------------------------------------------------------------------------- what can be read


def test_a_departure_is_looked_for_after_the_last_time_that_cannot_be_read() -> None:
    t, predicted = np.arange(1.0, 7.0), np.ones(6)
    measured = np.array([3.0, 3.0, 1.0, 1.0, 3.0, 3.0])
    every = np.ones(6, dtype=bool)
    assert 4 < (validity(t, measured, predicted, every).factor_two or 0) < 5
    first = every.copy()
    first[4] = False  # nothing is known of the time before the sixth
    assert validity(t, measured, predicted, first) == Validity(6.0, 6.0)
    assert validity(t, measured, predicted, ~every) == Validity(None, None)
    once = np.array([1.0, 3.0, 1.0, 1.0, 1.0, 1.0])
    assert validity(t, once, predicted, every) == Validity(None, None)


def of_ratios(ratios: list[float], read: list[bool], ten_percent: float | None = None) -> OnsetResult:
    points = [point(1.0 + k, ratio=ratio, read=ok) for k, (ratio, ok) in enumerate(zip(ratios, read, strict=True))]
    return result_of(set_of(points, ten_percent))


def test_agreement_is_claimed_of_the_times_that_can_be_read() -> None:
    assert _agreement(of_ratios([1.01, 1.02], [True, True])).endswith("within 10 % at every time measured.")
    partly = _agreement(of_ratios([1.5, 1.02], [False, True]))
    assert partly.endswith("within 10 % at every time that can be read.")
    assert "50 %" not in partly
    back = _agreement(of_ratios([1.5, 1.02], [True, True]))
    assert back.endswith("more than 10 % at some of them, but no time is seen from which on it stays so.")
    assert "they part by 10 % at t = 2" in _agreement(of_ratios([1.0, 1.5], [True, True], 2.0))


def test_a_ratio_that_cannot_be_read_is_not_in_the_table() -> None:
    table = set_table("points", of_ratios([1.5, 1.25], [False, True]).main)
    assert [row[HEADINGS.index("ratio")] for row in table.rows] == ["–", "1.2500"]


@pytest.mark.parametrize(("read", "words"), [(True, "at every time measured"), (False, "at every time that can be")])
def test_one_kind_of_onset_is_claimed_of_the_times_that_can_be_read(read: bool, words: str) -> None:
    result = of_ratios([1.0, 1.0], [read, True])
    assert words in _kinds(result, result.main)


# ------------------------------------------------------------------------------------------ overlap removed


def removal(after: dict[SetName, np.ndarray], resamples: int = 200) -> RemovedOverlap:
    """What was removed where the square of each sample's exact leak was 1 before."""
    before = {name: np.ones(len(values)) for name, values in after.items()}
    groups = {name: np.arange(len(values)) for name, values in after.items()}
    return removed_overlap(Removed(3, 8, 10.0, 0.5, 1.0, 1e-9, before), after, groups, resamples, seed=0)


def told(removed: RemovedOverlap) -> str:
    return " ".join(_removal(result_of(curve(1.0), removed=removed)))


def test_orthogonality_in_the_sample_is_said_to_overstate_only_where_it_does() -> None:
    spread = np.linspace(0.5, 1.5, 8)
    more = removal({"skill": 0.64 * spread, "probe": 0.04 * spread})
    assert more.left["skill"].share == pytest.approx(0.8)
    low, high = more.left["probe"].interval or (1.0, 0.0)
    assert low < 0.2 < high
    assert more.difference is not None
    assert more.difference[0] > 0
    said = told(more)
    assert "20 % (95 % interval:" in said
    assert "80 % (95 % interval:" in said
    assert "its square, 64 %" in said
    assert "orthogonality in the sample overstates" in said
    json.dumps(asdict(more), allow_nan=False)
    for other in (
        removal({"skill": 0.04 * spread, "probe": 0.64 * spread}),
        removal({"skill": spread, "probe": spread}),
    ):
        assert "overstates" not in told(other)
    unknown = removal({"skill": 0.64 * spread, "probe": 0.04 * spread}, resamples=0)
    assert unknown.difference is None
    assert "overstates" not in told(unknown)
    assert "80 % on the skill's other samples" in told(unknown)


def test_the_resamples_of_the_two_sets_do_not_go_together() -> None:
    """Of two sets of equal values the difference has an interval of its own; drawn alike it would be 0 to 0."""
    spread = np.linspace(0.1, 1.9, 8)
    low, high = removal({"skill": spread, "probe": spread}).difference or (0.0, 0.0)
    assert low < -0.05
    assert high > 0.05
