"""What is said of an onset, and that nothing is said that its numbers do not show."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from bridge.experiments.onset.readings import HEADINGS, _acceleration, _agreement, _bend, _kinds, _pilot, _removal, rows
from bridge.experiments.onset.report import pilot_picture
from bridge.experiments.onset.result import Removed, _departures, removed_part
from bridge.training.pilot import PilotPoint, pilot_result
from bridge.training.plan import Plan, TrainingLog
from theory.pilot_forecast import forecasts

RATES = (0.0, 1e-3, 2e-3, 3e-3, 4e-3)


def pilot(rates: tuple[float, ...], pilot_steps: int, measured: int) -> dict[str, Any]:
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
    assert {name: f["value"] for name, f in found["forecasts"].items() if name in expected} == {
        name: f.value for name, f in expected.items()
    }
    assert found["forecasts"]["drifting power law"]["num_points"] == 3
    assert len(found["points"]) == 4
    assert "forecast a utility loss of" in _pilot(found)[0]
    assert pilot_picture(found).startswith(b"\x89PNG")


@pytest.mark.parametrize("measured", [2, 5])
def test_a_pilot_inside_a_warm_ups_standstill_forecasts_nothing(measured: int, drawn: None) -> None:
    found = pilot((0.0, 0.0, 1e-3, 1e-3, 1e-3), 2, measured)
    assert found["forecasts"] == {}
    (line,) = _pilot(found)
    assert "forecast nothing: their learning rates are 0 (warm-up)" in line
    assert ("The full run did" in line) == (measured == 5)
    assert pilot_picture(found).startswith(b"\x89PNG")


# ---------------------------------------------------------------------------------------------- the path's bend


def curve(*parts: float) -> dict[str, Any]:
    """`cross` is the flow's, which nothing may be read from."""
    return {"cross": -1.0, "points": [{"t": k + 1.0, "cross_part": part} for k, part in enumerate(parts)]}


def test_the_part_in_t_cubed_is_that_of_the_steps_taken() -> None:
    assert _bend(curve(0.0, 0.0)) == ""
    assert "is positive: the damage first runs ahead of the t² of its leak part." in _bend(curve(0.0, 1.0, 2.0))
    assert "is negative: the damage first lags behind the t² of its leak part." in _bend(curve(-1.0, -2.0))
    assert "is positive" in _bend(curve(1.0, 2.0, -1.0))
    assert "its sign changes at t = 3." in _bend(curve(1.0, 2.0, -1.0))
    assert not any("acceleration" in _bend(curve(part)) for part in (1.0, -1.0))


def test_the_acceleration_is_read_from_its_product_with_the_velocity() -> None:
    said = {along: _acceleration({"acceleration_along_velocity": along}) for along in (-1.0, 0.0, 2.0)}
    assert "opposes its velocity" in said[-1.0]
    assert said[0.0] == ""
    assert "goes with its velocity" in said[2.0]


# ------------------------------------------------------------------------------------------- what can be read


def test_a_departure_is_looked_for_after_the_last_time_that_cannot_be_read() -> None:
    t, predicted = np.arange(1.0, 7.0), np.ones(6)
    measured = np.array([3.0, 3.0, 1.0, 1.0, 3.0, 3.0])
    every = np.ones(6, dtype=bool)
    assert 4 < (_departures(t, measured, predicted, every)["factor_two"] or 0) < 5
    first = every.copy()
    first[4] = False  # nothing is known of the time before the sixth
    assert _departures(t, measured, predicted, first) == {"ten_percent": 6.0, "factor_two": 6.0}
    assert _departures(t, measured, predicted, ~every) == {"ten_percent": None, "factor_two": None}
    once = np.array([1.0, 3.0, 1.0, 1.0, 1.0, 1.0])
    assert _departures(t, once, predicted, every) == {"ten_percent": None, "factor_two": None}


def set_of(ratios: list[float], read: list[bool], ten: float | None) -> dict[str, Any]:
    points = [
        {"t": 1.0 + k, "ratio": ratio, "crossovers": 0.1 * (k + 1), "above_floor": ok}
        for k, (ratio, ok) in enumerate(zip(ratios, read, strict=True))
    ]
    stretch = {"kind": "quadratic", "start": 1.0, "end": 2.0, "lowest": 2.0, "highest": 2.0}
    validity = {"ten_percent": ten, "factor_two": None}
    return {"points": points, "validity": validity, "crossover": 10.0, "stretches": [stretch]}


def test_agreement_is_claimed_of_the_times_that_can_be_read() -> None:
    assert _agreement(set_of([1.01, 1.02], [True, True], None)).endswith("within 10 % at every time measured.")
    partly = _agreement(set_of([1.5, 1.02], [False, True], None))
    assert partly.endswith("within 10 % at every time that can be read.")
    assert "50 %" not in partly
    back = _agreement(set_of([1.5, 1.02], [True, True], None))
    assert back.endswith("more than 10 % at some of them, but no time is seen from which on it stays so.")
    assert "they part by 10 % at t = 2" in _agreement(set_of([1.0, 1.5], [True, True], 2.0))


def test_a_ratio_that_cannot_be_read_is_not_in_the_table() -> None:
    numbers = ("utility_loss", "predicted", "leak_part", "cross_part", "quartic_part", "finetuning_loss")
    part = set_of([1.5, 1.25], [False, True], None)
    for point in part["points"]:
        point |= dict.fromkeys(numbers, 1.0) | {"steps": 1, "interval": None, "exponent": None}
        point["predicted_exponent"] = None
    shown = [row[HEADINGS.index("ratio")] for row in rows(part)]
    assert shown == ["–", "1.2500"]


@pytest.mark.parametrize(("read", "words"), [(True, "at every time measured"), (False, "at every time that can be")])
def test_one_kind_of_onset_is_claimed_of_the_times_that_can_be_read(read: bool, words: str) -> None:
    result = {"optimizer": "sgd", "method": "full", "removed": None, "crossover": 10.0}
    assert words in _kinds(result, set_of([1.0, 1.0], [read, True], None))


# ------------------------------------------------------------------------------------------ overlap removed


def removal(after: dict[str, np.ndarray], resamples: int = 200) -> dict[str, Any]:
    """The part "removed" where the square of each sample's exact leak was 1 before."""
    before = {name: np.ones(len(values)) for name, values in after.items()}
    groups = {name: np.arange(len(values)) for name, values in after.items()}
    return removed_part(Removed(3, 8, 10.0, 0.5, 1.0, 1e-9, before), after, groups, resamples, seed=0)


def test_orthogonality_in_the_sample_is_said_to_overstate_only_where_it_does() -> None:
    spread = np.linspace(0.5, 1.5, 8)
    more = removal({"skill": 0.64 * spread, "probe": 0.04 * spread})
    assert more["left"]["skill"]["share"] == pytest.approx(0.8)
    assert more["left"]["probe"]["interval"][0] < 0.2 < more["left"]["probe"]["interval"][1]
    assert more["difference"][0] > 0
    said = " ".join(_removal({"removed": more}))
    assert "20 % (95 % interval:" in said
    assert "80 % (95 % interval:" in said
    assert "its square, 64 %" in said
    assert "orthogonality in the sample overstates" in said
    json.dumps(more, allow_nan=False)
    for other in (
        removal({"skill": 0.04 * spread, "probe": 0.64 * spread}),
        removal({"skill": spread, "probe": spread}),
    ):
        assert "overstates" not in " ".join(_removal({"removed": other}))
    unknown = removal({"skill": 0.64 * spread, "probe": 0.04 * spread}, resamples=0)
    assert unknown["difference"] is None
    assert "overstates" not in " ".join(_removal({"removed": unknown}))
    assert "80 % on the skill's other samples" in " ".join(_removal({"removed": unknown}))


def test_the_resamples_of_the_two_sets_do_not_go_together() -> None:
    """Of two sets of equal values the difference has an interval of its own; drawn alike it would be 0 to 0."""
    spread = np.linspace(0.1, 1.9, 8)
    low, high = removal({"skill": spread, "probe": spread})["difference"]
    assert low < -0.05
    assert high > 0.05
