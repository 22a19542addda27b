"""The sentences of the closing table and of the report's headline, for every case that they distinguish."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bridge.experiments.estimate_aic.readings import Line, lines
from bridge.experiments.estimate_aic.report import headline
from bridge.experiments.estimate_aic.result import AicResult, Checks, PlannedRun, WholeEstimate
from bridge.reports.numbers import set_name
from theory.statistics import FisherKind

WHOLE = WholeEstimate(
    fisher="sampled", num_samples=3, dimension=10, rank=2, numerical_rank=3, eigenvalues=[6.0, 3.0, 1.0],
    sharpness=3.0, tail=1.0, gap=2.0, overlap=0.2, coupling=40.0, leak=1.0, velocity_norm=2.0, acceleration_norm=3.0,
    effective_rank=2.17, split_half_overlap=0.5, mean_score_share=0.3,
    nulls={"overlap_random": 0.02, "leak_random": 0.5, "effective_rank_half": 2.0,
           "split_half_overlap_random": 0.001, "mean_score_share_random": 0.33},
    intervals={"leak": [0.9, 1.2], "tail": [0.1, 0.2]}, bootstrap_bias={"leak": 0.01, "tail": -0.8}, gradient_norm=2.0,
    onset_coefficient=50.0, crossover=0.04, correlation=0.1, horizon=0.1, window=0.2, regime="mixed",
    utility_loss_at_horizon=0.02, leak_exact=1.1, onset_exact=50.0, quartic_exact=45.0, crossover_exact=0.05,
    predicted_loss=[], predicted_loss_exact=[],
)  # fmt: skip


def result(fisher: FisherKind = "sampled", **changes: Any) -> AicResult:
    whole = replace(WHOLE, **changes)
    plan = PlannedRun("refusals", "benign", 1e-3, 100)
    return AicResult("a model", fisher, 3, 2, 1.0, whole, {}, {}, Checks(0.0), plan)


def table(**changes: Any) -> dict[str, Line]:
    return {line.name: line for line in lines(result(**changes))}


def test_values_intervals_and_the_mark_of_a_biased_interval() -> None:
    found = table()
    assert (found["leak"].value, found["leak"].interval) == ("1", "0.9 … 1.2")
    assert found["tail"].interval == "0.1 … 0.2 †"
    assert "90%" in found["tail"].meaning
    assert "10.0%" in found["overlap ε"].meaning
    assert "10 times" in found["overlap ε"].meaning
    assert "2 times" in found["leak"].meaning
    assert "it has saturated" in found["effective rank"].meaning
    assert "not saturated" in table(effective_rank=2.9)["effective rank"].meaning


def test_times_are_given_in_steps_within_and_after_the_run() -> None:
    found = table()
    assert "(step 40 of 100)" in found["crossover t_c"].meaning
    assert "(step 200; the run has 100)" in found["window"].meaning
    assert table(crossover=None)["crossover t_c"].value == "–"


def test_crossover_is_not_read_where_it_is_mostly_leak_squared() -> None:
    assert not result().whole_model.mostly_leak
    assert "read the exact crossover" not in table()["crossover t_c"].meaning
    assert "read the exact crossover" in table(leak_exact=7.0)["crossover t_c"].meaning


@pytest.mark.parametrize(
    ("regime", "words"),
    [
        ("first-order", "well before the crossover"),
        ("second-order", "well after the crossover"),
        ("mixed", "around the crossover"),
        ("outside", "leaves the window"),
    ],
)
def test_regimes(regime: str, words: str) -> None:
    found = table(regime=regime)
    assert words in found["regime"].meaning
    assert ("extrapolation" in found["predicted utility loss"].meaning) == (regime == "outside")


def test_empirical_responses_are_not_called_the_models() -> None:
    assert "noise of the drawn tokens" in table()["leak, exact over tokens"].meaning
    assert "data's log-likelihood" in table(fisher="empirical")["leak, exact over tokens"].meaning


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ["growing as t² (leak 1)", "takes over at t = 0.05, step 50", "predicted utility loss is 0.02 nats"]),
        ({"crossover_exact": 0.3}, ["does not take over while the expansion holds"]),
        ({"regime": "outside", "window": 0.01}, ["trusted up to 0.01 (step 10)", "measured along the run"]),
        ({"leak": 0.0}, ["damage starts as t⁴"]),
        ({"crossover": None}, ["neither moves"]),
    ],
)
def test_headlines(changes: dict[str, Any], words: list[str]) -> None:
    sentence = headline(result(**changes))
    for part in words:
        assert part in sentence


def test_sets_are_called_by_their_names() -> None:
    assert [set_name(s) for s in ("benign", "gsm8k=some/file.jsonl", "some/mine.jsonl")] == [
        "benign",
        "gsm8k",
        "mine.jsonl",
    ]


def test_without_the_plan_nothing_is_said_in_steps() -> None:
    old = replace(result(), plan=None)
    assert "step" not in headline(old).replace("first step", "").replace("planned steps", "")
    assert "(step" not in " ".join(line.meaning for line in lines(old))
