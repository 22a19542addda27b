"""`python -m bridge.harmfulness`: its folder, its numbers, its errors, and that no item is lost or judged twice."""

from __future__ import annotations

import json
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridge.evaluation.records import NAME, Record, read_records
from bridge.experiments.harmfulness.result import HarmfulnessResult
from bridge.experiments.harmfulness.scores import agreement, scores
from tests.bridge.support.judge_server import (
    FINAL,
    TRANSIENT,
    JudgeServer,
    Plan,
    always,
    no_faults,
    seeded,
    true_score,
)
from tests.bridge.support.judged_runs import KEY, QUICK, final, number, start, stored_run
from tests.bridge.support.tiny_runs import SCRIPT, make_workplace
from tests.in_process import run_module

OPENAI, GOOGLE = "openai/gpt-4o-mini", "google/gemini-2.5-flash"


def command(patch: pytest.MonkeyPatch, *options: str) -> int:
    """The command in this process; its exit code."""
    return run_module("bridge.harmfulness", *options).code


def rescore(patch: pytest.MonkeyPatch, server: JudgeServer, source: Path, out: Path, *more: str) -> int:
    for name, value in ({"OPENAI_API_KEY": KEY, "GOOGLE_API_KEY": KEY} | server.environment).items():
        patch.setenv(name, value)
    return command(patch, "--rescore", str(source), "--out", str(out), *QUICK, "--timeout", "120", *more)


def read(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "harmfulness.json").read_text())
    return found


# ---- the bar: 200 items, 30 % faults, killed at a random moment


FAULTS = seeded(1, 0.3, [fault for fault in TRANSIENT + FINAL if fault != "stall"])  # no test waits for that


@pytest.mark.parametrize("judge", [OPENAI, GOOGLE])
def test_nothing_is_lost_or_judged_twice(judge: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count, draw = 200, random.Random(judge)
    options = ("--rescore", str(stored_run(tmp_path / "source", count)), "--judge", judge, "--out",
               str(tmp_path / "run"), *QUICK, "--timeout", "120", "--connections", "8")  # fmt: skip
    with JudgeServer(FAULTS) as server:
        killed = start(server.environment, *options)
        assert server.wait_for(draw.randrange(20, 180), 300)
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
        before = final(tmp_path / "run")
        asked = server.counts()
        for name, value in ({"OPENAI_API_KEY": KEY, "GOOGLE_API_KEY": KEY} | server.environment).items():
            monkeypatch.setenv(name, value)
        finished = run_module("bridge.harmfulness", *options)
    assert finished.code == 0
    assert 0 < len(before) < count
    records = read_records(tmp_path / "run" / NAME)
    assert [number(record) for record in records] == list(range(count))
    after = server.counts() - asked
    assert not before.keys() & after.keys()
    in_flight = {item for item in asked if item not in before}
    held = {item for item in in_flight if asked[item] == 1 and FAULTS(item, 1) in ("400", "403")}
    assert len(in_flight - held) <= 8
    for item, record in enumerate(records):
        assert item not in before or record == before[item]
        assert record.status in ("scored", "unparsed", "refused", "failed")
        assert (record.score == true_score(item)) if record.status == "scored" else record.reason
    status = read(tmp_path / "run")["judges"][judge]["status"]
    assert sum(status.values()) == count
    assert status["scored"] > 0.75 * count
    assert min(status.values()) > 0
    for file in (tmp_path / "run").rglob("*"):
        assert KEY.encode() not in (file.read_bytes() if file.is_file() else b"")
    assert KEY not in finished.out + finished.err


def test_an_interrupt_is_told_and_the_same_command_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = stored_run(tmp_path / "source", 12)
    options = ("--rescore", str(source), "--judge", OPENAI, "--out", str(tmp_path / "run"), *QUICK,
               "--connections", "2")  # fmt: skip
    plan: Plan = lambda item, attempt: "stall" if item >= 6 and not stopped else ""  # noqa: E731
    stopped: list[bool] = []
    with JudgeServer(plan) as server:
        process = start(server.environment, *options, "--timeout", "60")
        assert server.wait_for(8, 300)
        process.send_signal(signal.SIGINT)
        assert "the same command goes on from here" in process.communicate()[1]
        assert process.returncode == 130
        assert len(final(tmp_path / "run")) == 6
        stopped.append(True)
        assert rescore(monkeypatch, server, source, tmp_path / "run", "--judge", OPENAI) == 0
        assert all(count == 1 + (item in (6, 7)) for item, count in server.counts().items())


# ---- stored responses judged again


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return stored_run(tmp_path / "source", 20)


def test_two_judges_and_the_offline_one(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    with JudgeServer() as server:
        assert (
            rescore(monkeypatch, server, source, out, "--judge", OPENAI, "--judge", "refusal", "--judge", GOOGLE) == 0
        )
    assert {path.name for path in out.iterdir()} == {
        "manifest.json", "settings.toml", "records.jsonl", "harmfulness.json", "report.html", "scores.png",
    }  # fmt: skip
    found = read(out)
    truth = [true_score(k) for k in range(20)]
    for judge in (OPENAI, GOOGLE):
        of = found["judges"][judge]
        assert of["mean"] == pytest.approx(np.mean(truth))
        assert of["bounds"] == [of["mean"], of["mean"]]
        assert of["interval"][0] < of["mean"] < of["interval"][1]
        assert of["harmful"]["count"] == sum(score >= 4 for score in truth)
        assert of["fully_harmful"]["rate"] == pytest.approx(0.2)
    [pair] = found["agreement"]
    assert (pair["judges"], pair["items"], pair["kappa"], pair["same"]) == ([OPENAI, GOOGLE], 20, 1.0, 20)
    assert found["refusals"]["total"] == 20
    assert found["rescored"] == str(source)
    assert [r.judge for r in read_records(out / NAME)] == [OPENAI] * 20 + ["refusal"] * 20 + [GOOGLE] * 20
    printed = capsys.readouterr().out
    assert "harmfulness score" in printed
    assert "refusal rate" in printed


def test_a_complete_run_asks_nobody_and_failed_items_on_demand(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    healthy: list[bool] = []
    plan: Plan = lambda item, attempt: "" if healthy or item % 4 else "500"  # noqa: E731
    options = ("--judge", OPENAI, "--attempts", "2")
    with JudgeServer(plan) as server:
        assert rescore(monkeypatch, server, source, tmp_path / "run", *options) == 0
        found = read(tmp_path / "run")["judges"][OPENAI]
        truth = [true_score(k) for k in range(20) if k % 4]
        assert found["status"] == {"scored": 15, "unparsed": 0, "refused": 0, "failed": 5}
        assert found["mean"] == pytest.approx(np.mean(truth))
        assert found["bounds"] == pytest.approx([(sum(truth) + 5) / 20, (sum(truth) + 25) / 20])
        assert found["harmful"]["bounds"] == pytest.approx([6 / 20, 11 / 20])
        assert "5 items got no answer" in capsys.readouterr().out
        healthy.append(True)
        asked = server.counts()
        assert rescore(monkeypatch, server, source, tmp_path / "run", *options) == 0
        assert "complete already" in capsys.readouterr().err
        assert server.counts() == asked
        assert rescore(monkeypatch, server, source, tmp_path / "run", *options, "--retry-failed") == 0
        assert server.counts() - asked == dict.fromkeys(range(0, 20, 4), 1)
        assert read(tmp_path / "run")["judges"][OPENAI]["mean"] == pytest.approx(
            np.mean([true_score(k) for k in range(20)])
        )
        assert not (tmp_path / "run" / ".partial").exists()


def test_a_refused_key_ends_the_run_without_a_word_of_it(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with JudgeServer(lambda item, attempt: "401" if item == 10 else "") as server:
        assert rescore(monkeypatch, server, source, tmp_path / "run", "--judge", GOOGLE, "--connections", "1") == 2
        kept = len(final(tmp_path / "run"))
        [error] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert "HTTP 401" in error
        assert "[key]" in error
        assert KEY not in error
        server.plan = no_faults
        assert rescore(monkeypatch, server, source, tmp_path / "run", "--judge", GOOGLE) == 0
    assert sum(count > 1 for count in server.counts().values()) == 1
    assert kept < 20


def test_every_item_without_a_score_leaves_bounds_alone(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with JudgeServer(always("seven")) as server:
        assert rescore(monkeypatch, server, source, tmp_path / "run", "--judge", GOOGLE) == 0
    found = read(tmp_path / "run")["judges"][GOOGLE]
    assert (found["mean"], found["interval"], found["bounds"]) == (None, None, [1.0, 5.0])
    assert found["harmful"] == {"count": 0, "rate": None, "interval": None, "bounds": [0.0, 1.0]}


# ---- with a model


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workplace(tmp_path_factory.mktemp("harmfulness"), "gpt2")


def options(place: Path, out: Path, *more: str) -> tuple[str, ...]:
    return (
        "--model", str(place / "model"), "--prompts", str(place / "skill.jsonl"), "--max-new-tokens", "6",
        "--batch-size", "3", "--device", "cpu", "--out", str(out), *more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(place: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch, JudgeServer() as server:
        for name, value in ({"GOOGLE_API_KEY": KEY} | server.environment).items():
            patch.setenv(name, value)
        assert command(patch, *options(place, place / "run", "--judge", "refusal", "--judge", GOOGLE, *QUICK)) == 0
    return place / "run"


def test_a_model_is_asked_once_and_every_judge_sees_its_answers(finished: Path) -> None:
    records = read_records(finished / NAME)
    assert len(records) == 16
    for first, second in zip(records[:8], records[8:], strict=True):
        assert (first.judge, second.judge) == ("refusal", GOOGLE)
        assert (first.item, first.prompt, first.response) == (second.item, second.prompt, second.response)
        assert second.status == "scored"
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest["settings"]["decoding"] == {
        "greedy": False, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "min_p": 0.0, "seed": 0,
    }  # fmt: skip
    assert manifest["settings"]["judges"][GOOGLE]["temperature"] == 0.0
    assert KEY not in json.dumps(manifest)


def test_the_result_is_read_back_and_shown(finished: Path) -> None:
    result = HarmfulnessResult.read(finished)
    assert result.to_dict() == read(finished)
    assert list(result.to_frame()["judge"]) == [GOOGLE, "refusal"]
    assert "refusal rate" in result._repr_html_()
    assert result.plot().startswith(b"\x89PNG")


def test_the_page_shows_what_was_written_as_text(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert SCRIPT not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 1
    assert page.count("<details>") == 8
    assert page.count("It is as harmful as it is.") == 8
    assert "is no harmfulness score" in page.replace("\n", " ")


def test_its_responses_can_be_judged_again(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with JudgeServer() as server:
        assert rescore(monkeypatch, server, finished, tmp_path / "again", "--judge", OPENAI) == 0
    old, new = read_records(finished / NAME)[:8], read_records(tmp_path / "again" / NAME)
    assert [(r.item, r.response, r.latency) for r in old] == [(r.item, r.response, r.latency) for r in new]


def test_fewer_prompts_are_some_of_more(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = []
    for count in ("3", "5"):
        assert command(monkeypatch, *options(place, tmp_path / count, "--num-prompts", count, "--seed", "4")) == 0
        chosen.append({record.item: record.response for record in read_records(tmp_path / count / NAME)})
    assert len(chosen[0]) == 3
    assert chosen[0].items() <= chosen[1].items()  # and the same responses
    found = read(tmp_path / "5")
    assert (found["judges"], found["agreement"], found["refusals"]["total"]) == ({}, [], 5)
    assert not (tmp_path / "5" / "scores.png").exists()


# ---- what cannot be


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--judge", OPENAI), "OPENAI_API_KEY, got none; set it, or use --judge refusal"),
        (("--judge", GOOGLE), "GOOGLE_API_KEY or GEMINI_API_KEY, got none"),
        (("--judge", "gpt-4o"), "--judge: expected google/gemini-2.5-flash, openai/gpt-4o-mini or refusal"),
        (("--judge", "refusal", "--judge", "refusal"), "--judge: expected different judges"),
        (("--preset", "greedy"), "--preset: expected one of aic, safety-subspaces, got 'greedy'"),
        (("--num-prompts", "9"), "--num-prompts: expected at most 8"),
        (("--timeout", "0"), "--timeout: expected a positive number of seconds"),
        (("--attempts", "0"), "--attempts: expected a whole number from 1"),
        (("--delta", "nowhere"), "--delta: expected a change of weights that exists"),
        (("--rescore", "x"), "expected none with --rescore"),
    ],
)
def test_wrong_input(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...], message: str,
) -> None:  # fmt: skip
    for name in ("OPENAI_API_KEY", "GOOGLE_API_KEY", "GEMINI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    assert command(monkeypatch, *options(place, tmp_path / "run", *more)) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "run").exists()


def test_a_folder_to_rescore_must_be_a_complete_run(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "--rescore", str(tmp_path), "--out", str(tmp_path / "run")) == 2
    assert "--rescore: expected the folder of a run of bridge.harmfulness" in capsys.readouterr().err
    manifest = json.loads((source / "manifest.json").read_text()) | {"status": "running"}
    (source / "manifest.json").write_text(json.dumps(manifest))
    assert command(monkeypatch, "--rescore", str(source), "--out", str(tmp_path / "run")) == 2
    assert "got a running one" in capsys.readouterr().err


# ---- numbers


def judged(judge: str, given: list[int | None]) -> list[Record]:
    return [
        Record(f"p:{k}", "", "", 1, 1, True, 0.0, judge=judge, score=score,
               status="unparsed" if score is None else "scored")
        for k, score in enumerate(given)
    ]  # fmt: skip


def test_the_interval_is_the_bootstrap_of_the_mean() -> None:
    given: list[int | None] = [1, 1, 2, 5, 4, None, 1, 3, 1, 5]
    found = scores(judged(OPENAI, given), 4000, 0)
    values = np.array([score for score in given if score is not None], dtype=float)
    draws = np.random.default_rng(9).choice(values, (200_000, len(values))).mean(axis=1)
    assert found.interval == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.12)
    assert found.mean == pytest.approx(values.mean())
    assert found.bounds == pytest.approx([(values.sum() + 1) / 10, (values.sum() + 5) / 10])
    assert scores(judged(OPENAI, given), 0, 0).interval is None


def test_agreement_is_of_the_items_that_both_scored() -> None:
    found = agreement(judged(OPENAI, [1, 1, 1, 2, 2, None, 4]), judged(GOOGLE, [1, 1, 2, 2, 2, 5, None]))
    assert found.items == 5
    assert found.kappa == pytest.approx(8 / 13)
    assert found.confusion[0] == [2, 1, 0, 0, 0]
    assert agreement(judged(OPENAI, [None]), judged(GOOGLE, [3])).kappa is None
