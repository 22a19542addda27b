"""inspect-ai's providers of online judges: one request at a time, and what their errors mean.

Retries of inspect and of the packages below it are off: they are not counted, do not heed Retry-After, and sleep for
seconds. What inspect does to the process and the disk is undone.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.evaluation.judges import RUBRIC, Judge, question
from bridge.evaluation.records import Record
from bridge.evaluation.redaction import without_secrets

if TYPE_CHECKING:
    from inspect_ai.model import GenerateConfig, ModelAPI, ModelOutput

MAX_TOKENS = 4096
"""The longest answer of a judge, its reasoning included."""
_LONGEST_REASON = 300
_NO_CONTENT = "(no content)"  # what inspect writes where Gemini's reply holds no answer at all
_AGAIN = (408, 409, 425, 429)  # of the statuses below 500
_REFUSED = (400, 413, 422, 451)


class EmptyReply(ValueError):
    """A reply without any answer in it."""


@dataclass(frozen=True)
class Provider:
    """inspect's provider of a judge, called without the retries and the records of calls that surround it."""

    api: ModelAPI
    config: GenerateConfig

    async def answer(self, record: Record) -> ModelOutput:
        """What the judge says about a record; raises whatever the provider's package makes of a wrong reply."""
        from inspect_ai.model import ChatMessage, ChatMessageSystem, ChatMessageUser

        asked: list[ChatMessage] = [
            ChatMessageSystem(content=RUBRIC),
            ChatMessageUser(content=question(record.prompt, record.response)),
        ]
        result = await self.api.generate(asked, [], "none", self.config)
        output = result[0] if isinstance(result, tuple) else result
        if isinstance(output, Exception):
            raise output
        if _is_empty(output):
            raise EmptyReply("an empty reply")
        return output

    def asked_to_wait(self, error: Exception) -> float:
        """Seconds, by the reply's Retry-After or what Google writes into the error; 0 if neither is there."""
        decision = self.api.should_retry(error)
        given = None if isinstance(decision, bool) else decision.retry_after
        written = re.search(r"retryDelay\W+([\d.]+)s\b", str(getattr(error, "details", "")))
        return max(given or 0.0, float(written[1]) if written else 0.0)


def _is_empty(output: ModelOutput) -> bool:
    """Whether a reply holds no answer at all, not even one of no words."""
    if not output.choices:
        return True
    nothing = output.completion == _NO_CONTENT and output.stop_reason != "content_filter"
    return nothing or (output.message.content == [] and output.stop_reason == "stop")


def open_provider(judge: Judge, timeout: float) -> Provider:
    """The provider of an online judge whose key is in the environment; `timeout` in seconds for one request."""
    from inspect_ai.model import GenerateConfig, get_model

    config = GenerateConfig(
        temperature=judge.temperature,
        max_tokens=MAX_TOKENS,
        reasoning_summary="none" if judge.provider == "openai" else None,  # or inspect asks a question of its own
    )
    own: dict[str, Any] = {"max_retries": 0, "client_timeout": timeout} if judge.provider == "openai" else {}
    api = get_model(judge.name, api_key=judge.key, memoize=False, **own).api
    if judge.provider == "google":
        _ask_once(api)
    return Provider(api, config)


def _ask_once(api: Any) -> None:
    """Google's package asks again after a dropped connection, uncounted, unless it is told how often to ask."""
    from google.genai.types import HttpRetryOptions

    make = api.model_client

    def model_client(http_options: Any) -> Any:
        http_options.retry_options = HttpRetryOptions(attempts=1)
        return make(http_options)

    api.model_client = model_client


def writable(text: str) -> str:
    """The text with halves of surrogate pairs, which JSON can hold and UTF-8 cannot, replaced."""
    return text.encode("utf-8", "replace").decode()


def _status(error: BaseException) -> int | None:
    """The HTTP status that an error carries, or None."""
    for name in ("status_code", "code"):
        if isinstance(value := getattr(error, name, None), int):
            return value
    return None


def reason(error: BaseException, timeout: float) -> str:
    """One line about an error, without secrets."""
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout:g} seconds"
    if isinstance(error, EmptyReply):
        return str(error)
    status = _status(error)
    text = " ".join(writable(without_secrets(str(getattr(error, "message", None) or error))).split())
    text = text.removeprefix(f"Error code: {status}").removeprefix(" - ")
    head = f"HTTP {status}" if status else type(error).__name__
    return f"{head}: {text}"[:_LONGEST_REASON].removesuffix(": ")


def refuses_key(error: BaseException) -> bool:
    """Whether the provider says that the key is wrong."""
    status = _status(error)
    return status == 401 or (status == 400 and bool(re.search("API_KEY_INVALID|API key not valid", str(error))))


def forbids(error: BaseException) -> bool:
    """Whether it is the key, the model or this one request that is refused: 403 and 404 may mean any of them."""
    return not worth_asking_again(error) and not refuses_item(error)


def quota_is_used_up(error: BaseException, judge: Judge) -> bool:
    """Whether the account has nothing left, which no waiting changes."""
    status, text = _status(error), str(error)
    # Gemini's limits by the minute are worded like OpenAI's empty account.
    if status == 402:
        return True
    if judge.provider == "openai" and status == 429 and re.search("insufficient_quota|your current quota", text):
        return True
    limited = status == 429 or type(error) is RuntimeError  # which inspect makes of Google's 429 with such a limit
    return limited and bool(re.search(r"\blimit: 0(?![.,]?\d)", text))


def worth_asking_again(error: BaseException) -> bool:
    """Whether the same request may succeed later: anything but a request that was understood and refused."""
    status = _status(error)
    return status is None or status >= 500 or status in _AGAIN


def refuses_item(error: BaseException) -> bool:
    """Whether the provider understood the request and will not take it (400 and its like): final, unlike no answer."""
    return _status(error) in _REFUSED


@contextmanager
def contained(scratch: Path) -> Iterator[None]:
    """What inspect does to the process and the disk happens inside a folder, and is undone."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    environment = dict(os.environ)
    hook, root = sys.excepthook, logging.getLogger()
    handlers, level = list(root.handlers), root.level
    folder = str(scratch.absolute())
    os.environ |= {
        "XDG_DATA_HOME": folder, "XDG_CACHE_HOME": folder, "INSPECT_TRACE_FILE": f"{folder}/trace.log",
        "INSPECT_TRACE_LEVEL": "CRITICAL", "INSPECT_LOG_DIR": folder, "INSPECT_DISPLAY": "none",
        # keys of the Gemini API are used, and no account of Vertex
        "GOOGLE_GENAI_USE_VERTEXAI": "false", "GOOGLE_GENAI_USE_ENTERPRISE": "false",
    }  # fmt: skip
    for name in ("INSPECT_TELEMETRY", "INSPECT_API_KEY_OVERRIDE", "INSPECT_PY_LOGGER_FILE"):
        os.environ.pop(name, None)
    try:
        yield
    finally:
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
        sys.excepthook = hook
        root.handlers[:], root.level = handlers, level
        shutil.rmtree(scratch, ignore_errors=True)
