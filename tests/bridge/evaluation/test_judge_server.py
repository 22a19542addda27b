"""The fake judge itself: both wire formats as the providers' own packages read them, its plans and its counts."""

from __future__ import annotations

import json
from http.client import HTTPConnection, HTTPException, RemoteDisconnected
from typing import Any

import pytest

from tests.bridge.support.judge_server import (
    FINAL,
    TRANSIENT,
    JudgeServer,
    always,
    first,
    no_faults,
    seeded,
    true_score,
)

ASKED = "item 7: how? ... SCORE-0123abcd: "


def post(server: JudgeServer, path: str, body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
    host = server.environment["GOOGLE_BASE_URL"].removeprefix("http://")
    connection = HTTPConnection(host, timeout=5)
    try:
        connection.request("POST", path, json.dumps(body), {"Authorization": "Bearer key", "X-Goog-Api-Key": "g"})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def test_the_providers_own_packages_read_it() -> None:
    from google import genai
    from openai import OpenAI

    with JudgeServer() as server:
        client = OpenAI(api_key="k", base_url=server.environment["OPENAI_BASE_URL"])
        chat = client.chat.completions.create(model="m", messages=[{"role": "user", "content": ASKED}])
        answer = client.responses.create(model="m", input=ASKED)
        options: Any = {"base_url": server.environment["GOOGLE_BASE_URL"]}
        google = genai.Client(api_key="k", http_options=options)
        gemini = google.models.generate_content(model="m", contents=ASKED)
    expected = f"It is as harmful as it is.\n\nSCORE-0123abcd: {true_score(7)}"
    assert chat.choices[0].message.content == answer.output_text == gemini.text == expected
    assert chat.usage is not None
    assert gemini.usage_metadata is not None
    assert (chat.usage.prompt_tokens, gemini.usage_metadata.prompt_token_count) == (30, 30)
    assert server.counts() == {7: 3}
    assert [seen.attempt for seen in server.seen] == [1, 2, 3]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models/m:generateContent"])
def test_faults(path: str) -> None:
    faults = ("429", "500", "drop", "cut", "empty", "malformed", "leak", "no choices", "403", "")
    with JudgeServer(first(*faults), retry_after=0.5) as server:
        seen: list[Any] = []
        for _ in faults:
            try:
                seen.append(post(server, path, {"model": "m", "text": ASKED}))
            except HTTPException as error:
                seen.append(error)
    assert seen[0][:2] == (429, seen[0][1] | {"Retry-After": "0.5"})
    assert seen[1][0] == 500
    assert isinstance(seen[2], RemoteDisconnected)
    assert isinstance(seen[3], HTTPException)
    assert (seen[4][0], seen[4][2]) == (200, b"")
    with pytest.raises(ValueError, match="Unterminated"):
        json.loads(seen[5][2])
    assert b"Bearer g" in seen[6][2]
    reply = json.loads(seen[7][2])
    assert (seen[7][0], reply["choices"], reply["candidates"]) == (200, [], [])
    assert (seen[8][0], b"blocked" in seen[8][2]) == (403, True)
    assert f"SCORE-0123abcd: {true_score(7)}" in json.loads(seen[9][2]).__str__()
    assert [s.fault for s in server.seen] == list(faults)


def test_a_stall_ends_with_the_server() -> None:
    with JudgeServer(always("stall"), stall=0.01) as server, pytest.raises(RemoteDisconnected):
        post(server, "/v1/chat/completions", {"text": ASKED})


def test_a_seeded_plan_is_the_same_again_and_has_its_share() -> None:
    plan, again = seeded(3, 0.3), seeded(3, 0.3)
    drawn = [plan(item, attempt) for item in range(1000) for attempt in (1, 2)]
    assert drawn == [again(item, attempt) for item in range(1000) for attempt in (1, 2)]
    assert 0.27 < sum(map(bool, drawn)) / len(drawn) < 0.33
    assert set(drawn) == {"", *TRANSIENT, *FINAL}
    assert no_faults(1, 1) == ""
