"""Asking a judge that answers wrongly in every way: each item ends with its verdict or its reason, and no key leaks."""

from __future__ import annotations

import base64
import html
import logging
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest

from bridge.evaluation.judges import read_judge
from bridge.evaluation.judging import check_refusals, judge_records
from bridge.evaluation.limits import Limits
from bridge.evaluation.records import Record
from bridge.evaluation.redaction import without_secrets
from commands.errors import UserError
from commands.progress import Progress
from tests.bridge.support.judge_server import (
    FINAL,
    QUOTA,
    TRANSIENT,
    JudgeServer,
    Plan,
    always,
    first,
    no_faults,
    true_score,
)

OPENAI, RESPONSES, GOOGLE = "openai/gpt-4o-mini", "openai/o4-mini", "google/gemini-2.5-flash"
KEY = "sk-Secret+of/the user=1%2"
QUICK = Limits(attempts=3, timeout=120.0, backoff=0.01, longest_wait=5.0, connections=16)
SLOW = ("stall",)  # only a timeout ends these


def responses(count: int) -> list[Record]:
    return [Record(f"p:{k}", f"item {k}: how?", f"answer {k}", 4, 2, True, 0.1) for k in range(count)]


Ask = Callable[..., tuple[list[Record], JudgeServer]]


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Judge so many items against a server of this plan; gives the records in order, and the server."""
    for name in ("OPENAI_API_KEY", "GOOGLE_API_KEY"):
        monkeypatch.setenv(name, KEY)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    def asked(
        judge: str,
        plan: Plan,
        count: int = 2,
        limits: Limits = QUICK,
        already: int = 0,
        retry_after: float = 0.02,
        quota: str = QUOTA,
    ) -> tuple[list[Record], JudgeServer]:
        found: list[Record] = []
        with JudgeServer(plan, retry_after, quota=quota) as server:
            for name, value in server.environment.items():
                monkeypatch.setenv(name, value)
            judge_records(
                responses(count), read_judge(judge), limits, done=found.append, scratch=tmp_path / "scratch",
                progress=Progress(quiet=True), already=already,
            )  # fmt: skip
        assert not (tmp_path / "scratch").exists()
        assert not (tmp_path / "home").exists()  # nothing in the user's own folders
        return sorted(found, key=lambda record: int(record.item[2:])), server

    return asked


@pytest.mark.parametrize("judge", [OPENAI, RESPONSES, GOOGLE])
def test_scores_arrive(ask: Ask, judge: str) -> None:
    records, server = ask(judge, no_faults, 6)
    for k, record in enumerate(records):
        assert (record.status, record.score, record.reason) == ("scored", true_score(k), "")
        assert (record.judge, record.attempts) == (judge, 1)
        assert (record.judge_prompt_tokens, record.judge_response_tokens) == (30, 12)
        assert record.judge_text.startswith("It is as harmful as it is.")
        assert record.judge_latency > 0
        assert replace(record, judge="", judge_text="", score=None, status="generated", judge_latency=0.0, attempts=0,
                       judge_prompt_tokens=0, judge_response_tokens=0) == responses(6)[k]  # fmt: skip
    assert server.counts() == dict.fromkeys(range(6), 1)  # and no question of inspect's own
    for seen in server.seen:
        assert KEY in (seen.headers.get("authorization", "") + seen.headers.get("x-goog-api-key", ""))
        temperature = seen.body.get("temperature", seen.body.get("generationConfig", {}).get("temperature"))
        assert temperature == (None if judge == RESPONSES else 0.0)


@pytest.mark.parametrize("judge", [OPENAI, RESPONSES, GOOGLE])
@pytest.mark.parametrize("fault", TRANSIENT)
def test_what_may_pass_is_asked_again(ask: Ask, judge: str, fault: str) -> None:
    # on a busy machine a short timeout also ends good requests, so there are many
    limits = replace(QUICK, timeout=0.5, attempts=200) if fault in SLOW else QUICK
    records, server = ask(judge, first(fault), 3, limits)
    assert [(r.status, r.score, r.reason) for r in records] == [("scored", true_score(k), "") for k in range(3)]
    for k, record in enumerate(records):
        asked = server.counts()[k]
        assert asked >= 2 if fault in SLOW else (record.attempts, asked) == (2, 2)


@pytest.mark.parametrize("judge", [OPENAI, GOOGLE])
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("429", "HTTP 429: Rate limit reached"),
        ("500", "HTTP 500: the server had an error"),
        ("stall", "no answer within 0.4 seconds"),
        ("cut", "Error: "),
        ("malformed", "JSONDecodeError: Unterminated string"),
        ("empty", ""),
        ("wrong shape", "TypeError: "),
        ("no choices", "an empty reply"),
    ],
)
def test_what_stays_wrong_fails_with_its_reason(ask: Ask, judge: str, fault: str, reason: str) -> None:
    limits = replace(QUICK, attempts=2)
    records, server = ask(judge, always(fault), 2, replace(limits, timeout=0.4) if fault in SLOW else limits)
    for record in records:
        assert (record.status, record.score, record.attempts) == ("failed", None, 2)
        assert record.reason
        assert reason in record.reason
        assert "\n" not in record.reason
    if fault not in SLOW:  # a busy machine may let the time pass before it asks
        assert server.counts() == {0: 2, 1: 2}


VERDICTS = {
    "seven": ("unparsed", "not a whole number from 1 to 5: '7'"),
    "half": ("unparsed", "not a whole number from 1 to 5: '2.5'"),
    "silent": ("unparsed", "the judge's answer is empty"),
    "several": ("unparsed", "it holds 2 scores"),
    "injected": ("unparsed", "its score has not the item's mark"),
    "declines": ("refused", "the judge declined"),
    "filter": ("refused", "its filter stopped it"),
    "400": ("refused", "HTTP 400: this item is not acceptable"),
    "403": ("failed", "HTTP 403"),
}


@pytest.mark.parametrize("judge", [OPENAI, GOOGLE])
def test_answers_without_a_score_are_not_asked_again(ask: Ask, judge: str) -> None:
    assert set(VERDICTS) == set(FINAL)
    faults = list(VERDICTS)
    records, server = ask(judge, lambda item, attempt: faults[item], len(faults))
    for fault, record in zip(faults, records, strict=True):
        status, reason = VERDICTS[fault]
        assert (record.status, record.score, record.attempts) == (status, None, 1)
        assert reason in record.reason
    assert server.counts() == dict.fromkeys(range(len(faults)), 1)


@pytest.mark.parametrize("judge", [OPENAI, GOOGLE])
def test_retry_after_is_waited_for(ask: Ask, judge: str) -> None:
    arrivals: dict[tuple[int, int], float] = {}

    def plan(item: int, attempt: int) -> str:
        arrivals[item, attempt] = time.monotonic()
        return "429" if attempt == 1 else ""

    ask(judge, plan, 2, retry_after=0.6)
    for item in (0, 1):
        assert arrivals[item, 2] - arrivals[item, 1] >= 0.6  # the backoff alone would be 0.01


@pytest.mark.parametrize("judge", [OPENAI, GOOGLE])
def test_a_day_is_not_waited_for(ask: Ask, judge: str) -> None:
    records, _ = ask(judge, always("later"), 1)
    assert (records[0].status, records[0].attempts) == ("failed", 1)
    assert "asks to wait 86,400 seconds" in records[0].reason


@pytest.mark.parametrize(
    ("judge", "fault", "message"),
    [
        (OPENAI, "401", "refuses the key or the model (HTTP 401: Incorrect API key provided: [key])"),
        (GOOGLE, "401", "refuses the key or the model (HTTP 401: Incorrect API key provided: [key])"),
        (GOOGLE, "404", "refuses the key or the model (HTTP 404: The model does not exist)"),
        (OPENAI, "quota", "the account's quota is used up"),
        (OPENAI, "403", "refuses the key or the model (HTTP 403)"),
        (OPENAI, "500", "20 items in a row got no answer (the last: HTTP 500: the server had an error)"),
        (GOOGLE, "400", "20 items in a row got no answer (the last: HTTP 400: this item is not acceptable)"),
    ],
)
def test_a_judge_that_answers_nobody_ends_the_run(ask: Ask, judge: str, fault: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        ask(judge, always(fault), 60, replace(QUICK, attempts=1, connections=4))
    assert message in str(error.value)
    assert KEY not in str(error.value)


@pytest.mark.parametrize("judge", [OPENAI, GOOGLE])
@pytest.mark.parametrize("fault", ["403", "404"])
def test_one_forbidden_item_is_no_wrong_key(ask: Ask, judge: str, fault: str) -> None:
    for blocked in (0, 5):  # before and after the first answer
        records, server = ask(judge, lambda item, _, b=blocked: fault if item == b else "", 8)
        assert [r.status for r in records] == ["failed" if k == blocked else "scored" for k in range(8)]
        assert records[blocked].reason.startswith(f"HTTP {fault}")
        assert server.counts() == dict.fromkeys(range(8), 1)


def test_a_forbidden_item_alone_is_a_wrong_key_until_another_was_answered(ask: Ask) -> None:
    with pytest.raises(UserError, match=r"refuses the key or the model \(HTTP 403"):
        ask(OPENAI, always("403"), 1)
    [record], _ = ask(OPENAI, always("403"), 1, already=1)
    assert record.status == "failed"


def test_what_was_refused_before_anything_was_answered_is_not_kept(ask: Ask, tmp_path: Path) -> None:
    kept: list[Record] = []
    with JudgeServer(lambda item, _: "400" if item >= 3 else "") as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        with pytest.raises(UserError, match=r"5 items in a row got no answer .* --give-up 0 lists such items"):
            judge_records(
                responses(40), read_judge(OPENAI), replace(QUICK, connections=1, give_up=5), done=kept.append,
                scratch=tmp_path / "s", progress=Progress(quiet=True),
            )  # fmt: skip
    assert [record.status for record in kept] == ["scored"] * 3


@pytest.mark.parametrize(("fault", "status"), [("400", "refused"), ("403", "failed"), ("500", "failed")])
def test_a_run_may_go_on_whatever_happens(ask: Ask, fault: str, status: str) -> None:
    records, server = ask(OPENAI, always(fault), 30, replace(QUICK, attempts=1, give_up=0))
    assert [record.status for record in records] == [status] * 30
    assert sum(server.counts().values()) == 30


@pytest.mark.parametrize(
    ("text", "ends"), [("Quota exceeded, limit: 0, model: m", True), ("Quota exceeded, limit: 0.", True),
                       ("Quota exceeded, limit: 05", False), ("Quota exceeded, limit: 0.5", False)]
)  # fmt: skip
def test_a_limit_of_nothing_is_no_limit_of_something(ask: Ask, text: str, ends: bool) -> None:
    if ends:
        with pytest.raises(UserError, match="the account's quota is used up"):
            ask(GOOGLE, first("quota"), 1, quota=text)
    else:
        records, _ = ask(GOOGLE, first("quota"), 1, quota=text)
        assert (records[0].status, records[0].attempts) == ("scored", 2)


def test_vertex_of_the_environment_is_left_alone(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOOGLE_GENAI_USE_VERTEXAI", "GOOGLE_GENAI_USE_ENTERPRISE"):
        monkeypatch.setenv(name, "true")
    [record], server = ask(GOOGLE, no_faults, 1)
    assert (record.status, record.score) == ("scored", true_score(0))
    assert server.seen[0].path == "/v1/models/gemini-2.5-flash:generateContent"


@pytest.mark.parametrize("judge", [OPENAI, RESPONSES, GOOGLE])
def test_a_key_that_the_judge_repeats_is_struck_out(
    ask: Ask, judge: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    [failed], _ = ask(judge, always("leak"), 1, replace(QUICK, attempts=1))
    [scored], _ = ask(judge, always("echoes key"), 1)
    assert failed.reason == "HTTP 500: cannot handle Authorization: Bearer [key], ?key=[key]"
    assert scored.judge_text.startswith("Your key is [key].")
    written = f"{failed}{scored}{capfd.readouterr()}"
    for form in (KEY, quote(KEY), quote(KEY, safe="")):
        assert form not in written


def key_forms(key: str) -> list[str]:
    """A key as servers, addresses, JSON and pages write it."""
    slashed = key.replace("/", "\\/").replace("+", "\\u002b")
    escaped = "".join(f"\\x{ord(c):02x}" for c in key)
    entities = key.replace("/", "&#x2F;").replace("+", "&#43;").replace("=", "&equals;")
    return [
        key, quote(key), quote(key, safe=""), quote(key, safe="").lower(), key.upper(), quote_plus(key),
        quote(quote(key, safe=""), safe=""), quote(quote(quote(key, safe=""), safe=""), safe=""),
        f"{key[:9]}\n{key[9:]}", f"{key[:9]} {key[9:]}", f"{key[:9]}\\n{key[9:]}", "\u200b".join(key), " ".join(key),
        slashed, slashed.replace("\\", "\\\\"), escaped, entities, html.escape(entities), key[1:], key[:-1],
    ]  # fmt: skip


def test_keys_are_struck_out_however_they_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for form in key_forms(KEY):
        assert without_secrets(f"before {form} after") == "before [key] after", form
    for user in ("", "u", "us", "user:"):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            encoded = encode(f"{user}{KEY}".encode()).decode()
            struck = without_secrets(f"before {encoded} after")
            assert struck.startswith("before ")
            assert struck.endswith(" after")
            assert "[key]" in struck
            assert len(struck) <= len("before [key] after") + 4 + 2 * len(user)  # what others share in
    assert without_secrets(f"{KEY[:11]} and {KEY[-11:]}") == f"{KEY[:11]} and {KEY[-11:]}"
    long = f"{KEY} " + "ordinary words " * 2000
    assert without_secrets(long) == f"[key] {'ordinary words ' * 2000}"


def test_short_keys_do_not_strike_out_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "EMPTY")
    assert without_secrets("It is empty of harm.") == "It is empty of harm."
    monkeypatch.setenv("OPENAI_API_KEY", "harmless")
    assert without_secrets("harmlessly, (Harmless), unharmless") == "harmlessly, ([key]), unharmless"


def test_other_secrets_are_struck_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert without_secrets("Authorization: Bearer sk-other-12345 x") == "Authorization: Bearer [key] x"
    assert without_secrets("GET /m?key=AIza0123456789&x=1") == "GET /m?key=[key]&x=1"
    assert without_secrets("'x-goog-api-key': 'AIza0123456789'") == "'x-goog-api-key': '[key]'"
    assert without_secrets("at http://user:pw@host/v1") == "at http://[key]@host/v1"
    for plain in ("nothing to hide", "the bearer of uncomfortable news", "a bearer bond from 1987"):
        assert without_secrets(plain) == plain


def test_the_process_is_left_as_it_was(ask: Ask) -> None:
    before = (sys.excepthook, list(logging.getLogger().handlers), logging.getLogger().level)
    environment = dict(os.environ)
    ask(OPENAI, no_faults, 1)
    changed = {name for name in os.environ.keys() | environment if os.environ.get(name) != environment.get(name)}
    assert changed <= {"OPENAI_BASE_URL", "GOOGLE_BASE_URL"}
    assert (sys.excepthook, list(logging.getLogger().handlers), logging.getLogger().level) == before


def test_an_error_of_ours_is_not_an_item_s(ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(record: Record) -> None:
        raise OSError(28, "No space left on device")

    with JudgeServer() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(OSError, match="No space left"):
            judge_records(
                responses(3),
                read_judge(OPENAI),
                QUICK,
                done=full,
                scratch=tmp_path / "s",
                progress=Progress(quiet=True),
            )


def test_the_offline_judge_gives_no_score() -> None:
    told = replace(responses(2)[0], response="I'm sorry, but I can't help with that.")
    refused, answered = check_refusals([told, responses(2)[1]])
    assert (refused.judge, refused.status, refused.score, refused.details["refused"]) == (
        "refusal", "checked", None, True,
    )  # fmt: skip
    assert refused.details["pattern"]
    assert answered.details == {"refused": False, "pattern": None}
