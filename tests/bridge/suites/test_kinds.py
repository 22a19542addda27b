"""Run folders that were written before results had types: read, shown, and the same numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bridge.api import load_result
from bridge.reports.results import pictures_of, tables_of
from bridge.suites.kinds import KINDS
from commands.errors import UserError

RUNS = Path(__file__).parents[2] / "data" / "runs"


@pytest.mark.parametrize("name", sorted(folder.name for folder in RUNS.iterdir()))
def test_an_old_run_is_read_as_it_was_written(name: str) -> None:
    result = load_result(RUNS / name)
    assert result.to_dict() == json.loads((RUNS / name / result.FILE).read_text())
    assert "<table>" in result._repr_html_()
    assert str(result)
    assert len(result.to_frame())
    assert all(picture.startswith(b"\x89PNG") for picture in pictures_of(result).values())


def test_every_kind_of_result_is_shown_by_its_own_report() -> None:
    for command, kind in KINDS.items():
        if command != "bridge.study, pilot":  # a part of a study's row
            assert tables_of.dispatch(kind) is not tables_of.dispatch(object), command
        assert kind.FILE.endswith(".json")


def copied(name: str, folder: Path) -> Path:
    folder.mkdir()
    for file in (RUNS / name).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_what_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected the folder of a run"):
        load_result(tmp_path)
    run = copied("overlap", tmp_path / "run")
    manifest = json.loads((run / "manifest.json").read_text())
    for change, words in (
        ({"status": "running"}, "not complete"),
        ({"command": "sim.quartic"}, "got one of sim.quartic"),
    ):
        (run / "manifest.json").write_text(json.dumps(manifest | change))
        with pytest.raises(UserError, match=words):
            load_result(run)
    (run / "manifest.json").write_text(json.dumps(manifest))
    result = json.loads((run / "overlap.json").read_text())
    for change, words in (
        ({"schema_version": 2}, "expected format 1, got 2"),
        ({"fisher": "drawn", "deltas": {"a": {}}}, "fisher: .*; deltas.a."),
        ({"unheard": 1}, "unheard: not known"),
    ):
        (run / "overlap.json").write_text(json.dumps(result | change))
        with pytest.raises(UserError, match=words):
            load_result(run)
    (run / "overlap.json").write_text("{")
    with pytest.raises(UserError, match="no result of a run"):
        load_result(run)
