"""A judge on the loopback that speaks OpenAI's and Gemini's wire formats, and answers wrongly as real ones do.

It reads the item's number from the prompt ("item 17: ...") and the mark from the fences, so its true score is known:
`true_score`. Which request meets which fault is decided by a plan, a function of the item and the attempt.
"""

from __future__ import annotations

import json
import random
import re
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

Plan = Callable[[int, int], str]
"""What happens to an item's n-th request (from 1): "" or a fault."""

TRANSIENT = ("429", "500", "503", "stall", "drop", "cut", "empty", "malformed", "wrong shape", "no choices", "leak")
"""Faults after which the client should ask again; "leak" is a 500 that repeats the request's own headers."""
FINAL = ("seven", "silent", "several", "half", "injected", "filter", "declines", "400", "403")
"""Faults that leave an item without a score."""

QUOTA = "You exceeded your current quota, please check your plan and billing details."
"""What the fault "quota" says."""


def no_faults(item: int, attempt: int) -> str:
    return ""


def always(fault: str) -> Plan:
    return lambda item, attempt: fault


def first(*faults: str) -> Plan:
    """These faults in the first attempts of every item, and none after."""
    return lambda item, attempt: faults[attempt - 1] if attempt <= len(faults) else ""


def seeded(seed: int, share: float, kinds: Sequence[str] = TRANSIENT + FINAL) -> Plan:
    """A random fault in this share of the requests, the same for the same seed, item and attempt."""

    def plan(item: int, attempt: int) -> str:
        draw = random.Random(f"{seed}:{item}:{attempt}")
        return draw.choice(kinds) if draw.random() < share else ""

    return plan


def true_score(item: int) -> int:
    return 1 + item % 5


@dataclass(frozen=True)
class Seen:
    """One request: whose item, which attempt at it, and which fault it met."""

    item: int
    attempt: int
    fault: str
    path: str
    headers: dict[str, str] = field(repr=False)
    body: dict[str, Any] = field(repr=False)


class JudgeServer:
    """The server, a context manager; `seen` holds every request in the order of arrival."""

    def __init__(
        self, plan: Plan = no_faults, retry_after: float = 0.02, stall: float = 20.0, quota: str = QUOTA
    ) -> None:
        self.plan, self.retry_after, self.stall, self.quota = plan, retry_after, stall, quota
        self.seen: list[Seen] = []
        self.arrived = threading.Condition()
        self.closing = threading.Event()

    def __enter__(self) -> Self:
        server = self

        class Handler(_Handler):
            judge = server

        self._http = _Http(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    @property
    def environment(self) -> dict[str, str]:
        """The variables that send both providers here."""
        address = f"http://127.0.0.1:{self._http.server_address[1]}"
        return {"OPENAI_BASE_URL": f"{address}/v1", "GOOGLE_BASE_URL": address}

    def counts(self) -> Counter[int]:
        """Requests by item."""
        with self.arrived:
            return Counter(seen.item for seen in self.seen)

    def wait_for(self, requests: int, timeout: float) -> bool:
        """Wait until so many requests have arrived in all; False after `timeout` seconds."""
        with self.arrived:
            return self.arrived.wait_for(lambda: len(self.seen) >= requests, timeout)

    def take(self, path: str, headers: dict[str, str], body: dict[str, Any], item: int) -> Seen:
        with self.arrived:
            attempt = 1 + sum(seen.item == item for seen in self.seen)
            seen = Seen(item, attempt, self.plan(item, attempt), path, headers, body)
            self.seen.append(seen)
            self.arrived.notify_all()
        return seen


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # more than asks at once, or the kernel resets connections on a busy machine


class _Handler(BaseHTTPRequestHandler):
    judge: JudgeServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = json.dumps(body)
        item = int(found[1]) if (found := re.search(r"item (\d+)\b", text)) else -1
        mark = found[1] if (found := re.search(r"SCORE-([0-9a-f]{8}):", text)) else ""
        seen = self.judge.take(self.path, {k.lower(): v for k, v in self.headers.items()}, body, item)
        if seen.fault in (*TRANSIENT, "400", "401", "403", "404", "quota", "later"):
            self._fail(seen)
        else:
            self._answer(seen, mark)

    # ---- faults of the transport

    def _fail(self, seen: Seen) -> None:
        match seen.fault:
            case "429":
                self._error(429, "Rate limit reached", {"Retry-After": f"{self.judge.retry_after}"})
            case "later":
                self._error(429, "Rate limit reached", {"Retry-After": "86400"})
            case "quota":
                self._error(429, self.judge.quota)
            case "400":
                self._error(400, "this item is not acceptable")
            case "403":
                self._send(403, b"<html>blocked on its way</html>", {"Content-Type": "text/html"})
            case "401":
                self._error(401, f"Incorrect API key provided: {self._key(seen)}")
            case "404":
                self._error(404, "The model does not exist")
            case "500" | "503":
                self._error(int(seen.fault), "the server had an error")
            case "leak":
                self._error(500, f"cannot handle Authorization: Bearer {self._key(seen)}, ?key={self._key(seen)}")
            case "stall":
                self.judge.closing.wait(self.judge.stall)
                self.close_connection = True
            case "drop":
                self.close_connection = True
            case "cut":
                self._send(200, b'{"choices": [', {}, pretend=400)
                self.close_connection = True
            case "empty":
                self._send(200, b"", {})
            case "malformed":
                self._send(200, b'{"choices": [{"message": {"content": "SCORE', {})
            case "wrong shape":
                self._send(200, b'{"choices": null, "candidates": 7, "output": null}', {})
            case "no choices":
                empty: dict[str, Any] = {"choices": [], "candidates": [], "output": []}
                self._send(200, json.dumps(self._reply("", seen) | empty).encode(), {})
            case other:
                raise ValueError(other)

    def _key(self, seen: Seen) -> str:
        return seen.headers.get("x-goog-api-key") or seen.headers.get("authorization", "").removeprefix("Bearer ")

    def _error(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        error = {"message": message, "code": status if self._gemini else "error", "type": "error", "status": "ERROR"}
        self._send(status, json.dumps({"error": error}).encode(), headers or {})

    @property
    def _gemini(self) -> bool:
        return ":generateContent" in self.path

    def _send(self, status: int, content: bytes, headers: dict[str, str], pretend: int | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(pretend or len(content)))
        self.end_headers()
        self.wfile.write(content)

    # ---- answers

    def _answer(self, seen: Seen, mark: str) -> None:
        line = f"SCORE-{mark}: {true_score(seen.item)}"
        text = {
            "seven": f"Terrible.\nSCORE-{mark}: 7",
            "silent": "",
            "several": f"{line}\nOr rather:\n{line}",
            "half": f"In between.\nSCORE-{mark}: 2.5",
            "injected": "As the text demands, I give this a 1.\nSCORE: 1",
            "declines": "I'm sorry, but I can't assist with that.",
            "filter": "",
            "echoes key": f"Your key is {self._key(seen)}.\n{line}",
        }.get(seen.fault, f"It is as harmful as it is.\n\n{line}")
        self._send(200, json.dumps(self._reply(text, seen)).encode(), {})

    def _reply(self, text: str, seen: Seen) -> dict[str, Any]:
        if self._gemini:
            return _gemini(text, seen.fault == "filter")
        if seen.path.endswith("/responses"):
            return _responses(text, seen.body["model"])
        return _completion(text, seen.body["model"], seen.fault == "filter")


def _completion(text: str, model: str, filtered: bool) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, "refusal": None}
    return {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": "content_filter" if filtered else "stop"}],
        "usage": {"prompt_tokens": 30, "completion_tokens": 12, "total_tokens": 42},
    }  # fmt: skip


def _responses(text: str, model: str) -> dict[str, Any]:
    content = {"type": "output_text", "text": text, "annotations": []}
    return {
        "id": "resp_1", "object": "response", "created_at": 1, "status": "completed", "model": model, "error": None,
        "incomplete_details": None, "instructions": None, "metadata": {}, "parallel_tool_calls": True,
        "temperature": 1.0, "tool_choice": "auto", "tools": [], "top_p": 1.0,
        "output": [
            {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": [content]}
        ],
        "usage": {
            "input_tokens": 30, "output_tokens": 12, "total_tokens": 42,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 0},
        },
    }  # fmt: skip


def _gemini(text: str, filtered: bool) -> dict[str, Any]:
    candidate: dict[str, Any] = {"index": 0, "finishReason": "SAFETY" if filtered else "STOP"}
    if not filtered:
        candidate["content"] = {"role": "model", "parts": [{"text": text}]}
    usage = {"promptTokenCount": 30, "candidatesTokenCount": 12, "totalTokenCount": 42}
    return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "gemini-fake"}
