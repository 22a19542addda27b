"""Run folders that were written before results had types: their numbers, read and shown by `bridge.load_result`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import bridge
from bridge.experiments.estimate_aic.result import AicResult
from bridge.experiments.finetune.result import FinetuneResult
from bridge.experiments.overlap.result import OverlapResult
from bridge.suites.study.result import StudyResult

RUNS = Path(__file__).parents[1] / "data" / "runs"
KINDS: dict[str, type[Any]] = {
    "estimate_aic": AicResult, "finetune-lora": FinetuneResult, "overlap": OverlapResult, "study": StudyResult,
}  # fmt: skip


def numbers(value: Any, place: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a JSON value with its place."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from numbers(item, f"{place}/{name}")
    elif isinstance(value, list):
        for k, item in enumerate(value):
            yield from numbers(item, f"{place}/{k}")
    elif isinstance(value, int | float):
        yield place, value


@pytest.mark.parametrize("name", KINDS)
def test_a_run_from_before_is_read_and_shown(name: str) -> None:
    result = bridge.load_result(RUNS / name)
    assert type(result) is KINDS[name]
    written = json.loads((RUNS / name / result.FILE).read_text())
    assert "settings.toml" not in {path.name for path in (RUNS / name).iterdir()}
    assert dict(numbers(result.to_dict())) == dict(numbers(written)) | {"/schema_version": result.FORMAT}
    assert len(str(result)) > 100
    assert "<table" in result._repr_html_()
    assert len(result.to_frame()) > 0
    assert result.plot().startswith(b"\x89PNG")


def test_all_of_them_are_tried() -> None:
    assert {path.name for path in RUNS.iterdir()} == set(KINDS)
