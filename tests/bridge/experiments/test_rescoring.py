"""`python -m bridge.harmfulness --rescore`: what is taken over, what is asked, what cannot be used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridge.evaluation.records import NAME, read_records
from tests.bridge.support.judge_server import JudgeServer, true_score
from tests.bridge.support.judged_runs import KEY, QUICK, final, stored_run
from tests.in_process import run_module

OPENAI, GOOGLE = "openai/gpt-4o-mini", "google/gemini-2.5-flash"
COUNT = 12
MEAN = np.mean([true_score(k) for k in range(COUNT)])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return stored_run(tmp_path / "source", COUNT)


def rescore(patch: pytest.MonkeyPatch, server: JudgeServer | None, source: Path | str, out: Path, *more: str) -> int:
    environment = server.environment if server else {}
    for name, value in ({"OPENAI_API_KEY": KEY, "GOOGLE_API_KEY": KEY} | environment).items():
        patch.setenv(name, value)
    options = ["--rescore", str(source), "--out", str(out), *QUICK, "--timeout", "120", *more]
    return run_module("bridge.harmfulness", *options).code


def read(folder: Path) -> Any:
    return json.loads((folder / "harmfulness.json").read_text())


# ---- records that are not whole


@pytest.mark.parametrize("left", [0, 5, COUNT - 1])
def test_missing_records_are_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], left: int
) -> None:
    lines = (source / NAME).read_bytes().splitlines(keepends=True)
    (source / NAME).write_bytes(b"".join(lines[:left]))
    assert rescore(monkeypatch, None, source, tmp_path / "run", "--judge", "refusal") == 2
    [line] = capsys.readouterr().err.splitlines()
    assert f"expected the {COUNT} items of {source}, got {left}" in line
    assert not (tmp_path / "run").exists()


def test_a_torn_last_line_is_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (source / NAME).write_bytes((source / NAME).read_bytes()[:-1])
    assert rescore(monkeypatch, None, source, tmp_path / "run", "--judge", "refusal") == 2
    assert f"expected the {COUNT} items of {source}, got {COUNT - 1}" in capsys.readouterr().err


# ---- verdicts that are there


def test_another_way_to_write_the_path_is_the_same_run(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for spelling in (source, f"{source}/", f"{source}/../{source.name}"):
        assert rescore(monkeypatch, None, spelling, tmp_path / "run", "--judge", "refusal") == 0
    assert capsys.readouterr().err.count("complete already") == 2


def test_verdicts_of_a_stopped_run_are_taken_over(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with JudgeServer() as server:
        assert rescore(monkeypatch, server, source, tmp_path / "one", "--judge", OPENAI) == 0
        server.plan = lambda item, attempt: "401"
        both = ("--judge", OPENAI, "--judge", GOOGLE)
        assert rescore(monkeypatch, server, tmp_path / "one", tmp_path / "both", *both) == 2  # Google refuses the key
        assert not (tmp_path / "both" / "harmfulness.json").exists()
        asked = server.counts()
        shutil.rmtree(tmp_path / "one")
        assert rescore(monkeypatch, server, tmp_path / "both", tmp_path / "again", "--judge", OPENAI) == 0
        assert server.counts() == asked
    assert read(tmp_path / "again")["judges"][OPENAI]["mean"] == pytest.approx(MEAN)
    assert read(tmp_path / "again")["items"] == COUNT
    assert f"{COUNT} verdicts of the same judges are taken over" in capsys.readouterr().err


def test_a_stopped_run_gives_all_its_responses(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with JudgeServer(lambda item, attempt: "401" if item == 5 else "") as server:
        one = ("--judge", OPENAI, "--connections", "1")
        assert rescore(monkeypatch, server, source, tmp_path / "stopped", *one) == 2
        kept = final(tmp_path / "stopped")
        assert 0 < len(kept) < COUNT
        asked = server.counts()
        server.plan = lambda item, attempt: ""
        assert rescore(monkeypatch, server, tmp_path / "stopped", tmp_path / "run", *one) == 0
        assert server.counts() - asked == dict.fromkeys(set(range(COUNT)) - kept.keys(), 1)
    assert read(tmp_path / "run")["judges"][OPENAI]["mean"] == pytest.approx(MEAN)
    old, new = read_records(source / NAME), read_records(tmp_path / "run" / NAME)
    assert [(r.item, r.prompt, r.response) for r in old] == [(r.item, r.prompt, r.response) for r in new]


def test_only_failed_items_and_other_judges_are_asked(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with JudgeServer(lambda item, attempt: "" if item % 4 else "500") as server:
        assert rescore(monkeypatch, server, source, tmp_path / "some", "--judge", OPENAI, "--attempts", "2") == 0
        asked = server.counts()
        server.plan = lambda item, attempt: ""
        assert rescore(monkeypatch, server, tmp_path / "some", tmp_path / "all", "--judge", OPENAI) == 0
        assert server.counts() - asked == dict.fromkeys(range(0, COUNT, 4), 1)
    assert read(tmp_path / "all")["judges"][OPENAI]["mean"] == pytest.approx(MEAN)
    with JudgeServer() as other:  # another address is another judge
        assert rescore(monkeypatch, other, tmp_path / "all", tmp_path / "other", "--judge", OPENAI) == 0
        assert other.counts() == dict.fromkeys(range(COUNT), 1)


# ---- killed while asking again


@pytest.mark.parametrize(
    "stage", ["bridge.experiments.harmfulness.run.write_records", "bridge.reports.results.write_json"]
)
@pytest.mark.parametrize("option", [(), ("--retry-failed",)])
def test_a_killed_retry_leaves_no_stale_result(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, option: tuple[str, ...]
) -> None:
    def killed(*_: object) -> None:
        raise SystemExit(9)

    options = ("--judge", OPENAI, "--attempts", "2")
    with JudgeServer(lambda item, attempt: "" if item % 4 else "500") as server:
        assert rescore(monkeypatch, server, source, tmp_path / "run", *options) == 0
        server.plan = lambda item, attempt: ""
        with monkeypatch.context() as patch:
            patch.setattr(stage, killed)
            assert rescore(patch, server, source, tmp_path / "run", *options, "--retry-failed") == 9
        asked = server.counts()
        assert rescore(monkeypatch, server, source, tmp_path / "run", *options, *option) == 0
        assert server.counts() == asked
    found = read(tmp_path / "run")["judges"][OPENAI]
    assert found["status"]["failed"] == 0
    assert found["mean"] == pytest.approx(MEAN)
    assert len(read_records(tmp_path / "run" / NAME)) == COUNT
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["status"] == "complete"
